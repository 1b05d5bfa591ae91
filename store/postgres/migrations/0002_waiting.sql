-- minimum: 1
--
-- Which registrations hold a change that waits, by the time at which it takes
-- effect. A version that does not know of it goes on with what is in force
-- until the change is settled.
CREATE TABLE waiting (
	key    bytea PRIMARY KEY,
	value  bytea NOT NULL
);
