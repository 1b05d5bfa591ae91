package client

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/go-jose/go-jose/v4"
)

// wycheproofGroup is the part of a test group that concerns us.
type wycheproofGroup struct {
	Comment string          `json:"comment"`
	Private json.RawMessage `json:"private"`
	Public  json.RawMessage `json:"public"`
	Tests   []wycheproofTest
}

type wycheproofTest struct {
	ID        int       `json:"tcId"`
	Comment   string    `json:"comment"`
	Plaintext string    `json:"pt"`
	JWE       tokenText `json:"jwe"`
	JWS       tokenText `json:"jws"`
	Result    string    `json:"result"`
}

// tokenText is a token as the vectors have it: a string, or where it is in JSON
// serialization, an object.
type tokenText string

func (t *tokenText) UnmarshalJSON(raw []byte) error {
	if raw[0] != '"' {
		*t = tokenText(raw)
		return nil
	}
	return json.Unmarshal(raw, (*string)(t))
}

func wycheproofGroups(t testing.TB, name string) []wycheproofGroup {
	t.Helper()
	raw, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int               `json:"numberOfTests"`
		Groups        []wycheproofGroup `json:"testGroups"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range file.Groups {
		n += len(g.Tests)
	}
	if n == 0 || n != file.NumberOfTests {
		t.Fatalf("%s: read %d tests, it announces %d", name, n, file.NumberOfTests)
	}
	return file.Groups
}

// TestWycheproofTokens: what is valid opens or verifies, what is invalid does not, but
// for the vectors listed as otherwise. Those are the only ones on which the reader
// differs, with the reason.
func TestWycheproofTokens(t *testing.T) {
	const (
		roca      = "verifies, for keys of signers come from the issuer; registration refuses the key"
		noSecret  = "verifies, for a client's secret is no JWK: it has no alg, kid or use"
		otherAlg  = "refused: the key names another alg than the header"
		noAlg     = "refused: the key's alg ES521 does not exist"
		canonical = "refused: it is not base64url"
		same      = "verifies: it is the text of 357, which is valid; the padding that it is about is not there"
	)
	for _, file := range []struct {
		name              string
		accepted, refused int // so that an update of the vectors is looked at
		otherwise         map[int]string
	}{
		{"json_web_encryption_test.json", 64, 75, map[int]string{135: "refused: it is compressed"}},
		{"json_web_signature_test.json", 42, 359, map[int]string{
			346: otherAlg, 347: noAlg, 350: otherAlg, 351: noAlg, 367: same, 370: same, 372: canonical, 373: canonical,
		}},
		{"json_web_crypto_test.json", 7, 76, map[int]string{46: roca}},
		{"json_web_key_test.json", 9, 17, map[int]string{4: noSecret, 7: roca, 25: noSecret, 26: noSecret}},
	} {
		t.Run(strings.TrimSuffix(file.name, "_test.json"), func(t *testing.T) {
			accepted, refused := 0, 0
			for _, g := range wycheproofGroups(t, file.name) {
				for _, v := range g.Tests {
					want := v.Result == "valid"
					reason, ok := file.otherwise[v.ID]
					if ok {
						want = !want
					}
					got, err := wycheproofOpen(g, v)
					switch {
					case want && err != nil:
						t.Errorf("%d %s: refused: %v", v.ID, v.Comment, err)
					case want && v.Plaintext != "" && got != v.Plaintext:
						t.Errorf("%d %s: got plaintext %s, want %s", v.ID, v.Comment, got, v.Plaintext)
					case !want && err == nil:
						t.Errorf("%d %s: accepted (%s)", v.ID, v.Comment, reason)
					}
					if want {
						accepted++
					} else {
						refused++
					}
				}
			}
			if accepted != file.accepted || refused != file.refused {
				t.Errorf("%d to accept and %d to refuse, want %d and %d: the set of vectors has changed", accepted, refused, file.accepted, file.refused)
			}
		})
	}
}

// wycheproofOpen decrypts or verifies a vector with all that its group gives. The
// plaintext of a JWE is returned in hex.
func wycheproofOpen(g wycheproofGroup, v wycheproofTest) (string, error) {
	if v.JWS == "" && v.JWE != "" {
		keys, err := ParseKeys(g.Private)
		if err != nil {
			return "", err
		}
		signers, err := ParseSigners([]byte(anyPublicSigner))
		if err != nil {
			return "", err
		}
		o, err := NewOpener(OpenConfig{Keys: keys, Signers: signers, KeyAlgorithms: names(keyAlgorithms)})
		if err != nil {
			return "", err
		}
		e, err := parseEncrypted(string(v.JWE))
		if err != nil {
			return "", err
		}
		plaintext, err := o.decrypt(e)
		return hex.EncodeToString(plaintext), err
	}
	config := OpenConfig{AllowUnencrypted: true, ClientSecrets: secretsIn(g.Private)}
	if g.Public != nil {
		var err error
		if config.Signers, err = ParseSigners(g.Public); err != nil {
			return "", err
		}
	}
	o, err := NewOpener(config)
	if err != nil {
		return "", err
	}
	s, err := parseSigned(string(v.JWS))
	if err != nil {
		return "", err
	}
	_, err = o.verify(s)
	return "", err
}

// anyPublicSigner is the key of RFC 7515, appendix A.3, with a name.
const anyPublicSigner = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",` +
	`"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"a3","alg":"ES256"}`

// secretsIn returns the symmetric keys in a JWK or JWK Set that has no others: those
// of a party that shares a secret.
func secretsIn(document json.RawMessage) [][]byte {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(document, &set) != nil || set.Keys == nil {
		set.Keys = []json.RawMessage{document}
	}
	var secrets [][]byte
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil {
			return nil
		}
		secret, ok := key.Key.([]byte)
		if !ok {
			return nil
		}
		secrets = append(secrets, secret)
	}
	return secrets
}

