package jwks_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
)

// p384JWK and p521JWK are public keys made with openssl for this test.
func p384JWK() jwk {
	return jwk{
		"kty": "EC", "crv": "P-384",
		"x": "cfpqD0g2D_QcjBlhPxasidIFEs5kxxjKN5IChPEJTsGPrzK4kanbuM4UdcfkdntF",
		"y": "gb44MUiem9QtZunmyHgWAujUk5xaJ_IlaSLhBRGnX2s6n9bI1LKtyaME4tLPUbkd",
	}
}

func p521JWK() jwk {
	return jwk{
		"kty": "EC", "crv": "P-521",
		"x": "AZ3S4jNcooHcutapkG6MpjiEHXTLwJaQ_A0Wrw1ld4YjJjS7ctwLrgmCIGAZTXmPNl0LYnaM4Yfl-M-T8JkhQNnO",
		"y": "AXA4K1z9qvTru0xu2gN1RjsOhtLzzvORBDNbYqieN1BdFNbwPqHstDG46W7b8t14WtD8xWedHe6i5A7mMT5xO5XQ",
	}
}

// x25519JWK and x448JWK are the public keys of RFC 7748, sections 6.1 and 6.2
// (Alice's).
func x25519JWK() jwk {
	return jwk{"kty": "OKP", "crv": "X25519", "x": "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}
}

func x448JWK() jwk {
	return jwk{"kty": "OKP", "crv": "X448", "x": "mwj3zDG34-Z9ItWuoSEHSic70rg94Jxj-qc9LCLF2bvINmRyQdlT1AxbEtqIEg1TF3-A5TLEH6A"}
}

// weakJWK is an RSA key of 1024 bits.
func weakJWK() jwk { return with(rsaJWK(), "n", rfc7638N[:168]+"gMM") }

// choose checks that Choose and Explain agree and returns the index of the
// chosen key, or -1.
func choose(t *testing.T, set *jwks.Set, want jwks.Want) (int, error) {
	t.Helper()
	verdicts := set.Explain(want)
	if len(verdicts) != len(set.Keys()) {
		t.Fatalf("Explain gives %d verdicts on %d keys", len(verdicts), len(set.Keys()))
	}
	explained := -1
	for i, v := range verdicts {
		if v.Key != set.Keys()[i] || v.Reason == "" {
			t.Errorf("verdict %d = %+v", i, v)
		}
		if v.Outcome == jwks.Chosen {
			if explained >= 0 {
				t.Errorf("keys %d and %d are both chosen", explained, i)
			}
			explained = i
		}
	}
	k, err := set.Choose(want)
	if err != nil {
		if !errors.Is(err, jwks.ErrNoKey) || k != nil || explained != -1 {
			t.Errorf("Choose = %v, %v; Explain chose %d", k, err, explained)
		}
		return -1, err
	}
	if k.Index != explained {
		t.Errorf("Choose = %v, Explain chose %d", k, explained)
	}
	return k.Index, nil
}

func TestChoice(t *testing.T) {
	const oaep, ecdh = encrypter.RSAOAEP256, encrypter.ECDHES
	id := func(base jwk, kid string, pairs ...any) jwk { return with(with(base, "kid", kid), pairs...) }
	ops := func(list ...string) []string { return append([]string{}, list...) }
	tests := []struct {
		name string
		alg  encrypter.KeyAlgorithm
		pin  string
		keys []jwk
		want int // index, or -1
	}{
		{"the only key", oaep, "", []jwk{id(rsaJWK(), "a", "use", "enc")}, 0},
		{"a key without kid", oaep, "", []jwk{with(rsaJWK(), "use", "enc")}, 0},
		{"a bare key", oaep, "", []jwk{rsaJWK()}, 0},
		{"type must fit: EC for RSA-OAEP", oaep, "", []jwk{with(ecJWK(), "use", "enc")}, -1},
		{"type must fit: RSA for ECDH-ES", ecdh, "", []jwk{with(rsaJWK(), "use", "enc")}, -1},
		{"the fitting type is found", ecdh, "", []jwk{with(rsaJWK(), "use", "enc"), with(ecJWK(), "use", "enc")}, 1},
		{"P-384", "ECDH-ES+A256KW", "", []jwk{with(p384JWK(), "use", "enc")}, 0},
		{"P-521", "ECDH-ES+A128KW", "", []jwk{with(p521JWK(), "use", "enc")}, 0},
		{"unknown alg", "RSA-OAEP-999", "", []jwk{with(rsaJWK(), "use", "enc")}, -1},
		{"dir", encrypter.Dir, "", []jwk{with(rsaJWK(), "use", "enc")}, -1},
		{"no alg", "", "", []jwk{with(rsaJWK(), "use", "enc")}, -1},
		{"X25519", ecdh, "", []jwk{with(x25519JWK(), "use", "enc")}, 0},
		{"X448", "ECDH-ES+A256KW", "", []jwk{with(x448JWK(), "use", "enc")}, 0},
		{"X25519 for RSA-OAEP", oaep, "", []jwk{with(x25519JWK(), "use", "enc")}, -1},
		{"key_ops of OKP", ecdh, "", []jwk{with(x448JWK(), "key_ops", ops("deriveBits"))}, 0},
		{"key_ops of RSA on OKP", ecdh, "", []jwk{with(x25519JWK(), "key_ops", ops("wrapKey"))}, -1},
		{"ties of EC and OKP by order", ecdh, "", []jwk{with(x25519JWK(), "use", "enc"), with(ecJWK(), "use", "enc")}, 0},
		{"symmetric alg", "A128KW", "", []jwk{with(rsaJWK(), "use", "enc")}, -1},

		{"use sig is never chosen", oaep, "", []jwk{with(rsaJWK(), "use", "sig")}, -1},
		{"use sig is not chosen by its alg", oaep, "", []jwk{with(rsaJWK(), "use", "sig", "alg", "RSA-OAEP-256")}, -1},
		{"use sig is not chosen by its pin", oaep, "s", []jwk{id(rsaJWK(), "s", "use", "sig"), id(rsaJWK(), "e", "use", "enc")}, -1},
		{"only keys for signatures", oaep, "", []jwk{with(rsaJWK(), "use", "sig"), with(ecJWK(), "use", "sig")}, -1},
		{"another use", oaep, "", []jwk{with(rsaJWK(), "use", "tls")}, -1},
		{"use is case-sensitive", oaep, "", []jwk{with(rsaJWK(), "use", "ENC")}, -1},
		{"an empty use says nothing", oaep, "", []jwk{with(rsaJWK(), "use", "")}, 0},

		{"key_ops empty", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops())}, 0},
		{"key_ops encrypt", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("encrypt"))}, 0},
		{"key_ops wrapKey", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("unknown", "wrapKey"))}, 0},
		{"key_ops verify", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("verify"))}, -1},
		{"key_ops of the private half", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("decrypt", "unwrapKey"))}, -1},
		{"key_ops unknown", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("dance"))}, -1},
		{"key_ops of EC on RSA", oaep, "", []jwk{with(rsaJWK(), "key_ops", ops("deriveKey"))}, -1},
		{"key_ops deriveKey", ecdh, "", []jwk{with(ecJWK(), "key_ops", ops("deriveKey"))}, 0},
		{"key_ops deriveBits", ecdh, "", []jwk{with(ecJWK(), "key_ops", ops("deriveBits"))}, 0},
		{"key_ops of RSA on EC", ecdh, "", []jwk{with(ecJWK(), "key_ops", ops("encrypt"))}, -1},
		{"use enc outweighs key_ops", oaep, "", []jwk{with(rsaJWK(), "use", "enc", "key_ops", ops("decrypt"))}, 0},

		{"alg of the key equal", oaep, "", []jwk{with(rsaJWK(), "alg", "RSA-OAEP-256")}, 0},
		{"alg of the key another", oaep, "", []jwk{with(rsaJWK(), "alg", "RSA-OAEP", "use", "enc")}, -1},
		{"alg of the key for signatures", oaep, "", []jwk{with(rsaJWK(), "alg", "RS256")}, -1},
		{"alg of the key an enc", oaep, "", []jwk{with(rsaJWK(), "alg", "A256GCM", "use", "enc")}, -1},

		{"use and alg before use", oaep, "", []jwk{
			with(rsaJWK(), "use", "enc"),
			with(rsaJWK(), "use", "enc", "alg", "RSA-OAEP-256"),
		}, 1},
		{"use before neither", oaep, "", []jwk{rsaJWK(), with(rsaJWK(), "use", "enc")}, 1},
		{"use before alg alone", oaep, "", []jwk{with(rsaJWK(), "alg", "RSA-OAEP-256"), with(rsaJWK(), "use", "enc")}, 1},
		{"ties by order: use", oaep, "", []jwk{with(rsaJWK(), "use", "sig"), with(rsaJWK(), "use", "enc"), with(rsaJWK(), "use", "enc")}, 1},
		{"ties by order: neither", oaep, "", []jwk{ecJWK(), with(rsaJWK(), "alg", "RSA-OAEP-256"), rsaJWK()}, 1},
		{"all ranks", oaep, "", []jwk{
			rsaJWK(),
			with(rsaJWK(), "use", "enc"),
			with(rsaJWK(), "use", "enc", "alg", "RSA-OAEP"),
			with(rsaJWK(), "use", "sig", "alg", "RSA-OAEP-256"),
			with(rsaJWK(), "use", "enc", "alg", "RSA-OAEP-256"),
			with(rsaJWK(), "use", "enc", "alg", "RSA-OAEP-256"),
		}, 4},

		{"pin before rank", oaep, "b", []jwk{id(rsaJWK(), "a", "use", "enc", "alg", "RSA-OAEP-256"), id(rsaJWK(), "b")}, 1},
		{"pin not in the set", oaep, "c", []jwk{id(rsaJWK(), "a", "use", "enc"), rsaJWK()}, -1},
		{"pin is case-sensitive", oaep, "A", []jwk{id(rsaJWK(), "a", "use", "enc")}, -1},
		{"pinned key of another type", oaep, "e", []jwk{id(ecJWK(), "e", "use", "enc"), id(rsaJWK(), "a", "use", "enc")}, -1},
		{"pin shared by keys of two types", oaep, "a", []jwk{id(ecJWK(), "a", "use", "enc"), id(rsaJWK(), "a", "use", "enc")}, 1},
		{"pin shared by two that fit: rank", oaep, "a", []jwk{id(rsaJWK(), "a"), id(rsaJWK(), "a", "use", "enc")}, 1},

		{"a rejected key is passed over", oaep, "", []jwk{with(weakJWK(), "use", "enc", "alg", "RSA-OAEP-256"), rsaJWK()}, 1},
		{"empty set", oaep, "", nil, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose(t, parse(t, tt.keys...), jwks.Want{Algorithm: tt.alg, KeyID: tt.pin})
			if got != tt.want {
				t.Errorf("chose %d (%v), want %d", got, err, tt.want)
			}
		})
	}
}

