package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// DefaultContentEncryption is the enc of a setting that names an alg and no enc
// (OpenID Connect Dynamic Client Registration 1.0, section 2).
const DefaultContentEncryption = "A128CBC-HS256"

// Change is what a request does to a registration.
type Change int

// The changes. Each needs a permission of its own, to be asked for after
// Decide and before anything is written.
const (
	// Unchanged: the client is registered just so. There is nothing to write.
	// Where a secret is involved, this confirms a guess at it, and must not be
	// answered unseen.
	Unchanged Change = iota + 1
	// Create: there has never been such a client.
	Create
	// Recreate: there was such a client, and it was deleted, or its record
	// fails its authentication. Who may do this can give a client that was
	// known other keys, as with Replace.
	Recreate
	// Replace: the caller has named the revision that is stored. Whoever may
	// do this can give a client other keys and read its tokens.
	Replace
	// Delete: the record becomes a tombstone.
	Delete
	// Cancel: a change that waits is dropped, and what is in force stays. Whoever
	// may do this can keep a client from changing its key, as with Replace.
	Cancel
)

// Decision is what is to be done. Nothing has been done yet.
type Decision struct {
	Change Change
	// Record is what to Put. If Change is Unchanged it is the stored record.
	Record Registration
	// Expect is the revision to Put it over. Should Put answer ErrRevision,
	// someone was faster: read again and decide again, do not just repeat.
	Expect uint64
}

// Decide says what a request to register want does. current is the stored
// record, tombstones included, nil if there is none, and what Unreadable makes
// of one that fails its authentication; revision is the one the caller named, 0
// if none. Decide takes over identity, source, settings, Legacy and X5T of
// want, normalized, and nothing else.
//
//	stored        revision     decision
//	none          none         Create
//	deleted       none         Recreate
//	tampered      none, equal  Recreate
//	none, deleted any          ErrNotFound
//	same          none, equal  Unchanged
//	different     none         ErrExists
//	different     equal        Replace
//	any           other        ErrRevision
//
// Of a change that waits, a repeat is Unchanged too, and starts no delay anew.
// To register what is in force already is Cancel where the revision is named,
// and Unchanged where it is not: that what somebody else repeats without looking
// takes a change back would help nobody. A tombstone with a change that waits
// counts as a client that is registered differently. Decide makes nothing wait:
// see Postpone.
//
// Two secrets are the same if their sealed forms are. Sealing is never the
// same twice: who registers a secret again takes over the stored form if what
// it holds is equal.
//
// A want that breaks a rule of its own is an *InvalidError.
func Decide(current *Registration, want Registration, revision uint64) (Decision, error) {
	record := Registration{
		Issuer:   want.Issuer,
		ClientID: want.ClientID,
		Source:   want.Source,
		Settings: withDefaults(want.Settings),
		Legacy:   want.Legacy,
		X5T:      want.X5T,
	}
	if want.Deleted || want.Tampered {
		return Decision{}, errors.New("registry: Decide was given a record without content; DecideDelete decides deletions")
	}
	// In the caller's order still: an error names a setting by its place.
	if err := record.Validate(); err != nil {
		return Decision{}, err
	}
	sortByKind(record.Settings)
	if current != nil && (current.Issuer != want.Issuer || current.ClientID != want.ClientID) {
		return Decision{}, errors.New("registry: Decide was given the record of another client")
	}
	if current == nil || current.Deleted && current.Pending == nil {
		if revision != 0 {
			return Decision{}, fmt.Errorf("revision %d was named: %w; leave the revision out to register it", revision, ErrNotFound)
		}
		if current != nil {
			return Decision{Change: Recreate, Record: record, Expect: current.Revision}, nil
		}
		return Decision{Change: Create, Record: record}, nil
	}
	if revision != 0 && revision != current.Revision {
		return Decision{}, fmt.Errorf("%w: %d was named, the client is at %d", ErrRevision, revision, current.Revision)
	}
	if current.Tampered {
		return Decision{Change: Recreate, Record: record, Expect: current.Revision}, nil
	}
	inForce := !current.Deleted && same(current, &record)
	switch {
	case inForce && current.Pending != nil && revision != 0:
		kept := *current
		kept.Pending = nil
		return Decision{Change: Cancel, Record: kept, Expect: current.Revision}, nil
	case inForce, current.Pending.says(&record):
		return Decision{Change: Unchanged, Record: *current, Expect: current.Revision}, nil
	case revision == 0:
		return Decision{}, fmt.Errorf("%w with another key source or other settings, at revision %d; name that revision to replace it", ErrExists, current.Revision)
	}
	return Decision{Change: Replace, Record: record, Expect: current.Revision}, nil
}

