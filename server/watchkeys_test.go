package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/watch"
)

// watching is the other end of a watch without a network.
type watching struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelFunc
	begun  chan struct{} // closed with the headers
	sent   chan *bullav1.WatchClientKeysResponse
	ended  chan error
}

func (w *watching) Context() context.Context     { return w.ctx }
func (w *watching) SendHeader(metadata.MD) error { close(w.begun); return nil }
func (w *watching) Send(res *bullav1.WatchClientKeysResponse) error {
	w.sent <- res
	return nil
}

// startWatch calls WatchClientKeys. It returns once the watch has begun, or has
// ended without.
func startWatch(ctx context.Context, t *testing.T, s *clientKeyService) *watching {
	t.Helper()
	w := &watching{begun: make(chan struct{}), sent: make(chan *bullav1.WatchClientKeysResponse, 100), ended: make(chan error, 1)}
	w.ctx, w.cancel = context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { w.ended <- s.WatchClientKeys(&bullav1.WatchClientKeysRequest{}, w) })
	t.Cleanup(func() {
		w.cancel()
		running.Wait()
	})
	select {
	case <-w.begun:
	case err := <-w.ended:
		w.ended <- err
	}
	return w
}

// next is the next message, as "client state revision", with the keys and "gone"
// for a deletion.
func (w *watching) next(t *testing.T) string {
	t.Helper()
	select {
	case res := <-w.sent:
		return told(res)
	case err := <-w.ended:
		t.Fatalf("the watch has ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was told")
	}
	return ""
}

func told(res *bullav1.WatchClientKeysResponse) string {
	k := res.GetClientKey()
	list := []string{k.GetClientId(), strings.TrimPrefix(k.GetState().String(), "CLIENT_KEY_STATE_"), k.GetRevision()}
	for _, c := range k.GetChosenKeys() {
		list = append(list, c.GetThumbprint())
	}
	if res.GetDeleted() {
		list = append(list, "gone")
	}
	return strings.Join(list, " ")
}

