package signer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

func TestGoJoseVerifiesEveryAlgorithmAndKind(t *testing.T) {
	for _, alg := range kms.Algorithms() {
		t.Run(string(alg), func(t *testing.T) {
			key := newSigningKey(t, newSoftKey(t, alg), Options{})
			var jwk jose.JSONWebKey
			raw, err := PublicJWK(key.Public(), alg)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &jwk); err != nil {
				t.Fatal(err)
			}
			for kind, body := range kindClaims {
				p := mustPrepare(t, request(kind, body), alg)
				token, err := Sign(t.Context(), key, p)
				if err != nil {
					t.Fatalf("Sign: %v", err)
				}
				jws, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
				if err != nil {
					t.Fatalf("go-jose cannot read the token: %v", err)
				}
				if alg == kms.Ed25519 {
					// go-jose 4 verifies the algorithm under its older name
					// only; the signature is the same.
					head, sig := cutLast(t, token)
					if !ed25519.Verify(key.Public().(ed25519.PublicKey), head, sig) {
						t.Error("crypto/ed25519 does not verify the token")
					}
					continue
				}
				payload, err := jws.Verify(jwk)
				if err != nil {
					t.Fatalf("go-jose does not verify the token: %v", err)
				}
				if !bytes.Equal(payload, p.JSON()) {
					t.Errorf("payload is %s, want %s", payload, p.JSON())
				}
				h := jws.Signatures[0].Protected
				typ, _ := h.ExtraHeaders["typ"].(string)
				if h.KeyID != jwk.KeyID || h.KeyID != key.KeyID() || typ != kindTypes[kind] {
					t.Errorf("header is kid %q typ %q, want kid %q typ %q", h.KeyID, typ, jwk.KeyID, kindTypes[kind])
				}
			}
		})
	}
}

// cutLast is a token's signing input and signature.
func cutLast(t *testing.T, token []byte) (head, signature []byte) {
	t.Helper()
	i := bytes.LastIndexByte(token, '.')
	sig, err := base64.RawURLEncoding.DecodeString(string(token[i+1:]))
	if err != nil {
		t.Fatal(err)
	}
	return token[:i], sig
}

func TestProtectedHeaderHasAlgKidAndTypOnly(t *testing.T) {
	key := newSigningKey(t, newSoftKey(t, kms.ES256), Options{})
	for kind, want := range map[TokenKind]string{
		IDToken:               `{"alg":"ES256","kid":"` + key.KeyID() + `","typ":"JWT"}`,
		LogoutToken:           `{"alg":"ES256","kid":"` + key.KeyID() + `","typ":"logout+jwt"}`,
		UserInfo:              `{"alg":"ES256","kid":"` + key.KeyID() + `"}`,
		AuthorizationResponse: `{"alg":"ES256","kid":"` + key.KeyID() + `"}`,
		Introspection:         `{"alg":"ES256","kid":"` + key.KeyID() + `","typ":"token-introspection+jwt"}`,
		AccessToken:           `{"alg":"ES256","kid":"` + key.KeyID() + `","typ":"at+jwt"}`,
	} {
		encoded, ok := strings.CutSuffix(string(key.headers[kind]), ".")
		got, err := base64.RawURLEncoding.DecodeString(encoded)
		if err != nil || !ok || string(got) != want {
			t.Errorf("%s: header is %s (%v), want %s", kind, got, err, want)
		}
	}
}

// Both algorithms are deterministic: with the RFC's header and payload the
// whole token must be the RFC's.
func TestTokensOfTheRFCs(t *testing.T) {
	rsaKey := parsePrivate[*rsa.PrivateKey](t, rfc7515A2Key)
	edKey := parsePrivate[ed25519.PrivateKey](t, rfc8037A1Key)
	tests := []struct {
		name, header, payload, want string
		key                         *softKey
	}{
		{
			"RFC 7515 A.2", `{"alg":"RS256"}`,
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
			rfc7515A2Token, &softKey{alg: kms.RS256, private: rsaKey},
		},
		{
			"RFC 8037 A.4", `{"alg":"EdDSA"}`, "Example of Ed25519 signing",
			"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
			&softKey{alg: kms.EdDSA, private: edKey},
		},
	}
	for _, tt := range tests {
		key := newSigningKey(t, tt.key, Options{})
		key.headers[IDToken] = []byte(base64.RawURLEncoding.EncodeToString([]byte(tt.header)) + ".")
		got, err := Sign(t.Context(), key, &Payload{kind: IDToken, algorithm: tt.key.alg, json: []byte(tt.payload)})
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: token is\n%s (%v), want\n%s", tt.name, got, err, tt.want)
		}
	}
}

