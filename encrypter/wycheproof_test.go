package encrypter

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/elliptic"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
	josecipher "github.com/go-jose/go-jose/v4/cipher"
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
					if want := joseConcatKDF(t, shared, enc); !bytes.Equal(got, want) {
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

// joseConcatKDF derives a CEK with go-jose's Concat KDF.
func joseConcatKDF(t *testing.T, shared []byte, enc ContentEncryption) []byte {
	t.Helper()
	lengthPrefixed := func(s string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
	}
	bits := binary.BigEndian.AppendUint32(nil, uint32(enc.KeySize()*8))
	key := make([]byte, enc.KeySize())
	kdf := josecipher.NewConcatKDF(crypto.SHA256, shared, lengthPrefixed(string(enc)), lengthPrefixed(""), lengthPrefixed(""), bits, nil)
	if _, err := kdf.Read(key); err != nil {
		t.Fatal(err)
	}
	return key
}
