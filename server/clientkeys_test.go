package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/watch"
	"github.com/bulla-project/bulla/store/bolt"
)

// keys stands in for the cache: every registration is fine, or as state says.
type keys struct {
	invalidated []string
	checked     int

	mu       sync.Mutex
	prepared []string                                      // guarded by mu
	unready  error                                         // what Prepare returns
	state    func(*registry.Registration) *keycache.Status // nil: fine
}

func (k *keys) Check(ctx context.Context, reg *registry.Registration) (*keycache.Status, error) {
	k.checked++
	return k.Status(ctx, reg)
}

func (k *keys) Status(_ context.Context, reg *registry.Registration) (*keycache.Status, error) {
	if reg.Deleted { // and registered anew, as the cache
		return &keycache.Status{State: keycache.NoUsableKey, Reason: reg.Missing().Error()}, nil
	}
	status := &keycache.Status{State: keycache.Ready}
	if k.state != nil {
		status = k.state(reg)
	}
	for _, s := range reg.Settings {
		if s.EncryptionAlgorithm != "" {
			status.Recipients = append(status.Recipients, keycache.ChosenKey{Setting: s, Thumbprint: "of-" + string(reg.Source.JWKS)})
		}
	}
	return status, nil
}

func (k *keys) Upcoming(ctx context.Context, reg *registry.Registration) (*keycache.Status, error) {
	next := reg.Successor()
	if next == nil {
		return nil, nil //nolint:nilnil // as the cache
	}
	return k.Status(ctx, next)
}

func (k *keys) Prepare(_ context.Context, reg *registry.Registration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.prepared = append(k.prepared, reg.ClientID)
	return k.unready
}

func (k *keys) Explain(context.Context, *registry.Registration, registry.TokenKind) (*keycache.Explanation, error) {
	return &keycache.Explanation{Verdicts: []jwks.Verdict{}}, nil
}

func (k *keys) Refresh(ctx context.Context, reg *registry.Registration) (*keycache.Status, error) {
	return k.Status(ctx, reg)
}
func (k *keys) Keep(context.Context, string) error { return nil }
func (k *keys) Invalidate(_, clientID string)      { k.invalidated = append(k.invalidated, clientID) }

// lossy is a store whose writes happen and are reported as lost.
type lossy struct{ registry.Store }

func (s lossy) Put(ctx context.Context, reg registry.Registration, expect uint64) (*registry.Registration, error) {
	if _, err := s.Store.Put(ctx, reg, expect); err != nil {
		return nil, err
	}
	return nil, registry.ErrUnavailable
}

const (
	registrar = "spiffe://example.com/registrar"
	creator   = "spiffe://example.com/creator"
	generator = "spiffe://example.com/generator"
	reader    = "spiffe://example.com/reader"
)

func newClientKeys(t *testing.T) (*clientKeyService, *auditor, *keys) {
	t.Helper()
	store, err := bolt.Open(t.Context(), bolt.Config{Path: filepath.Join(t.TempDir(), "db"), DataKeys: datakeytest.Config(datakeytest.NewWrapper())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	policy, err := authz.New([]authz.Grant{
		{Caller: registrar, Issuers: []string{"main"}, Clients: []string{"*"},
			Allow: []authz.Permission{authz.CreateClientKey, authz.ReplaceClientKey, authz.GenerateClientKey, authz.DeleteClientKey, authz.ReadClientKeys}},
		{Caller: generator, Issuers: []string{"main"}, Clients: []string{"*"}, Allow: []authz.Permission{authz.GenerateClientKey}},
		{Caller: creator, Issuers: []string{"main"}, Clients: []string{"*"}, Allow: []authz.Permission{authz.CreateClientKey}},
		{Caller: reader, Issuers: []string{"main"}, Clients: []string{"app-*", "single"}, Allow: []authz.Permission{authz.ReadClientKeys}},
	})
	if err != nil {
		t.Fatal(err)
	}
	limits, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	watches, err := watch.New(watch.Config{Clients: store})
	if err != nil {
		t.Fatal(err)
	}
	record, cache := &auditor{}, &keys{}
	return &clientKeyService{
		gate:  gate{issuers: oneIssuer(t), authorizer: policy, auditor: record},
		store: store, keys: cache, secrets: secrets.New(store.Keys(), datakey.ErrTampered), watches: watches, generating: make(chan struct{}, maxGenerating), checkURI: func(string) error { return nil }, limits: limits, log: slog.New(slog.DiscardHandler),
	}, record, cache
}

func as(t *testing.T, caller string) context.Context {
	return context.WithValue(t.Context(), callKey{}, call{rpc: "/rpc", caller: caller})
}

func registration(id, jwks, revision string) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		ClientId: id, Revision: revision, KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: []byte(jwks)},
		Settings: []*bullav1.ResponseSetting{
			{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "RSA-OAEP-256"},
			{TokenKind: bullav1.TokenKind_TOKEN_KIND_USERINFO},
		},
	}
}

