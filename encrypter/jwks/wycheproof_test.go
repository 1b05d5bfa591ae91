package jwks_test

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/cloudflare/circl/dh/x448"

	"github.com/bulla-project/bulla/client"
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
// (private or symmetric, where there is no public half). Each set is taken here
// both ways that Bulla takes keys: as what a client registers to be encrypted
// to, and as what package client verifies a signature with. An invalid vector
// has to be refused by the one or the other, and a valid one taken by the one
// that it is for. What the registration makes of a set is one of these:
//
//   - the set is refused, because it holds a private or symmetric key;
//   - the key is rejected with a reason;
//   - the key is sound, but not chosen for any alg, with a reason.
func TestWycheproofKeySets(t *testing.T) {
	const symmetric = "symmetric"
	want := map[int]struct {
		refused  string // the whole set, with this in the text
		rejected string // the only key, with this in the reason
		unfit    string // the only key, with this in the verdict
		chosen   encrypter.KeyAlgorithm

		// verifier is in the text with which the verifier refuses, where the
		// refusal is its task; "valid" if it has to take the vector.
		verifier string
	}{
		1:  {refused: symmetric}, // a symmetric key among public ones
		2:  {refused: symmetric, verifier: "valid"},
		3:  {refused: symmetric, verifier: "does not verify"}, // the signature is modified
		4:  {refused: symmetric},                              // and two keys of one kid, kty, alg and use
		5:  {unfit: `its use is "sig"`, verifier: "valid"},
		6:  {chosen: encrypter.RSA15, verifier: `its use is "enc"`}, // sound, for encryption
		7:  {rejected: "ROCA"},
		8:  {rejected: "1024 bits", verifier: "size"},
		9:  {rejected: "exponent is below 3"},
		10: {refused: symmetric, verifier: "needs secrets of 32 bytes"},
		11: {refused: symmetric, verifier: "needs secrets of 48 bytes"},
		12: {refused: symmetric, verifier: "needs secrets of 64 bytes"},
		13: {refused: symmetric, verifier: "valid"},
		14: {refused: symmetric, verifier: "valid"},
		15: {refused: symmetric, verifier: "valid"},
		16: {refused: symmetric, verifier: "empty secret"},
		17: {refused: symmetric, verifier: "empty secret"},
		18: {refused: symmetric, verifier: "empty secret"},
		19: {unfit: `its use is "sig"`, verifier: `alg "ES521" is not supported`}, // no such algorithm
		20: {unfit: `its use is "sig"`, verifier: `alg "ES224" is not supported`}, // likewise
		21: {unfit: `its alg is "ES256"`, verifier: `its use is "enc"`},
		22: {rejected: "not on P-256"},  // a modified coordinate
		23: {rejected: "exactly 48"},    // a P-256 point named P-384
		24: {rejected: `no member "n"`}, // an EC key named RSA
		25: {refused: symmetric},        // a key for encryption
		26: {refused: symmetric},        // likewise
	}
	var vectors struct {
		NumberOfTests int
		TestGroups    []struct {
			Public, Private json.RawMessage
			Tests           []struct {
				TcID        int
				JWS, Result string
			}
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
			switch verified := verifies(t, doc, test.JWS); {
			case (test.Result == "valid") != (want.verifier == "valid"):
				t.Errorf("vector %d is %s, and the verifier is expected to say %q", test.TcID, test.Result, want.verifier)
			case want.verifier == "valid" && verified != nil:
				t.Errorf("vector %d: refused by the verifier: %v", test.TcID, verified)
			case want.verifier != "" && want.verifier != "valid" && (verified == nil || !strings.Contains(verified.Error(), want.verifier)):
				t.Errorf("vector %d: the verifier says %v, want %q", test.TcID, verified, want.verifier)
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
				if k, err := set.Choose(jwks.Want{Algorithm: alg}); (err == nil) != (want.chosen == alg) {
					t.Errorf("vector %d for %s: %v, %v", test.TcID, alg, k, err)
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

// verifies returns nil if package client verifies the signature with the keys of
// the document: those of its symmetric keys that the header names as the
// client's secret, or its public keys as the issuer's.
func verifies(t *testing.T, document []byte, jws string) error {
	t.Helper()
	var header struct{ Alg, Kid string }
	raw, _, _ := strings.Cut(jws, ".")
	if text, err := base64.RawURLEncoding.DecodeString(raw); err != nil || json.Unmarshal(text, &header) != nil {
		t.Fatalf("header of %s", jws)
	}
	var set struct {
		Keys []struct{ Kty, Kid, Alg, K string }
	}
	if err := json.Unmarshal(document, &set); err != nil {
		t.Fatal(err)
	}
	config := client.OpenConfig{AllowUnencrypted: true, SignatureAlgorithms: []string{header.Alg}}
	for _, k := range set.Keys {
		if k.Kty != "oct" || k.Kid != header.Kid || k.Alg != header.Alg {
			continue
		}
		secret, err := base64.RawURLEncoding.DecodeString(k.K)
		if err != nil {
			t.Fatal(err)
		}
		config.ClientSecrets = append(config.ClientSecrets, secret)
	}
	if len(config.ClientSecrets) == 0 {
		var err error
		if config.Signers, err = client.ParseSigners(document); err != nil {
			return err
		}
	}
	opener, err := client.NewOpener(config)
	if err != nil {
		return err
	}
	// The payload is not a JSON object, which is looked at after the signature.
	if _, err := opener.Open(jws); !errors.Is(err, client.ErrClaims) {
		return err
	}
	return nil
}

// TestWycheproofMontgomeryKeys takes the public keys of the x25519_jwk and
// x448_jwk vectors as a client's, and agrees on the vector's secret with those
// that are usable, so that what Public holds is known to be the key. Rejected
// are the keys that give zero, whatever else they are flagged as, and malformed
// ones; of the "acceptable", those that are not in canonical form or on the
// twist are taken, as RFC 7748, sections 5 and 7 ask.
func TestWycheproofMontgomeryKeys(t *testing.T) {
	// Both files end with the same malformed and foreign keys, all of them
	// invalid: what is said of each here is enough that nobody agrees on a
	// secret with it that is meant for another curve.
	const refused = jwks.State(-1)
	tail := []jwks.State{
		jwks.Usable, jwks.Usable, jwks.Usable, // sound keys on P-256, P-384 and P-521
		jwks.Skipped,  // EC on secp256k1
		jwks.Usable,   // a sound key on the other Montgomery curve
		jwks.Skipped,  // empty kty
		jwks.Skipped,  // kty EC
		jwks.Rejected, // kty RSA
		refused,       // kty oct
		jwks.Rejected, // no members
		jwks.Rejected, // no kty
		jwks.Rejected, // no crv
		jwks.Rejected, // no x
	}
	for name, counts := range map[string]struct{ agreed, lowOrder, tooLong int }{
		"x25519_jwk_test.json": {485, 33, 0},
		"x448_jwk_test.json":   {487, 11, 12},
	} {
		var vectors struct {
			NumberOfTests int
			TestGroups    []struct {
				Tests []struct {
					TcID    int
					Flags   []string
					Result  string
					Shared  string
					Public  json.RawMessage
					Private struct{ D, Crv string }
				}
			}
		}
		readVectors(t, name, &vectors)
		agreed, lowOrder, tooLong := 0, 0, 0
		for _, group := range vectors.TestGroups {
			for _, test := range group.Tests {
				zero := test.Shared != "" && strings.Trim(test.Shared, "0") == ""
				if name == "x25519_jwk_test.json" && (test.TcID == 94 || test.TcID == 95) {
					zero = true // 2p and 2p+1: of low order to code that reads the top bit
				}
				var want jwks.State
				switch i := test.TcID - 1 - (vectors.NumberOfTests - len(tail)); {
				case i >= 0 && test.Result == "invalid":
					want = tail[i]
				case slices.Contains(test.Flags, "PublicKeyTooLong"):
					want = jwks.Rejected
					tooLong++
				case zero:
					want = jwks.Rejected
					lowOrder++
				case test.Result == "invalid":
					t.Fatalf("%s %d: an invalid vector that is not known here", name, test.TcID)
				}
				set, err := jwks.Parse(fmt.Appendf(nil, `{"keys":[%s]}`, test.Public), jwks.Limits{})
				if err != nil {
					if want != refused {
						t.Errorf("%s %d: %v", name, test.TcID, err)
					}
					continue
				}
				k := set.Keys()[0]
				if k.State != want || zero && !strings.Contains(k.Reason, "low order") {
					t.Errorf("%s %d: %v (%s), want %v", name, test.TcID, k.State, k.Reason, want)
					continue
				}
				chosen, err := set.Choose(jwks.Want{Algorithm: encrypter.ECDHESA128KW})
				if (err == nil) != (want == jwks.Usable) {
					t.Errorf("%s %d: Choose = %v, %v", name, test.TcID, chosen, err)
				}
				if want != jwks.Usable || k.Curve != test.Private.Crv {
					continue
				}
				agreed++
				if got := agree(t, test.Private.D, k.Public); got != test.Shared {
					t.Errorf("%s %d: agreed on %s, want %s", name, test.TcID, got, test.Shared)
				}
			}
		}
		if agreed != counts.agreed || lowOrder != counts.lowOrder || tooLong != counts.tooLong {
			t.Errorf("%s: %d agreed, %d of low order, %d too long, want %+v: the vectors have changed", name, agreed, lowOrder, tooLong, counts)
		}
	}
}

// agree returns the secret that others' code agrees on, in hexadecimal.
func agree(t *testing.T, d string, public any) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(d)
	if err != nil {
		t.Fatal(err)
	}
	switch public := public.(type) {
	case *ecdh.PublicKey:
		private, err := ecdh.X25519().NewPrivateKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := private.ECDH(public)
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(secret)
	case encrypter.X448PublicKey:
		private, peer := x448.Key(raw), x448.Key(public)
		var secret x448.Key
		if !x448.Shared(&secret, &private, &peer) {
			t.Fatal("low order")
		}
		return hex.EncodeToString(secret[:])
	}
	t.Fatalf("%T is no key on X25519 or X448", public)
	return ""
}
