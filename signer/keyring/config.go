package keyring

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
)

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.ProbeInterval, 10 * time.Second},
		{&c.ReloadInterval, 10 * time.Second},
		{&c.Timeout, 5 * time.Second},
		{&c.RetryMin, time.Second},
		{&c.RetryMax, 30 * time.Second},
		{&c.MaxLag, 15 * time.Minute},
		{&c.Skew, time.Minute},
		{&c.CreateTimeout, time.Minute},
		{&c.Lease, 2 * time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	// What is read too seldom would always be too old.
	c.ReloadInterval = min(c.ReloadInterval, c.MaxLag/3)
	c.Issuers = slices.Clone(c.Issuers)
	for n := range c.Issuers {
		i := &c.Issuers[n]
		if i.JWKSMaxAge <= 0 {
			i.JWKSMaxAge = 10 * time.Minute
		}
		if i.MaxLifetime <= 0 {
			i.MaxLifetime = time.Hour
		}
	}
	return c
}

// terms are those of an issuer.
func (c Config) terms(i Issuer) terms {
	return terms{
		maxAge: i.JWKSMaxAge, maxLifetime: i.MaxLifetime, maxLag: c.MaxLag, skew: c.Skew,
		write: min(c.Timeout, c.MaxLag, i.JWKSMaxAge), every: i.Rotation.Every,
	}
}

// check finds everything that is wrong with the configuration.
func (c Config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Store == nil {
		wrong("keyring: a Store is required")
	}
	if c.Lease < c.CreateTimeout+2*c.Timeout {
		wrong("keyring: a Lease of %v is too short for creating a key, which may take %v", c.Lease, c.CreateTimeout+2*c.Timeout)
	}
	names := map[string]bool{}
	for _, i := range c.Issuers {
		if i.Name == "" || names[i.Name] {
			wrong("issuer %q: every issuer needs a name of its own", i.Name)
		}
		names[i.Name] = true
		if len(i.Keys) == 0 {
			wrong("issuer %s has no signing keys: list at least one", i.Name)
			continue
		}
		hasDefault := i.DefaultAlgorithm == ""
		users := map[Location]kms.Algorithm{}
		for _, key := range i.Keys {
			hasDefault = hasDefault || key.Algorithm == i.DefaultAlgorithm
			if !key.Algorithm.Known() {
				wrong("issuer %s: signing algorithm %q is not known: use one of %v", i.Name, string(key.Algorithm), kms.Algorithms())
			}
			if len(key.Locations) == 0 {
				wrong("issuer %s: the %s key has no location: say which key of which backend it is", i.Name, key.Algorithm)
			}
			for _, l := range key.Locations {
				if _, ok := c.Backends[l.Backend]; !ok {
					wrong("issuer %s: signing key %s: backend %q is not configured", i.Name, l, l.Backend)
				}
				switch other, used := users[l]; {
				case used && other == key.Algorithm:
					wrong("issuer %s: signing key %s is listed twice for %s", i.Name, l, other)
				case used:
					wrong("issuer %s: signing key %s is listed for %s and %s: %w", i.Name, l, other, key.Algorithm, ErrKeyShared)
				}
				users[l] = key.Algorithm
			}
			if err := c.mayCreate(i, key); err != nil {
				errs = append(errs, err)
			}
		}
		if every, lead := i.Rotation.Every, c.terms(i).lead(); every != 0 && every < lead {
			wrong("issuer %s: keys cannot be replaced every %v, since a new one has to be published for %v before it signs (jwks_max_age, twice max_lag, and %v for clocks): rotate less often, or lower those", i.Name, every, lead, c.Skew)
		}
		if !hasDefault {
			wrong("issuer %s: no signing key for its default algorithm %s: list one, or choose another default", i.Name, i.DefaultAlgorithm)
		}
	}
	return errors.Join(errs...)
}

// mayCreate reports why the issuer's rotation cannot create the successors of a
// listed key.
func (c Config) mayCreate(i Issuer, key Key) error {
	if !i.Rotation.Create {
		return nil
	}
	if len(key.Locations) > 1 {
		return fmt.Errorf("issuer %s: the %s key is in %d places, and Bulla creates a key in one only: list the keys to come and let it create none, or keep the key in one place", i.Name, key.Algorithm, len(key.Locations))
	}
	for _, l := range key.Locations {
		b, ok := c.Backends[l.Backend]
		if _, creates := b.(kms.Creator); ok && !creates {
			return fmt.Errorf("issuer %s: signing key %s: %w", i.Name, l, errNoCreator)
		}
	}
	return nil
}

// errNoCreator is a rotation that is to create keys where that is impossible.
var errNoCreator = errors.New("its backend cannot create keys: list the keys to come and let the rotation create none")