func register(t *testing.T, s *clientKeyService, req *bullav1.RegisterClientKeyRequest) *bullav1.ClientKey {
	t.Helper()
	res, err := s.RegisterClientKey(as(t, registrar), req)
	if err != nil {
		t.Fatalf("register %s: %v", req.GetClientId(), err)
	}
	return res.GetClientKey()
}

func wantReason(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || Reason(err) != want {
		t.Errorf("%s: got %v, want %s", what, err, want)
	}
}

func TestCreatingAndReplacingAreApart(t *testing.T) {
	s, record, _ := newClientKeys(t)
	if _, err := s.RegisterClientKey(as(t, creator), registration("app", "one", "")); err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := s.RegisterClientKey(as(t, creator), registration("app", "one", "")); err != nil {
		t.Errorf("an identical repeat: %v", err)
	}
	_, err := s.RegisterClientKey(as(t, creator), registration("app", "two", ""))
	wantReason(t, "another key without a revision", err, "CLIENT_ALREADY_REGISTERED")
	_, err = s.RegisterClientKey(as(t, creator), registration("app", "two", "1"))
	wantReason(t, "a replacement by one who may only create", err, "CALLER_NOT_ALLOWED")
	_, err = s.RegisterClientKey(as(t, registrar), registration("app", "two", "7"))
	wantReason(t, "a replacement of another revision", err, "REVISION_MISMATCH")
	if key := register(t, s, registration("app", "two", "1")); key.GetRevision() != "2" {
		t.Errorf("revision %s, want 2", key.GetRevision())
	}
	_, err = s.RegisterClientKey(as(t, reader), registration("app", "one", ""))
	wantReason(t, "a repeat by one who may do neither", err, "CALLER_NOT_ALLOWED")

	var lines []string
	for _, e := range record.events {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(e.Outcome, " ", e.Permission, " ", e.OldThumbprint, " > ", e.NewThumbprint, " ", e.KeySource, " ", e.Revision)))
	}
	want := []string{
		"changed create_client_key  > ID_TOKEN=of-one,USERINFO=none jwks 1",
		"denied replace_client_key  >   0",
		"changed replace_client_key ID_TOKEN=of-one,USERINFO=none > ID_TOKEN=of-two,USERINFO=none jwks 2",
		"denied create_client_key  >   0",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("on record:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// Whoever deletes a client because its key is in wrong hands must not have it
// come back by one who may only create.
func TestADeletedClientIsNotTakenOverByCreating(t *testing.T) {
	s, _, _ := newClientKeys(t)
	register(t, s, registration("app", "one", ""))
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app"}); err != nil {
		t.Fatal(err)
	}
	_, err := s.RegisterClientKey(as(t, creator), registration("app", "two", ""))
	wantReason(t, "a creator", err, "CALLER_NOT_ALLOWED")
	if key := register(t, s, registration("app", "two", "")); key.GetRevision() != "3" {
		t.Errorf("revision %s, want 3: revisions go on after a deletion", key.GetRevision())
	}
}

func TestAWriteThatMayHaveHappenedTakesEffect(t *testing.T) {
	s, record, cache := newClientKeys(t)
	register(t, s, registration("app", "one", ""))
	cache.invalidated = nil
	s.store = lossy{s.store}
	_, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app"})
	wantReason(t, "delete", err, "REGISTRY_UNAVAILABLE")
	if !slices.Equal(cache.invalidated, []string{"app"}) {
		t.Errorf("invalidated %q, want app: the old key may not stay in use", cache.invalidated)
	}
	if last := record.events[len(record.events)-1]; last.Outcome != audit.Failed {
		t.Errorf("last line %+v, want that it failed", last)
	}
}

func TestAListTellsNothingOfOthers(t *testing.T) {
	s, _, _ := newClientKeys(t)
	for _, id := range []string{"aaa", "app-1", "app-2", "app-3", "secret-bank", "single", "zeta-government"} {
		register(t, s, registration(id, "one", ""))
	}
	for _, size := range []int32{1, 2, 3, 100} {
		var got []string
		for token := ""; ; {
			res, err := s.ListClientKeys(as(t, reader), &bullav1.ListClientKeysRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range res.GetClientKeys() {
				got = append(got, k.GetClientId())
			}
			if token = res.GetNextPageToken(); token == "" {
				break
			}
			name, _ := base64.RawURLEncoding.DecodeString(token)
			if n := string(name); !strings.HasPrefix(n, "app-") && n != "single" {
				t.Errorf("the page token tells of %q", n)
			}
		}
		if want := []string{"app-1", "app-2", "app-3", "single"}; !slices.Equal(got, want) {
			t.Errorf("pages of %d: %q, want %q", size, got, want)
		}
	}
	_, err := s.ListClientKeys(as(t, creator), &bullav1.ListClientKeysRequest{})
	wantReason(t, "one who may not read", err, "CALLER_NOT_ALLOWED")
}

func TestEveryDenialIsOnRecord(t *testing.T) {
	for _, issuerName := range []string{"main", "unheard-of"} {
		s, record, _ := newClientKeys(t)
		_, err := s.GetClientKey(as(t, "spiffe://example.com/stranger"), &bullav1.GetClientKeyRequest{Issuer: issuerName, ClientId: "app"})
		wantReason(t, "a stranger asking for issuer "+issuerName, err, "CALLER_UNKNOWN")
		if len(record.events) != 1 || record.events[0].Outcome != audit.Denied {
			t.Errorf("issuer %s: on record %+v, want one denial", issuerName, record.events)
		}
	}
	s, _, _ := newClientKeys(t)
	_, err := s.GetClientKey(as(t, reader), &bullav1.GetClientKeyRequest{Issuer: "unheard-of", ClientId: "app-1"})
	wantReason(t, "a known caller", err, "ISSUER_UNKNOWN")
}

func TestManyWrongSettingsCostLittle(t *testing.T) {
	s, _, _ := newClientKeys(t)
	req := registration("app", "one", "")
	for range 1_000_000 {
		req.Settings = append(req.Settings, &bullav1.ResponseSetting{})
	}
	if _, err := s.RegisterClientKey(as(t, registrar), req); statusOf(err).Code() != codes.InvalidArgument || len(err.Error()) > 1000 {
		t.Errorf("got an error of %d bytes (%.100v), want a short InvalidArgument", len(fmt.Sprint(err)), err)
	}
}

// Who gets the private half of a client's new key can read its tokens, so that
// to replace a key by a generated one takes both permissions.
func TestGeneratingOverAKeyTakesThePermissionToReplace(t *testing.T) {
	s, record, _ := newClientKeys(t)
	generate := func(caller, id, revision string) (*bullav1.GenerateClientKeyResponse, error) {
		return s.GenerateClientKey(as(t, caller), &bullav1.GenerateClientKeyRequest{
			ClientId: id, Revision: revision, KeySpec: &bullav1.GenerateClientKeyRequest_Curve{Curve: "P-256"},
			Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES"}},
		})
	}
	_, err := generate(creator, "app", "")
	wantReason(t, "without the permission to generate", err, "CALLER_NOT_ALLOWED")
	first, err := generate(generator, "app", "")
	if err != nil {
		t.Fatal(err)
	}
	if first.GetClientKey().GetSource() != bullav1.KeySource_KEY_SOURCE_GENERATED || !strings.Contains(string(first.GetPrivateJwk()), `"d"`) {
		t.Errorf("got %v", first.GetClientKey())
	}
	revision := first.GetClientKey().GetRevision()
	_, err = generate(generator, "app", revision)
	wantReason(t, "generate over a key without the permission to replace", err, "CALLER_NOT_ALLOWED")
	second, err := generate(registrar, "app", revision)
	if err != nil {
		t.Fatal(err)
	}
	if string(second.GetPrivateJwk()) == string(first.GetPrivateJwk()) {
		t.Error("the same key a second time")
	}
	register(t, s, registration("known", "{}", ""))
	_, err = generate(generator, "known", "")
	wantReason(t, "generate over a registered client", err, "CLIENT_ALREADY_REGISTERED")
	var sources []string
	for _, e := range record.events {
		if e.Outcome == audit.Changed {
			sources = append(sources, e.KeySource)
		}
	}
	if want := []string{"generated", "generated", "jwks"}; !slices.Equal(sources, want) {
		t.Errorf("the key sources on record are %v, want %v", sources, want)
	}
}

func TestAnEqualSecretChangesNothingAndAGuessIsOnRecord(t *testing.T) {
	s, record, _ := newClientKeys(t)
	want := func(secret, revision string) *bullav1.RegisterClientKeyRequest {
		return &bullav1.RegisterClientKeyRequest{
			ClientId: "app", Revision: revision, KeySource: &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret},
			Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "A256KW"}},
		}
	}
	first := register(t, s, want("a secret of some length: 0001", ""))
	again := register(t, s, want("a secret of some length: 0001", ""))
	if again.GetRevision() != first.GetRevision() {
		t.Errorf("the same secret made revision %s of %s", again.GetRevision(), first.GetRevision())
	}
	if last := record.events[len(record.events)-1]; last.Outcome != audit.Unchanged || last.Revision != 1 {
		t.Errorf("the last line on record is %+v, want that a secret was repeated", last)
	}
	_, err := s.RegisterClientKey(as(t, registrar), want("a secret of some length: 0002", ""))
	wantReason(t, "another secret without a revision", err, "CLIENT_ALREADY_REGISTERED")
	if last := record.events[len(record.events)-1]; last.Outcome != audit.Failed || last.Reason != "CLIENT_ALREADY_REGISTERED" {
		t.Errorf("the last line on record is %+v, want the guess", last)
	}
	changed := register(t, s, want("a secret of some length: 0002", first.GetRevision()))
	if changed.GetRevision() == first.GetRevision() {
		t.Error("another secret changed nothing")
	}
}

