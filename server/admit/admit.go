// Package admit decides who may ask a signing backend for a signature now, who
// waits, and who is turned away.
//
// A backend does only so much at once: a token has its sessions, a cloud its
// rate. Each has so many places. Whoever finds one free takes it, and that costs
// next to nothing; the others wait in a queue. While more is asked for than the
// backend can do, somebody has to be turned away, and this package is about
// whom, and how soon:
//
//   - Places go to callers in turn, each caller's own in the order in which they
//     came. A caller that floods the service waits for itself: one that asks for
//     a token now and then is next but one.
//   - When the queue is full, the newest of the caller with the longest part in
//     it goes, and not whoever comes.
//   - Nobody waits for what cannot be. A call waits for half of the time that it
//     has at most, so that the other half is left to sign, or to ask another
//     replica. If its turn would come later than that, going by what signatures
//     have taken lately and by who is before it, it is turned away at once.
//     Whoever gives up while it waits leaves at once.
//   - The queue is for bursts. When it does not empty any more, waiting brings
//     nobody anything: all that are served have waited for as long as the queue
//     is. So a backend that has turned calls away in a quarter of a second in
//     which its places were hardly ever free has a short queue in the next one,
//     of as many as it has places. That is enough to keep it busy, and those who
//     are served have waited for about one signature. The full queue is back as
//     soon as there is time to spare again.
//
// Who is turned away gets an OverloadedError with the time to wait: about what
// it takes to work the queue off after a burst, and seconds while the overload
// lasts, the more the greater it is.
//
// What it does not do: it knows neither how much a caller may ask for, which is
// package limit's, nor tokens and algorithms. A place is held for the signature
// alone.
package admit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"
)

// DefaultQueue is how many calls may wait for a backend.
const DefaultQueue = 64

// Local is the backend of what is signed in this process, with a client's
// secret. It is always there.
const Local = ""

// Config is what an Admission is made of.
type Config struct {
	// Queue is how many calls may wait for each backend. Default: DefaultQueue.
	Queue int
	// Backends are the backends by name. Local need not be among them. Default:
	// none.
	Backends map[string]Backend
	// Logger is told, once in ten seconds at most, that calls are turned away.
	// Default: none.
	Logger *slog.Logger
}

// Backend says how many signatures may be asked for at once.
type Backend struct {
	// InFlight is the most that may be. Default: what Room says; if there is no
	// Room, one for each CPU that Go uses.
	InFlight int
	// Room tells how many the backend can do now, where that changes. It must be
	// quick, and is asked a few times a second while there are calls. It is not
	// counted if it is less than one. Default: InFlight is all that is known.
	Room func() int
}

// Admission admits calls to backends. It is safe for concurrent use.
type Admission struct {
	gates map[string]*gate // not changed after New
}

// New makes an Admission that nobody has entered yet. An error says which number
// is wrong.
func New(cfg Config) (*Admission, error) {
	if cfg.Queue < 0 {
		return nil, fmt.Errorf("admit: a queue of %d cannot be", cfg.Queue)
	}
	if cfg.Queue == 0 {
		cfg.Queue = DefaultQueue
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Admission{gates: make(map[string]*gate)}
	for name, b := range cfg.Backends {
		if b.InFlight < 0 {
			return nil, fmt.Errorf("admit: %d in flight at backend %s cannot be", b.InFlight, name)
		}
		if b.InFlight == 0 && b.Room == nil {
			b.InFlight = runtime.GOMAXPROCS(0)
		}
		a.gates[name] = newGate(name, b, cfg.Queue, cfg.Logger)
	}
	if a.gates[Local] == nil {
		a.gates[Local] = newGate(Local, Backend{InFlight: runtime.GOMAXPROCS(0)}, cfg.Queue, cfg.Logger)
	}
	return a, nil
}

// Enter takes a place at a backend for a caller, and waits for one if it has to.
// Whoever has entered calls leave, once. A backend that is not known is taken for
// Local. Errors: an *OverloadedError, or the context's if the caller has gone.
func (a *Admission) Enter(ctx context.Context, backend, caller string) (leave func(), err error) {
	return a.gate(backend).enter(ctx, caller)
}

// Refuses returns the error with which Enter would turn a caller away at once;
// nil if it would not. It is for not doing work in vain: a call counts as turned
// away then.
func (a *Admission) Refuses(ctx context.Context, backend, caller string) error {
	return a.gate(backend).refuses(ctx, caller)
}

func (a *Admission) gate(backend string) *gate {
	if g := a.gates[backend]; g != nil {
		return g
	}
	return a.gates[Local]
}

// Stats is what is known of a backend now.
type Stats struct {
	InFlight int    // places that are taken
	Limit    int    // places that there are
	Queued   int    // calls that wait
	Short    bool   // the queue is short, since the backend is overloaded
	Refused  uint64 // calls that were turned away, all together
}

// Stats are those of each backend, by name.
func (a *Admission) Stats() map[string]Stats {
	all := make(map[string]Stats, len(a.gates))
	for name := range a.gates {
		all[name] = a.Of(name)
	}
	return all
}

// Of are the Stats of one backend; zero if there is none of that name.
func (a *Admission) Of(backend string) Stats {
	if g := a.gates[backend]; g != nil {
		return g.stats()
	}
	return Stats{}
}

// ErrOverloaded: the backend has more to sign than it can do in time. The error
// is an *OverloadedError, whose text is fit for callers. Try again later, or at
// another replica.
var ErrOverloaded = errors.New("overloaded")

// OverloadedError is ErrOverloaded with the time to wait.
type OverloadedError struct {
	// RetryAfter is how long not to try again at this replica.
	RetryAfter time.Duration
}

func (e *OverloadedError) Error() string {
	return ErrOverloaded.Error() + ": this replica is asked for more signatures than it can make in time: try again later, or at another one"
}

func (e *OverloadedError) Unwrap() error { return ErrOverloaded }
