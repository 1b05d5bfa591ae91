package main

import (
	"errors"
	"log/slog"

	"github.com/bulla-project/bulla/server/admit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/telemetry"
)

// slowestKMS is the part of a second that a signature of AWS KMS takes at most,
// going by which there are places for as many as its rate lets through.
const slowestKMS = 10

// leastInFlight is for a KMS with a low rate, whose answers take their time all
// the same.
const leastInFlight = 4

// admissionConfig says how much is asked of each backend at once. A token has its
// sessions, and sometimes fewer than it was configured with.
func admissionConfig(cfg *config.Config, b *backends, log *slog.Logger) admit.Config {
	c := admit.Config{Queue: cfg.Admission.Queue, Backends: make(map[string]admit.Backend), Logger: log}
	for name, backend := range cfg.Backends {
		one := admit.Backend{InFlight: cfg.Admission.Backends[name].InFlight}
		if token := b.tokens[name]; token != nil {
			one.Room = func() int { return token.Stats().Limit }
		} else if backend.AWSKMS != nil && one.InFlight == 0 {
			one.InFlight = max(backend.AWSKMS.Rate/slowestKMS, leastInFlight)
		}
		c.Backends[name] = one
	}
	return c
}

// limitConfig says how much callers may ask for.
func limitConfig(cfg *config.Config) limit.Config {
	l := cfg.Limits
	c := limit.Config{
		Tokens: l.Tokens, InFlight: l.InFlight,
		Registrations: l.Registrations, FirstFetches: l.FirstFetches, FirstFetchesPerHost: l.FirstFetchesPerHost,
		Callers: make(map[string]limit.Caller),
	}
	for _, one := range l.Callers {
		c.Callers[authz.Canonical(one.Caller)] = limit.Caller{
			Tokens: one.Tokens, InFlight: one.InFlight, Registrations: one.Registrations, FirstFetches: one.FirstFetches,
		}
	}
	return c
}

// swapLimits puts other limits in force while the service runs.
func swapLimits(limits *limit.Limits) *swap {
	return &swap{section: "limits", prepare: func(next *config.Config) (func(), error) {
		cfg := limitConfig(next)
		if _, err := limit.New(cfg); err != nil {
			return nil, err
		}
		return func() { _ = limits.Change(cfg) }, nil // New has found nothing wrong with it
	}}
}

// registerLoad adds what is counted of waiting and of refusals to the metrics. The
// backend without a name is what is signed with clients' secrets.
func registerLoad(m *telemetry.Metrics, admission *admit.Admission, limits *limit.Limits) error {
	var all error
	for name := range admission.Stats() {
		of := func() admit.Stats { return admission.Of(name) }
		backend := map[string]string{"backend": name}
		all = errors.Join(all,
			m.Gauge("bulla_backend_in_flight", "Signatures that the backend is asked for now.", backend, func() float64 { return float64(of().InFlight) }),
			m.Gauge("bulla_backend_in_flight_limit", "Signatures that the backend may be asked for at once.", backend, func() float64 { return float64(of().Limit) }),
			m.Gauge("bulla_backend_queued", "Calls that wait to ask the backend.", backend, func() float64 { return float64(of().Queued) }),
			m.Counter("bulla_overloaded_total", "Calls that were turned away because more was asked of the backend than it can do in time.", backend, func() float64 { return float64(of().Refused) }),
		)
	}
	for _, name := range limit.Names() {
		all = errors.Join(all, m.Counter("bulla_quota_exceeded_total", "Calls that were turned away because of a limit for each caller.",
			map[string]string{"limit": name}, func() float64 { return float64(limits.Exceeded(name)) }))
	}
	return all
}