// TestKeyUsedForSigningIsNeverChosen tries everything that could speak for a
// key whose use is sig.
func TestKeyUsedForSigningIsNeverChosen(t *testing.T) {
	for _, alg := range encrypter.KeyAlgorithms() {
		for _, base := range []jwk{rsaJWK(), ecJWK(), p384JWK(), p521JWK(), x25519JWK(), x448JWK()} {
			for _, ops := range [][]string{nil, {}, {"encrypt"}, {"deriveKey"}, {"wrapKey", "verify"}} {
				key := with(base, "use", "sig", "kid", "s", "alg", string(alg))
				if ops != nil {
					key["key_ops"] = ops
				}
				if got, _ := choose(t, parse(t, key), jwks.Want{Algorithm: alg, KeyID: "s"}); got != -1 {
					t.Errorf("alg %s chose %v", alg, key)
				}
			}
		}
	}
}

// TestCallerLearnsThatTheKeyWasRejected: a caller must be able to tell "there
// is no key for this" from "there is one, and it is bad".
func TestCallerLearnsThatTheKeyWasRejected(t *testing.T) {
	const alg = encrypter.RSAOAEP256
	even := with(rsaJWK(), "e", "AQAA", "use", "enc", "kid", "even")
	offCurve := with(ecJWK(), "y", ecJWK()["x"], "use", "enc", "kid", "off")
	tests := []struct {
		name     string
		want     jwks.Want
		keys     []jwk
		rejected bool
		text     string
	}{
		{"1024 bits", jwks.Want{Algorithm: alg}, []jwk{with(weakJWK(), "use", "enc", "kid", "weak")}, true, `keys[0] (kid "weak"): its RSA modulus has 1024 bits`},
		{"even exponent", jwks.Want{Algorithm: alg}, []jwk{even}, true, `keys[0] (kid "even"): its RSA exponent is even`},
		{"off the curve", jwks.Want{Algorithm: encrypter.ECDHES}, []jwk{offCurve}, true, `keys[0] (kid "off"): its point (x, y) is not on P-256`},
		{"beside keys that do not fit", jwks.Want{Algorithm: alg}, []jwk{with(ecJWK(), "use", "enc"), with(rsaJWK(), "use", "sig"), even}, true, "keys[2]"},
		{"pinned", jwks.Want{Algorithm: alg, KeyID: "even"}, []jwk{even, with(rsaJWK(), "use", "enc", "kid", "good")}, true, "keys[0]"},
		{"kty missing", jwks.Want{Algorithm: alg}, []jwk{without(rsaJWK(), "kty")}, true, `no member "kty"`},
		{"crv missing", jwks.Want{Algorithm: encrypter.ECDHES}, []jwk{without(ecJWK(), "crv")}, true, `no member "crv"`},

		{"a bad key, but of another type", jwks.Want{Algorithm: alg}, []jwk{offCurve}, false, `its kty is "EC"`},
		{"a bad key, but for signatures", jwks.Want{Algorithm: alg}, []jwk{with(even, "use", "sig")}, false, `its use is "sig", not "enc"; besides, its RSA exponent is even`},
		{"a bad key, but for another alg", jwks.Want{Algorithm: alg}, []jwk{with(even, "alg", "RSA-OAEP")}, false, `its alg is "RSA-OAEP"`},
		{"a bad key, but another is pinned", jwks.Want{Algorithm: alg, KeyID: "good"}, []jwk{even}, false, `not the pinned "good"`},
		{"a skipped key", jwks.Want{Algorithm: encrypter.ECDHES}, []jwk{{"kty": "EC", "crv": "secp256k1"}}, false, `"secp256k1"`},
		{"nothing at all", jwks.Want{Algorithm: alg}, nil, false, "empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := choose(t, parse(t, tt.keys...), tt.want)
			if !errors.Is(err, jwks.ErrNoKey) {
				t.Fatalf("got %v, want ErrNoKey", err)
			}
			if got := errors.Is(err, jwks.ErrKeyRejected); got != tt.rejected {
				t.Errorf("is ErrKeyRejected: %v, want %v (%v)", got, tt.rejected, err)
			}
			if errors.Is(err, jwks.ErrRejected) {
				t.Errorf("%v is ErrRejected, but the set was not refused", err)
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", err, tt.text)
			}
		})
	}
}

