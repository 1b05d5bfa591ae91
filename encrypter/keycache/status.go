package keycache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
)

// State says whether tokens can be encrypted to a client.
type State int

// The states of a client.
const (
	// Ready: the keys are fresh and fit the settings.
	Ready State = iota + 1
	// Stale: the keys are no longer fresh; the last good set is in use.
	Stale
	// Expired: the last good set is older than the bound.
	Expired
	// Failing: the URL gives no usable answer. The last good set is in use
	// while it is fresh, or there has never been one.
	Failing
	// NoUsableKey: no key in the set fits one of the settings.
	NoUsableKey
)

// Status is what is known of a client's keys at a moment.
type Status struct {
	State State
	// Reason says why the state is not Ready.
	Reason string
	// Since is when the state began, as far as this is known.
	Since time.Time
	// FetchedAt, NextRefreshAt and ExpiresAt are set for keys from a URL: when
	// they were last fetched or confirmed, when they are looked at again if
	// they are in use, and when the last good set goes out of use if it cannot
	// be refreshed.
	FetchedAt, NextRefreshAt, ExpiresAt time.Time
	// Recipients are those of the settings that encrypt and have a key.
	Recipients []Recipient
	// Warnings say what works and deserves a look all the same.
	Warnings []string
}

// Status describes a registered client without fetching anything. Errors:
// registry.ErrUnavailable, or the context's.
func (c *Cache) Status(ctx context.Context, reg *registry.Registration) (*Status, error) {
	if reg.Source.JWKSURI == "" {
		set, err := c.staticSet(reg)
		if err != nil {
			return &Status{State: NoUsableKey, Reason: err.Error(), Since: reg.UpdatedAt}, nil //nolint:nilerr // the status tells it
		}
		s := staticStatus(reg)
		_ = s.choose(reg.Settings, set, c.rules(reg)) // the state tells
		return s, nil
	}
	state, err := c.peek(ctx, reg.Source.JWKSURI)
	if err != nil {
		return nil, err
	}
	s := c.fetchedStatus(reg, state)
	_ = s.choose(reg.Settings, state.set.parsed(), c.rules(reg)) // the state tells
	return s, nil
}

// rules are what an issuer asks of the keys of all settings.
func (c *Cache) rules(reg *registry.Registration) jwks.Want {
	return jwks.Want{MaxRSABits: c.cfg.MaxRSABits(reg.Issuer)}
}

func staticStatus(reg *registry.Registration) *Status {
	return &Status{State: Ready, Since: reg.UpdatedAt}
}

// fetchedStatus describes the key set of a URL, not yet what is chosen from it.
func (c *Cache) fetchedStatus(reg *registry.Registration, state *setState) *Status {
	now := time.Now()
	s := &Status{State: Ready, Since: state.FetchedAt, FetchedAt: state.FetchedAt}
	incident := "the jwks_uri gave no usable key set (incident " + state.Failure + ")"
	if state.Failures > 0 {
		s.NextRefreshAt = state.NextAttempt
	}
	if state.set == nil {
		s.State, s.Since, s.Reason = Failing, state.FailingSince, incident
		if state.Failures == 0 {
			s.Since, s.Reason = reg.UpdatedAt, "the jwks_uri has not been fetched yet"
		}
		return s
	}
	s.ExpiresAt = state.usableUntil(c.cfg.Policy)
	if state.Failures == 0 {
		s.NextRefreshAt = firstRefreshAt(state.FetchedAt, state.FreshUntil)
		if src := c.sources.get(state.URI); src != nil {
			s.NextRefreshAt = c.sources.dueAt(src)
		}
	}
	switch {
	case now.After(s.ExpiresAt):
		s.State, s.Since, s.Reason = Expired, s.ExpiresAt, incident
	case now.After(state.FreshUntil):
		s.State, s.Since, s.Reason = Stale, state.FreshUntil, incident
	case state.Failures > 0:
		s.State, s.Since, s.Reason = Failing, state.FailingSince, incident
	}
	if s.State != Ready && state.Failures == 0 {
		s.Reason = "the keys have not been refreshed since they were last used"
	}
	return s
}

// choose adds what the settings choose from set, nil for none. A setting that
// no key fits makes a client that is otherwise in use NoUsableKey; the first
// such error is returned. What holds for the keys of all settings stands in w;
// a certificate is worth no more than a warning unless w says so.
func (s *Status) choose(settings []registry.Setting, set *jwks.Set, w jwks.Want) error {
	if set == nil && s.State == Failing {
		return nil // that says it already
	}
	var first error
	for _, setting := range settings {
		p, key := chooseOne(setting, set, w)
		if p.err != nil {
			err := fmt.Errorf("%s: %w", setting.Kind, p.err)
			if first == nil {
				first = err
			}
			continue
		}
		if p.recipient == nil {
			continue
		}
		s.Recipients = append(s.Recipients, Recipient{
			Setting: setting, Recipient: p.recipient, Thumbprint: p.thumbprint,
			Stale: s.State == Stale || s.State == Expired, FetchedAt: s.FetchedAt,
		})
		for _, text := range key.Warnings {
			s.warn(setting, text)
		}
		if err := key.CertificateError(time.Now()); err != nil {
			s.warn(setting, err.Error())
		}
	}
	if first != nil && s.State != Expired {
		s.State, s.Reason = NoUsableKey, first.Error()
	}
	return first
}