func parsePrivate[T any](t *testing.T, raw string) T {
	t.Helper()
	var jwk jose.JSONWebKey
	if err := json.Unmarshal([]byte(raw), &jwk); err != nil {
		t.Fatal(err)
	}
	return jwk.Key.(T)
}

func TestAWrongSignatureIsNeverReleased(t *testing.T) {
	spoilers := map[string]func([]byte) []byte{
		"a flipped bit": func(s []byte) []byte { s[len(s)/2] ^= 1; return s },
		"zeros":         func(s []byte) []byte { return make([]byte, len(s)) },
		"too short":     func(s []byte) []byte { return s[1:] },
		"too long":      func(s []byte) []byte { return append(s, 0) },
		"nothing":       func([]byte) []byte { return nil },
	}
	for _, alg := range []kms.Algorithm{kms.RS256, kms.PS384, kms.ES256, kms.ES512, kms.EdDSA} {
		for name, spoil := range spoilers {
			soft := newSoftKey(t, alg)
			key := newSigningKey(t, soft, Options{})
			soft.spoil = spoil
			token, err := Sign(t.Context(), key, mustPrepare(t, request(IDToken, `{"sub":"a"}`), alg))
			if !errors.Is(err, ErrFault) || token != nil {
				t.Errorf("%s, %s: Sign = %q, %v, want no token and ErrFault", alg, name, token, err)
			}
			if got := soft.distrusted.Load(); got != 1 {
				t.Errorf("%s, %s: key was distrusted %d times, want once", alg, name, got)
			}
			if err := key.Probe(t.Context()); !errors.Is(err, ErrFault) {
				t.Errorf("%s, %s: Probe = %v, want ErrFault", alg, name, err)
			}
		}
	}
}

// composite is a key that is made of two and signs with the second.
type composite struct{ *softKey }

func (c composite) SignBy(ctx context.Context, message []byte) ([]byte, kms.Distruster, error) {
	other := &softKey{alg: c.alg, private: c.private, spoil: c.spoil, fail: c.fail}
	signature, err := other.Sign(ctx, message)
	return signature, maker{c.softKey}, err
}

// maker counts distrust by hundreds, to be told from that of the whole.
type maker struct{ of *softKey }

func (m maker) Distrust() { m.of.distrusted.Add(100) }

func TestOfACompositeOnlyTheMakerOfAWrongSignatureIsDistrusted(t *testing.T) {
	soft := newSoftKey(t, kms.ES256)
	key := newSigningKey(t, composite{soft}, Options{})
	p := mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.ES256)
	if _, err := Sign(t.Context(), key, p); err != nil || soft.distrusted.Load() != 0 {
		t.Errorf("Sign = %v, and distrusted %d; want a token and nobody distrusted", err, soft.distrusted.Load())
	}
	soft.spoil = func(s []byte) []byte { s[0] ^= 1; return s }
	if _, err := Sign(t.Context(), key, p); !errors.Is(err, ErrFault) {
		t.Errorf("Sign = %v, want ErrFault", err)
	}
	if got := soft.distrusted.Load(); got != 100 {
		t.Errorf("distrusted %d, want 100: the maker once, the whole never", got)
	}
	soft.fail = kms.ErrThrottled
	if _, err := Sign(t.Context(), key, p); !errors.Is(err, kms.ErrThrottled) {
		t.Errorf("Sign = %v, want ErrThrottled", err)
	}
}

