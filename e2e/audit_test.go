package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestAuditLogHasOneLineForEachEvent goes through a client's life and reads what
// is on record of it.
func TestAuditLogHasOneLineForEachEvent(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: shared.host})
	admin, nobody := s.Caller(t, harness.Admin), s.Caller(t, stranger)
	var lines []harness.AuditLine
	began := time.Now()
	// one returns the line that an event has left, which must be the only one.
	one := func(what string) harness.AuditLine {
		t.Helper()
		all := s.Audit(t)
		if len(all) != len(lines)+1 {
			t.Fatalf("%s left %d lines, want one", what, len(all)-len(lines))
		}
		lines = all
		line := all[len(all)-1]
		if line.V != 1 || line.Time.Before(began.Add(-time.Second)) || line.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: version %d at %v, want 1 and now", what, line.V, line.Time)
		}
		line.V, line.Time = 0, time.Time{}
		return line
	}
	same := func(what string, want harness.AuditLine) {
		t.Helper()
		if got := one(what); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", what, got, want)
		}
	}
	none := func(what string) {
		t.Helper()
		if n := len(s.Audit(t)); n != len(lines) {
			t.Errorf("%s left %d lines, want none", what, n-len(lines))
		}
	}
	const (
		tokens  = "/bulla.v1.TokenService/"
		clients = "/bulla.v1.ClientKeyService/"
		signing = "/bulla.v1.SigningKeyService/"

		settings = "ID_TOKEN=default/ECDH-ES/A128GCM"
	)
	base := harness.AuditLine{Caller: harness.Admin, Issuer: harness.Issuer, ClientID: "audited"}
	with := func(edit func(*harness.AuditLine)) harness.AuditLine {
		line := base
		edit(&line)
		return line
	}

	created := mustRegister(t, admin, withJWKS("audited", harness.JWKS(anyKey())))
	thumbprint := created.GetChosenKeys()[0].GetThumbprint()
	first := "ID_TOKEN=" + thumbprint
	same("a registration", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.NewThumbprint, l.Revision = "changed", clients+"RegisterClientKey", first, 1
		l.Permission, l.KeySource, l.Settings = "create_client_key", "jwks", settings
	}))
	mustRegister(t, admin, withJWKS("audited", harness.JWKS(anyKey())))
	none("an identical repeat")

	res := mustIssue(t, admin, idToken("audited"))
	sum := sha256.Sum256([]byte(res.GetToken()))
	same("a token", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.TokenKind, l.TokenSHA256 = "issued", tokens+"SignAndEncrypt", "ID_TOKEN", hex.EncodeToString(sum[:])
		l.Permission = "issue"
		l.SigningKeyID, l.SigningAlgorithm = res.GetSigningKeyId(), "ES256"
		l.EncryptionKeyID, l.EncryptionKeyThumbprint, l.EncryptionAlgorithm, l.ContentEncryption = anyKey().KeyID, thumbprint, "ECDH-ES", "A128GCM"
	}))
	withID := idToken("audited")
	withID.Claims = []byte(`{"sub":"alice","jti":"the-jti"}`)
	mustIssue(t, admin, withID)
	if line := one("a token with a jti"); line.JTI != "the-jti" {
		t.Errorf("got the jti %q, want the-jti", line.JTI)
	}

	signed, err := admin.Tokens.Sign(t.Context(), &bullav1.SignRequest{Issuer: harness.Issuer, ClientId: "audited", Claims: sub, AllowUnencrypted: true})
	if err != nil {
		t.Fatal(err)
	}
	sum = sha256.Sum256([]byte(signed.GetToken()))
	same("a signed token", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.TokenKind, l.TokenSHA256 = "issued", tokens+"Sign", "ID_TOKEN", hex.EncodeToString(sum[:])
		l.Permission = "sign_unencrypted"
		l.SigningKeyID, l.SigningAlgorithm = signed.GetSigningKeyId(), "ES256"
	}))

	bad := idToken("audited")
	bad.Claims = []byte(`{"sub":"alice","aud":"somebody"}`)
	if _, err := admin.Tokens.SignAndEncrypt(t.Context(), bad); err == nil {
		t.Fatal("bad claims were signed")
	}
	same("bad claims", with(func(l *harness.AuditLine) {
		l.Outcome, l.Reason, l.RPC, l.TokenKind, l.Permission = "failed", "CLAIMS_INVALID", tokens+"SignAndEncrypt", "ID_TOKEN", "issue"
	}))
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken("unheard-of"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	same("an unknown client", with(func(l *harness.AuditLine) {
		l.Outcome, l.Reason, l.RPC, l.TokenKind, l.ClientID = "failed", "CLIENT_NOT_REGISTERED", tokens+"SignAndEncrypt", "ID_TOKEN", "unheard-of"
		l.Permission = "issue"
	}))

	_, err = nobody.Tokens.SignAndEncrypt(t.Context(), idToken("audited"))
	mustFail(t, err, "CALLER_UNKNOWN")
	denied := func(rpc, permission, kind, clientID string) harness.AuditLine {
		return harness.AuditLine{
			Outcome: "denied", Reason: "CALLER_UNKNOWN", Caller: stranger, RPC: rpc, Permission: permission, Issuer: harness.Issuer, ClientID: clientID, TokenKind: kind,
		}
	}
	same("a denied token", denied(tokens+"SignAndEncrypt", "issue", "ID_TOKEN", "audited"))
	_, err = nobody.ClientKeys.RegisterClientKey(t.Context(), withJWKS("audited", harness.JWKS(otherKey())))
	mustFail(t, err, "CALLER_UNKNOWN")
	same("a denied registration", denied(clients+"RegisterClientKey", "create_client_key", "", "audited"))
	_, err = nobody.ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer})
	mustFail(t, err, "CALLER_UNKNOWN")
	same("a denied list", denied(clients+"ListClientKeys", "read_client_keys", "", ""))
	_, err = nobody.ClientKeys.ExplainClientKey(t.Context(), &bullav1.ExplainClientKeyRequest{Issuer: harness.Issuer, ClientId: "audited"})
	mustFail(t, err, "CALLER_UNKNOWN")
	same("a denied explanation", denied(clients+"ExplainClientKey", "read_client_keys", "", "audited"))
	_, err = nobody.SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer})
	mustFail(t, err, "CALLER_UNKNOWN")
	same("denied keys", denied(signing+"GetJWKS", "read_signing_keys", "", ""))
	noName := s.CallerWith(t, s.CA.Issue(t, harness.LeafConfig{}))
	_, err = noName.SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer})
	mustFail(t, err, "CALLER_UNKNOWN")
	same("a certificate without a name", harness.AuditLine{Outcome: "denied", Reason: "CALLER_UNKNOWN", RPC: signing + "GetJWKS"})

	mustGet(t, admin, "audited")
	if _, err := admin.ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer}); err != nil {
		t.Fatal(err)
	}
	none("reading")

	replace := withURI("audited", shared.host.Serve("/audited", harness.JWKS(otherKey()), time.Hour))
	replace.Revision = created.GetRevision()
	second := "ID_TOKEN=" + mustRegister(t, admin, replace).GetChosenKeys()[0].GetThumbprint()
	same("a change", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.OldThumbprint, l.NewThumbprint, l.Revision = "changed", clients+"RegisterClientKey", first, second, 2
		l.Permission, l.KeySource, l.Settings = "replace_client_key", shared.host.URL("/audited"), settings
	}))
	shared.host.Serve("/audited", harness.JWKS(anyKey()), time.Hour)
	if _, err := admin.ClientKeys.RefreshClientKey(t.Context(), &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "audited"}); err != nil {
		t.Fatal(err)
	}
	same("a refresh that found another key", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.OldThumbprint, l.NewThumbprint, l.Revision = "changed", clients+"RefreshClientKey", second, first, 2
		l.Permission, l.KeySource = "refresh_client_key", shared.host.URL("/audited")
	}))
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "audited"}); err != nil {
		t.Fatal(err)
	}
	same("a deletion", with(func(l *harness.AuditLine) {
		l.Outcome, l.RPC, l.OldThumbprint, l.Revision = "changed", clients+"DeleteClientKey", first, 3
		l.Permission = "delete_client_key"
	}))

	info, err := os.Stat(filepath.Join(s.Dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the audit log has the mode %04o, want 0600", mode)
	}
}
