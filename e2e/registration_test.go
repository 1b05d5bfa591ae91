package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	stateReady   = bullav1.ClientKeyState_CLIENT_KEY_STATE_READY
	stateStale   = bullav1.ClientKeyState_CLIENT_KEY_STATE_STALE
	stateExpired = bullav1.ClientKeyState_CLIENT_KEY_STATE_EXPIRED
	stateFailing = bullav1.ClientKeyState_CLIENT_KEY_STATE_FAILING
	stateUnfit   = bullav1.ClientKeyState_CLIENT_KEY_STATE_NO_USABLE_KEY
)

func mustGet(t testing.TB, c *client.Client, clientID string) *bullav1.ClientKey {
	t.Helper()
	res, err := c.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: clientID})
	if err != nil {
		t.Fatalf("get %s: %v", clientID, err)
	}
	return res.GetClientKey()
}

func TestRegistrationFromFirstToLast(t *testing.T) {
	const id = "app-life"
	admin, create, replace := shared.Caller(t, harness.Admin), shared.Caller(t, registrar), shared.Caller(t, replacer)
	register := func(c *client.Client, req *bullav1.RegisterClientKeyRequest) (*bullav1.ClientKey, error) {
		res, err := c.ClientKeys.RegisterClientKey(t.Context(), req)
		return res.GetClientKey(), err
	}
	first := withJWKS(id, harness.JWKS(anyKey()), setting("ECDH-ES+A128KW", ""))
	second := withJWKS(id, harness.JWKS(otherKey()), setting("ECDH-ES+A128KW", ""))

	_, err := register(replace, first)
	mustFail(t, err, "CALLER_NOT_ALLOWED", "create_client_key")

	created, err := register(create, first)
	if err != nil {
		t.Fatal(err)
	}
	if created.GetState() != stateReady || created.GetSource() != bullav1.KeySource_KEY_SOURCE_JWKS || created.GetRevision() == "" {
		t.Errorf("got %v, want READY, JWKS and a revision", created)
	}
	if enc := created.GetSettings()[0].GetContentEncryption(); enc != "A128CBC-HS256" {
		t.Errorf("got enc %q, want the default A128CBC-HS256", enc)
	}
	if chosen := created.GetChosenKeys(); len(chosen) != 1 || chosen[0].GetKeyId() != anyKey().KeyID {
		t.Errorf("got the chosen keys %v, want %s", chosen, anyKey().KeyID)
	}

	again, err := register(create, first)
	if err != nil || again.GetRevision() != created.GetRevision() || !again.GetUpdatedAt().AsTime().Equal(created.GetUpdatedAt().AsTime()) {
		t.Errorf("an identical repeat: got %v (%v), want what was created: %v", again, err, created)
	}
	_, err = register(create, second)
	mustFail(t, err, "CLIENT_ALREADY_REGISTERED", "send its revision")

	second.Revision = created.GetRevision()
	_, err = register(create, second)
	mustFail(t, err, "CALLER_NOT_ALLOWED", "replace_client_key")
	stale := withJWKS(id, harness.JWKS(otherKey()), setting("ECDH-ES+A128KW", ""))
	stale.Revision = "77"
	_, err = register(replace, stale)
	mustFail(t, err, "REVISION_MISMATCH", "read it again")

	if token := mustIssue(t, admin, idToken(id)); token.GetEncryptionKeyId() != anyKey().KeyID {
		t.Errorf("encrypted to %s, want %s", token.GetEncryptionKeyId(), anyKey().KeyID)
	}
	replaced, err := register(replace, second)
	if err != nil {
		t.Fatal(err)
	}
	if replaced.GetRevision() == created.GetRevision() {
		t.Errorf("the revision is still %s after a change", created.GetRevision())
	}
	open(t, shared.Service, otherKey(), mustIssue(t, admin, idToken(id)).GetToken())

	_, err = create.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id})
	mustFail(t, err, "CALLER_NOT_ALLOWED", "delete_client_key")
	_, err = admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id, Revision: created.GetRevision()})
	mustFail(t, err, "REVISION_MISMATCH")
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id, Revision: replaced.GetRevision()}); err != nil {
		t.Fatal(err)
	}
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken(id))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: id})
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	_, err = admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id})
	mustFail(t, err, "CLIENT_NOT_REGISTERED")

	// What was deleted may be registered anew by those who may replace: it comes
	// to the same. No revision is used twice.
	_, err = register(create, first)
	mustFail(t, err, "CALLER_NOT_ALLOWED", "replace_client_key")
	anew, err := register(replace, first)
	if err != nil {
		t.Fatal(err)
	}
	if r := anew.GetRevision(); r == created.GetRevision() || r == replaced.GetRevision() {
		t.Errorf("got the revision %s a second time", r)
	}
	open(t, shared.Service, anyKey(), mustIssue(t, admin, idToken(id)).GetToken())
}

