package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/limit"
)

// TestLimitsOfACallerFollowItsCertificate: a DNS name in a certificate is known in
// lower case, however the configuration writes it.
func TestLimitsOfACallerFollowItsCertificate(t *testing.T) {
	cfg := &config.Config{Limits: config.Limits{Registrations: 100, FirstFetches: 20, FirstFetchesPerHost: 5, Callers: []config.CallerLimits{
		{Caller: "Registrar.Example.com", Tokens: new(3.0), InFlight: new(2)},
		{Caller: "spiffe://example.com/IDP", Registrations: 7},
	}}}
	got := limitConfig(cfg).Callers
	want := map[string]limit.Caller{
		"registrar.example.com":    {Tokens: new(3.0), InFlight: new(2)},
		"spiffe://example.com/IDP": {Registrations: 7},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	for caller, want := range map[string][]limitExplain{
		"registrar.example.com":    {{Limit: "tokens", PerSecond: 3}, {Limit: "tokens", AtOnce: 2}, {Limit: "registrations", PerSecond: 100}, {Limit: "first_fetches", PerSecond: 20}},
		"spiffe://example.com/IDP": {{Limit: "registrations", PerSecond: 7}, {Limit: "first_fetches", PerSecond: 20}},
		"spiffe://example.com/idp": {{Limit: "registrations", PerSecond: 100}, {Limit: "first_fetches", PerSecond: 20}},
	} {
		if diff := cmp.Diff(want, limitsOf(cfg, caller)); diff != "" {
			t.Errorf("explained to %s (-want +got):\n%s", caller, diff)
		}
	}
}
