-- minimum: 1
--
-- The tables of the store. Keys and values are bytes: what they mean is known
-- to package records alone, and values are authenticated there.

-- One row: which schema this is, and the oldest version of it that a service
-- may know that uses it.
CREATE TABLE schema_version (
	one      boolean PRIMARY KEY DEFAULT true CHECK (one),
	version  integer NOT NULL,
	minimum  integer NOT NULL
);

-- One row: the number of the last change that others have to hear of. Whoever
-- writes locks it first, so that numbers come to be seen in their order.
CREATE TABLE feed (
	one     boolean PRIMARY KEY DEFAULT true CHECK (one),
	number  bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO feed (number) VALUES (0);

-- What each of the last numbers was given to. A follower that finds another
-- mark at the number it had come to knows that the store was put back to an
-- earlier state and has gone on from there.
CREATE TABLE feed_marks (
	number  bigint PRIMARY KEY,
	mark    uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO feed_marks (number) VALUES (0);

CREATE TABLE registrations (
	key     bytea PRIMARY KEY,
	value   bytea NOT NULL,
	change  bigint NOT NULL
);
CREATE INDEX registrations_change ON registrations (change);

-- A row without a value is there for its lease only.
CREATE TABLE keysets (
	key          bytea PRIMARY KEY,
	value        bytea,
	change       bigint NOT NULL DEFAULT 0,
	lease_id     text,
	lease_until  timestamptz
);
CREATE INDEX keysets_change ON keysets (change);

CREATE TABLE rings (
	key     bytea PRIMARY KEY,
	value   bytea NOT NULL,
	change  bigint NOT NULL
);
CREATE INDEX rings_change ON rings (change);

CREATE TABLE uris (
	key    bytea PRIMARY KEY,
	value  bytea NOT NULL
);

CREATE TABLE datakeys (
	key    bytea PRIMARY KEY,
	value  bytea NOT NULL
);
