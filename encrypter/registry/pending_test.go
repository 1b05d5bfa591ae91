package registry

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// waiting is a record of which a change waits until noon: from the URL of record
// to another one.
func waiting(edit func(*Registration)) *Registration {
	r := stored()
	r.Revision = 4
	next := record(withURI("https://client.example/other"))
	r.Pending = &Pending{EffectiveAt: noon, Source: next.Source, Settings: next.Settings}
	if edit != nil {
		edit(r)
	}
	return r
}

// dead is a tombstone after which the client was registered anew, which waits.
func dead() *Registration {
	r := waiting(nil)
	r.Deleted, r.Source, r.Settings = true, Source{}, nil
	return r
}

func TestWhatIsInForceFollowsFromTheClock(t *testing.T) {
	r := waiting(func(r *Registration) { r.Pending.Legacy, r.Pending.X5T = true, true })
	if got := r.InForce(noon.Add(-time.Nanosecond)); got != r {
		t.Errorf("before: got %+v", got)
	}
	for _, at := range []time.Time{noon, noon.Add(time.Hour)} {
		got := r.InForce(at)
		if got.Source.JWKSURI != "https://client.example/other" || got.Pending != nil || !got.Legacy || !got.X5T || got.Issuer != r.Issuer || got.ClientID != r.ClientID {
			t.Errorf("at %v: got %+v", at, got)
		}
		if got.Revision != 5 || !got.UpdatedAt.Equal(noon) || !got.CreatedAt.Equal(r.CreatedAt) {
			t.Errorf("at %v: got revision %d of %v, created at %v", at, got.Revision, got.UpdatedAt, got.CreatedAt)
		}
	}
	if plain := stored(); plain.InForce(noon) != plain || plain.Successor() != nil {
		t.Error("without a change the record is not itself")
	}
	if back := dead().InForce(noon); back.Deleted || back.Missing() != nil || !back.CreatedAt.Equal(noon) {
		t.Errorf("registered anew: got %+v", back)
	}
}

func TestADeletedClientSaysWhenItIsBack(t *testing.T) {
	err := dead().Missing()
	var w *WaitingError
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrWaiting) || !errors.As(err, &w) || !w.EffectiveAt.Equal(noon) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), noon.Format(time.RFC3339)) {
		t.Errorf("%q does not say when", err)
	}
	gone := tombstone()
	if err := gone.Missing(); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrWaiting) {
		t.Errorf("a tombstone: got %v", err)
	}
}

func TestDecideWhileAChangeWaits(t *testing.T) {
	inForce, follows, third := record(), record(withURI("https://client.example/other")), record(withURI("https://client.example/third"))
	for name, tc := range map[string]struct {
		current  *Registration
		want     Registration
		revision uint64
		change   Change
		err      error
	}{
		"what is in force, with revision":      {waiting(nil), inForce, 4, Cancel, nil},
		"what is in force, without":            {waiting(nil), inForce, 0, Unchanged, nil},
		"what waits, with revision":            {waiting(nil), follows, 4, Unchanged, nil},
		"what waits, without":                  {waiting(nil), follows, 0, Unchanged, nil},
		"something else, with revision":        {waiting(nil), third, 4, Replace, nil},
		"something else, without":              {waiting(nil), third, 0, 0, ErrExists},
		"another revision":                     {waiting(nil), inForce, 3, 0, ErrRevision},
		"the revision that is to come":         {waiting(nil), inForce, 5, 0, ErrRevision},
		"deleted, what waits":                  {dead(), follows, 0, Unchanged, nil},
		"deleted, what was in force":           {dead(), inForce, 0, 0, ErrExists},
		"deleted, something else":              {dead(), third, 0, 0, ErrExists},
		"deleted, something else, revision":    {dead(), third, 4, Replace, nil},
		"deleted, nothing waits":               {func() *Registration { r := dead(); r.Pending = nil; return r }(), third, 0, Recreate, nil},
		"deleted, nothing waits, any revision": {func() *Registration { r := dead(); r.Pending = nil; return r }(), third, 4, 0, ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Decide(tc.current, tc.want, tc.revision)
			if !errors.Is(err, tc.err) || d.Change != tc.change {
				t.Fatalf("got %v, %v; want %v, %v", d.Change, err, tc.change, tc.err)
			}
			if err != nil {
				return
			}
			if d.Expect != tc.current.Revision {
				t.Errorf("over revision %d, want %d", d.Expect, tc.current.Revision)
			}
			if d.Change == Cancel && (d.Record.Pending != nil || d.Record.Source.JWKSURI != inForce.Source.JWKSURI || tc.current.Pending == nil) {
				t.Errorf("taken back: got %+v of %+v", d.Record, tc.current)
			}
			if d.Change == Replace && d.Record.Pending != nil {
				t.Errorf("replaced, and waits by itself: %+v", d.Record)
			}
		})
	}
}

