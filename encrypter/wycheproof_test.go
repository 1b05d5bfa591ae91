package encrypter

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/go-jose/go-jose/v4"
)

// wycheproofFile reads a file of Project Wycheproof's test vectors, whose groups
// have the members of G.
func wycheproofFile[G any](t *testing.T, name string) []G {
	t.Helper()
	text, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ TestGroups []G }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return file.TestGroups
}

func TestWycheproofKeyWrap(t *testing.T) {
	type group struct {
		Tests []struct {
			ID           int `json:"tcId"`
			Comment      string
			Flags        []string
			Key, Msg, CT string
			Result       string
		}
	}
	done := 0
	for _, g := range wycheproofFile[group](t, "aes_wrap_test.json") {
		for _, tc := range g.Tests {
			got, err := wrapKey(nil, must(aes.NewCipher(unhex(t, tc.Key))), unhex(t, tc.Msg))
			switch {
			case tc.Result == "valid":
				if err != nil || !bytes.Equal(got, unhex(t, tc.CT)) {
					t.Errorf("%d (%s): wrapKey = %x, %v; want %s", tc.ID, tc.Comment, got, err, tc.CT)
				}
				done++
			case slices.Contains(tc.Flags, "WrongDataSize"), slices.Contains(tc.Flags, "ShortKey"), slices.Contains(tc.Flags, "EmptyKey"):
				if !errors.Is(err, errWrapSize) {
					t.Errorf("%d (%s): wrapKey = %x, %v; want an error", tc.ID, tc.Comment, got, err)
				}
				done++
			case err == nil && bytes.Equal(got, unhex(t, tc.CT)):
				t.Errorf("%d (%s): wrapKey gives what must not be accepted", tc.ID, tc.Comment)
			}
		}
	}
	if done < 60 {
		t.Errorf("%d vectors apply, want 60 or more", done)
	}
}

func TestWycheproofContentEncryption(t *testing.T) {
	type group struct {
		KeySize, IVSize, TagSize int // bits
		Tests                    []struct {
			ID                         int `json:"tcId"`
			Comment                    string
			Key, IV, AAD, Msg, CT, Tag string
			Result                     string
		}
	}
	for _, f := range []struct {
		name string
		encs []ContentEncryption
		want int
	}{
		{"a128cbc_hs256_test.json", []ContentEncryption{A128CBCHS256}, 60},
		{"a192cbc_hs384_test.json", []ContentEncryption{A192CBCHS384}, 60},
		{"a256cbc_hs512_test.json", []ContentEncryption{A256CBCHS512}, 60},
		{"aes_gcm_test.json", []ContentEncryption{A128GCM, A192GCM, A256GCM}, 100},
	} {
		t.Run(f.name, func(t *testing.T) {
			done := 0
			for _, g := range wycheproofFile[group](t, f.name) {
				at := slices.IndexFunc(f.encs, func(e ContentEncryption) bool { return e.KeySize()*8 == g.KeySize })
				if at < 0 || f.encs[at].row().ivSize*8 != g.IVSize {
					continue // no IV of this size in JOSE
				}
				enc := f.encs[at].row()
				if enc.tagSize*8 != g.TagSize {
					t.Fatalf("%s has a tag of %d bits, Wycheproof's has %d", enc.name, enc.tagSize*8, g.TagSize)
				}
				for _, tc := range g.Tests {
					aad := unhex(t, tc.AAD)
					got, err := enc.seal([]byte("before"), content{
						cek: unhex(t, tc.Key), iv: unhex(t, tc.IV), plaintext: unhex(t, tc.Msg),
						token: append(bytes.Clone(aad), '.'), headerSize: len(aad),
					})
					if err != nil {
						t.Fatalf("%d (%s): %v", tc.ID, tc.Comment, err)
					}
					same := bytes.Equal(got, slices.Concat([]byte("before"), unhex(t, tc.CT), unhex(t, tc.Tag)))
					if same != (tc.Result == "valid") {
						t.Errorf("%d (%s, %s): seal = %x", tc.ID, tc.Comment, tc.Result, got)
					}
					done++
				}
			}
			if done < f.want {
				t.Errorf("%d vectors apply, want %d or more", done, f.want)
			}
		})
	}
}

