package keycache

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
)

// Secrets opens what is kept of clients' secrets. It is implemented by
// secrets.Keeper, which says what its errors mean.
type Secrets interface {
	// Open returns what a registration keeps of its client's secret. The
	// caller owns the result, and wipes it.
	Open(ctx context.Context, reg *registry.Registration) (*secrets.Material, error)
}

// secretKeys is what the settings of a client take from its secret. The secret
// is opened when the first token needs it, as that may ask the backend that
// wraps data keys; those settings that do not need it never wait for that.
type secretKeys struct {
	signs     bool      // whether a setting signs with the secret itself
	expiresAt time.Time // zero for never

	// opened is what came of opening, nil before.
	opened atomic.Pointer[openedSecret]
	// sealed is what it takes to open the secret: nil after.
	sealed atomic.Pointer[registry.Registration]
}

// openedSecret is a secret's use, and nothing else of it.
type openedSecret struct {
	picks   []pick // one for each setting; empty for those that do not take the secret
	signing []byte // the secret itself; nil if no setting signs with it
	err     error  // registry.ErrTampered, or ErrUnusable
}

// newSecretKeys returns what the settings of a registration will take from its
// client's secret; nil if nothing is kept of that.
func newSecretKeys(reg *registry.Registration) *secretKeys {
	kept := reg.Source.Secret
	if kept == nil {
		return nil
	}
	s := &secretKeys{expiresAt: kept.ExpiresAt}
	for _, setting := range reg.Settings {
		s.signs = s.signs || secrets.Signs(setting.SigningAlgorithm)
	}
	// Nothing else of a registration, which may be large.
	s.sealed.Store(&registry.Registration{
		Issuer: reg.Issuer, ClientID: reg.ClientID, Settings: reg.Settings,
		Source: registry.Source{Secret: kept},
	})
	return s
}

// expired is the error of a secret that is out of use, nil for one that is not.
func (s *secretKeys) expired() error {
	if s.expiresAt.IsZero() {
		return nil
	}
	return secretExpired(s.expiresAt, time.Now())
}

func secretExpired(expiresAt, now time.Time) error {
	if expiresAt.IsZero() || now.Before(expiresAt) {
		return nil
	}
	return &SecretExpiredError{ExpiredAt: expiresAt}
}

// open returns what the client's secret gives. Its errors are SecretExpiredError,
// registry.ErrTampered, ErrUnusable, registry.ErrUnavailable, or the context's.
func (c *Cache) open(ctx context.Context, key clientKey, cl *client) (*openedSecret, error) {
	if err := cl.secret.expired(); err != nil {
		return nil, err
	}
	o := cl.secret.opened.Load()
	if o == nil {
		var err error
		if o, err = c.secretLoads.do(ctx, cl, c.start, func() (*openedSecret, error) { return c.loadSecret(key, cl) }); err != nil {
			return nil, err
		}
	}
	return o, o.err
}

// loadSecret opens a client's secret for all who wait for it. That it cannot be
// opened now is not remembered.
func (c *Cache) loadSecret(key clientKey, cl *client) (*openedSecret, error) {
	// Another load may have ended between the caller's look and this one.
	if o := cl.secret.opened.Load(); o != nil {
		return o, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.FetchTimeout)
	defer cancel()
	o := &openedSecret{}
	sealed := cl.secret.sealed.Load()
	o.picks, o.signing, o.err = c.use(ctx, sealed, sealed.Settings, cl.demand.rules)
	if o.err != nil && !errors.Is(o.err, registry.ErrTampered) && !errors.Is(o.err, ErrUnusable) {
		return nil, o.err
	}
	cl.secret.opened.Store(o)
	cl.secret.sealed.Store(nil)
	c.reweigh(key, cl)
	return o, nil
}

// use opens the secret of reg, makes the recipients of those settings that take
// it, and returns the secret itself if it is kept. Nothing else is left of it in
// memory. Errors: registry.ErrTampered, ErrUnusable, registry.ErrUnavailable.
func (c *Cache) use(ctx context.Context, reg *registry.Registration, settings []registry.Setting, r rules) ([]pick, []byte, error) {
	if c.cfg.Secrets == nil {
		return nil, nil, fmt.Errorf("%w: this service opens no client secrets", ErrUnusable)
	}
	m, err := c.cfg.Secrets.Open(ctx, reg)
	if errors.Is(err, registry.ErrTampered) {
		c.cfg.Logger.ErrorContext(ctx, "stored client secret refused: somebody changed the store", "issuer", reg.Issuer, "client_id", reg.ClientID, "error", err)
	}
	if err != nil {
		return nil, nil, storeError(err)
	}
	defer func() {
		for _, key := range m.Keys {
			clear(key) // the recipients have what they need
		}
	}()
	all := make([]pick, len(settings))
	for i, s := range settings {
		if !symmetric(s) {
			continue
		}
		size := encrypter.KeyAlgorithm(s.EncryptionAlgorithm).SecretSize(encrypter.ContentEncryption(s.ContentEncryption))
		// Neither a kid, as the client knows of one key only, nor a thumbprint:
		// with a hash of the key the secret can be guessed off line.
		all[i] = r.prepare(s, encrypter.RecipientConfig{Key: encrypter.SecretKey(m.Keys[size])})
	}
	return all, m.Secret, nil
}

// SigningSecret returns the client's secret, for settings that sign with it
// (HS256, HS384, HS512). The result is shared: it must not be changed, logged
// or kept. Errors: registry.ErrNotFound, registry.ErrTampered, ErrNoSetting if
// no setting signs with the secret, ErrExpired (as a *SecretExpiredError),
// ErrUnusable, registry.ErrUnavailable, or the context's.
func (c *Cache) SigningSecret(ctx context.Context, issuer, clientID string) ([]byte, error) {
	if _, err := c.behind(); err != nil {
		return nil, err
	}
	key := clientKey{issuer, clientID}
	cl, err := c.client(ctx, key)
	if err != nil {
		return nil, err
	}
	if cl.secret == nil || !cl.secret.signs {
		return nil, errNoSigningSecret
	}
	o, err := c.open(ctx, key, cl)
	if err != nil {
		return nil, err
	}
	return o.signing, nil
}

var errNoSigningSecret = fmt.Errorf("%w that signs with the client's secret", ErrNoSetting)
