package awsfault

import (
	"net"
	"net/http"
	"time"
)

// Fault is what happens to requests. Its zero value is none.
type Fault struct {
	// Op is the operation that it happens to, such as "Sign". Default: all.
	Op string
	// Share is the part of the requests, between 0 and 1, that it happens to,
	// spread evenly. Default 0: all of them.
	Share float64
	// Times is how many requests it happens to before it is over. Default 0:
	// no end.
	Times int

	// Code is the error that is answered, such as "ThrottlingException", in
	// place of doing anything, and Status its HTTP status. Default of Status:
	// 500 for the codes that KMS answers with it, else 400.
	Code   string
	Status int
	// Stall is how much later the answer comes; it comes at once when the
	// fault is replaced by another.
	Stall time.Duration
	// Reset resets the connection in place of doing anything.
	Reset bool
	// Lose does what is asked and then resets the connection.
	Lose bool
	// Flip turns one bit in each signature.
	Flip bool
	// Skew is how far the endpoint's clock is ahead of this machine's: more
	// than five minutes, and no request's time is believed.
	Skew time.Duration
}

// Set replaces the fault that happens from now on; Set(Fault{}) ends it.
func (e *Endpoint) Set(f Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.lifted)
	e.fault, e.lifted, e.hits = f, make(chan struct{}), 0
}

// strike counts a request of op and returns the fault that happens to it, and
// what is closed when that fault is lifted.
func (e *Endpoint) strike(op string) (Fault, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls[op]++
	f := e.fault
	if f.Op != "" && f.Op != op {
		return Fault{}, e.lifted
	}
	before, after := e.hits, e.hits+1
	e.hits = after
	if f.Share > 0 && f.Share < 1 {
		before, after = int(f.Share*float64(before)), int(f.Share*float64(after))
	}
	if before == after || f.Times > 0 && before >= f.Times {
		return Fault{}, e.lifted
	}
	return f, e.lifted
}

// reset ends a request's connection with a TCP reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // ends it too, if not as rudely
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it is closed either way
	}
	_ = conn.Close() // it is gone either way
}
