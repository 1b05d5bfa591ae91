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

	// What was in force before maxAge and maxLifetime were lowered: until when
	// verifiers may hold sets that they may keep for longer, and until when
	// tokens may be good that live longer. Zero is not at all.
	setsUntil, tokensUntil time.Time
}

// of are the terms of a ring: those of the configuration, and what the ring
// remembers of others.
func (t terms) of(r *Ring) terms {
	t.maxAge, t.maxLifetime = max(t.maxAge, r.MaxAge), max(t.maxLifetime, r.MaxLifetime)
	t.setsUntil, t.tokensUntil = r.SetsUntil, r.TokensUntil
	return t
}

// remember notes in a ring which maxAge and maxLifetime are in force, and
// reports whether that is news. What is longer than noted counts at once.
// Lowering is for a replica that starts, and only then: the others may still
// have the longer one. Those write it down again when they next read the ring,
// within max_lag; a replica that does not read it hands out nothing after twice
// of that. So all that was handed out with the longer one is over after a notice
// and its own time.
func (t terms) remember(r *Ring, now time.Time, lower bool) (news bool) {
	note := func(noted *time.Duration, until *time.Time, is, lasts time.Duration) {
		switch {
		case *noted < is:
			*noted, news = is, true
		case *noted > is && lower:
			*until = latest(*until, upToSecond(now.Add(t.notice()+lasts)))
			*noted, news = is, true
		}
	}
	note(&r.MaxAge, &r.SetsUntil, t.maxAge, r.MaxAge)
	note(&r.MaxLifetime, &r.TokensUntil, t.maxLifetime, t.of(r).drain())
	return news
}

// extend moves the end of keys that stop signing to where the terms of now want
// it, and reports whether any moved: it was planned with those of then, which may
// have been shorter.
func (t terms) extend(entries []Entry, now time.Time) (moved bool) {
	for i := range entries {
		e := &entries[i]
		if state := e.State(now); state != Active && state != Retiring || e.RetireAt.IsZero() || e.Withdrawn {
			continue
		}
		if end := e.RetireAt.Add(t.drain()); e.RemoveAt.Before(end) {
			e.RemoveAt, moved = end, true
		}
	}
	return moved
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
	if t.every <= 0 || signs < 0 || t.pending(entries, now) >= 0 {
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
	e.ActivateAt = upToSecond(latest(e.PublishAt.Add(t.lead()), now.Add(t.write+t.notice()), due, t.setsUntil))
	for i := range entries {
		switch o := &entries[i]; {
		case i == next:
		case o.State(now) == Active:
			o.RetireAt = e.ActivateAt
			o.RemoveAt = latest(o.RetireAt.Add(t.drain()), t.tokensUntil)
		case t.absurd(*o, now):
			o.ActivateAt = time.Time{}
		}
	}
}

// breakOff sets the times of a change of keys that waits for nothing, because a
// key is feared stolen: entries[next] is active now, and those that were active
// or retiring, any of which may be the stolen one, are out of the ring's JWK Set.
// A change that was pending is off. It is dated back by skew, so that a replica
// whose clock is behind does not wait either.
func (t terms) breakOff(entries []Entry, next int, now time.Time) {
	at := now.UTC().Add(-t.skew).Truncate(time.Second)
	for i := range entries {
		switch o := &entries[i]; {
		case i == next:
			if o.PublishAt.IsZero() || o.PublishAt.After(at) {
				o.PublishAt = at
			}
			o.ActivateAt, o.RetireAt, o.RemoveAt = at, time.Time{}, time.Time{}
		case o.State(now) == Active, o.State(now) == Retiring:
			if o.RetireAt.IsZero() || o.RetireAt.After(at) {
				o.RetireAt = at
			}
			o.RemoveAt, o.Withdrawn = at, true
		case o.State(now) == Next:
			o.ActivateAt = time.Time{}
		}
	}
}

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
func (t terms) pending(entries []Entry, now time.Time) int {
	return slices.IndexFunc(entries, func(e Entry) bool {
		return e.State(now) == Next && !e.ActivateAt.IsZero() && !t.absurd(e, now)
	})
}

// absurd reports that a next key's time to become active is later than anybody
// plans: whoever wrote it had a clock that was far ahead. Such a key waits like
// one without a time.
func (t terms) absurd(e Entry, now time.Time) bool {
	planned := now.Add(t.lead() + max(0, t.every) + max(t.margin(), time.Hour))
	return e.State(now) == Next && e.ActivateAt.After(latest(planned, t.setsUntil.Add(time.Hour)))
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
		old := now.Sub(e.RemoveAt) > keepRetiredFor && !e.Withdrawn
		drop[e.KeyID] = old || n >= keepRetired
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return drop[e.KeyID] })
}

// pruneDropped returns those of a ring's dropped intents that may still matter.
func pruneDropped(dropped []Dropped, now time.Time) []Dropped {
	dropped = slices.DeleteFunc(dropped, func(o Dropped) bool { return now.Sub(o.At) > keepRetiredFor })
	return dropped[max(0, len(dropped)-keepRetired):]
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
