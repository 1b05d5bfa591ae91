package keycache

import (
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

var policy = Policy{
	MinRefresh: time.Minute, DefaultRefresh: 10 * time.Minute,
	MaxRefresh: 24 * time.Hour, MaxStale: 24 * time.Hour,
}

func TestFreshnessIsClamped(t *testing.T) {
	stated := func(d time.Duration) fetch.Freshness { return fetch.Freshness{For: d, Stated: true} }
	tests := map[string]struct {
		says fetch.Freshness
		want time.Duration
	}{
		"nothing":           {fetch.Freshness{}, 10 * time.Minute},
		"nothing, with For": {fetch.Freshness{For: time.Hour}, 10 * time.Minute},
		"stale already":     {stated(0), time.Minute},
		"too short":         {stated(59 * time.Second), time.Minute},
		"the shortest":      {stated(time.Minute), time.Minute},
		"in between":        {stated(61 * time.Second), 61 * time.Second},
		"the longest":       {stated(24 * time.Hour), 24 * time.Hour},
		"too long":          {stated(1 << 31 * time.Second), 24 * time.Hour},
	}
	for name, tc := range tests {
		if got := policy.freshFor(tc.says); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

func TestRefreshesAreSpread(t *testing.T) {
	fetched := time.Now()
	low, high := time.Hour, time.Duration(0)
	for range 10_000 {
		d := refreshAt(fetched, fetched.Add(100*time.Second)).Sub(fetched)
		low, high = min(low, d), max(high, d)
	}
	if low < 80*time.Second || low > 81*time.Second || high > 95*time.Second || high < 94*time.Second {
		t.Errorf("refreshes lie between %v and %v, want 80 s to 95 s", low, high)
	}
}

func TestPauseDoublesUpToItsBound(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second, 4: 40 * time.Second,
		5: 80 * time.Second, 6: 160 * time.Second, 7: 5 * time.Minute, 8: 5 * time.Minute,
		1 << 62: 5 * time.Minute, 0: 5 * time.Second, -1: 5 * time.Second,
	} {
		longest := time.Duration(0)
		for range 1000 {
			got := retryAfter(failures)
			if got < want || got > want+want/4 {
				t.Fatalf("after %d failures: %v, want %v to %v", failures, got, want, want+want/4)
			}
			longest = max(longest, got)
		}
		if longest < want+want/5 {
			t.Errorf("after %d failures: at most %v in 1000 tries, want them spread up to %v", failures, longest, want+want/4)
		}
	}
}

func TestStoredTimesAreHeldAgainstClockAndPolicy(t *testing.T) {
	now := time.Now()
	tests := map[string]struct{ stored, want registry.KeySet }{
		"in order": {
			registry.KeySet{FetchedAt: now.Add(-time.Hour), FreshUntil: now.Add(time.Hour), NextAttempt: now.Add(time.Minute)},
			registry.KeySet{FetchedAt: now.Add(-time.Hour), FreshUntil: now.Add(time.Hour), NextAttempt: now.Add(time.Minute)},
		},
		"fetched by a clock that was ahead": {
			registry.KeySet{FetchedAt: now.Add(9999 * time.Hour), FreshUntil: now.Add(10_000 * time.Hour)},
			registry.KeySet{FetchedAt: now, FreshUntil: now.Add(24 * time.Hour)},
		},
		"fresh for longer than the policy allows now": {
			registry.KeySet{FetchedAt: now.Add(-time.Hour), FreshUntil: now.Add(99 * time.Hour)},
			registry.KeySet{FetchedAt: now.Add(-time.Hour), FreshUntil: now.Add(23 * time.Hour)},
		},
		"paused by a clock that was ahead": {
			registry.KeySet{NextAttempt: now.Add(9999 * time.Hour)},
			registry.KeySet{NextAttempt: now.Add(375 * time.Second)},
		},
	}
	for name, tc := range tests {
		got := tc.stored
		policy.bound(&got, now)
		if !got.FetchedAt.Equal(tc.want.FetchedAt) || !got.FreshUntil.Equal(tc.want.FreshUntil) || !got.NextAttempt.Equal(tc.want.NextAttempt) {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Store: newMemStore(), Fetcher: &hosts{}}
	tests := map[string]func(*Config){
		"no store":              func(c *Config) { c.Store = nil },
		"no fetcher":            func(c *Config) { c.Fetcher = nil },
		"minimum above default": func(c *Config) { c.Policy.MinRefresh = time.Hour },
		"default above maximum": func(c *Config) { c.Policy.DefaultRefresh = 25 * time.Hour },
		"negative duration":     func(c *Config) { c.Policy.MaxStale = -1 },
		"negative number":       func(c *Config) { c.Fetchers = -1 },
		"negative memory":       func(c *Config) { c.MaxMemory = -1 },
	}
	for name, edit := range tests {
		cfg := good
		edit(&cfg)
		if c, err := New(cfg); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	c, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.cfg.Policy != policy || c.cfg.MaxMemory != 160<<20 || c.cfg.MaxLag != 15*time.Minute || c.cfg.FetchTimeout != 5*time.Second ||
		c.cfg.ForcedEvery != 10*time.Second || c.cfg.Fetchers != 16 || c.cfg.IdleAfter != 7*24*time.Hour || c.cfg.Logger == nil {
		t.Errorf("got defaults %+v", c.cfg)
	}
}
