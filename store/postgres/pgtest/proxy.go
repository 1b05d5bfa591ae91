//go:build linux

package pgtest

import (
	"net"
	"sync"
	"testing"
)

// Proxy is a network between a client and a server on TCP, that a test can
// break.
type Proxy struct {
	target string
	listen net.Listener
	wg     sync.WaitGroup

	mu     sync.Mutex
	change *sync.Cond            // on mu: holed or closed has changed
	conns  map[net.Conn]struct{} // guarded by mu; of both sides
	holed  bool                  // guarded by mu: nothing gets through
	refuse bool                  // guarded by mu: new connections are reset
	closed bool                  // guarded by mu
	asked  int                   // guarded by mu: pieces that clients have sent
}

// NewProxy starts a proxy for a server, until the end of the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, listen: l, conns: map[net.Conn]struct{}{}}
	p.change = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		p.closed = true
		p.change.Broadcast()
		p.mu.Unlock()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listen.Addr().String() }

// Cut breaks all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// BlackHole has everything that is sent wait without an answer, on connections
// old and new, until it is called with false.
func (p *Proxy) BlackHole(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holed = on
	p.change.Broadcast()
}

// Refuse has new connections closed at once.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Connections counts those that are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) / 2
}

// Asked counts what clients have sent in one piece, as a driver sends what it
// waits for an answer to: round trips.
func (p *Proxy) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	p.mu.Lock()
	if p.refuse || p.closed {
		p.mu.Unlock()
		return
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, client)
		delete(p.conns, server)
	}()
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, 1) })
	both.Go(func() { p.pump(client, server, 0) })
	both.Wait()
}

// pump carries what one side sends to the other until either is closed, and adds
// to what was asked for each piece.
func (p *Proxy) pump(to, from net.Conn, asked int) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		p.asked += asked
		for p.holed && !p.closed {
			p.change.Wait()
		}
		p.mu.Unlock()
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return // io.EOF or a broken connection: the other side learns it too
		}
	}
}
