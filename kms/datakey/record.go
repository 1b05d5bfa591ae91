package datakey

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Errors of a Store. Stores wrap them; callers match with errors.Is. A store
// that cannot be read or written answers ErrUnavailable.
var (
	// ErrExists: there is a record of that id already. Somebody was faster.
	ErrExists = errors.New("data key exists already")

	// ErrNotFound: there is no record of that id.
	ErrNotFound = errors.New("no such data key")

	// ErrInUse: the data key may not go yet. Something stored still needs it:
	// seal everything anew under the current key first. Or it does not open,
	// and something stored names it: make it open first. Or it is the current
	// key: replace it first.
	ErrInUse = errors.New("data key is in use")
)

// Limits of what is read from a store.
const (
	maxRecords = 64      // data keys of a store that one is chosen from
	maxMade    = 32      // data keys of a store to which no more are added
	maxWrapped = 8 << 10 // bytes of a wrapped key
)

// Record is what is stored of a data key. Its id and time are bound into the
// wrapping, so that a record whose wrapping opens is as it was made.
type Record struct {
	// ID is "dk-" and the key's number, from 1.
	ID string `json:"id"`
	// Wrapped is the data key as the backend has wrapped it.
	Wrapped []byte `json:"wrapped"`
	// WrappedBy is the location of the wrapping key.
	WrappedBy string `json:"wrapped_by"`
	// CreatedAt is when the key was made, in UTC and whole microseconds.
	CreatedAt time.Time `json:"created_at"`
}

// Store keeps the records of data keys. They need no protection but their
// wrapping. What a write has acknowledged survives the death of the process.
// All methods may be called concurrently; errors are those of this file,
// ErrUnavailable, or the context's.
type Store interface {
	// DataKeys returns all records, in any order. Of one that cannot be read it
	// returns the id alone: nothing opens, but the id is taken.
	DataKeys(ctx context.Context) ([]Record, error)

	// AddDataKey writes r if there is no record of its id, and answers
	// ErrExists otherwise.
	AddDataKey(ctx context.Context, r Record) error

	// RetireDataKey deletes a record that nothing stored needs any more:
	// neither a MAC nor a sealed secret names it. Otherwise it changes nothing
	// and answers ErrInUse, with the name of what needs it, or ErrNotFound if
	// there is no such record. It holds against everything that is being
	// written at the same time.
	//
	// What fails its authentication under a key that opens does not count:
	// nothing is lost with it. What is under a key that does not open counts,
	// for another configuration or a backup may open that key.
	RetireDataKey(ctx context.Context, id string) error
}

const idPrefix = "dk-"

func makeID(number uint64) string { return idPrefix + strconv.FormatUint(number, 10) }

// parseID returns the number of an id, if it is one that makeID makes.
func parseID(id string) (uint64, bool) {
	digits, ok := strings.CutPrefix(id, idPrefix)
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, ok && err == nil && number > 0 && makeID(number) == id
}

// aad binds what must not be changed about a data key into its wrapping.
func (r *Record) aad() []byte {
	return []byte("bulla data key v1\x00" + r.ID + "\x00" + strconv.FormatInt(r.CreatedAt.UnixMicro(), 10))
}

func (r *Record) equal(o *Record) bool {
	return r.ID == o.ID && r.WrappedBy == o.WrappedBy && r.CreatedAt.Equal(o.CreatedAt) && bytes.Equal(r.Wrapped, o.Wrapped)
}
