package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/encrypter/keycache"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
)

// noReplica knows nothing of itself.
func noReplica() Replica {
	return Replica{
		Degraded: func() error { return nil },
		Backends: func() []BackendState { return nil },
		Store:    func() StoreState { return StoreState{} },
		Clients:  func() map[keycache.State]int { return nil },
		Tokens:   func() (issued, refused uint64) { return 0, 0 },
	}
}

// TestStatusIsToldWithoutPlacesOfKeys has a store and a backend that are down.
func TestStatusIsToldWithoutPlacesOfKeys(t *testing.T) {
	replica := noReplica()
	replica.Version, replica.Started = "v1.2.3", time.Now().Add(-time.Hour)
	replica.Degraded = func() error { return errors.New("dial 10.1.2.3: no route") }
	replica.Backends = func() []BackendState {
		return []BackendState{{Name: "b", Kind: "pkcs11", Limit: 4, InUse: 1}, {Name: "a", Kind: "local", Up: true}}
	}
	replica.Clients = func() map[keycache.State]int { return map[keycache.State]int{keycache.Stale: 3} }
	replica.Tokens = func() (issued, refused uint64) { return 7, 2 }
	record := &auditor{}
	s := &statusService{
		gate: gate{issuers: oneIssuer(t), authorizer: authz.Development(), auditor: record},
		keys: noKeys{}, replica: replica, ready: func() error { return errors.New("issuer main cannot sign: hsm:object=secret-label") },
	}
	ctx := context.WithValue(t.Context(), callKey{}, call{rpc: "/bulla.v1.StatusService/GetStatus", caller: authz.DevelopmentCaller})
	res, err := s.GetStatus(ctx, &bullav1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetNotReady() == "" || res.GetDegraded() == "" || strings.Contains(res.String(), "10.1.2.3") || strings.Contains(res.String(), "secret-label") {
		t.Errorf("got %v: want it to say that it is not ready and degraded, and not where", res)
	}
	if b := res.GetBackends(); len(b) != 2 || b[0].GetName() != "a" || !b[0].GetUp() || b[1].GetUp() || b[1].GetLimit() != 4 || b[1].GetInUse() != 1 {
		t.Errorf("backends: %v", b)
	}
	if c := res.GetClients(); len(c) != 5 || c[1].GetState() != bullav1.ClientKeyState_CLIENT_KEY_STATE_STALE || c[1].GetClients() != 3 {
		t.Errorf("clients: %v", c)
	}
	if res.GetTokensIssued() != 7 || res.GetTokensRefused() != 2 || res.GetVersion() != "v1.2.3" {
		t.Errorf("got %v", res)
	}

	stranger := context.WithValue(t.Context(), callKey{}, call{rpc: "/bulla.v1.StatusService/GetStatus", caller: "spiffe://example.com/stranger"})
	if _, err := s.GetStatus(stranger, &bullav1.GetStatusRequest{}); status.Code(statusOf(err).Err()) != codes.Unauthenticated {
		t.Errorf("a stranger gets %v", err)
	}
	if len(record.events) != 1 || record.events[0].Outcome != audit.Denied || record.events[0].Permission != string(authz.ReadStatus) {
		t.Errorf("on record: %+v", record.events)
	}
}