func TestListIsPagedFilteredAndLimitedToWhatTheCallerMayRead(t *testing.T) {
	admin, reader := shared.Caller(t, harness.Admin), shared.Caller(t, registrar)
	var want []string
	for i := range 7 {
		id := fmt.Sprintf("app-list-%d", i)
		want = append(want, id)
		mustRegister(t, admin, withJWKS(id, harness.JWKS(anyKey())))
	}
	mustRegister(t, admin, withJWKS("zz-list", harness.JWKS(anyKey())))
	bad := withURI("app-list-failing", shared.host.URL("/never-there"))
	bad.AllowUnfetched = true
	mustRegister(t, admin, bad)

	list := func(c *client.Client, state bullav1.ClientKeyState, size int32) (ids []string) {
		t.Helper()
		req := &bullav1.ListClientKeysRequest{Issuer: harness.Issuer, State: state, PageSize: size}
		for {
			res, err := c.ClientKeys.ListClientKeys(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(res.GetClientKeys()); size > 0 && n > int(size) {
				t.Errorf("a page of %d, want at most %d", n, size)
			}
			for _, k := range res.GetClientKeys() {
				ids = append(ids, k.GetClientId())
				if state != 0 && k.GetState() != state {
					t.Errorf("%s is %s, want %s", k.GetClientId(), k.GetState(), state)
				}
			}
			if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
				return ids
			}
		}
	}
	for _, size := range []int32{0, 1, 3, 5000} {
		ids := list(reader, 0, size)
		if !slices.IsSorted(ids) {
			t.Errorf("page size %d: not in order: %v", size, ids)
		}
		for _, id := range want {
			if n := count(ids, id); n != 1 {
				t.Errorf("page size %d: %s is there %d times, want once", size, id, n)
			}
		}
		if i := slices.IndexFunc(ids, func(id string) bool { return !strings.HasPrefix(id, "app-") }); i >= 0 {
			t.Errorf("page size %d: %s is not the caller's to read", size, ids[i])
		}
	}
	if !slices.Contains(list(admin, 0, 2), "zz-list") {
		t.Error("a caller that may read all does not see zz-list")
	}
	if ids := list(admin, stateFailing, 2); !slices.Contains(ids, "app-list-failing") || slices.Contains(ids, "app-list-0") {
		t.Errorf("FAILING: got %v, want app-list-failing and none that is READY", ids)
	}

	_, err := admin.ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer, PageToken: "!"})
	mustBe(t, err, codes.InvalidArgument, "page_token")
	_, err = admin.ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer, PageSize: -1})
	mustBe(t, err, codes.InvalidArgument, "page_size")
	_, err = shared.Caller(t, idp).ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer})
	mustFail(t, err, "CALLER_NOT_ALLOWED", "read_client_keys")
}

func count(list []string, s string) (n int) {
	for _, e := range list {
		if e == s {
			n++
		}
	}
	return n
}

