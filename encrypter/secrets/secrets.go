// Package secrets keeps what a registration needs of a client's secret, and
// nothing else of it.
//
// A client secret is the one thing of a client that lets somebody pretend to
// be it, so as little of it as possible is kept. Tokens that are encrypted with
// a symmetric algorithm need only keys that are hashes of it, and then those
// are all that is kept. Only where a registration signs with the secret itself
// (HS256 and its like) is it kept too. A secret that no setting needs leaves no
// trace.
//
// What is kept is sealed before it goes to the store, and bound to its issuer,
// its client and its expiry: a store that was stolen gives nobody anything, and
// what was sealed for one client does not open for another. The keys that seal
// are somebody else's ([Sealer]); they never leave this process unwrapped. What
// this package cannot see is an older sealed form of the same client that was
// put back with the same expiry: no more can whoever authenticates records.
//
// Nothing made from a secret is shown: no hash or thumbprint of a derived key,
// no length of a secret. A secret that people chose can be guessed, and each of
// these would tell a guess that it is right, without asking anybody.
package secrets

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Sealer encrypts and authenticates small values with data keys of its own. It
// may be used by any number of goroutines at once, and keeps no reference to
// what it is given.
type Sealer interface {
	// Seal returns plaintext sealed and bound to aad, and the id of the data
	// key that it took. An error means: not now.
	Seal(ctx context.Context, plaintext, aad []byte) (keyID string, sealed []byte, err error)

	// Open returns what Seal was given. What does not open, as it was changed
	// or sealed with another aad or key, has an error of its own, which is
	// given to New; any other means: not now.
	Open(ctx context.Context, keyID string, sealed, aad []byte) ([]byte, error)
}

// Keeper seals and opens the material of clients. It is safe for concurrent
// use.
type Keeper struct {
	sealer   Sealer
	tampered error
}

// New makes a Keeper. tampered is the error by which sealer says that something
// was not sealed by it for this purpose, or was changed since; it is matched
// with errors.Is.
func New(sealer Sealer, tampered error) *Keeper {
	return &Keeper{sealer: sealer, tampered: tampered}
}

// Seal returns what the registration of a client keeps of its secret: m,
// sealed; nil if m is empty. expiresAt is when the secret goes out of use, zero
// for never; it counts in whole seconds, as client_secret_expires_at does.
// Sealing the same twice gives two different results. Errors:
// registry.ErrUnavailable, or the context's.
func (k *Keeper) Seal(ctx context.Context, issuer, clientID string, m *Material, expiresAt time.Time) (*registry.Secret, error) {
	if m.Empty() {
		return nil, nil //nolint:nilnil // nothing is kept of a secret that nothing needs
	}
	kept := &registry.Secret{}
	if !expiresAt.IsZero() {
		kept.ExpiresAt = expiresAt.UTC().Truncate(time.Second)
	}
	plain, err := m.encode()
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	kept.DataKey, kept.Sealed, err = k.sealer.Seal(ctx, plain, binding(issuer, clientID, kept.ExpiresAt))
	if err != nil {
		return nil, unavailable(ctx, "sealing a client's secret", err)
	}
	return kept, nil
}

// Open returns the material of a registration that keeps something of its
// client's secret, whether or not that has expired. It holds at least what the
// registration's settings need. Errors: registry.ErrTampered if it was changed
// or is that of another client, registry.ErrUnavailable, or the context's.
func (k *Keeper) Open(ctx context.Context, reg *registry.Registration) (*Material, error) {
	kept := reg.Source.Secret
	if kept == nil {
		return nil, errors.New("secrets: the registration keeps nothing of a secret")
	}
	plain, err := k.sealer.Open(ctx, kept.DataKey, kept.Sealed, binding(reg.Issuer, reg.ClientID, kept.ExpiresAt))
	switch {
	case errors.Is(err, k.tampered):
		return nil, fmt.Errorf("%w: its secret does not open: %w", registry.ErrTampered, err)
	case err != nil:
		return nil, unavailable(ctx, "opening a client's secret", err)
	}
	defer clear(plain)
	m, err := decode(plain)
	if err != nil {
		return nil, fmt.Errorf("%w: its secret: %w", registry.ErrTampered, err)
	}
	if !m.covers(needsOf(reg.Settings)) {
		return nil, fmt.Errorf("%w: its secret was sealed for other settings", registry.ErrTampered)
	}
	return m, nil
}

// Reseal returns what Open gives, sealed anew with the same expiry: under the
// data key that the sealer takes now. The errors are those of Open and Seal.
func (k *Keeper) Reseal(ctx context.Context, reg *registry.Registration) (*registry.Secret, error) {
	m, err := k.Open(ctx, reg)
	if err != nil {
		return nil, err
	}
	defer m.wipe()
	return k.Seal(ctx, reg.Issuer, reg.ClientID, m, reg.Source.Secret.ExpiresAt)
}

// unavailable is the error of a sealer that did not do its work. The time that
// it gave itself may be over without the caller's being so.
func unavailable(ctx context.Context, doing string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return fmt.Errorf("%w: %s: %v", registry.ErrUnavailable, doing, err) //nolint:errorlint // see above
}

// purpose tells what is sealed here from all else that a data key may seal.
const purpose = "bulla client secret v1"

// binding is the additional authenticated data of a client's sealed material:
// purpose, issuer and client_id, each after its length in 4 bytes, then whether
// the secret expires and when, in seconds of Unix time.
func binding(issuer, clientID string, expiresAt time.Time) []byte {
	var b []byte
	for _, s := range []string{purpose, issuer, clientID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s))) //nolint:gosec // names have at most 255 bytes
		b = append(b, s...)
	}
	if expiresAt.IsZero() {
		return append(b, 0)
	}
	return binary.BigEndian.AppendUint64(append(b, 1), uint64(expiresAt.Unix())) //nolint:gosec // only has to be unambiguous
}
