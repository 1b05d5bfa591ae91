package e2e

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestNoSecretIsWrittenAnywhere sends secrets in every place that takes one, makes
// every kind of mistake with them, and searches all that the service wrote.
func TestNoSecretIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	const (
		pin      = "PIN-qW8vNn2Lr5"
		wrongPIN = "PIN-wrong-Zt41"
	)
	token := harness.NewToken(t, "e2e-secrets", kms.ES256)
	token.Tool("--change-pin", "--new-pin", pin)
	token.SetPIN(wrongPIN)
	traces, tracing := collector(t, 1)
	s := harness.New(t, harness.Config{Token: token, CA: shared.ca, Host: shared.host, Edit: func(tree harness.M) {
		tree["tracing"] = tracing
		// The wrong PIN leaves a warning on the token.
		tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)["insist_on_login"] = true
	}})
	s.Run(t)
	s.WaitLive(t)
	admin, nobody := s.Caller(t, harness.Admin), s.Caller(t, stranger)
	harness.Eventually(t, func() error {
		if n := s.Metrics(t)[`bulla_pkcs11_logins_total{backend="hsm"}`]; n < 1 {
			return errorf("the wrong PIN has not been tried")
		}
		return nil
	})

	secrets := map[string]string{
		"the PIN": pin, "a wrong PIN": wrongPIN,
		"a claim": "CLAIM-7yGk2Qx0", "an access token": "ACCESS-6bT3mVw9", "a code": "CODE-1uJ8sHc4", "a state": "STATE-5pR2dXz7",
		"a client secret": "SECRET-3fK9aLe6-and-as-long-as-HS256-takes", "a password in a URL": "PASSWORD-8nB4yUo1", "client metadata": "METADATA-2cM7gIq5",
	}
	var said strings.Builder // to callers, by errors
	failed := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		st := status.Convert(err)
		said.WriteString(st.Message())
		for _, d := range st.Details() {
			doc, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			said.Write(doc)
		}
	}
	request := func(claims string) *bullav1.SignAndEncryptRequest {
		return &bullav1.SignAndEncryptRequest{
			Issuer: harness.Issuer, ClientId: "secrets", Claims: []byte(claims),
			AccessToken: secrets["an access token"], Code: secrets["a code"], State: secrets["a state"],
		}
	}
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), request(`{"sub":"`+secrets["a claim"]+`"}`))
	failed("no client yet", err)
	token.SetPIN(pin)
	s.WaitReady(t)
	mustRegister(t, admin, withJWKS("secrets", harness.JWKS(anyKey())))

	// What works.
	res := mustIssue(t, admin, request(`{"sub":"`+secrets["a claim"]+`","email":"`+secrets["a claim"]+`"}`))
	secrets["a token"] = res.GetToken()
	secrets["a part of a token"] = res.GetToken()[strings.LastIndexByte(res.GetToken(), '.')+1:]
	secrets["a signed token"] = open(t, s, anyKey(), res.GetToken()).InnerJWS
	signed, err := admin.Tokens.Sign(t.Context(), &bullav1.SignRequest{Issuer: harness.Issuer, TokenKind: kindAccess, Claims: []byte(`{"sub":"` + secrets["a claim"] + `","aud":"b","client_id":"c"}`)})
	if err != nil {
		t.Fatal(err)
	}
	secrets["an access token that was made"] = signed.GetToken()

	// What does not.
	for _, claims := range []string{
		secrets["a claim"], `"` + secrets["a claim"] + `"`, `{"sub":"` + secrets["a claim"], `{"sub":"a","` + secrets["a claim"] + `":1,"` + secrets["a claim"] + `":2}`,
		`{"sub":"x","iss":"` + secrets["a claim"] + `","aud":"` + secrets["a claim"] + `","exp":"` + secrets["a claim"] + `","at_hash":"` + secrets["a claim"] + `"}`,
		`{"sub":"` + secrets["a claim"] + "\xff" + `"}`,
	} {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), request(claims))
		failed("bad claims", err)
		_, err = nobody.Tokens.SignAndEncrypt(t.Context(), request(claims))
		failed("a stranger's bad claims", err)
	}
	private := harness.NewClientKey(t, "", "private")
	var members map[string]string
	if err := json.Unmarshal(private.PrivateJWK(), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "p", "q"} {
		secrets["a private key's "+name] = members[name]
	}
	set := []byte(`{"keys":[` + string(private.PrivateJWK()) + `]}`)
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS("secrets-2", set))
	failed("a private key", err)
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withURI("secrets-2", shared.host.Serve("/secrets", set, time.Hour)))
	failed("a private key from a host", err)
	_, err = admin.ClientKeys.RegisterClientKey(t.Context(), withURI("secrets-2", "https://user:"+secrets["a password in a URL"]+"@app.example.com/"))
	failed("a password", err)
	// A secret that is taken, and a key that is handed out.
	hs := setting("A256KW", "")
	hs.SigningAlgorithm = "HS256"
	mustRegister(t, admin, withSecret("secrets-3", secrets["a client secret"], hs))
	mustIssue(t, admin, idToken("secrets-3"))
	generated, err := admin.ClientKeys.GenerateClientKey(t.Context(), &bullav1.GenerateClientKeyRequest{
		Issuer: harness.Issuer, ClientId: "secrets-4", Settings: []*bullav1.ResponseSetting{setting("RSA-OAEP-256", "")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(generated.GetPrivateJwk(), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "p", "q"} {
		secrets["a generated key's "+name] = members[name]
	}
	for _, source := range []*bullav1.RegisterClientKeyRequest{
		{KeySource: &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secrets["a client secret"]}},
		{KeySource: &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: []byte(`{"client_secret":"` + secrets["client metadata"] + `"}`)}},
	} {
		source.Issuer, source.ClientId, source.Settings = harness.Issuer, "secrets-2", orECDH(nil)
		_, err = admin.ClientKeys.RegisterClientKey(t.Context(), source)
		failed("a key source that does not fit", err)
	}

	store, err := os.ReadFile(filepath.Join(s.Dir, "bulla.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, metrics := s.Get(t, s.Ops, "/metrics")
	_, _, ready := s.Get(t, s.Ops, "/readyz")
	if code := s.Terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for where, text := range map[string]string{
		"the log": s.Log(), "the audit log": string(s.RawAudit(t)), "the metrics": metrics, "/readyz": ready, "the traces": traces.Text(),
		"the store": string(store), "an error": said.String(),
	} {
		if text == "" {
			t.Errorf("%s is empty", where)
		}
		for what, secret := range secrets {
			for _, form := range []string{secret, base64.RawURLEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))} {
				if strings.Contains(text, form) {
					t.Errorf("%s holds %s", where, what)
				}
			}
		}
	}
	if strings.Contains(s.Log(), softhsmtest.SOPIN) {
		t.Error("the log holds the security officer's PIN")
	}
}
