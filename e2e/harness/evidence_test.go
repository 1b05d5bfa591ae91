package harness

import (
	"slices"
	"strings"
	"testing"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestSecretsAreFoundWhereTheyAreWritten plants each kind of secret, whole, cut
// off and in the middle of something else.
func TestSecretsAreFoundWhereTheyAreWritten(t *testing.T) {
	token := strings.Join([]string{strings.Repeat("h", 40), strings.Repeat("k", 60), strings.Repeat("v", 16), strings.Repeat("c", 300), strings.Repeat("t", 22)}, ".")
	for _, planted := range []struct{ text, want string }{
		{`{"msg":"bad claim","value":"alice@example.com"}`, "claims.email"},
		{"nested: deep-in-there", "claims.address.street"},
		{"access token the-access-token", "access_token"},
		{"x" + token, "a part of a token"},
		{"cut off: " + strings.Repeat("c", 30), "a part of a token"},
		{"PIN " + "pin-of-a-token", "the PIN"},
		{"d=" + strings.Repeat("d", 43), "private_jwk.d"},
		{"a private member of a batch: in-a-batch", "claims.note"},
	} {
		var e Evidence
		e.Secret("the PIN", "pin-of-a-token")
		e.message(&bullav1.SignAndEncryptRequest{
			ClientId: "the-client", AccessToken: "the-access-token",
			Claims: []byte(`{"sub":"u1","iss":"https://login.example.com","email":"alice@example.com","address":{"street":"deep-in-there"}}`),
		})
		e.message(&bullav1.BatchSignAndEncryptRequest{Items: []*bullav1.SignAndEncryptRequest{{Claims: []byte(`{"note":"in-a-batch"}`)}}})
		e.message(&bullav1.SignAndEncryptResponse{Token: token, SigningKeyId: "a-kid-that-is-public"})
		e.message(&bullav1.GenerateClientKeyResponse{PrivateJwk: []byte(`{"kty":"EC","x":"` + strings.Repeat("x", 43) + `","d":"` + strings.Repeat("d", 43) + `"}`)})
		e.Written("a log", "what may be read: https://login.example.com the-client a-kid-that-is-public u1 "+strings.Repeat("h", 40)+" "+strings.Repeat("x", 43))
		if found, secrets, _ := e.search(); len(found) > 0 || secrets < 8 {
			t.Fatalf("%d secrets, found before there was one: %v", secrets, found)
		}
		e.Written("the audit log", planted.text)
		if found, _, _ := e.search(); !slices.ContainsFunc(found, func(f string) bool {
			return strings.HasPrefix(f, planted.want) && strings.HasSuffix(f, "in the audit log")
		}) {
			t.Errorf("%s: found %v, want %s", planted.text, found, planted.want)
		}
	}
}