// The vectors end with the shared secret; what becomes of it is compared with
// go-jose's Concat KDF, for a key of one round and a key of two.
func TestWycheproofKeyAgreement(t *testing.T) {
	type key struct {
		jwk
		Kty string
	}
	type group struct {
		Tests []struct {
			ID              int `json:"tcId"`
			Comment         string
			Flags           []string
			Public, Private key
			Shared          string
			Result          string
		}
	}
	for _, f := range []struct {
		name, crv string
		curve     elliptic.Curve
	}{
		{"ecdh_secp256r1_webcrypto_test.json", "P-256", elliptic.P256()},
		{"ecdh_secp384r1_webcrypto_test.json", "P-384", elliptic.P384()},
		{"ecdh_secp521r1_webcrypto_test.json", "P-521", elliptic.P521()},
	} {
		t.Run(f.crv, func(t *testing.T) {
			agreed, refused := 0, 0
			for _, g := range wycheproofFile[group](t, f.name) {
				for _, tc := range g.Tests {
					// Hundreds of vectors try the standard library's scalar
					// multiplication alone: a few of them do.
					multiplication := slices.Contains(tc.Flags, "EdgeCaseDoubling") || slices.Contains(tc.Flags, "EdgeCaseEphemeralKey")
					if multiplication && tc.ID%20 != 0 {
						continue
					}
					enc := []ContentEncryption{A128GCM, A256CBCHS512}[tc.ID%2]
					if tc.Public.Crv != f.crv {
						continue // another curve's key, named as such: Fits says so
					}
					x, y := unbase64(t, tc.Public.X), unbase64(t, tc.Public.Y)
					public := ecPoint(f.curve, new(big.Int).SetBytes(x), new(big.Int).SetBytes(y))
					a, err := newAgreement(public, string(enc), enc.KeySize())
					if tc.Result == "invalid" {
						if err == nil {
							t.Errorf("%d (%s): the key is accepted", tc.ID, tc.Comment)
						} else if !errors.Is(err, ErrKeyUnsuitable) {
							t.Errorf("%d (%s): %v, want ErrKeyUnsuitable", tc.ID, tc.Comment, err)
						}
						refused++
						continue
					}
					if err != nil {
						t.Errorf("%d (%s): the key is refused: %v", tc.ID, tc.Comment, err)
						continue
					}
					w := &workspace{entropy: &fixedEntropy{t: t, key: ecdhKey(t, tc.Private.jwk)}}
					got := make([]byte, enc.KeySize())
					err = a.derive(got, w)
					shared := unhex(t, tc.Shared)
					if allZero(shared) {
						// A point of the curve, but not one that chance
						// would ever find.
						if !errors.Is(err, ErrKeyUnsuitable) {
							t.Errorf("%d (%s): derive = %v with the all-zero secret, want ErrKeyUnsuitable", tc.ID, tc.Comment, err)
						}
						if len(w.header) != 0 || !allZero(got) {
							t.Errorf("%d: something is left of a refused agreement", tc.ID)
						}
						refused++
						continue
					}
					if err != nil {
						t.Errorf("%d (%s): %v", tc.ID, tc.Comment, err)
						continue
					}
					if want := joseConcatKDF(shared, string(enc), "", "", enc.KeySize()); !bytes.Equal(got, want) {
						t.Errorf("%d (%s): derived key %x, want %x", tc.ID, tc.Comment, got, want)
					}
					agreed++
				}
			}
			if agreed < 60 || refused < 5 {
				t.Errorf("%d keys agreed upon and %d refused: there are more vectors than that", agreed, refused)
			}
		})
	}
}

