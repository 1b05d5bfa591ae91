package datakey

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
)

const (
	// refresh is how long the current key is used before the store is looked
	// at again, for what other replicas have replaced.
	refresh = time.Minute

	// patience is how long a failure stands before the next try.
	patience = time.Second

	// loadTimeout bounds one look at the store and the backend, since others
	// may wait for it to end.
	loadTimeout = 10 * time.Second

	// maxFailures bounds the memory of failures; ids are what a store claims.
	maxFailures = 256
)

// snapshot is the keys that are open. It is never changed.
type snapshot struct {
	keys    map[string]*key
	current *key      // nil if none is known
	readAt  time.Time // when current was last held against the store
}

// failure is what came of the last try to get a key; the zero value is none.
type failure struct {
	at  time.Time
	err error
}

// locked runs fn as the only one that reads the store or asks a backend. It is
// given up when ctx ends.
func (k *Keys) locked(ctx context.Context, fn func(ctx context.Context) error) error {
	select {
	case <-k.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { k.turn <- struct{}{} }()
	bounded, cancel := context.WithTimeoutCause(ctx, loadTimeout, errSlow)
	defer cancel()
	err := fn(bounded)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // it says nothing of the store or a backend
	}
	return err
}

// errSlow ends a look that takes too long for those who wait behind it.
var errSlow = errors.New("no answer in time")

// retried runs look unless the same look has failed just now: last is how it
// ended, and so is the failure that is returned.
func retried(ctx context.Context, last failure, look func() (*key, error)) (*key, failure, error) {
	if last.err != nil && time.Since(last.at) < patience {
		return nil, last, last.err
	}
	found, err := look()
	if err == nil {
		return found, failure{}, nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errSlow) {
		return nil, last, err // its caller left; the next one shall try
	}
	return nil, failure{time.Now(), err}, err
}

// load opens the key of an id.
func (k *Keys) load(ctx context.Context, id string) (found *key, err error) {
	err = k.locked(ctx, func(ctx context.Context) error {
		if found = k.known.Load().keys[id]; found != nil {
			return nil
		}
		var last failure
		found, last, err = retried(ctx, k.failures[id], func() (*key, error) {
			// However many there are, what is stored can be read.
			records, err := k.records(ctx)
			if err != nil {
				return nil, err
			}
			i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
			if i < 0 {
				return nil, fmt.Errorf("%w: the store has no data key %.40q", ErrTampered, id)
			}
			return k.open(ctx, records[i])
		})
		k.noteFailure(id, last)
		if err == nil {
			k.remember(found)
		}
		return err
	})
	return found, err
}

func (k *Keys) noteFailure(id string, last failure) {
	if last.err == nil {
		delete(k.failures, id)
		return
	}
	if len(k.failures) >= maxFailures {
		clear(k.failures)
	}
	k.failures[id] = last
}

// loadCurrent finds the current key, or makes it.
func (k *Keys) loadCurrent(ctx context.Context) (*key, error) {
	began := time.Now()
	var found *key
	err := k.locked(ctx, func(ctx context.Context) (err error) {
		if s := k.known.Load(); s.current != nil && !s.readAt.Before(began) {
			found = s.current // another has looked while this one waited
			return nil
		}
		found, k.failing, err = retried(ctx, k.failing, func() (*key, error) { return k.newest(ctx, 0) })
		return err
	})
	return found, err
}

// Reload looks at the store for what others have replaced. Errors are those of
// Seal.
func (k *Keys) Reload(ctx context.Context) error {
	return k.locked(ctx, func(ctx context.Context) error {
		_, err := k.newest(ctx, 0)
		return err
	})
}

// newest finds the current key in the store, or makes one if there is none with
// a number above the given. For the holder of turn.
func (k *Keys) newest(ctx context.Context, above uint64) (*key, error) {
	// Each round that is lost, another replica has won.
	for range 5 {
		at := time.Now()
		records, found, err := k.look(ctx)
		if err != nil {
			return nil, err
		}
		if found != nil && found.number > above {
			return found, nil
		}
		made, err := k.make(ctx, records, found)
		if errors.Is(err, ErrExists) {
			continue
		}
		if err != nil {
			return nil, err
		}
		k.adopt(append(records, made.record), made, at)
		return made, nil
	}
	return nil, fmt.Errorf("%w: others make data keys at the same time; try again", ErrUnavailable)
}

