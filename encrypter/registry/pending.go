package registry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Whoever replaces a client's key can read its tokens from then on. Where an
// issuer gives such changes a delay, the record holds what is in force and, for
// that long, what follows on it. Which of the two counts is a question of the
// time and of nothing else: nobody has to do anything for a change to take
// effect, so that all replicas change over together, also without their store.

// Pending is what a registration becomes at a time. There is one at most: a
// later change takes its place, and waits anew.
type Pending struct {
	// EffectiveAt is when it takes effect. It stands as it was stored, whatever
	// the delay of the issuer is by now.
	EffectiveAt time.Time `json:"effective_at"`

	// What follows are the members of a Registration.
	Source   Source    `json:"source"`
	Settings []Setting `json:"settings"`
	Legacy   bool      `json:"legacy,omitempty"`
	X5T      bool      `json:"x5t,omitempty"`
}

// ErrWaiting comes together with ErrNotFound where a client that was deleted is
// registered anew, and that has not taken effect. The error is a *WaitingError.
var ErrWaiting = errors.New("the registration has not taken effect")

// WaitingError is ErrWaiting and ErrNotFound. Its text may be shown to callers.
type WaitingError struct {
	// EffectiveAt is when the registration takes effect.
	EffectiveAt time.Time
}

func (e *WaitingError) Error() string {
	return "the client was deleted, and what was registered after that takes effect at " +
		e.EffectiveAt.UTC().Format(time.RFC3339) + ": until then it has no key"
}

// Unwrap returns ErrWaiting and ErrNotFound.
func (e *WaitingError) Unwrap() []error { return []error{ErrWaiting, ErrNotFound} }

// Successor is the registration as it stands from EffectiveAt of its pending
// change on; nil if none waits. It has a revision of its own, so that nobody who
// has seen the one takes the other for it.
func (r *Registration) Successor() *Registration {
	p := r.Pending
	if p == nil {
		return nil
	}
	next := &Registration{
		Issuer: r.Issuer, ClientID: r.ClientID,
		Source: p.Source, Settings: p.Settings, Legacy: p.Legacy, X5T: p.X5T,
		Revision: r.Revision + 1, CreatedAt: r.CreatedAt, UpdatedAt: p.EffectiveAt,
	}
	if r.Deleted {
		next.CreatedAt = p.EffectiveAt
	}
	return next
}

// InForce is the registration as it stands at a time.
func (r *Registration) InForce(now time.Time) *Registration {
	if r.Pending == nil || now.Before(r.Pending.EffectiveAt) {
		return r
	}
	return r.Successor()
}

// Missing is why nothing is in force of a record that Store.Get returned: nil if
// something is, else an ErrNotFound.
func (r *Registration) Missing() error {
	switch {
	case !r.Deleted:
		return nil
	case r.Pending != nil:
		return &WaitingError{EffectiveAt: r.Pending.EffectiveAt}
	}
	return ErrNotFound
}

// Postpone makes a change of a client that is or was known wait until a time.
// current is what was given to Decide. Nothing is in force meanwhile of a client
// that was deleted or whose record failed its authentication: else to delete a
// client and to register it anew would be the way around every delay. Other
// changes stay as they are.
func (d *Decision) Postpone(current *Registration, at time.Time) {
	if current == nil || d.Change != Recreate && d.Change != Replace {
		return
	}
	want := d.Record
	d.Record = Registration{Issuer: want.Issuer, ClientID: want.ClientID, Deleted: true}
	if !current.Deleted && !current.Tampered {
		d.Record = *current
	}
	d.Record.Pending = &Pending{
		// Microseconds are what every store can keep.
		EffectiveAt: at.UTC().Truncate(time.Microsecond),
		Source:      want.Source, Settings: want.Settings, Legacy: want.Legacy, X5T: want.X5T,
	}
}

// validate checks the shape of what a record is to become.
func (p *Pending) validate(r *Registration) error {
	if y := p.EffectiveAt.UTC().Year(); y < firstYear || y > lastYear {
		return &InvalidError{"pending.effective_at", fmt.Sprintf("it lies outside of the years %d to %d", firstYear, lastYear)}
	}
	next := r.Successor()
	if err := next.Validate(); err != nil {
		var invalid *InvalidError
		if errors.As(err, &invalid) {
			return &InvalidError{"pending." + invalid.Field, invalid.Problem}
		}
		return err
	}
	return nil
}

// Same reports whether two records say the same of their client. Times and
// revision do not count, nor does the order of the settings, nor what waits; a
// key source counts byte for byte.
func Same(a, b *Registration) bool {
	settings := withDefaults(b.Settings)
	sortByKind(settings)
	other := *b
	other.Settings = settings
	return same(a, &other)
}

// Waiting names a change that waits, or that has taken effect and is not settled.
type Waiting struct {
	Issuer, ClientID string
	EffectiveAt      time.Time
	// Revision is that of the record which holds the change.
	Revision uint64
}

// Waits is what a Store can do besides for those who look after changes that
// wait. All methods may be called concurrently; errors are those of this package,
// or the context's.
type Waits interface {
	// Waiting returns the changes that wait or are not settled, at most limit of
	// them, the one that takes effect first at the beginning. Somebody else may
	// have written what it says: Unsettled tells whether it is so.
	Waiting(ctx context.Context, limit int) ([]Waiting, error)

	// Unsettled returns the record of a client as it is stored, also where its
	// pending change has taken effect. ErrNotFound if there is none.
	Unsettled(ctx context.Context, issuer, clientID string) (*Registration, error)

	// Settle writes a record down as it has become by its change, which changes
	// nothing of what Get returns, and lets go of what was in force before. It
	// does nothing for a change that waits still. One that is not there any more
	// is taken out of what Waiting returns.
	Settle(ctx context.Context, w Waiting) error
}

// says reports whether what waits, nil for nothing, is what is wanted.
func (p *Pending) says(want *Registration) bool {
	return p != nil && same(&Registration{Source: p.Source, Settings: p.Settings, Legacy: p.Legacy, X5T: p.X5T}, want)
}
