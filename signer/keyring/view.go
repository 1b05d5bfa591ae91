package keyring

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// view is a snapshot of an issuer, replaced as a whole and never changed.
type view struct {
	// asOf is when the rings were last read from the store; zero if never.
	asOf time.Time
	// maxLag is Config.MaxLag.
	maxLag time.Duration
	// problem is why they could not be read the last time; nil if they could.
	problem error
	// unverified is set while any of the rings is one that the store could not
	// authenticate.
	unverified bool
	rings      map[kms.Algorithm]*ringView
	orphans    []Orphan
}

// ringView is a ring in a view. It is there for each algorithm that is stored
// or configured.
type ringView struct {
	configured bool
	entries    []entryView
	// problems are what keeps listed keys from joining the ring.
	problems []error
	// rotation is what keeps the ring's keys from being replaced.
	rotation error
	due      time.Time // when the next key becomes active, zero if that is open
	tag      string    // of the key that is being created, empty if none is
}

// entryView is a key in a view.
type entryView struct {
	Entry
	// jwk is the public JWK to publish; nil if the entry is refused.
	jwk json.RawMessage
	// key is nil if it is not open.
	key *signer.SigningKey
	// problem is why it is not open, or why its last probe failed.
	problem error
	// places are its locations, if it is active or next.
	places []PlaceInfo
}

var (
	errNoneJoined = errors.New("no key has joined the ring yet")
	errNotTried   = errors.New("it has not been tried yet")
	errNotLoaded  = errors.New("the key rings have not been read from the store yet")
)

// age is how long ago at now the rings were read. A clock that was set right
// meanwhile, or a machine that slept, makes it no shorter.
func (v *view) age(now time.Time) time.Duration {
	return max(now.Sub(v.asOf), now.Round(0).Sub(v.asOf.Round(0)))
}

// stale reports that verifiers should not keep what the view holds.
func (v *view) stale(now time.Time) bool { return v.age(now) > v.maxLag }

// outdated is the reason not to use what the view holds at all, nil if it can be
// used: the keys may have been replaced without this replica's knowing. It is
// not for views that hold nothing.
func (v *view) outdated(now time.Time) error {
	if v.age(now) <= 2*v.maxLag {
		return nil
	}
	err := fmt.Errorf("%w: the key rings were last read %s ago, and after %s other keys may sign", ErrUnavailable, v.age(now).Round(time.Second), 2*v.maxLag)
	return all(err, v.problem)
}

// active is the open key that signs with alg at now.
func (v *view) active(alg kms.Algorithm, now time.Time) (*entryView, error) {
	r, ok := v.rings[alg]
	if !ok {
		if v.asOf.IsZero() {
			// It may be in the store.
			return nil, fmt.Errorf("%w: %w", ErrNotOpen, v.notLoaded())
		}
		return nil, ErrNoKey
	}
	if !v.asOf.IsZero() {
		if err := v.outdated(now); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotOpen, err)
		}
	}
	var e, coming *entryView
	for i := range r.entries {
		switch c := &r.entries[i]; c.State(now) {
		case Active:
			if e == nil || c.ActivateAt.After(e.ActivateAt) {
				e = c
			}
		case Next:
			if !c.ActivateAt.IsZero() && (coming == nil || c.ActivateAt.Before(coming.ActivateAt)) {
				coming = c
			}
		case Retiring, Retired:
		}
	}
	switch {
	case e == nil && v.asOf.IsZero():
		return nil, fmt.Errorf("%w: %w", ErrNotOpen, v.notLoaded())
	case e == nil && len(r.entries) == 0:
		return nil, fmt.Errorf("%w: %w", ErrNotOpen, all(append(slices.Clone(r.problems), errNoneJoined)...))
	case e == nil && coming != nil:
		return nil, fmt.Errorf("%w: key %s begins to sign at %s", ErrNotOpen, coming.KeyID, coming.ActivateAt.UTC().Format(time.RFC3339))
	case e == nil:
		return nil, fmt.Errorf("%w: the ring has keys and none is active", ErrNoKey)
	case e.key == nil:
		return nil, fmt.Errorf("%w: key %s: %w", ErrNotOpen, e.KeyID, e.problem)
	}
	return e, nil
}

// notLoaded is why the rings are not known.
func (v *view) notLoaded() error {
	if v.problem != nil {
		return v.problem
	}
	return errNotLoaded
}