func TestDeletionIsAtOnceAndDropsWhatWaits(t *testing.T) {
	for name, current := range map[string]*Registration{"live": waiting(nil), "deleted": dead()} {
		d, err := DecideDelete(current, 0)
		if err != nil || d.Change != Delete || d.Record.Pending != nil || !d.Record.Deleted {
			t.Errorf("%s: got %+v, %v", name, d, err)
		}
		d.Postpone(current, noon)
		if d.Record.Pending != nil {
			t.Errorf("%s: the deletion waits", name)
		}
	}
	gone := tombstone()
	if _, err := DecideDelete(gone, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tombstone: got %v", err)
	}
}

func TestWhatIsPostponed(t *testing.T) {
	at := noon.Add(1234567 * time.Nanosecond)
	third := record(withURI("https://client.example/third"))
	decide := func(current *Registration, revision uint64) Decision {
		t.Helper()
		d, err := Decide(current, third, revision)
		if err != nil {
			t.Fatal(err)
		}
		d.Postpone(current, at)
		if err := d.Record.Validate(); err != nil {
			t.Errorf("%v: %v", d.Change, err)
		}
		return d
	}
	waits := func(what string, d Decision) {
		t.Helper()
		if p := d.Record.Pending; p == nil || !p.EffectiveAt.Equal(at.Truncate(time.Microsecond)) || p.Source.JWKSURI != third.Source.JWKSURI {
			t.Errorf("%s: got %+v", what, d.Record)
		}
	}

	replaced := decide(stored(), 3)
	waits("a replacement", replaced)
	if replaced.Record.Deleted || replaced.Record.Source.JWKSURI != record().Source.JWKSURI {
		t.Errorf("what is in force has changed: %+v", replaced.Record)
	}
	// Anew from now, and nothing is left of what waited before.
	waits("a second one", decide(waiting(nil), 4))

	// Neither by way of a deletion, nor of a record that somebody has spoiled.
	gone := tombstone()
	gone.Revision = 7
	spoiled := Unreadable(third.Issuer, third.ClientID, &TamperedError{Revision: 7})
	for what, current := range map[string]*Registration{"a deleted client": gone, "a deleted one that waits": dead(), "a spoiled one": spoiled} {
		revision := current.Revision
		if current == gone {
			revision = 0
		}
		d := decide(current, revision)
		waits(what, d)
		if !d.Record.Deleted || d.Record.Source.JWKSURI != "" || !errors.Is(d.Record.Missing(), ErrWaiting) {
			t.Errorf("%s: something is in force: %+v", what, d.Record)
		}
	}

	if d := decide(nil, 0); d.Change != Create || d.Record.Pending != nil {
		t.Errorf("a new client waits: %+v", d)
	}
}

func TestWhatWaitsHasToBeInShape(t *testing.T) {
	for field, edit := range map[string]func(*Registration){
		"pending.settings":             func(r *Registration) { r.Pending.Settings = nil },
		"pending.source.jwks_uri":      func(r *Registration) { r.Pending.Source.JWKSURI = "https://a\x00" },
		"pending.effective_at":         func(r *Registration) { r.Pending.EffectiveAt = time.Time{} },
		"pending.settings[0].key_id":   func(r *Registration) { r.Pending.Settings[0].KeyID = "\x00" },
		"pending.source.jwks_uri?long": func(r *Registration) { r.Pending.Source.JWKSURI = strings.Repeat("a", MaxJWKSURI+1) },
	} {
		for _, r := range []*Registration{waiting(edit), func() *Registration { r := dead(); edit(r); return r }()} {
			err := r.Validate()
			var invalid *InvalidError
			if want, _, _ := strings.Cut(field, "?"); !errors.As(err, &invalid) || invalid.Field != want {
				t.Errorf("%s: got %v", field, err)
			}
		}
	}
	for _, r := range []*Registration{waiting(nil), dead()} {
		if err := r.Validate(); err != nil {
			t.Error(err)
		}
	}
}