func TestExplainSaysOfEveryKeyWhyItIsOrIsNotUsed(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	signing := harness.NewClientKey(t, "P-256", "for-signatures")
	signing.Use = "sig"
	set := harness.JWKS(signing, harness.NewClientKey(t, "P-384", "p384"), rsaKey(), otherKey())
	set = []byte(strings.Replace(string(set), `{"keys":[`, `{"keys":[{"kty":"OKP","crv":"X448","kid":"unknown","x":"AA"},`, 1))
	mustRegister(t, admin, withJWKS("explained", set, setting("ECDH-ES", "A256GCM"), &bullav1.ResponseSetting{TokenKind: kindUserInfo}))

	res, err := admin.ClientKeys.ExplainClientKey(t.Context(), &bullav1.ExplainClientKeyRequest{Issuer: harness.Issuer, ClientId: "explained"})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.GetKeys()) != 5 || res.GetSetting().GetEncryptionAlgorithm() != "ECDH-ES" {
		t.Fatalf("got %v, want five verdicts on ECDH-ES", res)
	}
	for i, k := range res.GetKeys() {
		if chosen := k.GetKeyId() == "p384"; int(k.GetIndex()) != i || k.GetChosen() != chosen || k.GetReason() == "" {
			t.Errorf("key %d: got %v, want chosen: %v, and a reason", i, k, chosen)
		}
	}
	_, err = admin.ClientKeys.ExplainClientKey(t.Context(), &bullav1.ExplainClientKeyRequest{Issuer: harness.Issuer, ClientId: "explained", TokenKind: kindUserInfo})
	mustFail(t, err, "CLIENT_KEY_UNUSABLE")
	_, err = admin.ClientKeys.ExplainClientKey(t.Context(), &bullav1.ExplainClientKeyRequest{Issuer: harness.Issuer, ClientId: "nobody"})
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
}

func TestRefreshFetchesNowAndNotTooOften(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	url := shared.host.Serve("/refreshed", harness.JWKS(anyKey()), time.Hour)
	mustRegister(t, admin, withURI("refreshed", url))
	shared.host.Serve("/refreshed", harness.JWKS(otherKey()), time.Hour)
	if to := mustIssue(t, admin, idToken("refreshed")).GetEncryptionKeyId(); to != anyKey().KeyID {
		t.Errorf("before the refresh: encrypted to %s, want the old key", to)
	}
	req := &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "refreshed"}
	res, err := admin.ClientKeys.RefreshClientKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if chosen := res.GetClientKey().GetChosenKeys(); len(chosen) != 1 || chosen[0].GetKeyId() != otherKey().KeyID {
		t.Errorf("got the chosen keys %v, want the new one", chosen)
	}
	open(t, shared.Service, otherKey(), mustIssue(t, admin, idToken("refreshed")).GetToken())
	_, err = admin.ClientKeys.RefreshClientKey(t.Context(), req)
	mustFail(t, err, "REFRESH_LIMITED")

	mustRegister(t, admin, withJWKS("not-refreshable", harness.JWKS(anyKey())))
	_, err = admin.ClientKeys.RefreshClientKey(t.Context(), &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "not-refreshable"})
	mustFail(t, err, "KEY_SOURCE_NOT_REFRESHABLE")
}

