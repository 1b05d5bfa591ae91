//go:build cgo

package pkcs11

import (
	"testing"
	"testing/synctest"
)

// closing is a module of which only sessions are closed.
type closing struct{ cryptoki }

func (closing) closeSession(uint) error { return nil }

// TestRetiringKeepsNobodyInsideTheGate: a link is retired while its module is
// about to be initialized again, and its last callers wait for the desk.
func TestRetiringKeepsNobodyInsideTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mod := &module{}
		l := &link{
			t: &token{}, mod: mod, lib: closing{}, pool: newPool(2), desk: make(chan struct{}, 1),
			login: session{handle: 1, open: true},
		}
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(mod.enter(t.Context(), 0)) // one call, at the desk
		must(l.takeDesk(t.Context()))
		must(mod.enter(t.Context(), 0)) // and another
		go l.retire(t.Context())
		synctest.Wait()
		parked := make(chan bool)
		go func() { parked <- mod.gate.park(parkLimit) }()
		synctest.Wait()

		l.leaveDesk()
		mod.gate.leave()
		synctest.Wait()
		must(l.takeDesk(t.Context()))
		l.leaveDesk()
		mod.gate.leave()
		if !<-parked {
			t.Fatal("somebody stayed inside")
		}
		mod.gate.reopen()
	})
}
