package e2e

import (
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestKeysBelowTheIssuersSizeAreRefused: the sizes of a policy are part of it.
func TestKeysBelowTheIssuersSizeAreRefused(t *testing.T) {
	t.Parallel()
	const big = "big"
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Issuers: []harness.M{{
		"name": big, "iss": "https://big.example.com", "signing_keys": harness.SigningKeys("RS256"),
		"policy": harness.M{"min_rsa_bits": 3072},
	}}})
	admin := s.Caller(t, harness.Admin)
	req := withJWKS("small", harness.JWKS(rsaKey()), setting("RSA-OAEP-256", ""))
	req.Issuer = big
	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), req)
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "3072")
	_, err = admin.ClientKeys.GenerateClientKey(t.Context(), &bullav1.GenerateClientKeyRequest{
		Issuer: big, ClientId: "small", Settings: req.GetSettings(), KeySpec: &bullav1.GenerateClientKeyRequest_RsaBits{RsaBits: 2048},
	})
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "3072")
	made, err := admin.ClientKeys.GenerateClientKey(t.Context(), &bullav1.GenerateClientKeyRequest{Issuer: big, ClientId: "small", Settings: req.GetSettings()})
	if err != nil || made.GetClientKey().GetState() != stateReady {
		t.Errorf("a key of the least size by default: %v, %v", made.GetClientKey(), err)
	}
}

// TestLegacyNeedsThePolicyAndTheRegistration: RSA1_5 is off unless the issuer's
// policy names it and the client is registered as legacy; its use is counted and
// logged.
func TestLegacyNeedsThePolicyAndTheRegistration(t *testing.T) {
	t.Parallel()
	const old = "old"
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Issuers: []harness.M{{
		"name": old, "iss": "https://old.example.com", "signing_keys": harness.SigningKeys("RS256"),
		"policy": harness.M{
			"encryption": []string{"RSA1_5", "RSA-OAEP", "RSA-OAEP-256"}, "content_encryption": []string{"A128CBC+HS256", "A128CBC-HS256", "A128GCM"}, "legacy": true,
		},
	}}})
	admin, key := s.Caller(t, harness.Admin), harness.NewClientKey(t, "", "legacy-1")
	register := func(issuer, id, alg, enc string, legacy bool) error {
		req := withJWKS(id, harness.JWKS(key), setting(alg, enc))
		req.Issuer, req.Legacy = issuer, legacy
		_, err := admin.ClientKeys.RegisterClientKey(t.Context(), req)
		return err
	}
	for _, tc := range []struct {
		issuer, alg, enc string
		legacy           bool
		word             string
	}{
		{harness.Issuer, "RSA1_5", "A128GCM", true, "RSA-OAEP-256"},
		{harness.Issuer, "RSA-OAEP", "A128CBC+HS256", true, "A128CBC-HS256"},
		{old, "RSA1_5", "A128GCM", false, "legacy"},
		{old, "RSA-OAEP", "A128CBC+HS256", false, "legacy"},
		{old, "RSA-OAEP-256", "A128CBC+HS256", true, "A128CBC-HS256"},
		{old, "ECDH-ES", "A128GCM", true, "RSA-OAEP"},
	} {
		f := mustFail(t, register(tc.issuer, "legacy-bad", tc.alg, tc.enc, tc.legacy), "ALGORITHM_NOT_ALLOWED")
		mustHaveWords(t, f, tc.word)
	}

	if err := register(old, "legacy-1", "RSA1_5", "A128GCM", true); err != nil {
		t.Fatal(err)
	}
	req := idToken("legacy-1")
	req.Issuer = old
	token := mustIssue(t, admin, req).GetToken()
	jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.RSA1_5}, []jose.ContentEncryption{jose.A128GCM})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwe.Decrypt(key.Key); err != nil {
		t.Error(err)
	}
	if n := s.Metrics(t)[`bulla_legacy_tokens_total{alg="RSA1_5",enc="A128GCM",issuer="old"}`]; n != 1 {
		t.Errorf("%v legacy tokens are counted, want 1", n)
	}
	if log := s.Log(); !strings.Contains(log, "legacy algorithm in use") || !strings.Contains(log, "legacy-1") {
		t.Errorf("the log does not tell of it:\n%s", log)
	}

	// A policy that has become stricter counts at once.
	if err := register(old, "legacy-2", "RSA-OAEP", "A128CBC+HS256", true); err != nil {
		t.Fatal(err)
	}
	s.Terminate(t)
	s.Reconfigure(t, func(tree harness.M) {
		for _, i := range tree["issuers"].([]harness.M) {
			delete(i, "policy")
		}
	})
	s.Run(t)
	s.WaitReady(t)
	req.ClientId = "legacy-2"
	_, err = admin.Tokens.SignAndEncrypt(t.Context(), req)
	mustFail(t, err, "ALGORITHM_NOT_ALLOWED", "A128CBC-HS256")
}

func TestProviderMetadataListsWhatIsAllowed(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	for issuer, want := range map[string]struct{ has, lacks []string }{
		harness.Issuer: {
			[]string{"authorization_signing_alg_values_supported", "introspection_encryption_enc_values_supported", `"dir"`, `"HS256"`, `"RSA-OAEP-512"`, `"A256GCMKW"`},
			[]string{"RSA1_5", "A128CBC+HS256"},
		},
		narrow: {[]string{"RSA-OAEP-256", "A256GCM", "PS256"}, []string{"RSA1_5", `"RSA-OAEP"`, "A128KW", "ES256", `"dir"`}},
	} {
		res, err := admin.SigningKeys.GetProviderMetadata(t.Context(), &bullav1.GetProviderMetadataRequest{Issuer: issuer})
		if err != nil {
			t.Fatal(err)
		}
		doc := string(res.GetMetadata())
		for _, word := range want.has {
			if !strings.Contains(doc, word) {
				t.Errorf("%s: lacks %s:\n%s", issuer, word, doc)
			}
		}
		for _, word := range want.lacks {
			if strings.Contains(doc, word) {
				t.Errorf("%s: has %s:\n%s", issuer, word, doc)
			}
		}
	}
}
