package jwks_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	raw, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
}

// TestWycheproofKeySets goes through the json_web_key vectors by their id.
// They are written for a verifier of signatures that is given the owner's set
// (private or symmetric, where there is no public half). Here the same sets
// come from a client as the keys to encrypt to, so three things can be right:
//
//   - the set is refused, because it holds a private or symmetric key;
//   - the key is rejected with a reason;
//   - the key is sound, but never chosen, because it is for signatures.
//
// What the vectors say beyond that (a signature that was modified, a MAC key
// shorter than its hash) concerns verifiers.
func TestWycheproofKeySets(t *testing.T) {
	const symmetric = "symmetric"
	want := map[int]struct {
		refused  string // the whole set, with this in the text
		rejected string // the only key, with this in the reason
		unfit    string // the only key, with this in the verdict
	}{
		1:  {refused: symmetric}, // a symmetric key among public ones
		2:  {refused: symmetric}, // valid for a verifier of MACs
		3:  {refused: symmetric}, // the fault is in the signature
		4:  {refused: symmetric}, // and two keys of one kid, kty, alg and use
		5:  {unfit: `its use is "sig"`},
		6:  {unfit: `its alg is "RSA1_5"`}, // a key for encryption, not to verify with; sound here
		7:  {rejected: "ROCA"},
		8:  {rejected: "1024 bits"},
		9:  {rejected: "exponent is below 3"},
		10: {refused: symmetric},
		11: {refused: symmetric},
		12: {refused: symmetric},
		13: {refused: symmetric}, // valid for a verifier of MACs
		14: {refused: symmetric}, // valid for a verifier of MACs
		15: {refused: symmetric}, // valid for a verifier of MACs
		16: {refused: symmetric},
		17: {refused: symmetric},
		18: {refused: symmetric},
		19: {unfit: `its use is "sig"`},   // alg ES521 does not exist
		20: {unfit: `its use is "sig"`},   // alg ES224 does not exist
		21: {unfit: `its alg is "ES256"`}, // use enc, but an alg for signatures
		22: {rejected: "not on P-256"},    // a modified coordinate
		23: {rejected: "exactly 48"},      // a P-256 point named P-384
		24: {rejected: `no member "n"`},   // an EC key named RSA
		25: {refused: symmetric},
		26: {refused: symmetric},
	}
	var vectors struct {
		NumberOfTests int
		TestGroups    []struct {
			Public, Private json.RawMessage
			Tests           []struct{ TcID int }
		}
	}
	readVectors(t, "json_web_key_test.json", &vectors)
	if vectors.NumberOfTests != len(want) {
		t.Errorf("there are %d vectors, and %d are known here", vectors.NumberOfTests, len(want))
	}
	for _, group := range vectors.TestGroups {
		// A private set must be refused, whatever else it is.
		if set, err := jwks.Parse(group.Private, jwks.Limits{}); !errors.Is(err, jwks.ErrRejected) {
			t.Errorf("private set of %v: %v, %v, want ErrRejected", group.Tests, set, err)
		}
		doc := group.Public
		if doc == nil {
			doc = group.Private
		}
		set, err := jwks.Parse(doc, jwks.Limits{})
		for _, test := range group.Tests {
			want, ok := want[test.TcID]
			if !ok {
				t.Errorf("vector %d is not known here", test.TcID)
				continue
			}
			if want.refused != "" {
				if !errors.Is(err, jwks.ErrRejected) || !strings.Contains(err.Error(), want.refused) {
					t.Errorf("vector %d: Parse = %v, want the set refused as %q", test.TcID, err, want.refused)
				}
				continue
			}
			if err != nil {
				t.Errorf("vector %d: Parse = %v", test.TcID, err)
				continue
			}
			if k := set.Keys()[0]; (k.State == jwks.Rejected) != (want.rejected != "") || !strings.Contains(k.Reason, want.rejected) {
				t.Errorf("vector %d: key is %v: %s, want %q", test.TcID, k.State, k.Reason, want.rejected)
			}
			for _, alg := range encrypter.KeyAlgorithms() {
				if k, err := set.Choose(jwks.Want{Algorithm: alg}); err == nil {
					t.Errorf("vector %d: %v is chosen for %s", test.TcID, k, alg)
				}
			}
			if want.unfit == "" {
				continue
			}
			alg := encrypter.RSAOAEP
			if set.Keys()[0].Type == "EC" {
				alg = encrypter.ECDHES
			}
			if v := set.Explain(jwks.Want{Algorithm: alg})[0]; v.Outcome != jwks.Unfit || !strings.Contains(v.Reason, want.unfit) {
				t.Errorf("vector %d: %v, %q, want unfit, %q", test.TcID, v.Outcome, v.Reason, want.unfit)
			}
		}
	}
}

// TestWycheproofMontgomeryKeys reads the public keys of the x25519_jwk and
// x448_jwk vectors: well-formed ones are understood and skipped, since nothing
// here encrypts to them. That some are points of low order concerns the key
// agreement.
func TestWycheproofMontgomeryKeys(t *testing.T) {
	// Both files end with the same malformed and foreign keys.
	const refused = jwks.State(-1)
	tail := []jwks.State{
		jwks.Usable, jwks.Usable, jwks.Usable, // sound keys on P-256, P-384 and P-521
		jwks.Skipped,  // EC on secp256k1
		jwks.Skipped,  // the other Montgomery curve
		jwks.Skipped,  // empty kty
		jwks.Skipped,  // kty EC
		jwks.Rejected, // kty RSA
		refused,       // kty oct
		jwks.Rejected, // no members
		jwks.Rejected, // no kty
		jwks.Rejected, // no crv
		jwks.Rejected, // no x
	}
	for _, name := range []string{"x25519_jwk_test.json", "x448_jwk_test.json"} {
		var vectors struct {
			NumberOfTests int
			TestGroups    []struct {
				Tests []struct {
					TcID   int
					Flags  []string
					Public json.RawMessage
				}
			}
		}
		readVectors(t, name, &vectors)
		counts := map[jwks.State]int{}
		for _, group := range vectors.TestGroups {
			for _, test := range group.Tests {
				want := jwks.Skipped
				if i := test.TcID - 1 - (vectors.NumberOfTests - len(tail)); i >= 0 {
					want = tail[i]
				} else if slices.Contains(test.Flags, "PublicKeyTooLong") {
					want = jwks.Rejected
				}
				counts[want]++
				set, err := jwks.Parse(fmt.Appendf(nil, `{"keys":[%s]}`, test.Public), jwks.Limits{})
				if err != nil {
					if want != refused {
						t.Errorf("%s %d: %v", name, test.TcID, err)
					}
					continue
				}
				k := set.Keys()[0]
				if k.State != want {
					t.Errorf("%s %d: %v (%s), want %v", name, test.TcID, k.State, k.Reason, want)
				}
				if k.Type == "OKP" && (k.Thumbprint != "") != (want == jwks.Skipped) {
					t.Errorf("%s %d: %v with thumbprint %q", name, test.TcID, k.State, k.Thumbprint)
				}
			}
		}
		if counts[jwks.Skipped] < 400 {
			t.Errorf("%s: only %d keys were well-formed", name, counts[jwks.Skipped])
		}
	}
}