func TestReasonsOfTheVerdicts(t *testing.T) {
	set := parse(t,
		with(rsaJWK(), "kid", "0"),
		with(rsaJWK(), "kid", "1", "use", "enc", "alg", "RSA-OAEP-256"),
		with(rsaJWK(), "kid", "2", "use", "enc", "alg", "RSA-OAEP-256"),
		with(rsaJWK(), "kid", "3", "use", "sig"),
		with(weakJWK(), "kid", "4", "use", "enc"),
		with(ecJWK(), "kid", "5", "crv", "P-999"),
	)
	want := []struct {
		outcome jwks.Outcome
		reason  string
	}{
		{jwks.Eligible, "it would do, but keys[1] fits and names its use and alg"},
		{jwks.Chosen, "it fits and names its use and alg"},
		{jwks.Eligible, "it would do, but keys[1] does as well and comes first"},
		{jwks.Unfit, `its use is "sig", not "enc"`},
		{jwks.Unusable, "its RSA modulus has 1024 bits, less than the required 2048: create a longer key"},
		{jwks.Unfit, `its crv "P-999" is not one that tokens can be encrypted to here: use P-256, P-384, P-521, X25519 or X448`},
	}
	for i, v := range set.Explain(jwks.Want{Algorithm: encrypter.RSAOAEP256}) {
		if v.Outcome != want[i].outcome || v.Reason != want[i].reason {
			t.Errorf("%v: %v, %q\nwant %v, %q", v.Key, v.Outcome, v.Reason, want[i].outcome, want[i].reason)
		}
	}
}