// algorithms are those of the view, in the order of the table.
func (v *view) algorithms() []kms.Algorithm {
	return slices.DeleteFunc(kms.Algorithms(), func(a kms.Algorithm) bool { return v.rings[a] == nil })
}

// JWKS is PublicKeys for those who do not cache what they get.
func (k *Keyring) JWKS(issuer string) (doc []byte, etag string, asOf time.Time, err error) {
	set, err := k.PublicKeys(issuer)
	return set.JWKS, set.ETag, set.AsOf, err
}

// PublicKeys is what an issuer publishes.
type PublicKeys struct {
	// JWKS is the JWK Set (RFC 7517).
	JWKS []byte
	// ETag is a strong entity tag with its quotes (RFC 9110, section 8.8.3).
	ETag string
	// AsOf is when the keys were last read from the store.
	AsOf time.Time
	// Unverified says that the store could not authenticate all of them yet,
	// so that somebody may have forged them. Nobody should keep the set.
	Unverified bool
	// Stale says that the keys were read from the store longer than
	// Config.MaxLag ago: some may be missing. Nobody should keep the set.
	Stale bool
}

// PublicKeys returns an issuer's JWK Set with its next, active and retiring
// keys. It needs no backend and no store. Errors are ErrIssuerUnknown,
// ErrUnavailable if the keys were never read from the store, or last so long ago
// that other keys may sign, and ErrNotOpen if there is no key to publish yet.
func (k *Keyring) PublicKeys(issuer string) (PublicKeys, error) {
	v, err := k.view(issuer)
	if err != nil {
		return PublicKeys{}, err
	}
	if v.asOf.IsZero() {
		return PublicKeys{}, fmt.Errorf("%w: issuer %s: %w", ErrUnavailable, issuer, v.notLoaded())
	}
	now := k.clock()
	if err := v.outdated(now); err != nil {
		return PublicKeys{}, fmt.Errorf("issuer %s: %w", issuer, err)
	}
	var jwks []json.RawMessage
	for _, alg := range v.algorithms() {
		for i := range v.rings[alg].entries {
			if e := &v.rings[alg].entries[i]; e.jwk != nil && e.Published(now) {
				jwks = append(jwks, e.jwk)
			}
		}
	}
	if len(jwks) == 0 {
		// A verifier that caches an empty set refuses good tokens later.
		return PublicKeys{}, fmt.Errorf("%w: issuer %s: no key has been opened yet, so none is known", ErrNotOpen, issuer)
	}
	doc := signer.JWKS(jwks)
	sum := sha256.Sum256(doc)
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
	return PublicKeys{JWKS: doc, ETag: etag, AsOf: v.asOf, Unverified: v.unverified, Stale: v.stale(now)}, nil
}

// KeyInfo is what there is to say of a key to an operator.
type KeyInfo struct {
	Entry
	Algorithm kms.Algorithm
	State     State
	// Open says that the key can be used by this replica.
	Open bool
	// Problem says what is wrong with an active or next key, empty if
	// nothing is.
	Problem string
	// Places are the locations at which an active or next key is used, in the
	// order in which they are tried: the first that is open and without a
	// problem signs.
	Places []PlaceInfo
}

// PlaceInfo is what there is to say of one location of a key.
type PlaceInfo struct {
	Location Location
	// Open says that the key has been opened there and is the right one.
	Open bool
	// Problem says why it does not sign there, empty if it does.
	Problem string
}

// List returns all keys of an issuer, retired ones included, by algorithm.
func (k *Keyring) List(issuer string) ([]KeyInfo, error) {
	v, err := k.view(issuer)
	if err != nil {
		return nil, err
	}
	if v.asOf.IsZero() {
		return nil, fmt.Errorf("%w: issuer %s: %w", ErrUnavailable, issuer, v.notLoaded())
	}
	now := k.clock()
	var list []KeyInfo
	for _, alg := range v.algorithms() {
		list = append(list, v.keys(alg, now)...)
	}
	return list, nil
}

