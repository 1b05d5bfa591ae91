package records

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
)

// errInvalidRing is a ring that cannot be stored whatever the state of the
// store: a mistake of the caller.
var errInvalidRing = errors.New("key ring names no issuer or no algorithm, or one with a NUL in it")

func ringRow(issuer string, alg kms.Algorithm) envelope.Row {
	return envelope.Row{Kind: envelope.Ring, Key: envelope.Key(issuer, string(alg))}
}

// Ring returns the ring of an issuer and algorithm (keyring.Store).
func (s *Store) Ring(ctx context.Context, issuer string, alg kms.Algorithm) (*keyring.Ring, error) {
	row := ringRow(issuer, alg)
	value, err := s.read(ctx, row)
	if err != nil {
		return nil, unavailable(keyring.ErrUnavailable, err)
	}
	if value == nil {
		return nil, keyring.ErrNotFound
	}
	ring, err := s.ring(ctx, row, value)
	return ring, unavailable(keyring.ErrUnavailable, err)
}

// Rings returns all rings of an issuer (keyring.Store).
func (s *Store) Rings(ctx context.Context, issuer string) ([]*keyring.Ring, error) {
	prefix := envelope.Key(issuer, "")
	seek := prefix
	var rings []*keyring.Ring
	for more := true; more; {
		var rows []stored
		var err error
		rows, more, err = s.batch(ctx, envelope.Ring, prefix, seek, BatchRows)
		if err != nil {
			return nil, unavailable(keyring.ErrUnavailable, err)
		}
		for _, r := range rows {
			seek = after(r.Key)
			ring, err := s.ring(ctx, r.Row, r.value)
			if err != nil {
				return nil, unavailable(keyring.ErrUnavailable, err)
			}
			rings = append(rings, ring)
		}
	}
	return rings, nil
}

// trust is how far rings have been checked by this process.
type trust struct {
	mu sync.Mutex
	// rings has those that were handed out: true if their last reading was
	// verified. Guarded by mu.
	rings map[string]bool
	// warned is set while the log has been told of unverified rings. Guarded
	// by mu.
	warned bool
}

// handedOut reports whether a ring was handed out, and if it was verified.
func (t *trust) handedOut(row envelope.Row) (verified, handedOut bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	verified, handedOut = t.rings[string(row.Key)]
	return verified, handedOut
}

func (t *trust) note(row envelope.Row, verified bool) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rings == nil {
		t.rings = map[string]bool{}
	}
	t.rings[string(row.Key)] = verified
	first = !verified && !t.warned
	t.warned = !verified
	return first
}

// ring verifies and reads the value of a ring's row. At a start with the
// backend down it hands out what it cannot verify: the package comment says
// why, and where that ends.
func (s *Store) ring(ctx context.Context, row envelope.Row, value []byte) (*keyring.Ring, error) {
	record, err := s.verify(ctx, row, value)
	verified, handedOut := s.trust.handedOut(row)
	switch {
	case err == nil:
		s.trust.note(row, true)
		return decode[keyring.Ring](record)

	case errors.Is(err, envelope.ErrTampered) && handedOut && !verified:
		// Its holder would go on with what it holds, and that must end: an
		// empty ring neither signs nor publishes anything.
		return claimedRing(row, value), nil

	case errors.Is(err, envelope.ErrTampered):
		issuer, alg, _ := strings.Cut(string(row.Key), "\x00")
		return nil, fmt.Errorf("the key ring of issuer %.100q for %.40q: %w: somebody changed the store; restore it from a backup", issuer, alg, err)

	case errors.Is(err, datakey.ErrUnavailable) && !verified && !s.keys.Ready():
		ring, derr := decode[keyring.Ring](envelope.Claimed(value))
		if derr != nil || string(ringRow(ring.Issuer, ring.Algorithm).Key) != string(row.Key) {
			return nil, err
		}
		if s.trust.note(row, false) {
			s.log.Warn("key rings are used unverified, so that their public keys can be published: the data key that authenticates them cannot be had now; they are verified when it can", "error", err)
		}
		ring.Unverified = true
		return ring, nil
	}
	return nil, err
}

// claimedRing is a ring without keys, at the revision that its row claims.
func claimedRing(row envelope.Row, value []byte) *keyring.Ring {
	issuer, alg, _ := strings.Cut(string(row.Key), "\x00")
	var claim struct {
		Revision uint64 `json:"revision"`
	}
	_ = json.Unmarshal(envelope.Claimed(value), &claim) // whatever it is, PutRing refuses it
	return &keyring.Ring{Issuer: issuer, Algorithm: kms.Algorithm(alg), Revision: claim.Revision}
}

// PutRing writes a ring over the revision the caller expects (keyring.Store).
// A stored ring that fails its authentication is not replaced.
func (s *Store) PutRing(ctx context.Context, ring keyring.Ring, expect uint64) (*keyring.Ring, error) {
	if ring.Issuer == "" || ring.Algorithm == "" || strings.Contains(ring.Issuer+string(ring.Algorithm), "\x00") {
		return nil, errInvalidRing
	}
	row := ringRow(ring.Issuer, ring.Algorithm)
	var written *keyring.Ring
	err := s.change(ctx, row, func(seen []byte) (value []byte, _ func(Tx) error, err error) {
		value, written, err = s.nextRing(ctx, row, ring, seen, expect)
		return value, nil, err
	})
	if err != nil {
		return nil, unavailable(keyring.ErrUnavailable, err)
	}
	s.trust.note(row, true)
	return written, nil
}

// nextRing is the value to write for a ring, over the one that was seen.
func (s *Store) nextRing(ctx context.Context, row envelope.Row, ring keyring.Ring, seen []byte, expect uint64) ([]byte, *keyring.Ring, error) {
	revision := uint64(0)
	if seen != nil {
		record, err := s.verify(ctx, row, seen)
		if errors.Is(err, envelope.ErrTampered) {
			return nil, nil, fmt.Errorf("the stored key ring: %w: somebody changed the store; restore it from a backup", err)
		}
		if err != nil {
			return nil, nil, err
		}
		old, err := decode[keyring.Ring](record)
		if err != nil {
			return nil, nil, err
		}
		revision = old.Revision
	}
	if verified, handedOut := s.trust.handedOut(row); handedOut && !verified {
		// The caller's ring may come from one that nobody wrote; to seal it
		// would make it authentic.
		return nil, nil, fmt.Errorf("%w: the ring was read before it could be verified; read it again", keyring.ErrRevision)
	}
	if revision != expect {
		return nil, nil, fmt.Errorf("%w: %d was expected, the store has %d", keyring.ErrRevision, expect, revision)
	}
	ring.Revision = revision + 1
	value, raw, err := s.seal(ctx, row, ring)
	if err != nil {
		return nil, nil, err
	}
	written, err := decode[keyring.Ring](raw)
	return value, written, err
}
