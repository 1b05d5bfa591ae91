package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// Errors of a Store. Stores wrap them; callers match with errors.Is.
var (
	// ErrNotFound: the store has no such ring. It is made by the first PutRing
	// with expect 0.
	ErrNotFound = errors.New("no such key ring")

	// ErrRevision: the ring is no longer at the revision the caller named.
	// Read it again and decide again.
	ErrRevision = errors.New("key ring revision does not match")

	// ErrUnavailable: the store cannot be read or written at the moment: try
	// again later. A write may have happened all the same if the store was
	// lost while it was under way; its revision tells.
	ErrUnavailable = errors.New("key ring store unavailable")
)

// Location is one place of a key pair's private half.
type Location struct {
	// Backend is the name of a configured backend.
	Backend string `json:"backend"`
	// Ref names the key in that backend's own notation (kms.Backend.OpenKey).
	Ref string `json:"ref"`
}

// String is the location as the configuration writes it.
func (l Location) String() string { return l.Backend + ":" + l.Ref }

// Entry is one signing key of a ring. A zero time means that the step has not
// been scheduled.
type Entry struct {
	// KeyID is the kid: the RFC 7638 SHA-256 thumbprint of the public key.
	KeyID string `json:"key_id"`
	// PublicJWK is the public half (RFC 7517), all that publishing needs.
	PublicJWK json.RawMessage `json:"public_jwk"`
	// Locations are the places that have been seen to hold this key pair, in
	// the order in which they are tried.
	Locations []Location `json:"locations"`
	// Tag marks a key that Bulla created, in its backend too (kms.Creator).
	// It is empty for a key that was listed.
	Tag string `json:"tag,omitempty"`

	// PublishAt is when the key enters the issuer's JWK Set.
	PublishAt time.Time `json:"publish_at,omitzero"`
	// ActivateAt is when the key begins to sign.
	ActivateAt time.Time `json:"activate_at,omitzero"`
	// RetireAt is when the key stops signing; it stays published.
	RetireAt time.Time `json:"retire_at,omitzero"`
	// RemoveAt is when the key leaves the JWK Set.
	RemoveAt time.Time `json:"remove_at,omitzero"`
	// Withdrawn says that an emergency took the key out of the JWK Set, while
	// tokens that it had signed were still good.
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// State is what a key of a ring does at a moment.
type State string

// The states of a signing key, by their names in the API.
const (
	// Next keys do not sign yet. They are published from PublishAt on.
	Next State = "NEXT"
	// Active keys sign. If several are active, the one activated last signs.
	Active State = "ACTIVE"
	// Retiring keys sign no more and are still published.
	Retiring State = "RETIRING"
	// Retired keys are neither used nor published.
	Retired State = "RETIRED"
)

// State is the key's state at now. It follows from the clock and the stored
// times alone, so that all replicas agree on it with the store down.
func (e Entry) State(now time.Time) State {
	switch reached := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }; {
	case reached(e.RemoveAt):
		return Retired
	case reached(e.RetireAt):
		return Retiring
	case reached(e.ActivateAt):
		return Active
	default:
		return Next
	}
}

// Published reports whether the key is in the issuer's JWK Set at now.
func (e Entry) Published(now time.Time) bool {
	return !e.PublishAt.IsZero() && !now.Before(e.PublishAt) && e.State(now) != Retired
}

// Intent is written before a key is created, so that whatever becomes of the
// process that creates it, the key is found by its tag. It is cleared by the
// write that records the key.
//
// Whoever finds the key of the tag may record it; only the owner creates it. An
// owner that has been silent for longer than a lease has lost the intent to
// whoever claims it next, with the same tag.
type Intent struct {
	// Tag marks the key in its backend.
	Tag string `json:"tag"`
	// Backend is the name of the configured backend.
	Backend string `json:"backend"`
	// RSABits is the length of the modulus of an RSA key, 0 for others.
	RSABits int `json:"rsa_bits,omitempty"`
	// NotBefore is when the key should become active by the schedule; zero is
	// as soon as it may.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Emergency says that the key is to replace the active one at once.
	Emergency bool `json:"emergency,omitempty"`
	// Owner is a random name of the process that creates the key.
	Owner string `json:"owner"`
	// ClaimedAt is when the owner last said that it is at work.
	ClaimedAt time.Time `json:"claimed_at"`
}

// Dropped is an intent that was given up. Its key may turn up all the same.
type Dropped struct {
	Tag     string    `json:"tag"`
	Backend string    `json:"backend"`
	At      time.Time `json:"at"`
}

// Ring is the signing keys of one issuer and algorithm. A value that a store
// has handed out is not changed afterwards.
type Ring struct {
	Issuer    string        `json:"issuer"` // by name
	Algorithm kms.Algorithm `json:"algorithm"`
	Entries   []Entry       `json:"entries"`
	// Intent is the key that is being created for the ring, nil if none is.
	Intent *Intent `json:"intent,omitempty"`
	// Dropped are the intents that were given up lately, the last at the end.
	Dropped []Dropped `json:"dropped,omitempty"`

	// MaxAge and MaxLifetime are the longest Issuer.JWKSMaxAge and MaxLifetime
	// in force at any replica; zero is not known.
	MaxAge      time.Duration `json:"max_age,omitzero"`      // in ns
	MaxLifetime time.Duration `json:"max_lifetime,omitzero"` // in ns
	// SetsUntil and TokensUntil are when the last JWK Set that a verifier may
	// keep for longer than MaxAge, and the last key of a token that lives
	// longer than MaxLifetime, are of no use any more. Zero if there are none.
	SetsUntil   time.Time `json:"sets_until,omitzero"`
	TokensUntil time.Time `json:"tokens_until,omitzero"`

	// Revision counts the changes of the ring from 1. The store sets it.
	Revision uint64 `json:"revision"`
	// Unverified says that the store could not authenticate the ring when it
	// handed it out: it may be forged. It is not stored.
	Unverified bool `json:"-"`
}

// Store keeps key rings. What a write has acknowledged survives the death of
// the process. All methods may be called concurrently; errors are those of
// this file, or the context's.
//
// A store authenticates its rings. One that was changed behind its back is
// neither handed out nor replaced: that is ErrUnavailable, with a text of its
// own, so that whoever holds the ring goes on with it and whoever starts has
// none. A store that cannot authenticate anything yet, because the backend it
// needs for that has been down since the start, may hand out rings all the
// same, marked as Unverified; it refuses to write what was made of them, and if
// one of them turns out to be forged, it comes back without entries.
type Store interface {
	// Ring returns the ring of an issuer and algorithm, or ErrNotFound.
	Ring(ctx context.Context, issuer string, alg kms.Algorithm) (*Ring, error)

	// PutRing writes ring if the stored revision (0 when there is no ring) is
	// still expect, and returns it with its new revision. It answers
	// ErrRevision otherwise. ring.Revision is not looked at. The store keeps
	// no reference to ring.
	PutRing(ctx context.Context, ring Ring, expect uint64) (*Ring, error)

	// Rings returns all rings of an issuer in byte order of their algorithms,
	// none (and no error) if it has none.
	Rings(ctx context.Context, issuer string) ([]*Ring, error)
}