// DecideDelete says what a request to delete a client does. revision is the
// one the caller named; 0 deletes whatever is stored, a record that fails its
// authentication too (see Unreadable), and what waits with it. What is not there
// or is deleted already is ErrNotFound. The tombstone keeps the client's name and
// nothing of its keys. A deletion never waits: no tokens are the safe side.
func DecideDelete(current *Registration, revision uint64) (Decision, error) {
	if current == nil || current.Deleted && current.Pending == nil {
		return Decision{}, ErrNotFound
	}
	if revision != 0 && revision != current.Revision {
		return Decision{}, fmt.Errorf("%w: %d was named, the client is at %d", ErrRevision, revision, current.Revision)
	}
	return Decision{
		Change: Delete,
		Record: Registration{Issuer: current.Issuer, ClientID: current.ClientID, Deleted: true},
		Expect: current.Revision,
	}, nil
}

// Unreadable is what stands for a client's record of which Store.Get said err:
// nil if err is no *TamperedError. Only Decide and DecideDelete take it as the
// current record; they let it be registered over and deleted. Whether it was a
// registration or a tombstone cannot be known, so that registering over it
// takes what it takes to replace a client.
func Unreadable(issuer, clientID string, err error) *Registration {
	var tampered *TamperedError
	if !errors.As(err, &tampered) {
		return nil
	}
	return &Registration{Issuer: issuer, ClientID: clientID, Revision: tampered.Revision, Tampered: true}
}

// Normalize fills in what a setting leaves to the standard: enc is
// A128CBC-HS256 where only alg is given.
func (s Setting) Normalize() Setting {
	if s.EncryptionAlgorithm != "" && s.ContentEncryption == "" {
		s.ContentEncryption = DefaultContentEncryption
	}
	return s
}

func withDefaults(settings []Setting) []Setting {
	out := make([]Setting, len(settings))
	for i, s := range settings {
		out[i] = s.Normalize()
	}
	return out
}

// sortByKind brings settings into the one order in which they are stored.
func sortByKind(settings []Setting) {
	slices.SortFunc(settings, func(a, b Setting) int { return cmp.Compare(a.Kind, b.Kind) })
}

// same reports whether the stored record says the same of its client as the
// wished one. Times and revision do not count, nor does the order in which
// settings were given; a key source counts byte for byte.
func same(stored, want *Registration) bool {
	settings := withDefaults(stored.Settings)
	sortByKind(settings)
	return stored.Source.equal(want.Source) &&
		slices.Equal(settings, want.Settings) &&
		stored.Legacy == want.Legacy &&
		stored.X5T == want.X5T
}

func (s Source) equal(o Source) bool {
	return bytes.Equal(s.JWKS, o.JWKS) &&
		s.Generated == o.Generated &&
		s.JWKSURI == o.JWKSURI &&
		bytes.Equal(s.PEM, o.PEM) &&
		s.Secret.equal(o.Secret)
}

// equal compares what is kept of two secrets, nil for none. What is compared is
// public to whoever reads the store, so the time it takes tells nothing.
func (s *Secret) equal(o *Secret) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.DataKey == o.DataKey && bytes.Equal(s.Sealed, o.Sealed) && s.ExpiresAt.Equal(o.ExpiresAt)
}
