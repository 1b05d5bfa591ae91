package keycache

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	issuer   = "main"
	idToken  = registry.TokenKind("ID_TOKEN")
	userinfo = registry.TokenKind("USERINFO")
	uri      = "https://client.example/jwks"
	iss      = "https://login.example.com"

	day = 24 * time.Hour
)

// world is a cache with a store in memory and hosts that do what a test says.
type world struct {
	*Cache
	t     *testing.T
	cfg   Config
	store *memStore
	hosts *hosts
	logs  *logs
	vault *vault
}

// inWorld runs a test on a clock of its own, with the cache's Run under way.
func inWorld(t *testing.T, test func(t *testing.T, w *world), edit ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, store: newMemStore(), hosts: &hosts{answers: make(map[string]answer)}, logs: &logs{}, vault: newVault()}
		w.cfg = Config{
			Store: w.store, Fetcher: w.hosts, IssuerURL: issuerURL, Secrets: w.vault.keeper(),
			Logger: slog.New(slog.NewJSONHandler(w.logs, nil)),
		}
		for _, e := range edit {
			e(&w.cfg)
		}
		w.restart()
		test(t, w)
	})
}

func issuerURL(name string) string {
	if name == issuer {
		return iss
	}
	return ""
}

// restart starts a new cache over the same store.
func (w *world) restart() {
	w.t.Helper()
	if w.Cache != nil {
		w.Close()
	}
	c, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Cache = c
	ran := make(chan error, 1)
	go func() { ran <- c.Run(context.Background()) }()
	w.t.Cleanup(func() {
		c.Close()
		if err := <-ran; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

// sleep lets time pass until nothing is left to do at its end.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) recipient(clientID string) (Recipient, error) {
	return w.Recipient(w.t.Context(), issuer, clientID, idToken)
}

// mustUse returns the client's recipient and fails if it has to be waited for.
func (w *world) mustUse(clientID string) Recipient {
	w.t.Helper()
	start := time.Now()
	r, err := w.recipient(clientID)
	if err != nil {
		w.t.Fatalf("%s after %v: %v", clientID, time.Since(start), err)
	}
	if took := time.Since(start); took != 0 {
		w.t.Fatalf("%s: waited %v, want not at all", clientID, took)
	}
	return r
}

// mustRefuse returns the error of the client's recipient.
func (w *world) mustRefuse(clientID string, want error) error {
	w.t.Helper()
	r, err := w.recipient(clientID)
	if !errors.Is(err, want) {
		w.t.Fatalf("%s: got key %q, %v; want %v", clientID, kid(r), err, want)
	}
	return err
}

func kid(r Recipient) string {
	if r.Recipient == nil {
		return ""
	}
	return r.KeyID()
}

func (w *world) status(clientID string) *Status {
	w.t.Helper()
	reg, err := w.store.Get(w.t.Context(), issuer, clientID)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.Status(w.t.Context(), reg)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// register stores a client the way the server does.
func (w *world) register(reg registry.Registration) *registry.Registration {
	w.t.Helper()
	var revision uint64
	if old, err := w.store.Get(w.t.Context(), issuer, reg.ClientID); err == nil {
		revision = old.Revision
	}
	stored, err := w.store.Put(w.t.Context(), reg, revision)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Invalidate(reg.Issuer, reg.ClientID)
	if reg.Source.JWKSURI != "" {
		if err := w.Keep(w.t.Context(), reg.Source.JWKSURI); err != nil {
			w.t.Fatal(err)
		}
	}
	return stored
}

// withURI is a client whose keys come from a URL.
func withURI(clientID, uri string) registry.Registration {
	return registry.Registration{
		Issuer: issuer, ClientID: clientID, Source: registry.Source{JWKSURI: uri},
		Settings: []registry.Setting{
			{Kind: idToken, EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A256GCM"},
			{Kind: userinfo, EncryptionAlgorithm: "ECDH-ES+A128KW", ContentEncryption: "A128CBC-HS256"},
			{Kind: "INTROSPECTION", SigningAlgorithm: "ES256"},
		},
	}
}

// withSet is a client whose keys were registered as they are.
func withSet(clientID string, document []byte) registry.Registration {
	reg := withURI(clientID, "")
	reg.Source.JWKS = document
	return reg
}

func tombstone(clientID string) registry.Registration {
	return registry.Registration{Issuer: issuer, ClientID: clientID, Deleted: true}
}

// set is a JWK Set of P-256 keys with the given kids. A kid that begins with
// "sig" is for signatures, one that begins with "private" shows its private
// half.
func set(kids ...string) []byte {
	keys := []map[string]any{}
	for _, kid := range kids {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		jwk := map[string]any{
			"kty": "EC", "crv": "P-256", "kid": kid, "use": "enc",
			"x": base64.RawURLEncoding.EncodeToString(point[1:33]),
			"y": base64.RawURLEncoding.EncodeToString(point[33:]),
		}
		if strings.HasPrefix(kid, "sig") {
			jwk["use"] = "sig"
		}
		if strings.HasPrefix(kid, "private") {
			d, err := k.Bytes()
			if err != nil {
				panic(err)
			}
			jwk["d"] = base64.RawURLEncoding.EncodeToString(d)
		}
		keys = append(keys, jwk)
	}
	return document(keys...)
}

func document(keys ...map[string]any) []byte {
	doc, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return doc
}

// hosts are the hosts of all clients: a scriptable Fetcher.
type hosts struct {
	mu       sync.Mutex
	answers  map[string]answer // by URL or, failing that, by ""; guarded by mu
	requests []request         // guarded by mu
	under    map[string]int    // requests under way by URL; guarded by mu
	overlap  bool              // guarded by mu: two requests of one URL were under way at once
}

type answer func(ctx context.Context, req fetch.Request) (*fetch.Response, error)

type request struct {
	fetch.Request
	at time.Time
}

func (h *hosts) Get(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
	h.mu.Lock()
	h.requests = append(h.requests, request{req, time.Now()})
	if h.under == nil {
		h.under = make(map[string]int)
	}
	h.under[req.URI]++
	h.overlap = h.overlap || h.under[req.URI] > 1
	a, ok := h.answers[req.URI]
	if !ok {
		a, ok = h.answers[""]
	}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.under[req.URI]--
	}()
	if !ok {
		return nil, &fetch.Failure{Class: fetch.ClassDNS, Cause: errors.New("no such host")}
	}
	return a(ctx, req)
}

func (h *hosts) serve(uri string, a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[uri] = a
}

// times is when a URL was asked for.
func (h *hosts) times(uri string) []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	var at []time.Time
	for _, r := range h.requests {
		if r.URI == uri {
			at = append(at, r.at)
		}
	}
	return at
}

func (h *hosts) count(uri string) int { return len(h.times(uri)) }

func (h *hosts) overlapped() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.overlap
}

func (h *hosts) last() fetch.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests[len(h.requests)-1].Request
}