// wantNothingBut has a client changed that sorts the messages: all that was told
// before it is there when it is.
func (w *watching) wantNothingBut(t *testing.T, s *clientKeyService, want ...string) {
	t.Helper()
	id := fmt.Sprint("app-mark-", time.Now().UnixNano())
	register(t, s, registration(id, "mark", ""))
	var got []string
	for {
		text := w.next(t)
		if strings.HasPrefix(text, id) {
			break
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestAWatchTellsHowAClientStandsAfterEachChange(t *testing.T) {
	s, record, _ := newClientKeys(t)
	register(t, s, registration("app-old", "one", ""))
	lines := len(record.events)
	w := startWatch(as(t, registrar), t, s)
	if len(record.events) != lines {
		t.Errorf("on record: %+v; reading leaves no line", record.events[lines:])
	}
	want := func(text string) {
		t.Helper()
		if got := w.next(t); got != text {
			t.Errorf("told %q, want %q", got, text)
		}
	}
	register(t, s, registration("app", "one", ""))
	want("app READY 1 of-one")
	register(t, s, registration("app", "two", "1"))
	want("app READY 2 of-two")
	register(t, s, registration("app", "two", ""))    // a repeat changes nothing
	s.watches.ClientChanged("main", "app")            // the store's feed says it too
	s.watches.ClientChanged("main", "never-was-here") // nor is this anything
	w.wantNothingBut(t, s)
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app"}); err != nil {
		t.Fatal(err)
	}
	want("app UNSPECIFIED 3 gone")
	s.watches.ClientChanged("main", "app")
	w.wantNothingBut(t, s)
	register(t, s, registration("app", "two", ""))
	want("app READY 4 of-two")
	_, err := s.GenerateClientKey(as(t, registrar), &bullav1.GenerateClientKeyRequest{
		ClientId: "app-made", KeySpec: &bullav1.GenerateClientKeyRequest_Curve{Curve: "P-256"},
		Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.next(t); !strings.HasPrefix(got, "app-made READY 1 of-") {
		t.Errorf("told %q, want the generated key", got)
	}
}

func TestADeletionIsToldWithItsTimeAndNothingOfTheKeys(t *testing.T) {
	s, _, _ := newClientKeys(t)
	register(t, s, registration("app", "one", ""))
	w := startWatch(as(t, reader), t, s)
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app"}); err != nil {
		t.Fatal(err)
	}
	register(t, s, registration("app-1", "one", ""))
	if got := w.next(t); got != "app-1 READY 1 of-one" {
		t.Errorf("told %q: the reader may not read of app", got)
	}
	w = startWatch(as(t, registrar), t, s)
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app-1"}); err != nil {
		t.Fatal(err)
	}
	res := <-w.sent
	k := res.GetClientKey()
	if !res.GetDeleted() || k.GetClientId() != "app-1" || k.GetIssuer() != "main" || k.GetRevision() != "2" ||
		time.Since(k.GetUpdatedAt().AsTime()) > time.Minute || len(k.GetSettings()) > 0 || len(k.GetChosenKeys()) > 0 {
		t.Errorf("told %v, want the name, the revision and when it was", res)
	}
}

func TestAWatchTellsOnlyWhatItsCallerMayRead(t *testing.T) {
	s, record, _ := newClientKeys(t)
	w := startWatch(as(t, reader), t, s)
	for _, id := range []string{"aaa", "app-1", "secret-bank", "single", "zeta"} {
		register(t, s, registration(id, "one", ""))
	}
	w.wantNothingBut(t, s, "app-1 READY 1 of-one", "single READY 1 of-one")

	lines := len(record.events)
	w = startWatch(as(t, creator), t, s)
	wantReason(t, "one who may not read", <-w.ended, "CALLER_NOT_ALLOWED")
	w = startWatch(as(t, "spiffe://example.com/stranger"), t, s)
	wantReason(t, "a stranger", <-w.ended, "CALLER_UNKNOWN")
	for i, e := range record.events[lines:] {
		if e.Outcome != audit.Denied || e.Permission != string(authz.ReadClientKeys) || e.Issuer != "main" {
			t.Errorf("line %d on record: %+v, want the denial", i, e)
		}
	}
	if n := len(record.events) - lines; n != 2 {
		t.Errorf("%d lines on record, want 2 denials", n)
	}
	bad := &watching{ctx: as(t, reader), begun: make(chan struct{})}
	err := s.WatchClientKeys(&bullav1.WatchClientKeysRequest{Issuer: "a\x00b"}, bad)
	if statusOf(err).Code() != codes.InvalidArgument {
		t.Errorf("an issuer with NUL: got %v, want InvalidArgument", err)
	}
	err = s.WatchClientKeys(&bullav1.WatchClientKeysRequest{Issuer: "unheard-of"}, bad)
	wantReason(t, "an issuer that is none", err, "ISSUER_UNKNOWN")
}

// faulty is a store that fails as it is told.
type faulty struct {
	registry.Store
	err func(clientID string) error
}

func (f faulty) Get(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	if err := f.err(clientID); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, issuer, clientID)
}

func TestARecordThatWasTamperedWithIsToldOf(t *testing.T) {
	s, _, cache := newClientKeys(t)
	cache.state = func(reg *registry.Registration) *keycache.Status {
		if reg.Tampered {
			return &keycache.Status{State: keycache.NoUsableKey, Reason: "somebody changed the store"}
		}
		return &keycache.Status{State: keycache.Ready}
	}
	s.store = faulty{s.store, func(string) error { return &registry.TamperedError{Revision: 7} }}
	w := startWatch(as(t, registrar), t, s)
	s.watches.ClientChanged("main", "app")
	if got := w.next(t); got != "app NO_USABLE_KEY 7" {
		t.Errorf("told %q, want that the record is not to be used", got)
	}
}

func TestAWatchEndsWhenItMissesSomething(t *testing.T) {
	for _, test := range []struct {
		what, reason string
		code         codes.Code
		do           func(s *clientKeyService, w *watching)
	}{
		{"the store does not answer", "REGISTRY_UNAVAILABLE", codes.Unavailable, func(s *clientKeyService, _ *watching) {
			s.watches.ClientChanged("main", "broken")
		}},
		{"changes were lost", "REGISTRY_UNAVAILABLE", codes.Unavailable, func(s *clientKeyService, _ *watching) { s.watches.Reset() }},
		{"the service stops", "Unavailable", codes.Unavailable, func(s *clientKeyService, _ *watching) { s.watches.Close() }},
		{"the caller leaves", "Canceled", codes.Canceled, func(_ *clientKeyService, w *watching) { w.cancel() }},
	} {
		s, record, _ := newClientKeys(t)
		s.store = faulty{s.store, func(id string) error {
			if id == "broken" {
				return fmt.Errorf("%w: connection refused to 10.1.2.3", registry.ErrUnavailable)
			}
			return nil
		}}
		w := startWatch(as(t, registrar), t, s)
		test.do(s, w)
		err := <-w.ended
		wantReason(t, test.what, err, test.reason)
		if st := statusOf(err); st.Code() != test.code || strings.Contains(st.Message(), "10.1.2.3") {
			t.Errorf("%s: got %v, want %v", test.what, st, test.code)
		}
		if len(record.events) != 0 {
			t.Errorf("%s: on record %+v", test.what, record.events)
		}
	}
	if text := statusOf(watch.ErrLost).Message(); !strings.Contains(text, "list the clients, and watch again") {
		t.Errorf("who missed changes is told %q", text)
	}
}

func TestAWatchEndsWithItsCallersCertificate(t *testing.T) {
	s, _, _ := newClientKeys(t)
	ctx := context.WithValue(t.Context(), callKey{}, call{rpc: "/rpc", caller: registrar, until: time.Now().Add(time.Second)})
	w := startWatch(ctx, t, s)
	register(t, s, registration("app", "one", ""))
	if got := w.next(t); got != "app READY 1 of-one" {
		t.Errorf("told %q", got)
	}
	wantReason(t, "after the certificate's end", <-w.ended, "CALLER_UNKNOWN")
}

// TestAWatchThatIsNotReadEndsWithItsCallersCertificate has a watch that nobody
// reads hold the only place, while there is more to tell than the connection
// takes.
func TestAWatchThatIsNotReadEndsWithItsCallersCertificate(t *testing.T) {
	s, _, _ := newClientKeys(t)
	var err error
	if s.watches, err = watch.New(watch.Config{Clients: noClients{}, MaxWatches: 1}); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(3 * time.Second)
	ended := make(chan error, 1)
	srv, lis := grpc.NewServer(grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx := context.WithValue(stream.Context(), callKey{}, call{rpc: "/rpc", caller: registrar, until: until})
		err := next(srv, identified{stream, ctx})
		ended <- err
		return statusOf(err).Err()
	})), bufconn.Listen(1<<16)
	bullav1.RegisterClientKeyServiceServer(srv, s)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := bullav1.NewClientKeyServiceClient(conn).WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	const changes = 50
	for i := range changes {
		register(t, s, wide(fmt.Sprintf("app-%02d", i)))
	}
	select {
	case err := <-ended:
		wantReason(t, "a watch that is not read", err, "CALLER_UNKNOWN")
		if time.Now().Before(until) {
			t.Error("it ended before the certificate")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on after the certificate's end")
	}
	startWatch(as(t, registrar), t, s).wantNothingBut(t, s) // there is a place again
	read := 0
	for {
		if _, err = stream.Recv(); err != nil {
			break
		}
		read++
	}
	if read < 1 || read >= changes || status.Code(err) != codes.Unauthenticated {
		t.Errorf("who comes to read after all gets %d messages and %v, want some of %d and UNAUTHENTICATED", read, err, changes)
	}
}

