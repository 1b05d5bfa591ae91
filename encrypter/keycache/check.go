package keycache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
)

// Check tries out a registration before it is stored: its keys are parsed,
// opened, or fetched within the call, one must fit each setting that encrypts,
// and a token must come out. What a URL gives that is no good set is not told
// apart from a URL that gives nothing. Errors: registry.ErrInvalid (as a
// *registry.InvalidError) if a setting and the key sources do not go together,
// jwks.ErrRejected for keys that are registered as they are,
// jwks.ErrKeyRejected if a key would fit had it passed the checks, which is
// ErrKeySize too if it is only too short or too long for the issuer, ErrUnusable,
// ErrUnavailable (as a *FetchError), registry.ErrUnavailable, or the context's.
func (c *Cache) Check(ctx context.Context, reg *registry.Registration) (*Status, error) {
	r, now := c.rules(reg), time.Now()
	if err := checkSources(reg, now); err != nil {
		return nil, err
	}
	derived, err := c.derived(ctx, reg, r, now)
	if err != nil {
		return nil, err
	}
	status, set, err := c.look(ctx, reg)
	if err != nil {
		return nil, err
	}
	from := chooser{rules: r, set: set, derived: derived, certificateAt: now}
	choices, err := from.try(reg)
	// Whoever registers brings the key: it is at fault.
	var size *keySizeError
	var noKey *jwks.NoKeyError
	switch {
	case errors.As(err, &size):
		return nil, size
	case errors.As(err, &noKey) && errors.Is(err, jwks.ErrKeyRejected):
		return nil, noKey
	case err != nil:
		return nil, err
	}
	status.tell(reg, factsOf(choices, r), now)
	status.secret(reg, nil, now)
	if err := c.tryLogout(reg, choices); err != nil {
		return nil, err
	}
	return status, nil
}

// look gets the public keys of a registration that is not yet in force.
func (c *Cache) look(ctx context.Context, reg *registry.Registration) (*Status, *jwks.Set, error) {
	uri := reg.Source.JWKSURI
	if uri == "" {
		set, err := c.parseSet(reg.Source)
		return staticStatus(reg), set, err
	}
	f, err := c.fetched(ctx, uri, tryOut)
	var failed *FetchError
	if errors.As(err, &failed) {
		// Whether others still have an old set is nothing to the caller.
		return nil, nil, &FetchError{ID: failed.ID, RetryAfter: failed.RetryAfter, Err: ErrUnavailable}
	}
	if err != nil {
		return nil, nil, err
	}
	state, t, err := c.document(ctx, uri, f.state, f.text)
	if err != nil {
		return nil, nil, err
	}
	return c.fetchedStatus(reg, state), t.parsed(), nil
}

// checkSources holds the settings of a registration against its key sources: by
// the algorithms alone, before anything is opened or fetched.
func checkSources(reg *registry.Registration, now time.Time) error {
	source := reg.Source
	public := len(source.JWKS) > 0 || source.JWKSURI != "" || len(source.PEM) > 0
	for _, s := range reg.Settings {
		// By its kind and not its place: settings have been sorted since.
		wrong := func(format string, args ...any) error {
			return &registry.InvalidError{Field: "settings", Problem: fmt.Sprintf("%s: ", s.Kind) + fmt.Sprintf(format, args...)}
		}
		switch {
		case secrets.Signs(s.SigningAlgorithm) && source.Secret == nil:
			return wrong("%s signs with the client's secret; register that, or choose an algorithm of the issuer's keys", s.SigningAlgorithm)
		case s.EncryptionAlgorithm == "":
		case symmetric(s) && source.Secret == nil:
			return wrong("%s takes the client's secret; register that, or choose an algorithm for a public key", s.EncryptionAlgorithm)
		case symmetric(s) && s.KeyID != "":
			return wrong("a key that is derived from the client's secret has no kid to pin; leave key_id out")
		case !symmetric(s) && !public:
			return wrong("%s takes a public key of the client; register a JWK Set, a jwks_uri or a public key in PEM, or choose an algorithm for the client's secret", s.EncryptionAlgorithm)
		}
	}
	if source.Secret != nil && secretExpired(source.Secret.ExpiresAt, now) != nil {
		return &registry.InvalidError{Field: "source.secret.expires_at", Problem: "the client's secret has expired already; give the client a new one, and register that"}
	}
	return nil
}

// trial is what a trial encryption encloses: three parts, like a signed token.
const trial = "eyJhbGciOiJub25lIn0.e30.AA"

// try chooses for each setting of a registration, makes a token for each key
// that was chosen, and throws it away.
func (f *chooser) try(reg *registry.Registration) ([]choice, error) {
	choices := f.choose(reg)
	for i, c := range choices {
		if c.failed != nil {
			return nil, fmt.Errorf("%s: %w", reg.Settings[i].Kind, c.failed.err)
		}
	}
	for i, c := range choices {
		if err := c.encrypts(); err != nil {
			return nil, fmt.Errorf("%w: %s: a trial encryption failed: %w", ErrUnusable, reg.Settings[i].Kind, err)
		}
	}
	return choices, nil
}

// encrypts makes a token, if the pick is one that does.
func (p pick) encrypts() error {
	if p.recipient == nil {
		return nil
	}
	_, err := p.recipient.Encrypt([]byte(trial))
	return err
}

// tryLogout tries the recipient of logout tokens, which differs from that of ID
// tokens in its header: the issuer's URL may make it too long. A service that
// knows no URL issues no logout tokens.
func (c *Cache) tryLogout(reg *registry.Registration, choices []choice) error {
	iss := c.cfg.IssuerURL(reg.Issuer)
	for i, s := range reg.Settings {
		if s.Kind != registry.LogoutToken.SettingKind() || iss == "" {
			continue
		}
		p := choices[i].forLogout(iss)
		if p.failed != nil {
			return fmt.Errorf("as %s: %s: %w", registry.LogoutToken, s.Kind, p.failed.err)
		}
		if err := p.encrypts(); err != nil {
			return fmt.Errorf("as %s: %w: %s: a trial encryption failed: %w", registry.LogoutToken, ErrUnusable, s.Kind, err)
		}
	}
	return nil
}

// Keep stores the key set of a URL that a registration has just come to name,
// unless the store has a more recent one. Errors: registry.ErrUnavailable, or
// the context's.
func (c *Cache) Keep(ctx context.Context, uri string) error {
	src := c.sources.get(uri)
	if src == nil {
		return nil
	}
	if state := src.state.Load(); state.set == nil && state.failures() == 0 {
		return nil // never fetched: nothing to keep
	}
	if c.cfg.Leases == nil {
		return c.save(ctx, src, true)
	}
	for !src.gone.Load() {
		f, mine := c.joinOrStart(src, keepSet, always)
		if f == nil {
			break
		}
		if err := f.wait(ctx); mine || ctx.Err() != nil || errors.Is(err, errClosed) {
			return err
		}
	}
	return nil
}
