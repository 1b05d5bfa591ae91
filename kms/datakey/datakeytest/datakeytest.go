// Package datakeytest has what tests need to have data keys without a backend
// and without a store: a wrapping key in memory, which can be down, and a
// store in memory, which can be looked into and changed.
package datakeytest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
)

// Location is where Config says its wrapping key is.
const Location = "test:wrap-1"

// Config returns the configuration of data keys that w wraps. Its Store is
// still to be set.
func Config(w *Wrapper) datakey.Config {
	return datakey.Config{
		Location: Location,
		Open: func(_ context.Context, location string) (kms.Wrapper, error) {
			if location != Location {
				return nil, fmt.Errorf("%w: %s", kms.ErrKeyNotFound, location)
			}
			return w, nil
		},
	}
}

// Wrapper is a kms.Wrapper: AES-256-GCM under a random key of its own. The zero
// value is not usable.
type Wrapper struct {
	aead cipher.AEAD
	down atomic.Bool

	mu    sync.Mutex
	seen  [][]byte // what was wrapped; guarded by mu
	calls int      // guarded by mu
	hook  func()   // guarded by mu
}

// NewWrapper makes a wrapping key.
func NewWrapper() *Wrapper {
	var key [32]byte
	rand.Read(key[:]) // never fails
	return NewWrapperOf(key)
}

// NewWrapperOf returns the wrapper of a key that processes can share.
func NewWrapperOf(key [32]byte) *Wrapper {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has the right block size
	}
	return &Wrapper{aead: aead}
}

// SetDown makes the wrapper answer kms.ErrUnavailable, or work again.
func (w *Wrapper) SetDown(down bool) { w.down.Store(down) }

// Before runs hook in the next call of Wrap or Unwrap, before it does anything.
func (w *Wrapper) Before(hook func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = hook
}

// Wrapped returns all that Wrap was ever given: what must be found nowhere.
func (w *Wrapper) Wrapped() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// Calls counts the calls of Wrap and Unwrap.
func (w *Wrapper) Calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// Wrap implements kms.Wrapper.
func (w *Wrapper) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := w.use(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.seen = append(w.seen, slices.Clone(plaintext))
	w.mu.Unlock()
	return w.aead.Seal(nil, nil, plaintext, aad), nil //nolint:gosec // the cipher draws the nonce
}

// Unwrap implements kms.Wrapper.
func (w *Wrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := w.use(ctx); err != nil {
		return nil, err
	}
	plaintext, err := w.aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, kms.ErrUnwrap
	}
	return plaintext, nil
}

func (w *Wrapper) use(ctx context.Context) error {
	w.mu.Lock()
	w.calls++
	hook := w.hook
	w.hook = nil
	w.mu.Unlock()
	if hook != nil {
		hook()
	}
	if w.down.Load() {
		return fmt.Errorf("%w: it was told so", kms.ErrUnavailable)
	}
	return ctx.Err()
}

// Store is a datakey.Store in memory. It does not know what names a key: that
// is for the test to say.
type Store struct {
	mu      sync.Mutex
	records map[string]datakey.Record // guarded by mu
	inUse   map[string]bool           // guarded by mu
	err     error                     // guarded by mu
	reads   int                       // guarded by mu
}

// NewStore makes an empty store.
func NewStore() *Store {
	return &Store{records: map[string]datakey.Record{}, inUse: map[string]bool{}}
}

// Fail makes every call answer err; nil makes them work again.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// SetInUse says whether something stored needs a key.
func (s *Store) SetInUse(id string, inUse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inUse[id] = inUse
}

// Tamper changes the records as whoever writes the store could.
func (s *Store) Tamper(change func(records map[string]datakey.Record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.records)
}

// Snapshot returns the records as they are, for Tamper to put back.
func (s *Store) Snapshot() map[string]datakey.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.records)
}

// Reads counts the calls of DataKeys.
func (s *Store) Reads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// DataKeys implements datakey.Store.
func (s *Store) DataKeys(ctx context.Context) ([]datakey.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.err != nil {
		return nil, s.err
	}
	return slices.Collect(maps.Values(s.records)), ctx.Err()
}

// AddDataKey implements datakey.Store.
func (s *Store) AddDataKey(_ context.Context, r datakey.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if _, ok := s.records[r.ID]; ok {
		return datakey.ErrExists
	}
	s.records[r.ID] = r
	return nil
}

// RetireDataKey implements datakey.Store.
func (s *Store) RetireDataKey(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if _, ok := s.records[id]; !ok {
		return datakey.ErrNotFound
	}
	if s.inUse[id] {
		return datakey.ErrInUse
	}
	delete(s.records, id)
	return nil
}

var (
	_ kms.Wrapper   = (*Wrapper)(nil)
	_ datakey.Store = (*Store)(nil)
)
