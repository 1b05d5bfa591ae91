package keycache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter"
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
	// Expired: the last good set is older than the bound, or the client's
	// secret is out of use.
	Expired
	// Failing: the URL gives no usable answer. The last good set is in use
	// while it is fresh, or there has never been one. Or the client's secret
	// cannot be opened at the moment.
	Failing
	// NoUsableKey: no key of the client fits one of the settings, or what is
	// stored of the client fails its authentication.
	NoUsableKey
)

// String returns the state as the API names it, without a prefix.
func (s State) String() string {
	switch s {
	case Ready:
		return "READY"
	case Stale:
		return "STALE"
	case Expired:
		return "EXPIRED"
	case Failing:
		return "FAILING"
	case NoUsableKey:
		return "NO_USABLE_KEY"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Status is what is known of a client's keys at a moment.
type Status struct {
	State State
	// Reason says why the state is not Ready.
	Reason string
	// Since is when the state began, as far as this is known.
	Since time.Time
	// FetchedAt and NextRefreshAt are set for keys from a URL: when they were
	// last fetched or confirmed, and when they are looked at again if they are
	// in use.
	FetchedAt, NextRefreshAt time.Time
	// ExpiresAt is when the first of the client's keys go out of use: the last
	// good set of a URL, if it cannot be refreshed until then, or those of a
	// secret that expires.
	ExpiresAt time.Time
	// Recipients are the keys of those settings that encrypt and have one. That
	// of ID_TOKEN stands for logout tokens too.
	Recipients []ChosenKey
	// Warnings say what works and deserves a look all the same.
	Warnings []string
}

// ChosenKey is what a status tells of the key of one setting. It cannot
// encrypt: it is public through and through, also where the key is not.
type ChosenKey struct {
	// Setting is how tokens are made for the client.
	Setting registry.Setting
	// Thumbprint is that of a Recipient.
	Thumbprint string
	// Stale and FetchedAt are those of a Recipient.
	Stale     bool
	FetchedAt time.Time

	keyID string
}

// KeyID returns the "kid" in the header of the client's tokens, or "".
func (k *ChosenKey) KeyID() string { return k.keyID }

// Algorithm returns the "alg" of the client's tokens.
func (k *ChosenKey) Algorithm() encrypter.KeyAlgorithm {
	return encrypter.KeyAlgorithm(k.Setting.EncryptionAlgorithm)
}

// ContentEncryption returns the "enc" of the client's tokens.
func (k *ChosenKey) ContentEncryption() encrypter.ContentEncryption {
	return encrypter.ContentEncryption(k.Setting.ContentEncryption)
}

// Status describes a registered client without fetching anything. What it finds
// out of a revision is remembered, so that listing clients again costs little: a
// secret that could be opened is taken to open for some minutes. A record that a
// list marks as Tampered is NoUsableKey, and so is a client that was deleted and
// whose registration anew waits. What waits is left to Upcoming. Errors:
// registry.ErrUnavailable, or the context's.
func (c *Cache) Status(ctx context.Context, reg *registry.Registration) (*Status, error) {
	switch {
	case reg.Tampered:
		return &Status{State: NoUsableKey, Reason: tamperedReason}, nil
	case reg.Deleted: // and registered anew, which waits
		return &Status{State: NoUsableKey, Reason: reg.Missing().Error(), Since: reg.UpdatedAt}, nil
	}
	return c.statusOf(ctx, c.search(reg), reg)
}

// statusOf is Status of a registration that look searches.
func (c *Cache) statusOf(ctx context.Context, look *search, reg *registry.Registration) (*Status, error) {
	if reg.Source.JWKSURI == "" {
		return look.status(ctx, staticStatus(reg), nil, nil)
	}
	state, t, err := c.peek(ctx, reg.Source.JWKSURI, func(hash uint64) *keySet {
		if look.after.of(hash) {
			return &keySet{hash: hash}
		}
		return nil
	})
	if err == nil && !look.knows(state.set) {
		state, t, err = c.document(ctx, reg.Source.JWKSURI, state, t)
	}
	if err != nil {
		return nil, err
	}
	return look.status(ctx, c.fetchedStatus(reg, state), state.set, t)
}

const tamperedReason = "what is stored of this client fails its authentication: somebody changed the store; whoever may replace the client can register or delete it"

// status completes status, which describes the public keys of a registered
// client: set, if they come from a URL. t is its document, if that is at hand.
func (s *search) status(ctx context.Context, status *Status, set *keySet, t *text) (*Status, error) {
	now := time.Now()
	f, err := s.find(ctx, set, t, now)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	status.tell(s.reg, f, now)
	status.secret(s.reg, err, now)
	return status, nil
}

// derived returns what a registration's settings take from the client's secret,
// a pick for each; nil if nothing is kept of that. Its errors are those of a
// secret that is not to be used or cannot be: a *SecretExpiredError, and those
// of use.
func (c *Cache) derived(ctx context.Context, reg *registry.Registration, r rules, now time.Time) ([]pick, error) {
	kept := reg.Source.Secret
	if kept == nil {
		return nil, nil
	}
	if err := secretExpired(kept.ExpiresAt, now); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.FetchTimeout)
	defer cancel()
	all, signing, err := c.use(limited, reg, reg.Settings, r)
	clear(signing)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return all, err
}

func staticStatus(reg *registry.Registration) *Status {
	return &Status{State: Ready, Since: reg.UpdatedAt}
}

// fetchedStatus describes the key set of a URL, not yet what is chosen from it.
func (c *Cache) fetchedStatus(reg *registry.Registration, state *setState) *Status {
	now := time.Now()
	s := &Status{State: Ready, Since: state.FetchedAt, FetchedAt: state.FetchedAt}
	incident := "the jwks_uri gave no usable key set (incident " + state.incidentID() + ")"
	if state.failures() > 0 {
		s.NextRefreshAt = state.nextAttempt()
	}
	if state.set == nil {
		s.State, s.Since, s.Reason = Failing, state.failingSince(), incident
		if state.failures() == 0 {
			s.Since, s.Reason = reg.UpdatedAt, "the jwks_uri has not been fetched yet"
		}
		return s
	}
	s.ExpiresAt = state.usableUntil(c.cfg.Policy)
	if state.failures() == 0 {
		s.NextRefreshAt = firstRefreshAt(state.FetchedAt, state.FreshUntil)
		if src := c.sources.get(reg.Source.JWKSURI); src != nil {
			s.NextRefreshAt = c.sources.dueAt(src)
		}
	}
	switch {
	case now.After(s.ExpiresAt):
		s.State, s.Since, s.Reason = Expired, s.ExpiresAt, incident
	case now.After(state.FreshUntil):
		s.State, s.Since, s.Reason = Stale, state.FreshUntil, incident
	case state.failures() > 0:
		s.State, s.Since, s.Reason = Failing, state.failingSince(), incident
	}
	if s.State != Ready && state.failures() == 0 {
		s.Reason = "the keys have not been refreshed since they were last used"
	}
	return s
}

// chooser is what the settings of a registration choose from.
type chooser struct {
	rules rules
	// set are the public keys, nil for none.
	set *jwks.Set
	// refused is why they cannot be used any more, though they could when they
	// were registered.
	refused error
	// unfetched says that they come from a URL that has given none yet.
	unfetched bool
	// derived are the picks of those settings that take the client's secret;
	// nil if that cannot be used.
	derived []pick
	// certificateAt is when certificates have to be valid; zero if they need
	// not be.
	certificateAt time.Time
}

// choice is what one setting of a registration chose: a pick, and its key if
// that is a public one. It is empty if the setting does not encrypt, or the
// status tells already why there is no key.
type choice struct {
	pick
	key *jwks.Key
}

// choose returns what the settings of a registration choose. Either of both
// kinds of keys may be left out.
func (f *chooser) choose(reg *registry.Registration) []choice {
	all := make([]choice, len(reg.Settings))
	for i, setting := range reg.Settings {
		switch {
		case setting.EncryptionAlgorithm == "":
		case derives(reg, setting):
			if f.derived != nil {
				all[i].pick = f.derived[i]
			}
		case symmetric(setting):
			all[i].pick, all[i].key = f.rules.choose(setting, nil, time.Time{})
		case f.unfetched:
		case f.refused != nil:
			all[i].failed = &failure{f.refused}
		default:
			all[i].pick, all[i].key = f.rules.choose(setting, f.set, f.certificateAt)
		}
	}
	return all
}

// derives reports whether a setting encrypts with a key that is derived from
// the secret that the registration keeps.
func derives(reg *registry.Registration, s registry.Setting) bool {
	return symmetric(s) && reg.Source.Secret != nil
}

// tell adds what is known of the keys that the settings of a registration
// choose. A setting that no key fits makes a client that is otherwise in use
// NoUsableKey.
func (s *Status) tell(reg *registry.Registration, facts []fact, now time.Time) {
	reason := ""
	stale := s.State == Stale || s.State == Expired
	for i, setting := range reg.Settings {
		f := facts[i]
		if f.reason != "" && reason == "" {
			reason = fmt.Sprintf("%s: %s", setting.Kind, f.reason)
		}
		if !f.chosen {
			continue
		}
		k := ChosenKey{Setting: setting, Thumbprint: f.thumbprint, keyID: f.keyID}
		if !derives(reg, setting) {
			k.Stale, k.FetchedAt = stale, s.FetchedAt
		}
		if f.key != nil {
			for _, text := range f.key.WarningsAt(now) {
				s.warn(setting, text)
			}
			if reg.X5T && f.key.X5T == "" {
				s.warn(setting, "x5t is asked for, and the key has no certificate: register one, or leave x5t out")
			}
		}
		for _, text := range k.Algorithm().Warnings(k.ContentEncryption()) {
			s.warn(setting, text)
		}
		s.Recipients = append(s.Recipients, k)
	}
	if reason != "" && s.State != Expired {
		s.State, s.Reason = NoUsableKey, reason
	}
}

// secretNotice is how long before its end a secret is worth a warning: time
// enough to give the client a new one.
const secretNotice = 30 * 24 * time.Hour

// secret adds what there is to say of a client's secret, which could not be
// used for the reason given, nil if it could.
func (s *Status) secret(reg *registry.Registration, err error, now time.Time) {
	kept := reg.Source.Secret
	if kept == nil {
		return
	}
	var expired *SecretExpiredError
	switch {
	case errors.As(err, &expired):
		s.add(Expired, err.Error(), expired.ExpiredAt)
	case errors.Is(err, registry.ErrTampered):
		s.add(NoUsableKey, tamperedReason, time.Time{})
	case errors.Is(err, ErrUnusable):
		s.add(NoUsableKey, err.Error(), reg.UpdatedAt)
	case err != nil:
		s.add(Failing, "the client's secret cannot be opened at the moment", time.Time{})
	}
	if kept.ExpiresAt.IsZero() {
		return
	}
	if s.ExpiresAt.IsZero() || kept.ExpiresAt.Before(s.ExpiresAt) {
		s.ExpiresAt = kept.ExpiresAt
	}
	if left := kept.ExpiresAt.Sub(now); left > 0 && left < secretNotice {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the client's secret expires at %s, in %d days: register the client's new secret before that",
			kept.ExpiresAt.UTC().Format(time.RFC3339), left/(24*time.Hour)))
	}
}

