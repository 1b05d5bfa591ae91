package keycache

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
)

// vault is a secrets.Sealer that really seals, under one key, and fails as a
// test says.
type vault struct {
	aead cipher.AEAD

	mu    sync.Mutex
	opens int           // guarded by mu
	fail  error         // what Open answers; guarded by mu
	slow  time.Duration // how long Open takes; guarded by mu
}

var errTornSeal = errors.New("it does not open")

func newVault() *vault {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return &vault{aead: aead}
}

func (v *vault) keeper() *secrets.Keeper { return secrets.New(v, errTornSeal) }

func (v *vault) Seal(_ context.Context, plaintext, aad []byte) (string, []byte, error) {
	return "k1", v.aead.Seal(nil, nil, plaintext, aad), nil
}

func (v *vault) Open(ctx context.Context, keyID string, sealed, aad []byte) ([]byte, error) {
	v.mu.Lock()
	v.opens++
	fail, slow := v.fail, v.slow
	v.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	plain, err := v.aead.Open(nil, nil, sealed, aad)
	if err != nil || keyID != "k1" {
		return nil, errTornSeal
	}
	return plain, nil
}

func (v *vault) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opens
}

func (v *vault) set(fail error, slow time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail, v.slow = fail, slow
}

// withSecret is a client with a secret that settings need.
func (v *vault) withSecret(clientID, secret string, expiresAt time.Time, settings ...registry.Setting) registry.Registration {
	m, err := secrets.Derive(secret, settings)
	if err != nil {
		panic(err)
	}
	kept, err := v.keeper().Seal(context.Background(), issuer, clientID, m, expiresAt)
	if err != nil {
		panic(err)
	}
	return registry.Registration{Issuer: issuer, ClientID: clientID, Source: registry.Source{Secret: kept}, Settings: settings}
}

// handsOut is a Secrets that has been opened already.
type handsOut struct{ m *secrets.Material }

func (h handsOut) Open(context.Context, *registry.Registration) (*secrets.Material, error) {
	return h.m, nil
}