// names lists all of a table, the legacy algorithms too.
func names[T fmt.Stringer](table []T) []string {
	var all []string
	for _, row := range table {
		all = append(all, row.String())
	}
	return all
}

// TestWycheproofMontgomeryAgreement: X25519 and X448 agree on the value of the vectors,
// and on none with a point of low order.
func TestWycheproofMontgomeryAgreement(t *testing.T) {
	for name, want := range map[string][2]int{
		"x25519_jwk_test.json": {487, 44},
		"x448_jwk_test.json":   {487, 36},
	} {
		raw, err := fs.ReadFile(wycheproof.TestVectors, name)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Groups []struct {
				Tests []struct {
					ID              int `json:"tcId"`
					Flags           []string
					Public, Private json.RawMessage
					Shared, Result  string
				}
			} `json:"testGroups"`
		}
		if err := json.Unmarshal(raw, &file); err != nil {
			t.Fatal(err)
		}
		agreed, refused := 0, 0
		for _, g := range file.Groups {
			for _, v := range g.Tests {
				keys, err := ParseKeys(v.Private)
				if err != nil {
					t.Errorf("%s %d: private key: %v", name, v.ID, err)
					continue
				}
				var got []byte
				epk, err := parseObject(v.Public)
				if err == nil {
					got, err = sharedSecret(keys[0].Key, epk)
				}
				// "acceptable" is all that is on the twist, not canonical or of low
				// order. Of these only the last is refused, by what comes of it: three
				// of the X448 vectors that are flagged so are of no low order.
				if v.Result == "invalid" || slices.Contains(v.Flags, "ZeroSharedSecret") {
					refused++
					if err == nil {
						t.Errorf("%s %d %v: agreed", name, v.ID, v.Flags)
					}
					continue
				}
				agreed++
				if err != nil || hex.EncodeToString(got) != v.Shared {
					t.Errorf("%s %d %v: got %x, %v, want %s", name, v.ID, v.Flags, got, err, v.Shared)
				}
			}
		}
		if agreed != want[0] || refused != want[1] {
			t.Errorf("%s: %d to agree and %d to refuse, want %v: the set of vectors has changed", name, agreed, refused, want)
		}
	}
}
