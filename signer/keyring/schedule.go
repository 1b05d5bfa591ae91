package keyring

import (
	"slices"
	"time"
)

// terms are the durations from which the times of an issuer's rings follow.
// The package comment says why they follow so.
type terms struct {
	maxAge      time.Duration // how long verifiers may keep the JWK Set
	maxLifetime time.Duration // of a token, from iat to exp
	maxLag      time.Duration // how old a set may be that verifiers may keep
	skew        time.Duration // between any two clocks
	write       time.Duration // that putting a change on record may take
	every       time.Duration // from one key's activation to the next one's; 0 is never
}

// postdate is by how much iat may lie ahead of the moment of signing, so that a
// token lives that much longer than its lifetime (package signer).
const postdate = time.Minute

// notice is how long before it happens a change of keys has to be on record, so
// that every replica that still signs then knows of it.
func (t terms) notice() time.Duration { return 2*t.maxLag + t.skew }

// lead is how long a key has to be published before it signs.
func (t terms) lead() time.Duration { return t.maxAge + t.notice() }

// drain is how long a key stays published after it has stopped signing.
func (t terms) drain() time.Duration { return t.maxLifetime + max(t.maxLag, postdate) + t.skew }

// margin is how much earlier than needed the work on a scheduled change begins,
// so that a backend that is down for a while delays nothing.
func (t terms) margin() time.Duration { return max(0, min(time.Hour, (t.every-t.lead())/2)) }

// scheduled is when the next key of a ring should become active by the
// schedule, and whether the work on that has to begin at now. It has not while
// another change is pending.
func (t terms) scheduled(entries []Entry, now time.Time) (at time.Time, begin bool) {
	signs := active(entries, now)
	if t.every <= 0 || signs < 0 || pending(entries, now) >= 0 {
		return time.Time{}, false
	}
	at = entries[signs].ActivateAt.Add(t.every)
	return at, !now.Before(at.Add(-t.lead() - t.margin()))
}

// plan sets the times of a change of keys that breaks nothing: entries[next],
// published from now on if it was not before, becomes active as soon as it may,
// but not before due, and those that are active then retire.
func (t terms) plan(entries []Entry, next int, now, due time.Time) {
	e := &entries[next]
	if e.PublishAt.IsZero() || e.PublishAt.After(now) {
		e.PublishAt = upToSecond(now)
	}
	e.ActivateAt = upToSecond(latest(e.PublishAt.Add(t.lead()), now.Add(t.write+t.notice()), due))
	for i := range entries {
		if o := &entries[i]; i != next && o.State(now) == Active {
			o.RetireAt = e.ActivateAt
			o.RemoveAt = o.RetireAt.Add(t.drain())
		}
	}
}

// breakOff sets the times of a change of keys that waits for nothing, because a
// key is feared stolen: entries[next] is active now, and those that were active
// are out of the ring's JWK Set. A change that was pending is off.
func breakOff(entries []Entry, next int, now time.Time) {
	at := now.UTC().Truncate(time.Second)
	for i := range entries {
		switch o := &entries[i]; {
		case i == next:
			if o.PublishAt.IsZero() || o.PublishAt.After(at) {
				o.PublishAt = at
			}
			o.ActivateAt, o.RetireAt, o.RemoveAt = at, time.Time{}, time.Time{}
		case o.State(now) == Active:
			o.RetireAt, o.RemoveAt = at, at
		case o.State(now) == Next:
			o.ActivateAt = time.Time{}
		}
	}
}

// removedInEmergency reports that breakOff ended e.
func (e Entry) removedInEmergency() bool { return !e.RetireAt.IsZero() && e.RetireAt.Equal(e.RemoveAt) }

// active is the index of the entry that signs at now, -1 if none does.
func active(entries []Entry, now time.Time) int {
	at, since := -1, time.Time{}
	for i, e := range entries {
		if e.State(now) == Active && (at < 0 || e.ActivateAt.After(since)) {
			at, since = i, e.ActivateAt
		}
	}
	return at
}

// pending is the index of the entry that is next and has a time to become
// active, -1 if there is none.
func pending(entries []Entry, now time.Time) int {
	return slices.IndexFunc(entries, func(e Entry) bool { return e.State(now) == Next && !e.ActivateAt.IsZero() })
}

// What a ring remembers of keys that are retired.
const (
	keepRetiredFor = 30 * 24 * time.Hour
	keepRetired    = 32
)

// prune returns entries without those that have been retired for long, or that
// are too many. Keys that are listed stay, since they would join the ring anew,
// and those that were removed in an emergency stay as long as there is room.
func prune(entries []Entry, now time.Time, listed func(Entry) bool) []Entry {
	var retired []Entry
	for _, e := range entries {
		if e.State(now) == Retired && !listed(e) {
			retired = append(retired, e)
		}
	}
	slices.SortStableFunc(retired, func(a, b Entry) int { return b.RemoveAt.Compare(a.RemoveAt) }) // the last first
	drop := map[string]bool{}
	for n, e := range retired {
		old := now.Sub(e.RemoveAt) > keepRetiredFor && !e.removedInEmergency()
		drop[e.KeyID] = old || n >= keepRetired
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return drop[e.KeyID] })
}

func latest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if o.After(t) {
			t = o
		}
	}
	return t
}

// upToSecond is t in UTC, rounded up to a whole second: what is announced never
// comes early.
func upToSecond(t time.Time) time.Time {
	return t.UTC().Add(time.Second - 1).Truncate(time.Second)
}