func TestPermissionsOfAChange(t *testing.T) {
	for _, tc := range []struct {
		generated bool
		change    registry.Change
		want      []authz.Permission
	}{
		{false, registry.Create, []authz.Permission{authz.CreateClientKey}},
		{false, registry.Replace, []authz.Permission{authz.ReplaceClientKey}},
		{false, registry.Recreate, []authz.Permission{authz.ReplaceClientKey}},
		{true, registry.Create, []authz.Permission{authz.GenerateClientKey}},
		{true, registry.Replace, []authz.Permission{authz.GenerateClientKey, authz.ReplaceClientKey}},
		{true, registry.Recreate, []authz.Permission{authz.GenerateClientKey, authz.ReplaceClientKey}},
	} {
		w := &wish{generated: tc.generated}
		if got := w.permissions(tc.change); !slices.Equal(got, tc.want) {
			t.Errorf("generated %v, change %d: got %v, want %v", tc.generated, tc.change, got, tc.want)
		}
	}
}

// Nobody learns whether a guess is right while nothing can be put on record.
func TestNoGuessIsAnsweredUnseen(t *testing.T) {
	s, record, _ := newClientKeys(t)
	req := func(secret string) *bullav1.RegisterClientKeyRequest {
		return &bullav1.RegisterClientKeyRequest{
			ClientId: "app", KeySource: &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret},
			Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "A256KW"}},
		}
	}
	register(t, s, req("a secret of some length: 0001"))
	record.err = audit.ErrUnavailable
	for _, guess := range []string{"a secret of some length: 0001", "a secret of some length: 0002"} {
		_, err := s.RegisterClientKey(as(t, creator), req(guess))
		wantReason(t, "a guess without a record", err, "AUDIT_UNAVAILABLE")
	}
}

