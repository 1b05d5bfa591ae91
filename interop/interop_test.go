package interop

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const claims = `{"sub":"alice","n":12345678901234567890,"name":"Grüße 😀", "x" : 1.0}`

// run has all clients open a token of each case, and checks them.
func run(t *testing.T, openers map[Client]*Opener, cases []Case, issue func(Case) (Request, string)) *Results {
	t.Helper()
	type token struct {
		Request
		claims string
	}
	tokens := map[Case]token{}
	for _, c := range cases {
		r, claims := issue(c)
		tokens[c] = token{r, claims}
	}
	results := &Results{About: map[Client]About{}, Opened: map[Client]map[Case]bool{}}
	var wait sync.WaitGroup
	for client, o := range openers {
		results.About[client] = o.About()
		opened := map[Case]bool{}
		results.Opened[client] = opened
		wait.Go(func() {
			for _, c := range cases {
				opened[c] = o.Check(t, c, tokens[c].Request, tokens[c].claims)
			}
		})
	}
	wait.Wait()
	return results
}

// A refusal is the client's own, and no fault of ours, if it refuses the tokens of
// others as well. go-jose makes those that it can.
func TestClientsRefuseTheTokensOfOthersAsWell(t *testing.T) {
	openers := StartAll(t)
	jwks := signersJWKS(t)
	unknown := []string{"RSA-OAEP-384", "RSA-OAEP-512", "X25519", "X448", LegacyEncryption}
	tried := 0
	for _, c := range Cases() {
		if slices.Contains(unknown, c.Algorithm) || slices.Contains(unknown, c.Curve) || slices.Contains(unknown, c.ContentEncryption) {
			continue
		}
		token := ""
		for client, o := range openers {
			if opens, _ := Expect(client, o.About(), c); opens {
				continue
			}
			if token == "" {
				token = encrypt(t, c, sign(t, c, claims), "JWT")
			}
			tried++
			o.Check(t, c, ask(c, token, jwks), claims)
		}
	}
	if tried < 6 {
		t.Errorf("only %d refusals were tried", tried)
	}
}

func TestEveryExceptionIsMet(t *testing.T) {
	cases := Cases()
	for i := range Matrix {
		e := &Matrix[i]
		if e.Reason == "" || e.Error == "" {
			t.Errorf("%+v has no reason or no error text", e)
		}
		if !slices.ContainsFunc(cases, func(c Case) bool {
			_, because := Expect(e.Client, About{Platform: strings.Join(e.Platforms, "")}, c)
			return because == e
		}) {
			t.Errorf("%+v applies to no case", e)
		}
	}
}

// A name that is left out of the list is missed by nobody.
func TestCasesCoverTheScope(t *testing.T) {
	seen := map[string]int{}
	for _, c := range Cases() {
		for _, name := range []string{c.Algorithm, c.Curve, c.ContentEncryption, c.Signature} {
			seen[name]++
		}
	}
	for _, alg := range encrypter.KeyAlgorithms() {
		if seen[string(alg)] < len(ContentEncryptions) {
			t.Errorf("alg %s occurs %d times", alg, seen[string(alg)])
		}
		for _, crv := range alg.Curves() {
			if seen[crv] < len(ECDHAlgorithms)*len(ContentEncryptions) {
				t.Errorf("crv %s occurs %d times", crv, seen[crv])
			}
		}
	}
	for _, enc := range encrypter.ContentEncryptions() {
		if seen[string(enc)] < 2 {
			t.Errorf("enc %s occurs %d times", enc, seen[string(enc)])
		}
	}
	for _, alg := range slices.Concat(kms.Algorithms(), kms.SecretAlgorithms()) {
		if seen[string(alg)] == 0 {
			t.Errorf("no token is signed with %s", alg)
		}
	}
}

