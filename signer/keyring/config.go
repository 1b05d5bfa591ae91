package keyring

import (
	"errors"
	"fmt"
	"log/slog"
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
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// check finds everything that is wrong with the configuration.
func (c Config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Store == nil {
		wrong("keyring: a Store is required")
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
		}
		if !hasDefault {
			wrong("issuer %s: no signing key for its default algorithm %s: list one, or choose another default", i.Name, i.DefaultAlgorithm)
		}
	}
	return errors.Join(errs...)
}