func TestWhatASettingLeavesOutComesFromTheMetadata(t *testing.T) {
	base := []registry.Setting{
		{Kind: "ID_TOKEN", SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"},
		{Kind: "USERINFO", SigningAlgorithm: "ES256"},
	}
	for _, tc := range []struct{ own, want registry.Setting }{
		{registry.Setting{Kind: "ID_TOKEN"}, base[0]},
		{registry.Setting{Kind: "ID_TOKEN", EncryptionAlgorithm: "dir"}, registry.Setting{Kind: "ID_TOKEN", SigningAlgorithm: "HS256", EncryptionAlgorithm: "dir"}},
		{registry.Setting{Kind: "ID_TOKEN", SigningAlgorithm: "HS512"}, registry.Setting{Kind: "ID_TOKEN", SigningAlgorithm: "HS512", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"}},
		{registry.Setting{Kind: "ID_TOKEN", KeyID: "k"}, registry.Setting{Kind: "ID_TOKEN", SigningAlgorithm: "HS256", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM", KeyID: "k"}},
	} {
		got := overlay(base, []registry.Setting{tc.own})
		if want := []registry.Setting{tc.want, base[1]}; !slices.Equal(got, want) {
			t.Errorf("%+v over the metadata: got %+v, want %+v", tc.own, got, want)
		}
	}
}

// A key that would not be registered is not made.
func TestNoKeyIsMadeForNothing(t *testing.T) {
	s, _, _ := newClientKeys(t)
	register(t, s, registration("app", "{}", ""))
	s.generating <- struct{}{} // somebody makes a key: whoever comes to make one waits
	for what, req := range map[string]*bullav1.GenerateClientKeyRequest{
		"CLIENT_ALREADY_REGISTERED": {ClientId: "app"}, "REVISION_MISMATCH": {ClientId: "app", Revision: "7"}, "InvalidArgument": {ClientId: "other"},
	} {
		if what != "InvalidArgument" {
			req.Settings = []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "RSA-OAEP"}}
		}
		req.KeySpec = &bullav1.GenerateClientKeyRequest_RsaBits{RsaBits: 4096}
		ctx, cancel := context.WithTimeout(as(t, registrar), time.Minute)
		_, err := s.GenerateClientKey(ctx, req)
		cancel()
		wantReason(t, "generate", err, what)
	}
	// One on a curve costs nothing, and waits for nobody.
	_, err := s.GenerateClientKey(as(t, registrar), &bullav1.GenerateClientKeyRequest{
		ClientId: "curve", KeySpec: &bullav1.GenerateClientKeyRequest_Curve{Curve: "X25519"},
		Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES"}},
	})
	if err != nil {
		t.Error(err)
	}
}