// A client that opened anything would prove nothing.
func TestClientsRefuse(t *testing.T) {
	openers := StartAll(t)
	c := Case{Algorithm: "ECDH-ES+A128KW", Curve: "P-256", ContentEncryption: "A128CBC-HS256", Signature: "ES256"}
	s := Case{Algorithm: "A256KW", ContentEncryption: "A128CBC-HS256", Signature: "HS256"}
	jwks := signersJWKS(t)
	request := func(c Case) Request { return ask(c, encrypt(t, c, sign(t, c, claims), "JWT"), jwks) }
	for client, o := range openers {
		for _, c := range []Case{c, s} {
			if _, err := o.Open(request(c)); err != nil {
				t.Fatalf("%s: %s: unchanged token: %v", client, c, err)
			}
		}
	}
	inner, innerHS := sign(t, c, claims), sign(t, s, claims)
	other := func(r *Request, change func(jwk map[string]any)) {
		jwk := map[string]any{}
		if err := json.Unmarshal(r.PrivateJWK, &jwk); err != nil {
			t.Fatal(err)
		}
		change(jwk)
		r.PrivateJWK = marshal(t, jwk)
	}
	signers := func(keys ...jose.JSONWebKey) []byte {
		set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
		for _, k := range keys {
			set.Keys = append(set.Keys, public(k))
		}
		return marshal(t, set)
	}
	for _, test := range []struct {
		name   string
		of     Case
		change func(*Request)
		want   map[Client]string // in the refusal
	}{
		{"changed tag", c, func(r *Request) { r.Token = flip(t, r.Token, 4) }, content},
		{"changed ciphertext", c, func(r *Request) { r.Token = flip(t, r.Token, 3) }, content},
		{"changed IV", c, func(r *Request) { r.Token = flip(t, r.Token, 2) }, content},
		{"changed encrypted key", c, func(r *Request) { r.Token = flip(t, r.Token, 1) }, unwrap},
		{"changed encrypted key under a secret", s, func(r *Request) { r.Token = flip(t, r.Token, 1) }, unwrap},
		{"another key of the same kid", c, func(r *Request) {
			r.PrivateJWK = marshal(t, jose.JSONWebKey{Key: newEC(elliptic.P256()), KeyID: kidOf("P-256")})
		}, unwrap},
		{"key of another kid", c, func(r *Request) { other(r, func(jwk map[string]any) { jwk["kid"] = "other" }) }, forAll("encrypted to key")},
		{"another secret", s, func(r *Request) { r.ClientSecret += "!" }, unwrap},
		{"alg not listed", c, func(r *Request) { r.KeyAlgorithms = []string{"ECDH-ES"} }, algorithm},
		{"enc not listed", c, func(r *Request) { r.ContentEncryptions = []string{"A256GCM"} }, algorithm},
		{"signature alg not listed", c, func(r *Request) { r.SignatureAlgorithms = []string{"ES384"} }, signatureAlgorithm},
		{"HMAC not listed", s, func(r *Request) { r.SignatureAlgorithms = []string{"ES256"} }, signatureAlgorithm},
		{"signer unknown", c, func(r *Request) { r.SignersJWKS = signers() }, noSigner},
		{"signer of another alg", c, func(r *Request) { r.SignersJWKS = signers(signingKey("PS256")) }, noSigner},
		{"another signer of the same kid", c, func(r *Request) {
			r.SignersJWKS = signers(jose.JSONWebKey{Key: newEC(elliptic.P256()), KeyID: "ES256", Algorithm: "ES256"})
		}, signature},
		{"changed signature inside", c, func(r *Request) { r.Token = encrypt(t, c, flip(t, inner, 2), "JWT") }, signature},
		{"changed claims inside", c, func(r *Request) { r.Token = encrypt(t, c, flip(t, inner, 1), "JWT") }, signature},
		{"changed claims under a secret", s, func(r *Request) { r.Token = encrypt(t, s, flip(t, innerHS, 1), "JWT") }, signature},
		{"alg none inside", c, func(r *Request) {
			r.Token = encrypt(t, c, b64(`{"alg":"none","kid":"ES256"}`)+"."+b64(claims)+".", "JWT")
			r.SignatureAlgorithms = append(r.SignatureAlgorithms, "none")
		}, none},
		{"HMAC by the signer's public key", c, func(r *Request) {
			r.Token = encrypt(t, c, hmacBy(t, marshal(t, public(signingKey("ES256"))), "ES256"), "JWT")
			r.SignatureAlgorithms = append(r.SignatureAlgorithms, "HS256")
		}, foreignAlgorithm},
		{"plain claims inside", c, func(r *Request) { r.Token = encrypt(t, c, `{"sub":"alice"}`, "JWT") }, notJWS},
		{"JWE inside", c, func(r *Request) { r.Token = encrypt(t, c, r.Token, "JWT") }, notJWS},
		{"another cty", c, func(r *Request) { r.Token = encrypt(t, c, inner, "json") }, forAll("cty is")},
		{"not encrypted", c, func(r *Request) { r.Token = inner }, notJWE},
		{"a part missing", c, func(r *Request) { r.Token = r.Token[:strings.LastIndexByte(r.Token, '.')] }, notJWE},
		{"a part more", c, func(r *Request) { r.Token += ".AAAA" }, notJWE},
		{"empty", c, func(r *Request) { r.Token = "" }, notJWE},
	} {
		r := request(test.of)
		test.change(&r)
		t.Run(test.name, func(t *testing.T) {
			for client, o := range openers {
				text := test.want[client]
				if client == NodeJoseReverted {
					text = test.want[NodeJose]
				}
				opened, err := o.Open(r)
				var refusal Refusal
				if !errors.As(err, &refusal) || text == "" || !strings.Contains(string(refusal), text) {
					t.Errorf("%s: got %v, %v, want a refusal with %q", client, opened, err, text)
				}
			}
		})
	}
}

