package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulla-project/bulla/store/postgres"
)

// clocksDiffer is from which difference on the clocks of this machine and of
// the database should be set. Leases and the age of what is known are counted by
// one of them, and the times of signing keys by all that the replicas have.
const clocksDiffer = time.Second

// database looks at PostgreSQL as the service would use it, and changes nothing
// there.
func (d *doctor) database(ctx context.Context) []finding {
	const subject = "store.postgres"
	f := finding{Check: "store", Subject: subject, Outcome: failed}
	use := storeUse{keys: dataKeysConfig(d.cfg, newWrappingKeys(d.cfg), nil)}
	cfg, err := postgresConfig(d.cfg, use)
	if err != nil {
		f.Detail, f.Advice = err.Error(), "see what is said above of the file"
		return []finding{f}
	}
	seen, err := postgres.Examine(ctx, cfg)
	if errors.Is(err, postgres.ErrDSN) {
		f.Detail, f.Advice = err.Error(), "correct the connection string; with this one the service does not start"
		return []finding{f}
	}
	if err != nil {
		f.Detail, f.Advice = err.Error(), "see to the database, to the network, and to what the connection string says; the service starts without it, and serves nothing until it is there"
		return []finding{f}
	}
	schema := d.schema(seen)
	if schema.Outcome != failed && seen.Problem == nil {
		if err := d.readStore(ctx); err != nil { // for the data keys
			schema = f
			schema.Detail, schema.Advice = err.Error(), "see what is said above of the database"
		}
	}
	return []finding{d.server(seen), d.rights(seen), d.clocks(seen), d.notices(seen), schema}
}

// server says what answers.
func (d *doctor) server(seen *postgres.Examination) finding {
	f := finding{Check: "store", Subject: "store.postgres", Outcome: good, Detail: fmt.Sprintf("PostgreSQL %s answers on this machine", seen.Server)}
	if seen.Encrypted {
		f.Detail = fmt.Sprintf("PostgreSQL %s answers, by TLS", seen.Server)
	}
	switch {
	case seen.Old:
		f.Outcome = failed
		f.Detail += "; it is older than this version of Bulla needs"
		f.Advice = "use PostgreSQL 14 or later"
	case seen.Standby:
		f.Outcome = failed
		f.Detail += "; but it is a standby, where nothing can be written"
		f.Advice = "name the primary: target_session_attrs=read-write in the connection string finds it among several hosts"
	}
	return f
}

// schema says whether the tables are those of this version.
func (d *doctor) schema(seen *postgres.Examination) finding {
	f := finding{Check: "store", Subject: "store.postgres.migrate", Outcome: good}
	may := d.cfg.Store.Postgres.Migrate && seen.MayMigrate
	behind := seen.Version < seen.Newest
	switch {
	case seen.Problem != nil && seen.Version == 0 && len(seen.Missing) > 0:
		f.Outcome, f.Detail, f.Advice = failed, seen.Problem.Error(), "see what is said of the rights"
	case seen.Problem != nil && !behind:
		f.Outcome, f.Detail, f.Advice = failed, seen.Problem.Error(), "run the version of Bulla that this schema is for, or a later one"
	case seen.Version == 0 && may:
		f.Detail = fmt.Sprintf("there is no schema yet; the service makes it, with version %d, when it starts", seen.Newest)
	case behind && may:
		f.Detail = fmt.Sprintf("the schema has version %d; the service migrates it to version %d when it starts", seen.Version, seen.Newest)
	case behind:
		f.Outcome, f.Detail = failed, fmt.Sprintf("the schema has version %d, and this version of Bulla needs %d", seen.Version, seen.Newest)
		f.Advice = `run "bulla migrate" with the connection string of a user who may create tables there`
	default:
		f.Detail = fmt.Sprintf("the schema has version %d, as it should", seen.Version)
	}
	return f
}

// rights says whether the service's user may do what the service does.
func (d *doctor) rights(seen *postgres.Examination) finding {
	f := finding{Check: "store", Subject: "store.postgres", Outcome: good, Detail: fmt.Sprintf("the user %s has the rights that the service needs", seen.User)}
	if len(seen.Missing) > 0 {
		f.Outcome = failed
		f.Detail = fmt.Sprintf("the user %s lacks rights: %s", seen.User, strings.Join(seen.Missing, ", "))
		f.Advice = fmt.Sprintf("as the owner of the tables run: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %s TO %s", seen.SchemaName, seen.User)
	}
	return f
}

// clocks compares the clock of the database with that of this machine.
func (d *doctor) clocks(seen *postgres.Examination) finding {
	f := finding{Check: "store", Subject: "store.postgres", Outcome: good, Detail: fmt.Sprintf("its clock and this machine's agree within %v", max(seen.Ahead.Abs()+seen.Give, time.Millisecond).Round(time.Millisecond))}
	if off := seen.Ahead.Abs(); off-seen.Give > clocksDiffer {
		way := "ahead of"
		if seen.Ahead < 0 {
			way = "behind"
		}
		f.Outcome = warned
		f.Detail = fmt.Sprintf("its clock is %v %s this machine's", roughly(off), way)
		f.Advice = "run NTP on both: keys change places by the clock, and replicas must not differ by more than a minute"
	}
	return f
}

// notices says whether changes would be heard of at once.
func (d *doctor) notices(seen *postgres.Examination) finding {
	f := finding{Check: "store", Subject: "store.postgres.dsn_file", Outcome: good, Detail: "LISTEN works: a notice came through"}
	if d.cfg.Store.Postgres.ListenDSNFile != "" {
		f.Subject = "store.postgres.listen_dsn_file"
	}
	switch {
	case seen.Listen == nil:
	case errors.Is(seen.Listen, postgres.ErrNoNotice):
		f.Outcome, f.Detail = warned, "LISTEN does not work: "+seen.Listen.Error()
		f.Advice = "name a connection string in store.postgres.listen_dsn_file that leads to this very database, and not through a pooler; without it this replica has to look for changes, a few times a second"
	default:
		f.Outcome, f.Detail = warned, "LISTEN does not work: "+seen.Listen.Error()
		f.Advice = "correct the connection string for LISTEN; without it this replica has to look for changes, a few times a second"
	}
	return f
}

// roughly is a time with as many digits as there is use for.
func roughly(d time.Duration) time.Duration {
	if d > 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(10 * time.Millisecond)
}
