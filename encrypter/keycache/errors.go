package keycache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

// Errors of the cache. Those of the registry pass through it unchanged: a
// registration that fails its authentication is registry.ErrTampered.
var (
	// ErrNoSetting: the client is registered, and not for this kind of token,
	// which the text names. Its registration must be changed.
	ErrNoSetting = errors.New("the client has no setting for this kind of token")

	// ErrUnusable: no key of the client fits its setting. The client has to
	// publish another key, or its registration must be changed.
	ErrUnusable = errors.New("no key of the client fits its setting")

	// ErrKeySize comes together with ErrUnusable, or at a registration with
	// jwks.ErrKeyRejected, when the only keys that would fit are RSA keys of a
	// length that the issuer's policy rules out. The text names the lengths and
	// the bounds. A key that is too short for any policy is not ErrKeySize. The
	// client has to publish a key of another length.
	ErrKeySize = errors.New("the issuer's policy rules out the length of the client's RSA key")

	// ErrUnavailable: the client's keys were to be fetched and could not be.
	// Try again later. Tokens are held up by this only if there is no earlier
	// set to go on with.
	ErrUnavailable = errors.New("the client's keys could not be fetched")

	// ErrExpired: the last good set is older than the bound and cannot be
	// refreshed: the client's host has to be repaired. Or, as a
	// *SecretExpiredError, the client's secret is out of use.
	ErrExpired = errors.New("the client's keys are too old to be used and could not be refreshed")

	// ErrLimited: this key set was fetched only a moment ago. Try again later.
	ErrLimited = errors.New("the client's keys were looked at only a moment ago")

	// ErrNotRefreshable: the client's keys do not come from a URL.
	ErrNotRefreshable = errors.New("the client's keys do not come from a jwks_uri")
)

// noSetting is ErrNoSetting for a kind of token.
func noSetting(kind registry.TokenKind) error {
	return fmt.Errorf("%w: %s; register one for %s", ErrNoSetting, kind, kind.SettingKind())
}

// FetchError is a failed fetch as callers may see it: what follows from it,
// and an id under which the log has the truth. What happened on the network is
// not told, so that nobody can look around in ours.
type FetchError struct {
	// ID finds the line in the log.
	ID string
	// RetryAfter is how long not to try again, as nothing would be fetched.
	RetryAfter time.Duration
	// Err is ErrUnavailable or ErrExpired.
	Err error
}

func (e *FetchError) Error() string {
	return e.Err.Error() + " (incident " + e.ID + ")"
}

func (e *FetchError) Unwrap() error { return e.Err }

// SecretExpiredError is ErrExpired for a client's secret: its keys, and what is
// signed with it, are no longer to be used. The client's new secret has to be
// registered.
type SecretExpiredError struct {
	// ExpiredAt is the registered end of the secret.
	ExpiredAt time.Time
}

func (e *SecretExpiredError) Error() string {
	return "the client's secret expired at " + e.ExpiredAt.UTC().Format(time.RFC3339) + ": register the client's new secret"
}

func (e *SecretExpiredError) Unwrap() error { return ErrExpired }

// LimitError is ErrLimited with the time to wait.
type LimitError struct {
	// RetryAfter is when the set may be looked at again.
	RetryAfter time.Duration
}

func (e *LimitError) Error() string { return ErrLimited.Error() }

func (e *LimitError) Unwrap() error { return ErrLimited }

// errClosed is for those who ask while the service is shutting down.
var errClosed = fmt.Errorf("%w: the service is shutting down", ErrUnavailable)

func isNotFound(err error) bool { return errors.Is(err, registry.ErrNotFound) }

// storeError is the error of a store that did not answer in the time that the
// cache gave it. The caller's own time may not be over, so it must not look as
// if it were.
func storeError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: %v", registry.ErrUnavailable, err) //nolint:errorlint // see above
	}
	return err
}