func TestReasonsOfTheVerdictsWithAPinnedKid(t *testing.T) {
	set := parse(t,
		with(rsaJWK(), "kid", "other", "use", "enc"),
		with(rsaJWK(), "use", "enc"),
		with(rsaJWK(), "kid", "mine"),
		with(ecJWK(), "kid", "mine", "use", "enc"),
		with(rsaJWK(), "kid", "mine", "use", "enc"),
		with(rsaJWK(), "kid", "mine", "use", "sig"),
	)
	want := []struct {
		outcome jwks.Outcome
		reason  string
	}{
		{jwks.Unfit, `its kid is not the pinned "mine"`},
		{jwks.Unfit, `it has no kid, and "mine" is pinned`},
		{jwks.Eligible, "it would do, but keys[4] fits and names its use"},
		{jwks.Unfit, `its kty is "EC", and alg RSA-OAEP-256 needs RSA`},
		{jwks.Chosen, "it has the pinned kid, fits and names its use"},
		{jwks.Unfit, `its use is "sig", not "enc"`},
	}
	for i, v := range set.Explain(jwks.Want{Algorithm: encrypter.RSAOAEP256, KeyID: "mine"}) {
		if v.Outcome != want[i].outcome || v.Reason != want[i].reason {
			t.Errorf("%v: %v, %q\nwant %v, %q", v.Key, v.Outcome, v.Reason, want[i].outcome, want[i].reason)
		}
	}
	if v := set.Explain(jwks.Want{Algorithm: encrypter.A256KW})[0]; v.Reason != "alg A256KW takes the client's secret, not a public key" {
		t.Errorf("for A256KW: %q", v.Reason)
	}
}