// fresh answers with a document that is fresh for d.
func fresh(document []byte, d time.Duration) answer {
	return func(context.Context, fetch.Request) (*fetch.Response, error) {
		return &fetch.Response{Document: document, ETag: `"1"`, Freshness: fetch.Freshness{For: d, Stated: true}}, nil
	}
}

// fails answers as the fetcher does when a fetch went wrong.
func fails(class fetch.Class, cause error) answer {
	return func(context.Context, fetch.Request) (*fetch.Response, error) {
		return nil, &fetch.Failure{Class: class, Cause: cause}
	}
}

var down = fails(fetch.ClassConnect, errors.New("connection refused"))

// hangs answers as the fetcher does when a host does not.
func hangs(ctx context.Context, _ fetch.Request) (*fetch.Response, error) {
	<-ctx.Done()
	return nil, &fetch.Failure{Class: fetch.ClassTimeout, Cause: ctx.Err()}
}

// slow answers after d.
func slow(d time.Duration, a answer) answer {
	return func(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
		time.Sleep(d)
		return a(ctx, req)
	}
}

// logs are the lines of a log, each a JSON object.
type logs struct {
	mu    sync.Mutex
	lines bytes.Buffer // guarded by mu
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(p)
}

// errors returns the messages of the lines that are errors.
func (l *logs) errors() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []string
	for line := range bytes.Lines(l.lines.Bytes()) {
		var m struct{ Level, Msg string }
		if json.Unmarshal(line, &m) == nil && m.Level == "ERROR" {
			list = append(list, m.Msg)
		}
	}
	return list
}

// find returns the line that has the given incident.
func (l *logs) find(incident string) map[string]any {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.lines.Bytes()) {
		var m map[string]any
		if json.Unmarshal(line, &m) == nil && m["incident"] == incident {
			return m
		}
	}
	return nil
}