func TestVerificationCanBeTurnedOff(t *testing.T) {
	soft := newSoftKey(t, kms.ES256)
	key := newSigningKey(t, soft, Options{SkipVerify: true})
	soft.spoil = func(s []byte) []byte { s[0] ^= 1; return s }
	p := mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.ES256)
	if _, err := Sign(t.Context(), key, p); err != nil {
		t.Errorf("Sign = %v, want the signature as it came", err)
	}
	if err := key.Probe(t.Context()); !errors.Is(err, ErrFault) {
		t.Errorf("Probe = %v, want ErrFault: a probe always verifies", err)
	}
	soft.spoil = func(s []byte) []byte { return s[:10] }
	if _, err := Sign(t.Context(), key, p); !errors.Is(err, ErrFault) {
		t.Errorf("Sign = %v, want ErrFault: no signature has that length", err)
	}
}

func TestErrorsOfTheKeyReachTheCaller(t *testing.T) {
	soft := newSoftKey(t, kms.ES256)
	key := newSigningKey(t, soft, Options{})
	p := mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.ES256)
	for _, want := range []error{kms.ErrUnavailable, kms.ErrThrottled, kms.ErrKeyNotFound, kms.ErrKeyDisabled, kms.ErrKeyMismatch} {
		soft.fail = want
		if _, err := Sign(t.Context(), key, p); !errors.Is(err, want) {
			t.Errorf("Sign = %v, want %v", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Sign(ctx, key, p); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign = %v, want context.Canceled", err)
	}
	if soft.distrusted.Load() != 0 {
		t.Error("a key was distrusted for an honest error")
	}
}

func TestAPayloadIsSignedWithItsOwnAlgorithmOnly(t *testing.T) {
	soft := newSoftKey(t, kms.PS256)
	key := newSigningKey(t, soft, Options{})
	if _, err := Sign(t.Context(), key, mustPrepare(t, request(IDToken, `{"sub":"a"}`), kms.RS256)); err == nil {
		t.Error("a payload for RS256 was signed with PS256")
	}
	if soft.signed.Load() != 0 {
		t.Error("the key was used")
	}
}

func TestAKeyThatDoesNotFitIsRefused(t *testing.T) {
	soft := newSoftKey(t, kms.ES384)
	soft.alg = kms.ES256
	if _, err := NewSigningKey(soft, Options{}); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("NewSigningKey = %v, want kms.ErrKeyMismatch", err)
	}
}

// staticKey signs nothing: what is left is this package's own work.
type staticKey struct {
	kms.Key
	signature []byte
}

func (k staticKey) Sign(context.Context, []byte) ([]byte, error) { return k.signature, nil }

var benchClaims = `{"sub":"248289761001","nonce":"n-0S6_WzA2Mj","auth_time":` + sec(-100) + `,"acr":"urn:mace:incommon:iap:silver","amr":["pwd","otp"],` +
	`"name":"Jane Doe","given_name":"Jane","family_name":"Doe","gender":"female","birthdate":"0000-10-31","email":"janedoe@example.com","email_verified":true,` +
	`"picture":"https://example.com/janedoe/me.jpg","locale":"en-GB","zoneinfo":"Europe/London","phone_number":"+44 20 7946 0000","phone_number_verified":false,` +
	`"address":{"street_address":"1 Main Street","locality":"London","postal_code":"N1 1AA","country":"GB"},"groups":["admin","staff","board"],"updated_at":1311280970}`

func BenchmarkPrepareAndAssemble(b *testing.B) {
	key := newSigningKey(b, staticKey{newSoftKey(b, kms.ES256), make([]byte, 64)}, Options{SkipVerify: true})
	req := request(IDToken, benchClaims)
	b.SetBytes(int64(len(benchClaims)))
	b.ReportAllocs()
	for b.Loop() {
		p, err := Prepare(req, kms.ES256, testNow)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Sign(b.Context(), key, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignES256InMemory(b *testing.B) {
	key := newSigningKey(b, newSoftKey(b, kms.ES256), Options{})
	p := mustPrepare(b, request(IDToken, benchClaims), kms.ES256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Sign(b.Context(), key, p); err != nil {
			b.Fatal(err)
		}
	}
}