// The vectors end with the shared secret; what becomes of it is compared with
// go-jose's Concat KDF, for a key of one round and a key of two.
func TestWycheproofXDH(t *testing.T) {
	type key struct {
		jwk
		Kty string
	}
	type group struct {
		Tests []struct {
			ID              int `json:"tcId"`
			Comment         string
			Public, Private key
			Shared          string
			Result          string
		}
	}
	for _, f := range []struct {
		name, crv       string
		size            int
		agreed, refused int // at least
	}{
		{"x25519_jwk_test.json", "X25519", 32, 480, 25},
		{"x448_jwk_test.json", "X448", 56, 480, 10},
	} {
		t.Run(f.crv, func(t *testing.T) {
			agreed, refused := 0, 0
			for _, g := range wycheproofFile[group](t, f.name) {
				for _, tc := range g.Tests {
					if tc.Public.Kty != "OKP" || tc.Public.Crv != f.crv || len(tc.Public.X) != base64url.EncodedLen(f.size) {
						// It does not get to be a key of this type: the
						// reader of JWKs refuses it.
						if tc.Result != "invalid" {
							t.Errorf("%d (%s): a %s vector is left out", tc.ID, tc.Comment, tc.Result)
						}
						continue
					}
					enc := []ContentEncryption{A128GCM, A256CBCHS512}[tc.ID%2]
					key := okpPublicKey(t, tc.Public.jwk)
					shared := unhex(t, tc.Shared)
					_, err := newAgreement(key, string(enc), enc.KeySize())
					if allZero(shared) {
						if !errors.Is(err, ErrKeyUnsuitable) {
							t.Errorf("%d (%s): %v, want ErrKeyUnsuitable", tc.ID, tc.Comment, err)
						}
						// As if it had not been noticed before.
						party := uncheckedParty(key)
						w := &workspace{entropy: &fixedEntropy{t: t, random: unbase64(t, tc.Private.D)}}
						derived := make([]byte, enc.KeySize())
						err = (&agreement{party, kdfOtherInfo(string(enc), nil, nil, enc.KeySize())}).derive(derived, w)
						if !errors.Is(err, ErrKeyUnsuitable) || !allZero(derived) || len(w.header) > 0 {
							t.Errorf("%d (%s): derive = %v, %x, %s; want ErrKeyUnsuitable and nothing", tc.ID, tc.Comment, err, derived, w.header)
						}
						refused++
						continue
					}
					if err != nil {
						t.Errorf("%d (%s): the key is refused: %v", tc.ID, tc.Comment, err)
						continue
					}
					a := must(newAgreement(key, string(enc), enc.KeySize()))
					w := &workspace{entropy: &fixedEntropy{t: t, random: unbase64(t, tc.Private.D)}}
					got := make([]byte, enc.KeySize())
					if err := a.derive(got, w); err != nil {
						t.Errorf("%d (%s): %v", tc.ID, tc.Comment, err)
						continue
					}
					if want := joseConcatKDF(shared, string(enc), "", "", enc.KeySize()); !bytes.Equal(got, want) {
						t.Errorf("%d (%s): derived key %x, want %x", tc.ID, tc.Comment, got, want)
					}
					if want := `"x":"` + tc.Private.X + `"`; !bytes.Contains(w.header, []byte(want)) {
						t.Errorf("%d (%s): epk %s, want %s in it", tc.ID, tc.Comment, w.header, want)
					}
					agreed++
				}
			}
			if agreed < f.agreed || refused < f.refused {
				t.Errorf("%d keys agreed upon and %d refused, want %d and %d or more", agreed, refused, f.agreed, f.refused)
			}
			t.Logf("%d keys agreed upon, %d refused", agreed, refused)
		})
	}
}

// uncheckedParty is a key for X25519 or X448 that nobody has looked at.
func uncheckedParty(key any) party {
	if k, ok := key.(X448PublicKey); ok {
		p := x448Party(k)
		return &p
	}
	p := x25519Party(key.(*ecdh.PublicKey).Bytes())
	return &p
}