// look reads the store and finds the current key in it, nil if there is none.
// It makes none. If the current key cannot be had, records are there beside the
// error. For the holder of turn.
func (k *Keys) look(ctx context.Context) (records []Record, current *key, err error) {
	at := time.Now()
	records, err = k.records(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(records) > maxRecords {
		return nil, nil, fmt.Errorf("%w: the store has %d data keys, and a service never makes more than %d: somebody has written to it; look who, and restore it from a backup", ErrUnavailable, len(records), maxMade)
	}
	current, err = k.highest(ctx, records)
	if err != nil {
		return records, nil, err
	}
	if current != nil {
		k.adopt(records, current, at)
	}
	return records, current, nil
}

// highest is the key with the highest number of the configured wrapping key,
// nil if there is none. It is never lower than the one in use.
func (k *Keys) highest(ctx context.Context, records []Record) (*key, error) {
	inUse := k.known.Load().current
	type candidate struct {
		Record
		number uint64
	}
	var candidates []candidate
	for _, r := range records {
		number, ok := parseID(r.ID)
		if !ok {
			k.alarm(r.ID, notOurs)
		}
		if r.WrappedBy == k.cfg.Location && ok && (inUse == nil || number > inUse.number) {
			candidates = append(candidates, candidate{r, number})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.number, a.number) })
	for _, c := range candidates {
		found, err := k.open(ctx, c.Record)
		switch {
		case err == nil:
			return found, nil
		case !errors.Is(err, ErrTampered):
			// It may be the current one. To take an older one instead would
			// let a backend that is down undo a replacement.
			return nil, err
		}
	}
	return inUse, nil
}

// make makes a new data key, with a number above that of the current one, and
// stores it. Its error is ErrExists if another was faster.
func (k *Keys) make(ctx context.Context, records []Record, current *key) (*key, error) {
	if len(records) >= maxMade {
		return nil, fmt.Errorf("%w: the store has %d data keys already, and no more are made: run `bulla datakey replace` with every wrapping key that they name in the configuration; it removes those that nothing needs", ErrUnavailable, len(records))
	}
	number := uint64(1)
	if current != nil {
		number = current.number + 1
	}
	// Numbers are also taken by keys of other wrapping keys, and by records
	// that somebody has put there.
	for slices.ContainsFunc(records, func(r Record) bool { return r.ID == makeID(number) }) {
		number++
	}
	r := Record{ID: makeID(number), WrappedBy: k.cfg.Location, CreatedAt: time.Now().UTC().Truncate(time.Microsecond)}
	secret := make([]byte, size)
	rand.Read(secret) // never fails

	wrapper, err := k.wrapper(ctx, r.WrappedBy)
	if err != nil {
		return nil, err
	}
	if r.Wrapped, err = wrapper.Wrap(ctx, secret, r.aad()); err != nil {
		delete(k.wrappers, r.WrappedBy)
		return nil, fmt.Errorf("%w: a new data key cannot be wrapped by %s: %w", ErrUnavailable, r.WrappedBy, err)
	}
	// Everything will hang on this key: it must come back.
	again, err := wrapper.Unwrap(ctx, r.Wrapped, r.aad())
	if err != nil || subtle.ConstantTimeCompare(again, secret) != 1 || len(r.Wrapped) > maxWrapped {
		delete(k.wrappers, r.WrappedBy)
		return nil, fmt.Errorf("%w: %s does not unwrap what it has wrapped (%w); look at that key and its backend", ErrUnavailable, r.WrappedBy, cmp.Or(err, errNotSame))
	}
	made, err := newKey(r, number, secret)
	clear(secret)
	clear(again)
	if err != nil {
		return nil, err
	}
	if err := k.cfg.Store.AddDataKey(ctx, r); err != nil {
		if errors.Is(err, ErrExists) {
			return nil, err
		}
		return nil, unavailable("write the data keys to the store", err)
	}
	if current == nil {
		k.log.Info("data key made", "data_key", r.ID, "wrapped_by", r.WrappedBy)
	} else {
		k.log.Info("data key replaced", "data_key", r.ID, "wrapped_by", r.WrappedBy, "before", current.id)
	}
	return made, nil
}

var errNotSame = errors.New("other bytes came back")

// records reads the records from the store.
func (k *Keys) records(ctx context.Context) ([]Record, error) {
	records, err := k.cfg.Store.DataKeys(ctx)
	if err != nil {
		return nil, unavailable("read the data keys from the store", err)
	}
	return records, nil
}