func (s *Status) warn(setting registry.Setting, text string) {
	s.Warnings = append(s.Warnings, fmt.Sprintf("%s: %s", setting.Kind, text))
}

// Check tries out a registration before it is stored: its keys are parsed, or
// fetched within the call, and one must fit each setting that encrypts. What a
// URL gives that is no good set is not told apart from a URL that gives
// nothing. Errors: jwks.ErrRejected for keys that are registered as they are,
// jwks.ErrKeyRejected if a key would fit had it passed the checks, ErrUnusable,
// ErrUnavailable (as a *FetchError), registry.ErrUnavailable, or the context's.
func (c *Cache) Check(ctx context.Context, reg *registry.Registration) (*Status, error) {
	var status *Status
	var set *jwks.Set
	if uri := reg.Source.JWKSURI; uri != "" {
		state, err := c.fetched(ctx, uri, false)
		var failed *FetchError
		if errors.As(err, &failed) {
			// Whether others still have an old set is nothing to the caller.
			return nil, &FetchError{ID: failed.ID, RetryAfter: failed.RetryAfter, Err: ErrUnavailable}
		}
		if err != nil {
			return nil, err
		}
		status, set = c.fetchedStatus(reg, state), state.set.parsed()
	} else {
		var err error
		if len(reg.Source.JWKS) > 0 {
			if set, err = jwks.Parse(reg.Source.JWKS, c.cfg.Limits); err != nil {
				return nil, err
			}
		}
		status = staticStatus(reg)
	}
	rules := c.rules(reg)
	rules.CertificateAt = time.Now()
	err := status.choose(reg.Settings, set, rules)
	var noKey *jwks.NoKeyError
	if errors.As(err, &noKey) && errors.Is(err, jwks.ErrKeyRejected) {
		return nil, noKey // whoever registers brings the key: it is at fault
	}
	if err != nil {
		return nil, err
	}
	return status, nil
}

// Keep stores the key set of a URL that a registration has just come to name.
// Errors: registry.ErrUnavailable.
func (c *Cache) Keep(ctx context.Context, uri string) error {
	src := c.sources.get(uri)
	if src == nil {
		return nil
	}
	if state := src.state.Load(); state.set == nil && state.Failures == 0 {
		return nil // never fetched: nothing to keep
	}
	return c.save(ctx, src)
}

// Refresh fetches a client's key set now, whatever its age: the fetch begins
// after the call. Errors: ErrNotRefreshable, ErrLimited (as a *LimitError),
// ErrUnavailable or ErrExpired (as a *FetchError), registry.ErrUnavailable, or
// the context's.
func (c *Cache) Refresh(ctx context.Context, reg *registry.Registration) (*Status, error) {
	if reg.Source.JWKSURI == "" {
		return nil, ErrNotRefreshable
	}
	state, err := c.fetched(ctx, reg.Source.JWKSURI, true)
	if err != nil {
		return nil, err
	}
	s := c.fetchedStatus(reg, state)
	_ = s.choose(reg.Settings, state.set.parsed(), c.rules(reg)) // the state tells
	return s, nil
}

// Explanation is what was decided about every key of a client's set.
type Explanation struct {
	Setting  registry.Setting
	Verdicts []jwks.Verdict
	// FetchedAt is when the set was last fetched or confirmed; zero for keys
	// that were registered as they are.
	FetchedAt time.Time
}

// Explain goes through the key set of a registered client for one kind of
// token, without fetching anything. Errors: ErrNoSetting, ErrUnavailable,
// ErrUnusable, registry.ErrUnavailable, or the context's.
func (c *Cache) Explain(ctx context.Context, reg *registry.Registration, kind registry.TokenKind) (*Explanation, error) {
	setting, ok := reg.Setting(kind)
	if !ok || setting.EncryptionAlgorithm == "" {
		return nil, ErrNoSetting
	}
	e := &Explanation{Setting: setting}
	set, err := c.staticSet(reg)
	if err != nil {
		return nil, err
	}
	if uri := reg.Source.JWKSURI; uri != "" {
		state, err := c.peek(ctx, uri)
		switch {
		case err != nil:
			return nil, err
		case state.set == nil && state.Failures == 0:
			return nil, fmt.Errorf("%w: the jwks_uri has not been fetched yet", ErrUnavailable)
		case state.set == nil:
			return nil, c.unusable(state, time.Now())
		}
		set, e.FetchedAt = state.set.parsed(), state.FetchedAt
	}
	if set != nil {
		e.Verdicts = set.Explain(want(setting, c.rules(reg)))
	}
	return e, nil
}
