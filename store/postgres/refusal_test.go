package postgres

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// A port that refuses can do so ten thousand times a second. It is asked a few
// times, so that neither it nor this machine is kept busy by an outage.
func TestDatabaseThatRefusesIsNotFlooded(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	list, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	e, err := openEngine(t.Context(), Config{DSN: fmt.Sprintf("postgres://a:b@%s/c?sslmode=disable", l.Addr())}, list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	asked.Store(0)
	time.Sleep(2 * time.Second)
	if got := asked.Load(); got < 2 || got > 100 {
		t.Errorf("%d connections in 2 s, want about 40", got)
	}
}