// memStore is a registry.Store in memory that keeps to the contract.
type memStore struct {
	mu      sync.Mutex
	clients map[clientKey]*registry.Registration // guarded by mu
	sets    map[string]registry.KeySet           // guarded by mu
	reads   int                                  // of registrations; guarded by mu
	setGets int                                  // guarded by mu
	setPuts int                                  // guarded by mu

	// onGet runs in the middle of Get, after the record has been read.
	onGet func(clientID string)
	// onKeySet runs at the beginning of KeySet.
	onKeySet func()
	// failGet, failKeySet and failPutKeySet are what those methods answer.
	failGet, failKeySet, failPutKeySet error
}

var _ registry.Store = (*memStore)(nil)

func newMemStore() *memStore {
	return &memStore{clients: make(map[clientKey]*registry.Registration), sets: make(map[string]registry.KeySet)}
}

func (s *memStore) Get(ctx context.Context, issuer, clientID string) (*registry.Registration, error) {
	s.mu.Lock()
	s.reads++
	reg, ok := s.clients[clientKey{issuer, clientID}]
	err, hook := s.failGet, s.onGet
	s.mu.Unlock()
	if hook != nil {
		hook(clientID)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s", registry.ErrNotFound, clientID)
	}
	return reg.InForce(time.Now()), nil
}

func (s *memStore) Put(_ context.Context, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := clientKey{reg.Issuer, reg.ClientID}
	if old := s.clients[key]; old != nil && old.InForce(time.Now()).Revision != expect || old == nil && expect != 0 {
		return nil, registry.ErrRevision
	}
	reg.Revision, reg.UpdatedAt = expect+1, time.Now()
	s.clients[key] = &reg
	for uri := range s.sets {
		if !s.named(uri) {
			delete(s.sets, uri)
		}
	}
	return &reg, nil
}

// named reports whether a live registration names uri. The caller holds mu.
func (s *memStore) named(uri string) bool {
	for _, reg := range s.clients {
		if !reg.Deleted && reg.Source.JWKSURI == uri || reg.Pending != nil && reg.Pending.Source.JWKSURI == uri {
			return true
		}
	}
	return false
}

func (s *memStore) List(context.Context, string, string, int) ([]*registry.Registration, error) {
	return nil, errors.New("not used")
}

func (s *memStore) KeySet(ctx context.Context, uri string) (*registry.KeySet, error) {
	s.mu.Lock()
	hook := s.onKeySet
	s.mu.Unlock()
	if hook != nil {
		hook()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setGets++
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if s.failKeySet != nil {
		return nil, s.failKeySet
	}
	set, ok := s.sets[uri]
	if !ok {
		return nil, registry.ErrNotFound
	}
	// What comes from a store has no monotonic clock reading.
	for _, at := range []*time.Time{&set.FetchedAt, &set.FreshUntil, &set.FailingSince, &set.NextAttempt} {
		*at = at.Round(0)
	}
	set.Document = bytes.Clone(set.Document)
	return &set, nil
}

func (s *memStore) PutKeySet(ctx context.Context, set registry.KeySet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setPuts++
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.failPutKeySet != nil {
		return s.failPutKeySet
	}
	if s.named(set.URI) {
		set.Document = bytes.Clone(set.Document)
		s.sets[set.URI] = set
	}
	return nil
}

func (s *memStore) URIs(_ context.Context, yield func(string) bool) error {
	s.mu.Lock()
	uris := slices.Sorted(maps.Keys(s.sets))
	s.mu.Unlock()
	for _, uri := range uris {
		if !yield(uri) {
			break
		}
	}
	return nil
}

func (s *memStore) Check(context.Context) error { return nil }

// counts returns how often registrations and key sets were read, and key sets
// written.
func (s *memStore) counts() (reads, setGets, setPuts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads, s.setGets, s.setPuts
}

// edit changes the store while nothing else looks at it.
func (s *memStore) edit(f func(s *memStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *memStore) stored(uri string) (registry.KeySet, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set, ok := s.sets[uri]
	return set, ok
}

// notModified answers with a document, or with a 304 if that is what is asked
// for.
func notModified(document []byte, d time.Duration) answer {
	return func(ctx context.Context, req fetch.Request) (*fetch.Response, error) {
		res, err := fresh(document, d)(ctx, req)
		if req.ETag == res.ETag {
			res.NotModified, res.Document = true, nil
		}
		return res, err
	}
}
