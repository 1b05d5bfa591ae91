package fleet

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// kinds are all kinds of tokens that are encrypted, and claims for them.
var kinds = []struct {
	kind   bullav1.TokenKind
	claims string
}{
	{bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, `{"sub":"zoe"}`},
	{bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN, `{"sub":"zoe","sid":"s-1"}`},
	{bullav1.TokenKind_TOKEN_KIND_USERINFO, `{"sub":"zoe"}`},
	{bullav1.TokenKind_TOKEN_KIND_AUTHORIZATION_RESPONSE, `{"code":"c-1","state":"s"}`},
	{bullav1.TokenKind_TOKEN_KIND_INTROSPECTION, `{"token_introspection":{"active":true,"sub":"zoe"}}`},
}

// ofEveryKind are requests for a token of each kind, and everyKind the
// settings that allow them: those of logout tokens are those of ID tokens.
func ofEveryKind(id string) (requests []*bullav1.SignAndEncryptRequest) {
	for _, k := range kinds {
		requests = append(requests, &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: id, TokenKind: k.kind, Claims: []byte(k.claims)})
	}
	return requests
}

func everyKind() (settings []*bullav1.ResponseSetting) {
	for _, k := range kinds {
		if k.kind != bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN {
			s := setting()[0]
			s.TokenKind = k.kind
			settings = append(settings, s)
		}
	}
	return settings
}

// TestWhatOneReplicaAcknowledgesIsInForceOnTheOther measures how long it takes
// from the answer of one replica until the other, which has the client in
// memory for every kind of token, acts on it.
func TestWhatOneReplicaAcknowledgesIsInForceOnTheOther(t *testing.T) {
	f := newFleet(t, setup{})
	f.measure(t, 8)
}

// TestChangesArriveWhileNobodyCanListen does the same while all connections
// that LISTEN are terminated again and again.
func TestChangesArriveWhileNobodyCanListen(t *testing.T) {
	f := newFleet(t, setup{})
	ctx, stop := context.WithCancel(t.Context())
	var ended atomic.Int64
	var work sync.WaitGroup
	work.Go(func() { f.terminateListeners(ctx, &ended) })
	f.measure(t, 8)
	stop()
	work.Wait()
	if n := ended.Load(); n < 4 {
		t.Errorf("%d connections were terminated: nothing is shown", n)
	}
	t.Logf("%d connections that LISTEN were terminated", ended.Load())
}

// terminateListeners ends every server process of the database whose
// connection has said LISTEN.
func (f *fleet) terminateListeners(ctx context.Context, ended *atomic.Int64) {
	conn, err := pgx.Connect(ctx, f.db.DSN())
	if err != nil {
		f.t.Error(err)
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		var n int64
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ILIKE 'listen%'`).Scan(&n)
		if err != nil {
			if ctx.Err() == nil {
				f.t.Error(err)
			}
			return
		}
		ended.Add(n)
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// measure registers, replaces, refreshes and deletes clients in turns on
// changing replicas, and holds the longest time against inForce.
func (f *fleet) measure(t *testing.T, rounds int) {
	t.Helper()
	worst := map[string]time.Duration{}
	note := func(what string, d time.Duration) { worst[what] = max(worst[what], d) }
	names := keys{t: t}
	for round := range rounds {
		a, b := f.on(round%2), 1-round%2
		id, path := fmt.Sprintf("change-%d", round), fmt.Sprintf("/change-%d", round)
		// everywhere is the time until the other replica makes tokens of all kinds
		// with a key.
		everywhere := func(what string, from time.Time, id, kid string) {
			t.Helper()
			for _, req := range ofEveryKind(id) {
				d := until(t, from, allowed(inForce), fmt.Sprintf("%s of %s for %s", what, id, req.GetTokenKind()), func() error { return f.encryptedTo(b, req, kid) })
				note(what, d)
			}
			if t.Failed() {
				t.FailNow() // what comes after it would fail likewise
			}
		}

		// Who asks before it is registered must not be told so for longer.
		if err := f.encryptedTo(b, ask(id), ""); err != nil {
			t.Fatal(err)
		}
		first, second := names.next(), names.next()
		req := withJWKS(id, first)
		req.Settings = everyKind()
		registered := mustRegister(t, a, req)
		everywhere("registration", time.Now(), id, first.KeyID)

		req = withJWKS(id, second)
		req.Settings, req.Revision = everyKind(), registered.GetRevision()
		mustRegister(t, a, req)
		everywhere("replacement", time.Now(), id, second.KeyID)

		mustDelete(t, a, id)
		everywhere("deletion", time.Now(), id, "")

		id += "-uri"
		req = withURI(id, f.host.Serve(path, harness.JWKS(first), time.Hour))
		req.Settings = everyKind()
		mustRegister(t, a, req)
		everywhere("registration", time.Now(), id, first.KeyID)
		f.host.Serve(path, harness.JWKS(second), time.Hour)
		mustRefresh(t, a, id)
		everywhere("refresh", time.Now(), id, second.KeyID)
		mustDelete(t, a, id)
		everywhere("deletion", time.Now(), id, "")
	}
	for _, what := range []string{"registration", "replacement", "refresh", "deletion"} {
		t.Logf("%-12s in force on the other replica for tokens of all kinds after at most %v", what, worst[what].Round(100*time.Microsecond))
		if worst[what] > allowed(inForce) {
			t.Errorf("%s: it took %v, the goal is %v", what, worst[what], allowed(inForce))
		}
	}
}