// want is a text in the refusals of each client.
type want = map[Client]string

func forAll(text string) want {
	w := want{}
	for _, client := range Clients {
		w[client] = text
	}
	return w
}

// How the clients refuse, by what is wrong.
var (
	content = want{
		Jose: "DECRYPTION_FAILED", NodeJose: "mac check failed", JWCrypto: "Failed to verify MAC",
		ErlangJose: "block_decrypt gave error", Nimbus: "MAC check failed",
	}
	unwrap = want{
		Jose: "DECRYPTION_FAILED", NodeJose: "no key found", JWCrypto: "InvalidUnwrap",
		ErlangJose: "badarg in jose_jwa_aes_kw", Nimbus: "Integrity check failed",
	}
	algorithm = want{
		Jose: "ALG_NOT_ALLOWED", NodeJose: "Algorithm not allowed", JWCrypto: "Algorithm not allowed",
		ErlangJose: "is not allowed", Nimbus: "is not allowed",
	}
	signatureAlgorithm = want{
		Jose: "ALG_NOT_ALLOWED", NodeJose: "Algorithm not allowed", JWCrypto: "Algorithm not allowed",
		ErlangJose: "verify_strict gave false", Nimbus: "is not allowed",
	}
	noSigner = want{
		Jose: "NO_MATCHING_KEY", NodeJose: "0 signers", JWCrypto: "0 signers", ErlangJose: "0 signers", Nimbus: "0 signers",
	}
	signature = want{
		Jose: "SIGNATURE_VERIFICATION_FAILED", NodeJose: "no key found", JWCrypto: "InvalidJWSSignature",
		ErlangJose: "verify_strict gave false", Nimbus: "verify gave false",
	}
	foreignAlgorithm = want{
		Jose: `Unsupported "alg" value for a JSON Web Key Set`, NodeJose: "0 signers", JWCrypto: "0 signers", ErlangJose: "0 signers", Nimbus: "0 signers",
	}
	none = want{
		Jose: foreignAlgorithm[Jose], NodeJose: "0 signers", JWCrypto: "0 signers", ErlangJose: "0 signers", Nimbus: "Not a JWS header",
	}
	notJWS = want{
		Jose: "JWS_INVALID", NodeJose: "not a compact token of 3", JWCrypto: "not a compact token of 3",
		ErlangJose: "not a compact token of 3", Nimbus: "ParseException",
	}
	notJWE = want{
		Jose: "JWE_INVALID", NodeJose: "not a compact token of 5", JWCrypto: "not a compact token of 5",
		ErlangJose: "not a compact token of 5", Nimbus: "ParseException",
	}
)

// hmacBy signs claims with HS256 and the bytes of a public key, which a client that lets
// the token choose verifies.
func hmacBy(t *testing.T, key []byte, kid string) string {
	t.Helper()
	return signWith(t, jose.SigningKey{Algorithm: jose.HS256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid), claims)
}

func TestUnknownClientIsNamed(t *testing.T) {
	if _, err := command("ruby"); err == nil || !strings.Contains(err.Error(), `"ruby" is unknown`) {
		t.Errorf("got error %v", err)
	}
}
