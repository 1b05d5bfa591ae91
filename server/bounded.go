package server

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// Bounded is a listener that has only so many connections open at once. One that
// comes beyond that is closed, so that whoever opens connections, which takes no
// certificate, cannot use up the file descriptors of the process: its store, its
// HSM's module and its audit log need some as well.
type Bounded struct {
	net.Listener
	most    int64
	open    atomic.Int64
	refused atomic.Uint64
	log     *slog.Logger
	lines   *rate.Limiter // a flood must not fill the log
}

// Bound bounds a listener. name is its name in the log.
func Bound(lis net.Listener, name string, most int, log *slog.Logger) *Bounded {
	return &Bounded{Listener: lis, most: int64(most), log: log.With("listener", name), lines: rate.NewLimiter(0.1, 1)}
}

// Open is how many connections are open.
func (b *Bounded) Open() int { return int(b.open.Load()) }

// Most is how many connections may be open.
func (b *Bounded) Most() int { return int(b.most) }

// Refused is how many connections were refused.
func (b *Bounded) Refused() uint64 { return b.refused.Load() }

// Accept is of net.Listener.
func (b *Bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if b.open.Add(1) <= b.most {
			a := &accepted{Conn: conn}
			a.whenClosed(func() { b.open.Add(-1) })
			return a, nil
		}
		b.open.Add(-1)
		b.refused.Add(1)
		if b.lines.Allow() {
			b.log.Warn("connection refused: there are as many as this listener takes", "connections", b.most, "remote", conn.RemoteAddr().String(), "refused", b.refused.Load())
		}
		_ = conn.Close() // it is not taken
	}
}

// accepted is a connection that tells of its end.
type accepted struct {
	net.Conn

	mu     sync.Mutex // guards what follows
	closed bool
	tell   []func()
}

// whenClosed has f called once when the connection is closed, or now if it was.
func (a *accepted) whenClosed(f func()) {
	a.mu.Lock()
	if !a.closed {
		a.tell = append(a.tell, f)
		f = func() {}
	}
	a.mu.Unlock()
	f()
}

// Close is of net.Conn.
func (a *accepted) Close() error {
	a.mu.Lock()
	tell := a.tell
	a.closed, a.tell = true, nil
	a.mu.Unlock()
	for _, f := range tell {
		f()
	}
	return a.Conn.Close()
}
