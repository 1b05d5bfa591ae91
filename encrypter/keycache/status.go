package keycache

import (
	"context"
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
	// they were last fetched or confirmed, when they are looked at again, and
	// when the last good set goes out of use if it cannot be refreshed.
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
			return &Status{State: NoUsableKey, Reason: err.Error(), Since: reg.UpdatedAt}, nil
		}
		return staticStatus(reg, compile(reg.Settings, set, time.Time{})), nil
	}
	state, err := c.peek(ctx, reg.Source.JWKSURI)
	if err != nil {
		return nil, err
	}
	return c.fetchedStatus(reg, state, compile(reg.Settings, state.set, time.Time{})), nil
}

// peek returns what is known of a URL and leaves no trace of having looked.
func (c *Cache) peek(ctx context.Context, uri string) (*setState, error) {
	if entry, ok := c.sources.GetEntryQuietly(uri); ok {
		return entry.Value.state.Load(), nil
	}
	return c.storedState(ctx, uri)
}

func staticStatus(reg *registry.Registration, r *recipients) *Status {
	s := &Status{State: Ready, Since: reg.UpdatedAt}
	s.add(r)
	return s
}

func (c *Cache) fetchedStatus(reg *registry.Registration, state *setState, r *recipients) *Status {
	ks, now := &state.keySet, time.Now()
	s := &Status{State: Ready, Since: ks.FetchedAt, FetchedAt: ks.FetchedAt}
	if ks.Failures > 0 {
		s.NextRefreshAt = ks.NextAttempt
	}
	incident := "the jwks_uri gave no usable key set (incident " + ks.Failure + ")"
	if state.set == nil {
		s.State, s.Since, s.Reason = Failing, ks.FailingSince, incident
		if ks.Failures == 0 {
			s.Since, s.Reason = reg.UpdatedAt, "the jwks_uri has not been fetched yet"
		}
		return s
	}
	s.ExpiresAt = c.expiresAt(ks)
	if ks.Failures == 0 {
		s.NextRefreshAt = refreshDueAt(ks)
		if entry, ok := c.sources.GetEntryQuietly(ks.URI); ok {
			s.NextRefreshAt = entry.Value.dueAt()
		}
	}
	switch {
	case now.After(s.ExpiresAt):
		s.State, s.Since, s.Reason = Expired, s.ExpiresAt, incident
	case now.After(ks.FreshUntil):
		s.State, s.Since, s.Reason = Stale, ks.FreshUntil, incident
		if ks.Failures == 0 {
			s.Reason = "the keys have not been refreshed since they were last used"
		}
	case ks.Failures > 0:
		s.State, s.Since, s.Reason = Failing, ks.FailingSince, incident
	}
	s.add(r)
	return s
}

// add takes over the recipients; a setting without one makes a client that is
// otherwise fine NoUsableKey.
func (s *Status) add(r *recipients) {
	for i := range r.kinds {
		k := &r.kinds[i]
		switch {
		case k.err != nil && s.State != Expired:
			s.State, s.Reason = NoUsableKey, fmt.Sprintf("%s: %v", k.Setting.Kind, k.err)
		case k.Recipient.Recipient != nil:
			s.Recipients = append(s.Recipients, k.Recipient)
		}
		for _, w := range k.warnings {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s: %s", k.Setting.Kind, w))
		}
	}
}

// Check tries out a registration before it is stored: its keys are parsed, or
// fetched within the call, and one must fit each setting that encrypts.
// Errors: jwks.ErrRejected, ErrUnusable, ErrUnavailable (as a *FetchError),
// registry.ErrUnavailable, or the context's.
func (c *Cache) Check(ctx context.Context, reg *registry.Registration) (*Status, error) {
	var r *recipients
	var status *Status
	now := time.Now()
	if uri := reg.Source.JWKSURI; uri != "" {
		src, err := c.source(ctx, uri)
		if err != nil {
			return nil, err
		}
		state, err := c.await(ctx, src, now.Add(-c.cfg.ForcedEvery))
		if err != nil {
			return nil, err
		}
		r = compile(reg.Settings, state.set, now)
		status = c.fetchedStatus(reg, state, r)
	} else {
		var set *jwks.Set
		if len(reg.Source.JWKS) > 0 {
			var err error
			if set, err = jwks.Parse(reg.Source.JWKS, c.cfg.Limits); err != nil {
				return nil, err
			}
		}
		r = compile(reg.Settings, set, now)
		status = staticStatus(reg, r)
	}
	for i := range r.kinds {
		if err := r.kinds[i].err; err != nil {
			return nil, fmt.Errorf("%s: %w", r.kinds[i].Setting.Kind, err)
		}
	}
	return status, nil
}

// Keep stores the key set of a URL that a registration has just come to name.
func (c *Cache) Keep(ctx context.Context, uri string) error {
	entry, ok := c.sources.GetEntryQuietly(uri)
	if !ok {
		return nil // never fetched: nothing to keep
	}
	return c.cfg.Store.PutKeySet(ctx, entry.Value.state.Load().keySet)
}

// Refresh fetches a client's key set now, whatever its age. Errors:
// ErrNotRefreshable, ErrLimited (as a *LimitError), ErrUnavailable or ErrExpired
// (as a *FetchError), registry.ErrUnavailable, or the context's.
func (c *Cache) Refresh(ctx context.Context, reg *registry.Registration) (*Status, error) {
	if reg.Source.JWKSURI == "" {
		return nil, ErrNotRefreshable
	}
	src, err := c.source(ctx, reg.Source.JWKSURI)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	last := src.forced.Load()
	if wait := c.cfg.ForcedEvery - now.Sub(time.Unix(0, last)); last != 0 && wait > 0 {
		return nil, &LimitError{RetryAfter: wait}
	}
	if !src.forced.CompareAndSwap(last, now.UnixNano()) {
		return nil, &LimitError{RetryAfter: c.cfg.ForcedEvery} // somebody was faster
	}
	state, err := c.await(ctx, src, now)
	if err != nil {
		return nil, err
	}
	return c.fetchedStatus(reg, state, compile(reg.Settings, state.set, time.Time{})), nil
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
		if err != nil {
			return nil, err
		}
		if state.set == nil {
			return nil, c.unusableSet(state, time.Until(state.keySet.NextAttempt), incidentOf(state))
		}
		set, e.FetchedAt = state.set, state.keySet.FetchedAt
	}
	if set != nil {
		e.Verdicts = set.Explain(want(setting))
	}
	return e, nil
}
