package keycache

import (
	"context"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// Explanation is what was decided about every key of a client.
type Explanation struct {
	// Setting is the one that the keys were held against: for logout tokens
	// that of ID_TOKEN.
	Setting registry.Setting
	// Verdicts are those on the public keys, in their order, and after them
	// the one on what is derived from the client's secret.
	Verdicts []jwks.Verdict
	// FetchedAt is when the set was last fetched or confirmed; zero for keys
	// that do not come from a URL.
	FetchedAt time.Time
}

// Explain goes through the keys of a registered client for one kind of token,
// without fetching or opening anything. Errors: ErrNoSetting, ErrUnavailable,
// ErrUnusable, registry.ErrUnavailable, or the context's.
func (c *Cache) Explain(ctx context.Context, reg *registry.Registration, kind registry.TokenKind) (*Explanation, error) {
	setting, ok := reg.Setting(kind)
	switch {
	case !ok:
		return nil, noSetting(kind)
	case setting.EncryptionAlgorithm == "":
		return nil, fmt.Errorf("%w that encrypts: %s", ErrNoSetting, kind)
	}
	e := &Explanation{Setting: setting}
	set, err := c.known(ctx, reg, e)
	// Whoever is served by the secret need not care for the other keys.
	if err != nil && (ctx.Err() != nil || !symmetric(setting)) {
		return nil, err
	}
	if set != nil {
		e.Verdicts = set.Explain(c.rules(reg).want(setting, time.Time{}))
	}
	if reg.Source.Secret != nil {
		e.Verdicts = append(e.Verdicts, secretVerdict(reg.Source.Secret, setting, len(e.Verdicts)))
	}
	return e, nil
}

// known returns the public keys that are known of a client, nil if it has none,
// and notes when they were fetched.
func (c *Cache) known(ctx context.Context, reg *registry.Registration, e *Explanation) (*jwks.Set, error) {
	uri := reg.Source.JWKSURI
	if uri == "" {
		return c.staticSet(reg)
	}
	state, t, err := c.peek(ctx, uri, nil)
	switch {
	case err != nil:
		return nil, err
	case state.set == nil && state.failures() == 0:
		return nil, fmt.Errorf("%w: the jwks_uri has not been fetched yet", ErrUnavailable)
	case state.set == nil:
		return nil, c.unusable(state, time.Now())
	}
	if state, t, err = c.document(ctx, uri, state, t); err != nil {
		return nil, err
	}
	e.FetchedAt = state.FetchedAt
	return t.parsed(), nil
}

// secretVerdict is the verdict on what is derived from the client's secret, as
// if it stood at place index among the client's keys. Nothing in it comes from
// the secret.
func secretVerdict(kept *registry.Secret, setting registry.Setting, index int) jwks.Verdict {
	v := jwks.Verdict{Key: &jwks.Key{Index: index, Type: "oct"}}
	switch err := secretExpired(kept.ExpiresAt, time.Now()); {
	case !symmetric(setting):
		v.Outcome = jwks.Unfit
		v.Reason = fmt.Sprintf("it is the client's secret, and alg %s takes a public key", setting.EncryptionAlgorithm)
	case err != nil:
		v.Outcome, v.Reason = jwks.Unusable, err.Error()
	default:
		v.Outcome = jwks.Chosen
		v.Reason = "it is derived from the client's secret for " + setting.EncryptionAlgorithm
	}
	return v
}