// Every valid token of the vectors is made again, byte for byte, from its CEK,
// its IVs and its header; only what an ephemeral key or the padding of RSA
// decides is taken from the vector, and in an agreement the two sides change
// places. To every key a new token is made too, which go-jose opens. The invalid
// vectors are for readers: they are valid ones with a part changed, and are no
// output for any input.
func TestWycheproofTokensAreMadeAgain(t *testing.T) {
	type group struct {
		Comment string
		Private json.RawMessage
		Tests   []struct {
			ID      int `json:"tcId"`
			Comment string
			PT, JWE string
			Result  string
		}
	}
	again, groups := map[KeyAlgorithm]int{}, 0
	for _, g := range wycheproofFile[group](t, "json_web_encryption_test.json") {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(g.Private); err != nil {
			t.Fatalf("%s: %v", g.Comment, err)
		}
		private := key.Key
		if secret, ok := private.([]byte); ok {
			private = SecretKey(secret)
		}
		groups++
		for _, tc := range g.Tests {
			if tc.Result != "valid" {
				continue
			}
			v := parseVector(t, tc.JWE, private)
			if v.header.Zip != "" {
				continue // never compressed here
			}
			plaintext := unhex(t, tc.PT)
			if got := v.makeAgain(t, plaintext); got != tc.JWE {
				t.Errorf("%d (%s): made again it is %s, want %s", tc.ID, tc.Comment, got, tc.JWE)
			}
			r, err := NewRecipient(RecipientConfig{Key: public(private), KeyID: key.KeyID, Algorithm: v.header.Alg, ContentEncryption: v.header.Enc})
			if err != nil {
				t.Errorf("%d (%s): the key is refused: %v", tc.ID, tc.Comment, err)
				continue
			}
			if got := open(t, must(r.Encrypt(signedToken(100))), private, v.header.Alg, v.header.Enc); !bytes.Equal(got, signedToken(100)) {
				t.Errorf("%d (%s): a new token opens to %q", tc.ID, tc.Comment, got)
			}
			again[v.header.Alg]++
		}
	}
	for _, alg := range KeyAlgorithms() {
		if alg != RSAOAEP384 && alg != RSAOAEP512 && again[alg] == 0 {
			t.Errorf("%s: no vector", alg)
		}
	}
	t.Logf("%d groups, tokens made again: %v", groups, again)
}

// vector is a token of someone else's making.
type vector struct {
	parts      []string
	headerText []byte
	header     readerHeader
	private    any
	cek        []byte
}

func parseVector(t *testing.T, token string, private any) vector {
	t.Helper()
	v := vector{parts: strings.Split(token, "."), private: private}
	v.headerText = unbase64(t, v.parts[0])
	if err := json.Unmarshal(v.headerText, &v.header); err != nil {
		t.Fatal(err)
	}
	var err error
	if v.cek, err = contentKey(v.header, unbase64(t, v.parts[1]), private); err != nil {
		t.Fatalf("the vector's encrypted key does not open: %v", err)
	}
	return v
}

func (v vector) makeAgain(t *testing.T, plaintext []byte) string {
	t.Helper()
	alg, enc := v.header.Alg.row(), v.header.Enc.row()
	fixed := &fixedEntropy{t: t, random: slices.Concat(v.cek, unbase64(t, v.parts[2]), unbase64(t, v.header.IV))}
	key := public(v.private)
	if alg.name == ECDHES || alg.name == Dir {
		clear(fixed.random[:len(v.cek)]) // must not matter
	}
	if own, ok := v.private.(*ecdsa.PrivateKey); ok {
		fixed.key = must(own.ECDH())
		key = ecdhPublicKey(t, v.header.EPK)
	}
	manage, err := alg.compile(key, enc)
	if err != nil {
		t.Fatalf("%s: %v", alg.name, err)
	}
	r := &Recipient{algorithm: alg.name, content: enc, manage: func(w *workspace) ([]byte, error) {
		encryptedKey, err := manage(w)
		if strings.HasSuffix(string(alg.name), "GCMKW") {
			if want := `,"iv":"` + v.header.IV + `","tag":"` + v.header.Tag + `"`; string(w.header) != want {
				t.Errorf("header members %s, want %s", w.header, want)
			}
		}
		if _, random := v.private.(*rsa.PrivateKey); random {
			encryptedKey = unbase64(t, v.parts[1])
		}
		w.header = append(w.header[:0], bytes.TrimSuffix(v.headerText, []byte("}"))...)
		return encryptedKey, err
	}}
	token, err := r.appendToken(nil, plaintext, &workspace{entropy: fixed}, nil)
	if err != nil {
		t.Fatalf("%s: %v", alg.name, err)
	}
	fixed.spent()
	return string(token)
}