func TestAReplicaThatDoesNotHearOfChangesLetsNobodyWatch(t *testing.T) {
	s, _, _ := newClientKeys(t)
	var err error
	if s.watches, err = watch.New(watch.Config{Clients: noClients{}, Stale: func() bool { return true }}); err != nil {
		t.Fatal(err)
	}
	err = <-startWatch(as(t, registrar), t, s).ended
	wantReason(t, "a watch", err, "REGISTRY_UNAVAILABLE")
	if code := statusOf(err).Code(); code != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", code)
	}
}

func TestOneCallerHasOnlySoManyWatches(t *testing.T) {
	s, _, _ := newClientKeys(t)
	var err error
	if s.watches, err = watch.New(watch.Config{Clients: noClients{}, MaxWatches: 4, MaxPerCaller: 2}); err != nil {
		t.Fatal(err)
	}
	first := startWatch(as(t, reader), t, s)
	startWatch(as(t, reader), t, s)
	err = <-startWatch(as(t, reader), t, s).ended
	wantReason(t, "one too many of a caller", err, "QUOTA_EXCEEDED")
	if pause, ok := retryAfter(err, statusOf(err).Code()); !ok || pause <= 0 {
		t.Errorf("it may try again after %v, %v", pause, ok)
	}
	startWatch(as(t, registrar), t, s)
	startWatch(as(t, registrar), t, s)
	first.cancel()
	<-first.ended
	startWatch(as(t, reader), t, s)
	s.gate.authorizer = authz.Development()
	wantReason(t, "one too many in all", <-startWatch(as(t, authz.DevelopmentCaller), t, s).ended, "OVERLOADED")
}