// worse orders the states by what they keep from being issued.
var worse = []State{Ready, Stale, Failing, NoUsableKey, Expired}

// add puts a trouble beside what the status says already. The state is that of
// the one which is worse.
func (s *Status) add(state State, reason string, since time.Time) {
	if slices.Index(worse, state) > slices.Index(worse, s.State) {
		s.State, s.Since = state, since
	}
	if s.Reason != "" {
		reason = s.Reason + "; " + reason
	}
	s.Reason = reason
}

func (s *Status) warn(setting registry.Setting, text string) {
	s.Warnings = append(s.Warnings, fmt.Sprintf("%s: %s", setting.Kind, text))
}

// Refresh fetches a client's key set now, whatever its age: the fetch begins
// after the call. In a fleet, what it returns is stored and on its way to all
// replicas; if it could not be, it is in use on this one, and the error is
// registry.ErrUnavailable. Errors: ErrNotRefreshable, ErrLimited (as a *LimitError),
// ErrUnavailable or ErrExpired (as a *FetchError), registry.ErrUnavailable, or
// the context's.
func (c *Cache) Refresh(ctx context.Context, reg *registry.Registration) (*Status, error) {
	if reg.Source.JWKSURI == "" {
		return nil, ErrNotRefreshable
	}
	f, err := c.fetched(ctx, reg.Source.JWKSURI, forced)
	if err != nil {
		return nil, err
	}
	look, state, t := c.search(reg), f.state, f.text
	if !look.knows(state.set) {
		if state, t, err = c.document(ctx, reg.Source.JWKSURI, state, t); err != nil {
			return nil, err
		}
	}
	return look.status(ctx, c.fetchedStatus(reg, state), state.set, t)
}
