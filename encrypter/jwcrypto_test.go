package encrypter

import (
	"bytes"
	"crypto/ecdh"
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/go-jose/go-jose/v4"
)

// Another program, on another library of primitives (OpenSSL), opens what it
// has algorithms for: all but RSA-OAEP-384, RSA-OAEP-512 and A128CBC+HS256. It
// alone has X448 that is not circl's.
func TestJWCryptoOpensEveryCombination(t *testing.T) {
	const python = "/usr/bin/python3" // where Debian's packages are
	if err := exec.Command(python, "-c", "import jwcrypto").Run(); err != nil {
		t.Fatalf("python3-jwcrypto is not installed (%v): run apt-get install -y python3-jwcrypto", err)
	}
	var requests bytes.Buffer
	var asked []combination
	for _, c := range combinations(t) {
		if c.alg == RSAOAEP384 || c.alg == RSAOAEP512 || c.enc == A128CBCPlusHS256 || c.size == "3072" {
			continue
		}
		token := must(c.recipient(t).Encrypt(signedToken(100)))
		request := map[string]any{"key": privateJWK(t, c.private), "token": token, "algs": []string{string(c.alg), string(c.enc)}}
		if err := json.NewEncoder(&requests).Encode(request); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, c)
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/open.py")
	cmd.Stdin = &requests
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	answers, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	decoder := json.NewDecoder(bytes.NewReader(answers))
	for _, c := range asked {
		var answer struct{ Plaintext, Error string }
		if err := decoder.Decode(&answer); err != nil {
			t.Fatalf("%s: no answer: %v", c, err)
		}
		if answer.Plaintext != string(signedToken(100)) {
			t.Errorf("%s: opened to %q, %s", c, answer.Plaintext, answer.Error)
		}
	}
	t.Logf("%d tokens opened", len(asked))
}

// privateJWK is a private key as a JWK.
func privateJWK(t testing.TB, private any) any {
	t.Helper()
	encode := base64url.EncodeToString
	switch k := private.(type) {
	case SecretKey:
		return map[string]string{"kty": "oct", "k": encode(k)}
	case *ecdh.PrivateKey:
		return map[string]string{"kty": "OKP", "crv": "X25519", "x": encode(k.PublicKey().Bytes()), "d": encode(k.Bytes())}
	case x448Private:
		x := x448.Key(public(k).(X448PublicKey))
		return map[string]string{"kty": "OKP", "crv": "X448", "x": encode(x[:]), "d": encode(k[:])}
	}
	return jose.JSONWebKey{Key: private}
}