func TestBadRegistrationsAreRefusedWithWhatToDo(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	good := harness.JWKS(rsaKey())
	with := func(edit func(*bullav1.RegisterClientKeyRequest)) *bullav1.RegisterClientKeyRequest {
		req := withJWKS("bad-registration", good, setting("RSA-OAEP-256", "A256GCM"))
		edit(req)
		return req
	}
	for _, test := range []struct {
		what   string
		req    *bullav1.RegisterClientKeyRequest
		code   codes.Code // with reason empty
		reason string
		words  []string
	}{
		{"no client", with(func(r *bullav1.RegisterClientKeyRequest) { r.ClientId = "" }), codes.InvalidArgument, "", []string{"client_id"}},
		{"a client_id with a line feed", with(func(r *bullav1.RegisterClientKeyRequest) { r.ClientId = "a\nb" }), codes.InvalidArgument, "", []string{"client_id"}},
		{"no setting", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings = nil }), codes.InvalidArgument, "", []string{"settings"}},
		{"a setting without a kind", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].TokenKind = 0 }), codes.InvalidArgument, "", []string{"settings[0].token_kind"}},
		{"two settings of a kind", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings = append(r.Settings, r.Settings[0]) }), codes.InvalidArgument, "", []string{"settings[1]"}},
		{"enc without alg", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].EncryptionAlgorithm = "" }), codes.InvalidArgument, "", []string{"content_encryption"}},
		{"no key source", with(func(r *bullav1.RegisterClientKeyRequest) { r.KeySource = nil }), codes.InvalidArgument, "", []string{"source"}},
		{"a revision that is none", with(func(r *bullav1.RegisterClientKeyRequest) { r.Revision = "latest" }), codes.InvalidArgument, "", []string{"revision"}},
		{"unknown issuer", with(func(r *bullav1.RegisterClientKeyRequest) { r.Issuer = "nowhere" }), 0, "ISSUER_UNKNOWN", nil},
		{"no issuer where there are two", with(func(r *bullav1.RegisterClientKeyRequest) { r.Issuer = "" }), 0, "ISSUER_UNKNOWN", nil},
		{"unknown alg", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].EncryptionAlgorithm = "RSA-OAEP-257" }), 0, "ALGORITHM_NOT_ALLOWED", []string{"RSA-OAEP-256"}},
		{"unknown enc", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].ContentEncryption = "A512GCM" }), 0, "ALGORITHM_NOT_ALLOWED", []string{"A256GCM"}},
		{"unknown signing alg", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].SigningAlgorithm = "ES257" }), 0, "ALGORITHM_NOT_ALLOWED", []string{"ES256"}},
		{"HS256 without a secret", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].SigningAlgorithm = "HS256" }), codes.InvalidArgument, "", []string{"settings[0].signing_algorithm", "client_secret"}},
		{"alg outside the issuer's policy", with(func(r *bullav1.RegisterClientKeyRequest) {
			r.Issuer, r.Settings[0].EncryptionAlgorithm = narrow, "RSA-OAEP"
		}), 0, "ALGORITHM_NOT_ALLOWED", []string{"RSA-OAEP-256"}},
		{"an alg that no key fits", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].EncryptionAlgorithm = "ECDH-ES" }), 0, "CLIENT_KEY_UNUSABLE", nil},
		{"a pinned key that is not there", with(func(r *bullav1.RegisterClientKeyRequest) { r.Settings[0].KeyId = "elsewhere" }), 0, "CLIENT_KEY_UNUSABLE", nil},
		{"a setting for logout tokens", with(func(r *bullav1.RegisterClientKeyRequest) {
			r.Settings[0].TokenKind = bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN
		}), codes.InvalidArgument, "", []string{"LOGOUT_TOKEN", "ID_TOKEN"}},
		{"a PEM key that was cut", with(func(r *bullav1.RegisterClientKeyRequest) {
			r.KeySource = &bullav1.RegisterClientKeyRequest_PublicKeyPem{PublicKeyPem: "-----BEGIN PUBLIC KEY-----"}
		}), 0, "KEY_REJECTED", []string{"PEM"}},
		{"a secret in place of a public key", with(func(r *bullav1.RegisterClientKeyRequest) {
			r.KeySource = &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: "a-secret-nobody-may-read"}
		}), codes.InvalidArgument, "", []string{"settings[0].encryption_algorithm", "A256KW"}},
		{"metadata without keys", with(func(r *bullav1.RegisterClientKeyRequest) {
			r.KeySource = &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: []byte(`{}`)}
		}), codes.InvalidArgument, "", []string{"source"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			_, err := admin.ClientKeys.RegisterClientKey(t.Context(), test.req)
			if test.reason != "" {
				mustFail(t, err, test.reason, test.words...)
				return
			}
			mustBe(t, err, test.code, test.words...)
		})
	}
	_, err := admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: "bad-registration"})
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
}