func TestOnlyWhatIsNewIsTold(t *testing.T) {
	base := func() *keycache.Status {
		return &keycache.Status{State: keycache.Ready, FetchedAt: time.Unix(100, 0), Since: time.Unix(100, 0), ExpiresAt: time.Unix(1000, 0)}
	}
	reg := &registry.Registration{Issuer: "main", ClientID: "app", Revision: 1}
	for _, test := range []struct {
		what string
		edit func(reg *registry.Registration, s *keycache.Status)
		want bool
	}{
		{"nothing", func(*registry.Registration, *keycache.Status) {}, false},
		{"a refresh that finds the same", func(_ *registry.Registration, s *keycache.Status) {
			s.FetchedAt, s.Since, s.ExpiresAt, s.NextRefreshAt = time.Unix(200, 0), time.Unix(200, 0), time.Unix(2000, 0), time.Unix(300, 0)
		}, false},
		{"another revision", func(reg *registry.Registration, _ *keycache.Status) { reg.Revision++ }, true},
		{"another state", func(_ *registry.Registration, s *keycache.Status) { s.State = keycache.Failing }, true},
		{"another key", func(_ *registry.Registration, s *keycache.Status) {
			s.Recipients = []keycache.ChosenKey{{Thumbprint: "other"}}
		}, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			all, next, status := newTellings(), *reg, base()
			message := func() *bullav1.WatchClientKeysResponse {
				return &bullav1.WatchClientKeysResponse{ClientKey: clientKey(&next, status)}
			}
			if !all.anew(message()) {
				t.Error("the first message is not new")
			}
			test.edit(&next, status)
			if got := all.anew(message()); got != test.want {
				t.Errorf("new: %v, want %v", got, test.want)
			}
			if all.anew(message()) {
				t.Error("its repeat is new")
			}
		})
	}
	failing := func(state keycache.State, reason string) *bullav1.WatchClientKeysResponse {
		return &bullav1.WatchClientKeysResponse{ClientKey: clientKey(reg, &keycache.Status{State: state, Reason: reason})}
	}
	all := newTellings()
	for _, test := range []struct {
		res  *bullav1.WatchClientKeysResponse
		want bool
	}{
		{failing(keycache.Failing, "incident A"), true},
		{failing(keycache.Failing, "incident B"), false},
		{failing(keycache.NoUsableKey, "no key for ID_TOKEN"), true},
		{failing(keycache.NoUsableKey, "no key for USERINFO"), true},
		{failing(keycache.NoUsableKey, "no key for USERINFO"), false},
	} {
		if got := all.anew(test.res); got != test.want {
			t.Errorf("%s %q: new: %v, want %v", test.res.GetClientKey().GetState(), test.res.GetClientKey().GetStateReason(), got, test.want)
		}
	}
}

func TestAWatchRemembersOnlySoMuch(t *testing.T) {
	all := newTellings()
	message := func(i int) *bullav1.WatchClientKeysResponse {
		return &bullav1.WatchClientKeysResponse{ClientKey: &bullav1.ClientKey{ClientId: fmt.Sprint(i), Revision: "1"}}
	}
	for i := range 10 * maxRecent {
		if !all.anew(message(i)) {
			t.Fatalf("client %d is not new", i)
		}
		if i > 0 && all.anew(message(i-1)) {
			t.Fatalf("client %d is told of twice", i-1)
		}
	}
	if n := len(all.recent) + len(all.former); n > 2*maxRecent {
		t.Errorf("%d clients are remembered, want %d at most", n, 2*maxRecent)
	}
}

