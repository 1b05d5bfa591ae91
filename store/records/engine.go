package records

import (
	"context"
	"errors"
	"time"
)

// Table is a table of an engine.
type Table string

// The tables. The parts of a key are joined by NUL, as envelope.Key does.
const (
	// Registrations: issuer, client_id -> registry.Registration in an envelope.
	Registrations Table = "registrations"
	// KeySets: jwks_uri -> registry.KeySet in an envelope.
	KeySets Table = "keysets"
	// Rings: issuer, algorithm -> keyring.Ring in an envelope.
	Rings Table = "rings"
	// URIs: jwks_uri, issuer, client_id -> an empty value, one row for each live
	// registration with a jwks_uri, and for each that waits. What it says is only believed where a
	// registration confirms it, or where it does not matter.
	URIs Table = "uris"
	// Waiting: when it takes effect, issuer, client_id -> the revision of the
	// registration in decimal, one row for each change that waits or is not
	// settled. As with URIs, a registration tells whether it is so.
	Waiting Table = "waiting"
	// DataKeys: id -> a data key, authenticated by its wrapping.
	DataKeys Table = "datakeys"
)

// Tables are all tables, in the order in which they are written down.
func Tables() []Table { return []Table{Registrations, KeySets, Rings, URIs, Waiting, DataKeys} }

// Announced reports whether the rows of t are what other processes have to
// hear of when they change.
func (t Table) Announced() bool { return t == Registrations || t == KeySets || t == Rings }

// Engine keeps rows. All methods may be called concurrently. Errors of the
// function that is given to one pass through it unchanged; its own say what an
// operator can do, and need no sentinel: what is neither the function's nor the
// context's is taken for a store that is unavailable.
type Engine interface {
	// View runs fn for reading. What one call on the Tx returns was so at one
	// moment; between two calls others may write, unless the engine says more.
	// fn may be run again if the connection is lost.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn for reading and writing, one after the other with all other
	// Updates of all processes, and makes what it wrote durable and visible, all
	// or nothing. An error of fn undoes it. fn is run at most once, and is short:
	// it does no I/O but that of its Tx. If the outcome is not known, as when the
	// connection is lost at the end, that is an error.
	Update(ctx context.Context, fn func(Tx) error) error

	// Check reads something real and cheap, and finds out whether the store is
	// still the one that was opened.
	Check(ctx context.Context) error

	// Close waits for the calls under way. Afterwards every call fails.
	Close() error
}

// Tx is what a transaction can do. It is for one goroutine, and not used after
// its function has returned. Returned bytes belong to the caller, and given ones
// are not kept.
type Tx interface {
	// Get returns the value of a row, nil if there is none. An empty value is
	// not nil. In Update, the row stays as it was returned until the end, but for
	// what fn does to it: PutClaimed waits.
	Get(t Table, key []byte) ([]byte, error)

	// GetAll returns what Get returns for each of some keys, in their order, and
	// asks the database once: who asks in Update keeps the others waiting. At most
	// BatchRows keys.
	GetAll(t Table, keys [][]byte) ([][]byte, error)

	// Scan returns rows from seek on whose keys begin with prefix, in byte order,
	// at most limit of them and not many more bytes than BatchBytes. more is
	// false if they are the last.
	Scan(t Table, prefix, seek []byte, limit int) (rows []Row, more bool, err error)

	// Put writes a row over what was there. In Update only. A Put of a key set
	// ends its lease.
	Put(t Table, key, value []byte) error

	// Delete removes a row; it is no error if there is none. In Update only.
	Delete(t Table, key []byte) error
}

// Row is a row of a table.
type Row struct{ Key, Value []byte }

// Bounds of what is read in one call of Scan, and written in one Update.
const (
	BatchRows  = 256
	BatchBytes = 1 << 20
)

// MaxLease is for how long a lease is given at most: as long as a holder that
// died keeps the others from a fetch.
const MaxLease = time.Minute

// Shared is what an engine can do besides whose rows several processes share.
type Shared interface {
	Engine

	// Follow tells f of every row that is announced, written by any process, this
	// one among them, from the moment of the call on, until ctx ends; it returns
	// nil then. It is called once.
	Follow(ctx context.Context, f Follower) error

	// Current is when all that was acknowledged before had been told to the
	// Follower; zero if that was never so. It does not wait.
	Current() time.Time

	// Claim gives a lease on a key set to one who asks, for d from now on by the
	// clock of the engine, if nobody has one. d is at most MaxLease, and a lease
	// that pretends to last for longer than that from now is none; one that lasts
	// for longer than d is: processes need not agree on d.
	Claim(ctx context.Context, key []byte, d time.Duration) (Claim, error)

	// PutClaimed writes the value of a key set, alone and without the order among
	// Updates, and ends the lease. Its error is ErrLeaseLost if lease is not the
	// one in force any more, and ErrGuard if guard is not as it was; guard stays so
	// until the value can be seen. announce says whether followers are told.
	PutClaimed(ctx context.Context, key, value []byte, lease string, guard Guard, announce bool) error

	// Release ends a lease, if it is still in force.
	Release(ctx context.Context, key []byte, lease string) error
}

// Follower is told of what was written.
type Follower interface {
	// Changed: the row was written, at least once, since it was last told of.
	Changed(t Table, key []byte)
	// Reset: what was written cannot be told row by row, as the store was put
	// back to an earlier state. Whatever is known of it may be wrong.
	Reset()
}

// Claim is the answer to one who asked for a lease.
type Claim struct {
	// Lease names the lease; it is empty if another has it, or if Unnamed.
	Lease string
	// Until is when the lease ends, of whoever has it, by the clock of this
	// process.
	Until time.Time
	// Unnamed says that no row of URIs names the key, so that there is nothing
	// to have a lease on.
	Unnamed bool
	// Value is the value of the key set at the moment of the answer, nil for none.
	Value []byte
}

// Guard is a row that has to be as it was read for a write to happen.
type Guard struct {
	Table      Table
	Key, Value []byte
}

var (
	// ErrLeaseLost: another has taken the lease over, or the key set was written
	// without it. Read the key set again.
	ErrLeaseLost = errors.New("the lease on the key set is lost")

	// ErrGuard: the row that guards a write has changed.
	ErrGuard = errors.New("the row that guards the write has changed")
)