// TestErrorStaysShort with 100 keys whose every string is as long as it can be.
func TestErrorStaysShort(t *testing.T) {
	var keys []jwk
	for i := range 100 {
		keys = append(keys, with(rsaJWK(), "kid", fmt.Sprintf("%d%s", i, strings.Repeat("\n\U0001F512", 40)),
			"n", "AQ", "key_ops", []string{strings.Repeat("é", 200), "1", "2", "3", "4"}, "alg", strings.Repeat("é", 200)))
	}
	set := parse(t, keys...)
	if _, err := set.Choose(jwks.Want{Algorithm: encrypter.RSAOAEP}); err == nil || len(err.Error()) > 4<<10 {
		t.Errorf("error has %d bytes: %v", len(err.Error()), err)
	}
	_, err := set.Choose(jwks.Want{Algorithm: encrypter.KeyAlgorithm(strings.Repeat("x", 10_000)), KeyID: strings.Repeat("\x00", 10_000)})
	if err == nil || len(err.Error()) > 4<<10 || strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("error has %d bytes: %.300q", len(err.Error()), err)
	}
	if !strings.Contains(err.Error(), "and 92 more keys") {
		t.Errorf("error does not count the rest: %v", err)
	}
}

// TestNamesForOperators: the CLI and the API print these words.
func TestNamesForOperators(t *testing.T) {
	for got, want := range map[fmt.Stringer]string{
		jwks.Usable: "usable", jwks.Rejected: "rejected", jwks.Skipped: "skipped", jwks.State(9): "State(9)",
		jwks.Chosen: "chosen", jwks.Eligible: "eligible", jwks.Unfit: "unfit", jwks.Unusable: "unusable", jwks.Outcome(9): "Outcome(9)",
	} {
		if got.String() != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