func TestWhatTheClockBringsIsToldToo(t *testing.T) {
	s, _, cache := newClientKeys(t)
	ends := time.Now().Add(time.Second)
	cache.state = func(*registry.Registration) *keycache.Status {
		if time.Now().After(ends) {
			return &keycache.Status{State: keycache.Expired, ExpiresAt: ends}
		}
		return &keycache.Status{State: keycache.Stale, ExpiresAt: ends}
	}
	w := startWatch(as(t, registrar), t, s)
	register(t, s, registration("app", "one", ""))
	for _, want := range []string{"app STALE 1 of-one", "app EXPIRED 1 of-one"} {
		if got := w.next(t); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	for _, test := range []struct {
		state bullav1.ClientKeyState
		at    *timestamppb.Timestamp
		want  time.Time
	}{
		{stateOf(keycache.Ready), nil, time.Time{}},
		{stateOf(keycache.Expired), timestamppb.New(ends), time.Time{}},
		{stateOf(keycache.Ready), timestamppb.New(ends), ends.Add(time.Second)},
	} {
		if got := changesByItself(&bullav1.ClientKey{State: test.state, ExpiresAt: test.at}); !got.Equal(test.want) {
			t.Errorf("%s until %v: changes at %v, want %v", test.state, test.at, got, test.want)
		}
	}
}

// watchedServer is a Server in development with a store, for calls over a
// connection.
func watchedServer(t *testing.T) (bullav1.ClientKeyServiceClient, *Server) {
	t.Helper()
	s, record, cache := newClientKeys(t)
	conn, srv := serveOn(t, Config{
		Plaintext: true, Issuers: s.gate.issuers, Sealer: sealer{}, Authorizer: authz.Development(), Store: s.store, ClientKeys: cache,
		Secrets: s.secrets, SigningKeys: noKeys{}, Auditor: record, Observer: &observer{}, Watches: s.watches, Replica: noReplica(), CheckURI: s.checkURI,
	})
	return bullav1.NewClientKeyServiceClient(conn), srv
}

// wide is a registration whose client is told of in some kilobytes.
func wide(id string) *bullav1.RegisterClientKeyRequest {
	return registration(id, strings.Repeat("k", 10<<10), "")
}

// TestACallerThatDoesNotReadDelaysNobody has a watch that nobody reads while so
// much changes that it can hold neither the messages nor the names.
func TestACallerThatDoesNotReadDelaysNobody(t *testing.T) {
	client, srv := watchedServer(t)
	var err error
	stalled, err := client.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	quick, err := client.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, stream := range []grpc.ClientStream{stalled, quick} {
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
	}
	const changes = 50
	for i := range changes {
		if _, err := client.RegisterClientKey(t.Context(), wide(fmt.Sprintf("app-%02d", i))); err != nil {
			t.Fatal(err)
		}
		res, err := quick.Recv()
		if err != nil || res.GetClientKey().GetClientId() != fmt.Sprintf("app-%02d", i) {
			t.Fatalf("change %d: got %v, %v", i, res.GetClientKey().GetClientId(), err)
		}
	}
	// Far more than it may have waiting, none of which is anything to tell.
	for i := range 10_001 + changes {
		srv.cfg.Watches.ClientChanged("main", fmt.Sprint("none-", i))
		if i%100 == 0 {
			if _, err := client.RegisterClientKey(t.Context(), registration(fmt.Sprint("app-late-", i), "one", "")); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := 0
	for {
		_, err = stalled.Recv()
		if err != nil {
			break
		}
		read++
	}
	if read < 1 || read >= changes || status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "list the clients") {
		t.Errorf("the watch that was not read ended with %v after %d messages", err, read)
	}
}

func TestShutdownEndsWatchesAtOnce(t *testing.T) {
	client, srv := watchedServer(t)
	var streams []grpc.ServerStreamingClient[bullav1.WatchClientKeysResponse]
	for range 3 {
		stream, err := client.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	srv.Shutdown(ctx)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	for _, stream := range streams {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) || status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "stopping") {
			t.Errorf("a watch ended with %v, want UNAVAILABLE and that the replica is stopping", err)
		}
	}
}
