package keyring

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func minute(n int) time.Time { return t0.Add(time.Duration(n) * time.Minute) }

// defaults are the terms of a service whose configuration says nothing.
var defaults = terms{
	maxAge: 10 * time.Minute, maxLifetime: time.Hour, maxLag: 15 * time.Minute, skew: time.Minute, write: 5 * time.Second,
}

func TestTimesOfAChangeOfKeys(t *testing.T) {
	const lead, notice, drain = 41, 31, 76 // minutes, by the formulas in the package comment
	short := terms{maxAge: time.Second, maxLifetime: time.Second, maxLag: time.Second, skew: time.Second}
	signs := Entry{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500)}
	tests := []struct {
		name    string
		terms   terms
		entries []Entry // the last is to be next
		now     time.Time
		due     time.Time
		want    []Entry
	}{{
		name: "a new key is published now and signs a lead later", terms: defaults,
		entries: []Entry{signs, {KeyID: "new"}}, now: minute(0),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(lead), RemoveAt: minute(lead + drain)},
			{KeyID: "new", PublishAt: minute(0), ActivateAt: minute(lead)},
		},
	}, {
		name: "not before it is due", terms: defaults,
		entries: []Entry{signs, {KeyID: "new"}}, now: minute(0), due: minute(100),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(100), RemoveAt: minute(100 + drain)},
			{KeyID: "new", PublishAt: minute(0), ActivateAt: minute(100)},
		},
	}, {
		name: "what was due long ago still waits for verifiers", terms: defaults,
		entries: []Entry{signs, {KeyID: "new"}}, now: minute(0), due: minute(-100),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(lead), RemoveAt: minute(lead + drain)},
			{KeyID: "new", PublishAt: minute(0), ActivateAt: minute(lead)},
		},
	}, {
		name: "a key that was published long ago waits for the replicas", terms: defaults,
		entries: []Entry{signs, {KeyID: "new", PublishAt: minute(-100)}}, now: minute(0),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(notice).Add(5 * time.Second), RemoveAt: minute(notice + drain).Add(5 * time.Second)},
			{KeyID: "new", PublishAt: minute(-100), ActivateAt: minute(notice).Add(5 * time.Second)},
		},
	}, {
		name: "parts of seconds are rounded up", terms: defaults,
		entries: []Entry{signs, {KeyID: "new"}}, now: minute(0).Add(time.Nanosecond),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(lead).Add(time.Second), RemoveAt: minute(lead + drain).Add(time.Second)},
			{KeyID: "new", PublishAt: minute(0).Add(time.Second), ActivateAt: minute(lead).Add(time.Second)},
		},
	}, {
		name: "all that are active retire, others stay", terms: defaults,
		entries: []Entry{
			{KeyID: "gone", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(-400), RemoveAt: minute(-300)},
			{KeyID: "going", PublishAt: minute(-400), ActivateAt: minute(-400), RetireAt: minute(-10), RemoveAt: minute(60)},
			{KeyID: "early", PublishAt: minute(-300), ActivateAt: minute(-300)},
			{KeyID: "late", PublishAt: minute(-200), ActivateAt: minute(-200)},
			{KeyID: "waits", PublishAt: minute(-100)},
			{KeyID: "new"},
		}, now: minute(0),
		want: []Entry{
			{KeyID: "gone", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(-400), RemoveAt: minute(-300)},
			{KeyID: "going", PublishAt: minute(-400), ActivateAt: minute(-400), RetireAt: minute(-10), RemoveAt: minute(60)},
			{KeyID: "early", PublishAt: minute(-300), ActivateAt: minute(-300), RetireAt: minute(lead), RemoveAt: minute(lead + drain)},
			{KeyID: "late", PublishAt: minute(-200), ActivateAt: minute(-200), RetireAt: minute(lead), RemoveAt: minute(lead + drain)},
			{KeyID: "waits", PublishAt: minute(-100)},
			{KeyID: "new", PublishAt: minute(0), ActivateAt: minute(lead)},
		},
	}, {
		name: "a lag of seconds counts as a minute where tokens are dated ahead", terms: short,
		entries: []Entry{signs, {KeyID: "new"}}, now: minute(0),
		want: []Entry{
			{KeyID: "old", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: t0.Add(4 * time.Second), RemoveAt: minute(1).Add(6 * time.Second)},
			{KeyID: "new", PublishAt: minute(0), ActivateAt: t0.Add(4 * time.Second)},
		},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.terms.plan(tt.entries, len(tt.entries)-1, tt.now, tt.due)
			if diff := cmp.Diff(tt.want, tt.entries); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestTimesOfAnEmergency(t *testing.T) {
	now := minute(0).Add(500 * time.Millisecond)
	entries := []Entry{
		{KeyID: "gone", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(-400), RemoveAt: minute(-300)},
		{KeyID: "going", PublishAt: minute(-400), ActivateAt: minute(-400), RetireAt: minute(-10), RemoveAt: minute(60)},
		{KeyID: "early", PublishAt: minute(-300), ActivateAt: minute(-300)},
		{KeyID: "stolen", PublishAt: minute(-200), ActivateAt: minute(-200), RetireAt: minute(30), RemoveAt: minute(90)},
		{KeyID: "pending", PublishAt: minute(-10), ActivateAt: minute(30)},
		{KeyID: "waits", PublishAt: minute(-100)},
		{KeyID: "new", PublishAt: minute(1), ActivateAt: minute(90)},
	}
	defaults.breakOff(entries, len(entries)-1, now)
	want := []Entry{
		{KeyID: "gone", PublishAt: minute(-500), ActivateAt: minute(-500), RetireAt: minute(-400), RemoveAt: minute(-300)},
		{KeyID: "going", PublishAt: minute(-400), ActivateAt: minute(-400), RetireAt: minute(-10), RemoveAt: minute(-1), Withdrawn: true},
		{KeyID: "early", PublishAt: minute(-300), ActivateAt: minute(-300), RetireAt: minute(-1), RemoveAt: minute(-1), Withdrawn: true},
		{KeyID: "stolen", PublishAt: minute(-200), ActivateAt: minute(-200), RetireAt: minute(-1), RemoveAt: minute(-1), Withdrawn: true},
		{KeyID: "pending", PublishAt: minute(-10)},
		{KeyID: "waits", PublishAt: minute(-100)},
		{KeyID: "new", PublishAt: minute(-1), ActivateAt: minute(-1)},
	}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, clock := range []time.Time{now, now.Add(-time.Minute)} {
		if at := active(entries, clock); at < 0 || entries[at].KeyID != "new" {
			t.Errorf("at %v entry %d signs, want the new one", clock, at)
		}
	}
}

func TestWhenAScheduledChangeBegins(t *testing.T) {
	since := Entry{KeyID: "a", PublishAt: minute(0), ActivateAt: minute(0)}
	next := Entry{KeyID: "b", PublishAt: minute(0), ActivateAt: minute(100)}
	absurd := Entry{KeyID: "b", PublishAt: minute(0), ActivateAt: minute(500000)} // by a clock that was a year ahead
	waits := Entry{KeyID: "c", PublishAt: minute(0)}
	tests := []struct {
		name    string
		every   time.Duration
		entries []Entry
		now     time.Time
		at      time.Time
		begin   bool
	}{
		{"never, without a schedule", 0, []Entry{since}, minute(1 << 20), time.Time{}, false},
		{"a lead and an hour before it is due", 100 * time.Hour, []Entry{since}, minute(6000 - 41 - 60), minute(6000), true},
		{"not sooner", 100 * time.Hour, []Entry{since}, minute(6000 - 41 - 60).Add(-1), minute(6000), false},
		{"with a smaller margin if it is often", 61 * time.Minute, []Entry{since}, minute(10), minute(61), true},
		{"not sooner if it is often", 61 * time.Minute, []Entry{since}, minute(10).Add(-1), minute(61), false},
		{"with none if it is as often as can be", 41 * time.Minute, []Entry{since}, minute(0), minute(41), true},
		{"late", time.Hour, []Entry{since}, minute(1000), minute(60), true},
		{"with a key that waits", time.Hour, []Entry{since, waits}, minute(60), minute(60), true},
		{"not while a change is pending", time.Hour, []Entry{since, next}, minute(60), time.Time{}, false},
		{"whatever a clock far ahead has planned", time.Hour, []Entry{since, absurd}, minute(60), minute(60), true},
		{"counted from the key that signs", time.Hour, []Entry{since, {KeyID: "d", ActivateAt: minute(30)}}, minute(80), minute(90), true},
		{"not if none signs", time.Hour, []Entry{waits}, minute(60), time.Time{}, false},
	}
	for _, tt := range tests {
		terms := defaults
		terms.every = tt.every
		if at, begin := terms.scheduled(tt.entries, tt.now); !at.Equal(tt.at) || begin != tt.begin {
			t.Errorf("%s: got %v, %v; want %v, %v", tt.name, at, begin, tt.at, tt.begin)
		}
	}
}

func TestRingsDoNotGrowForEver(t *testing.T) {
	now := t0
	ago := func(id string, d time.Duration, emergency bool) Entry {
		e := Entry{KeyID: id, PublishAt: now.Add(-d - 3), ActivateAt: now.Add(-d - 2), RetireAt: now.Add(-d - 1), RemoveAt: now.Add(-d)}
		if emergency {
			e.Withdrawn = true
		}
		return e
	}
	const day = 24 * time.Hour
	in := []Entry{
		ago("ancient", 1000*day, false), ago("ancient, listed", 1000*day, false), ago("ancient, stolen", 1000*day, true),
		ago("old", 31*day, false), ago("fresh", 30*day, false),
		{KeyID: "active", ActivateAt: now.Add(-2000 * day)}, {KeyID: "next"},
		{KeyID: "retiring", ActivateAt: now.Add(-2000 * day), RetireAt: now.Add(-1000 * day)},
	}
	ids := func(entries []Entry) string {
		var list []string
		for _, e := range entries {
			list = append(list, e.KeyID)
		}
		return strings.Join(list, "; ")
	}
	listed := func(e Entry) bool { return strings.Contains(e.KeyID, "listed") }
	before := ids(in)
	if got, want := ids(prune(in, now, listed)), "ancient, listed; ancient, stolen; fresh; active; next; retiring"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if ids(in) != before {
		t.Error("the entries that were given have changed")
	}
	var many []Entry
	for n := range 100 {
		many = append(many, ago(fmt.Sprint(n), time.Duration(n)*time.Hour, n%2 == 0))
	}
	got := prune(slices.Clone(many), now, listed)
	if want := many[:keepRetired]; ids(got) != ids(want) {
		t.Errorf("of 100 that retired lately got %s, want the last %d", ids(got), keepRetired)
	}
}