func unavailable(what string, err error) error {
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
}

// open unwraps a record. ErrTampered means that it never will open.
func (k *Keys) open(ctx context.Context, r Record) (*key, error) {
	if held := k.known.Load().keys[r.ID]; held != nil {
		return held, nil
	}
	number, ok := parseID(r.ID)
	switch {
	case !ok, len(r.Wrapped) == 0, len(r.Wrapped) > maxWrapped:
		return nil, k.refuse(r, notOurs)
	case r.WrappedBy != k.cfg.Location && !slices.Contains(k.cfg.Former, r.WrappedBy):
		return nil, k.refuse(r, fmt.Sprintf("is said to be wrapped by %.100q, which the configuration does not name; if that was the wrapping key before, name it as a former one", r.WrappedBy))
	case k.refused[r.ID] == refusal(&r):
		return nil, k.refuse(r, unwrapProblem)
	}
	wrapper, err := k.wrapper(ctx, r.WrappedBy)
	if err != nil {
		return nil, err
	}
	secret, err := wrapper.Unwrap(ctx, r.Wrapped, r.aad())
	switch {
	case errors.Is(err, kms.ErrUnwrap), err == nil && len(secret) != size:
		k.refused[r.ID] = refusal(&r)
		return nil, k.refuse(r, unwrapProblem)
	case err != nil:
		delete(k.wrappers, r.WrappedBy) // perhaps a new one works
		return nil, fmt.Errorf("%w: data key %s cannot be unwrapped by %s: %w", ErrUnavailable, r.ID, r.WrappedBy, err)
	}
	opened, err := newKey(r, number, secret)
	clear(secret)
	return opened, err
}

const notOurs = "is none of this service's"

const unwrapProblem = "does not unwrap: it was changed, or was not made by this service; restore it from a backup if records need it"

// refusal is what a record looked like when it was refused.
func refusal(r *Record) string {
	return r.WrappedBy + "\x00" + string(r.aad()) + "\x00" + string(r.Wrapped)
}

// refuse tells the log, once, and makes the error.
func (k *Keys) refuse(r Record, problem string) error {
	k.alarm(r.ID, problem)
	return fmt.Errorf("%w: data key %.40q %s", ErrTampered, r.ID, problem)
}

// alarm tells the log of a record, once for each id and problem.
func (k *Keys) alarm(id, problem string) {
	if len(k.alarmed) >= 4*maxRecords {
		clear(k.alarmed)
	}
	if what := id + problem; !k.alarmed[what] {
		k.alarmed[what] = true
		k.log.Error("stored data key refused", "data_key", fmt.Sprintf("%.40q", id), "problem", problem)
	}
}

// wrapper opens a wrapping key, if it is not open.
func (k *Keys) wrapper(ctx context.Context, location string) (kms.Wrapper, error) {
	if w := k.wrappers[location]; w != nil {
		return w, nil
	}
	w, err := k.cfg.Open(ctx, location)
	if err != nil {
		return nil, fmt.Errorf("%w: wrapping key %s: %w", ErrUnavailable, location, err)
	}
	k.wrappers[location] = w
	return w, nil
}

// remember adds an opened key to those of the warm path.
func (k *Keys) remember(opened *key) {
	next := *k.known.Load()
	next.keys = maps.Clone(next.keys)
	if next.keys == nil {
		next.keys = map[string]*key{}
	}
	next.keys[opened.id] = opened
	k.known.Store(&next)
}

// adopt makes current the current key, as of at, and lets go of the keys that
// are not in the store any more.
func (k *Keys) adopt(records []Record, current *key, at time.Time) {
	keys := map[string]*key{}
	for id, held := range k.known.Load().keys {
		i := slices.IndexFunc(records, func(r Record) bool { return r.ID == id })
		switch {
		case i >= 0 && !records[i].equal(&held.record):
			k.alarm(id, "was changed in the store while in use; this process goes on with the key it holds, and the next one will not open it: restore it from a backup")
		case i < 0 && id == current.id:
			k.alarm(id, "is the current one and is gone from the store; this process goes on reading with it, and the next one will not have it: restore it from a backup")
		case i < 0:
			k.log.Info("data key is retired", "data_key", id)
			continue
		}
		keys[id] = held
	}
	keys[current.id] = current
	k.known.Store(&snapshot{keys: keys, current: current, readAt: at})
}