// keys are the keys of a ring as List tells them.
func (v *view) keys(alg kms.Algorithm, now time.Time) (list []KeyInfo) {
	r, ok := v.rings[alg]
	if !ok {
		return nil
	}
	for _, e := range r.entries {
		info := KeyInfo{Entry: e.Entry, Algorithm: alg, State: e.State(now), Open: e.key != nil}
		info.Locations = slices.Clone(e.Locations)
		info.PublicJWK = slices.Clone(e.PublicJWK)
		info.Places = slices.Clone(e.places)
		if e.problem != nil {
			info.Problem = e.problem.Error()
		}
		list = append(list, info)
	}
	return list
}

// RotationInfo is what there is to say of the replacing of a ring's key.
type RotationInfo struct {
	Algorithm kms.Algorithm
	// DueAt is when the next key becomes active: as planned, or else as the
	// schedule wants it. Zero if there is neither.
	DueAt time.Time
	// Tag marks the key that is being created; empty if none is.
	Tag string
	// Problem says what keeps the key from being replaced, empty if nothing
	// does. It is for operators and may name key locations.
	Problem string
}

// Rotations returns what is under way in an issuer's rings, by algorithm.
func (k *Keyring) Rotations(issuer string) ([]RotationInfo, error) {
	v, err := k.view(issuer)
	if err != nil {
		return nil, err
	}
	if v.asOf.IsZero() {
		return nil, fmt.Errorf("%w: issuer %s: %w", ErrUnavailable, issuer, v.notLoaded())
	}
	var list []RotationInfo
	for _, alg := range v.algorithms() {
		r := v.rings[alg]
		info := RotationInfo{Algorithm: alg, DueAt: r.due, Tag: r.tag}
		if r.rotation != nil {
			info.Problem = r.rotation.Error()
		}
		list = append(list, info)
	}
	return list, nil
}

// Algorithms returns the algorithms an issuer signs with, in the order of
// kms.Algorithms: those configured, and those of which the store has an active
// key. A key of each exists, or will when its backend has answered once.
func (k *Keyring) Algorithms(issuer string) ([]kms.Algorithm, error) {
	v, err := k.view(issuer)
	if err != nil {
		return nil, err
	}
	now := k.clock()
	return slices.DeleteFunc(v.algorithms(), func(a kms.Algorithm) bool {
		r := v.rings[a]
		return !r.configured && !slices.ContainsFunc(r.entries, func(e entryView) bool { return e.State(now) == Active })
	}), nil
}

// Healthy reports whether an issuer can sign with its default algorithm: the
// key is open and its last signature verified, at one of its locations at
// least, and its ring is known well enough. The reason lists everything that is
// wrong with the issuer's keys, also where the default is not touched; it is
// for operators and may name key locations.
func (k *Keyring) Healthy(issuer string) (ok bool, reason string) {
	v, err := k.view(issuer)
	if err != nil {
		return false, err.Error()
	}
	now, defaultAlg := k.clock(), k.issuers[issuer].defaultAlg
	var reasons []string
	if v.problem != nil {
		reasons = append(reasons, v.problem.Error())
	}
	if !v.asOf.IsZero() && v.stale(now) {
		reasons = append(reasons, fmt.Sprintf("the key rings were last read %s ago: verifiers are told not to keep the published keys, and after %s nothing is signed", v.age(now).Round(time.Second), 2*v.maxLag))
	}
	for _, o := range v.orphans {
		reasons = append(reasons, o.String())
	}
	for _, alg := range v.algorithms() {
		e, err := v.active(alg, now)
		if err == nil {
			err = e.problem
		}
		if alg == defaultAlg {
			ok = err == nil
		}
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", alg, err))
		}
		r := v.rings[alg]
		if r.rotation != nil {
			reasons = append(reasons, fmt.Sprintf("%s: replacing the key: %v", alg, r.rotation))
		}
		for i := range r.entries {
			e := &r.entries[i]
			if e.problem != nil && e.State(now) == Next {
				reasons = append(reasons, fmt.Sprintf("%s: next key %s: %v", alg, e.KeyID, e.problem))
			}
			if e.problem != nil || e.key == nil {
				continue // told, for all places
			}
			for _, p := range e.places {
				if p.Problem != "" {
					reasons = append(reasons, fmt.Sprintf("%s: key %s signs, but not at each of its locations: %s", alg, e.KeyID, p.Problem))
				}
			}
		}
		if len(r.entries) == 0 {
			continue // active has told the problems
		}
		for _, p := range r.problems {
			reasons = append(reasons, fmt.Sprintf("%s: %v", alg, p))
		}
	}
	return ok, strings.Join(reasons, "; ")
}
