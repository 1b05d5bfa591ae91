package client

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/go-jose/go-jose/v4"
)

// wycheproofGroup is the part of a test group that concerns us.
type wycheproofGroup struct {
	Comment string          `json:"comment"`
	Private json.RawMessage `json:"private"`
	Public  json.RawMessage `json:"public"`
	Tests   []struct {
		ID        int    `json:"tcId"`
		Comment   string `json:"comment"`
		Plaintext string `json:"pt"`
		JWE       string `json:"jwe"`
		JWS       string `json:"jws"`
		Result    string `json:"result"`
	} `json:"tests"`
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

// span is a range of test numbers, both ends included.
type span struct {
	from, to int
	reason   string
}

func inSpan(spans []span, id int) (string, bool) {
	i := slices.IndexFunc(spans, func(s span) bool { return s.from <= id && id <= s.to })
	if i < 0 {
		return "", false
	}
	return spans[i].reason, true
}

// The vectors that are outside of what the reader knows: it must refuse them all,
// the valid ones too, and say so by ErrNotAllowed or when it is given the key.
var outsideEncryption = []span{
	{1, 32, "A256KW: a symmetric key is no key of the reader"},
	{69, 70, "A128KW, A192KW: likewise"},
	{71, 75, "A128GCMKW, A192GCMKW, A256GCMKW: likewise"},
	{100, 105, "RSA1_5 is not supported"},
	{106, 109, "A128KW, A256KW, A128GCMKW, A256GCMKW: symmetric"},
	{112, 120, "RSA1_5 is not supported"},
	{128, 128, "RSA1_5 is not supported"},
	{132, 139, "dir, A128KW, A256GCMKW: symmetric"},
}

func TestWycheproofEncryption(t *testing.T) {
	opened, refused, outside := 0, 0, 0
	for _, g := range wycheproofGroups(t, "json_web_encryption_test.json") {
		keys, keyErr := ParseKeys(g.Private)
		for _, v := range g.Tests {
			t.Run(fmt.Sprintf("%d %s", v.ID, v.Comment), func(t *testing.T) {
				_, isOutside := inSpan(outsideEncryption, v.ID)
				if keyErr != nil && !isOutside {
					t.Fatalf("key refused: %v", keyErr)
				}
				got, err := wycheproofDecrypt(t, keys, v.JWE)
				switch {
				case isOutside:
					outside++
					if keyErr == nil && !errors.Is(err, ErrNotAllowed) {
						t.Errorf("got error %v, want ErrNotAllowed", err)
					}
				case v.Result == "valid":
					opened++
					if err != nil {
						t.Fatalf("valid token not opened: %v", err)
					}
					if want, _ := hex.DecodeString(v.Plaintext); string(got) != string(want) {
						t.Errorf("got plaintext %x, want %x", got, want)
					}
				case v.Result == "invalid":
					refused++
					if err == nil {
						t.Errorf("invalid token opened")
					}
				default:
					t.Fatalf("unknown result %q", v.Result)
				}
			})
		}
	}
	// The numbers are checked so that an update of the vectors is looked at.
	t.Logf("opened %d valid, refused %d invalid, outside %d", opened, refused, outside)
	if opened != 39 || refused != 33 || outside != 67 {
		t.Errorf("opened %d, refused %d, outside %d: the set of vectors has changed", opened, refused, outside)
	}
}

func wycheproofDecrypt(t *testing.T, keys []jose.JSONWebKey, token string) ([]byte, error) {
	t.Helper()
	if len(keys) == 0 {
		return nil, ErrNoKey
	}
	o, err := NewOpener(OpenConfig{Keys: keys, Signers: anySigner(t)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := parseEncrypted(token)
	if err != nil {
		return nil, err
	}
	return o.decrypt(e)
}

var outsideSignature = []span{
	{1, 17, "HS256: a symmetric key is no signer"},
	{346, 346, "the key says PS256, the header PS384: a key is good for the alg it names"},
	{347, 347, "the key says ES521, which is no algorithm"},
	{348, 348, "HS256"},
	{350, 350, "the key says PS256, the header PS384"},
	{351, 351, "the key says ES521, which is no algorithm"},
	{352, 352, "HS256"},
	{357, 377, "HS256"},
}

func TestWycheproofSignature(t *testing.T) {
	verified, refused, outside := 0, 0, 0
	for _, g := range wycheproofGroups(t, "json_web_signature_test.json") {
		public := g.Public
		if public == nil {
			public = g.Private // symmetric
		}
		signers, keyErr := ParseSigners(public)
		for _, v := range g.Tests {
			t.Run(fmt.Sprintf("%d %s", v.ID, v.Comment), func(t *testing.T) {
				_, isOutside := inSpan(outsideSignature, v.ID)
				if keyErr != nil && !isOutside && v.Result == "valid" {
					t.Fatalf("key refused: %v", keyErr)
				}
				err := wycheproofVerify(t, signers, v.JWS)
				switch {
				case isOutside:
					outside++
					if err == nil {
						t.Error("verified, though outside")
					}
				case v.Result == "valid":
					verified++
					if err != nil {
						t.Errorf("valid signature refused: %v", err)
					}
				case v.Result == "invalid":
					refused++
					if err == nil {
						t.Error("invalid signature verified")
					}
				default:
					t.Fatalf("unknown result %q", v.Result)
				}
			})
		}
	}
	t.Logf("verified %d valid, refused %d invalid, outside %d", verified, refused, outside)
	if verified != 32 || refused != 325 || outside != 44 {
		t.Errorf("verified %d, refused %d, outside %d: the set of vectors has changed", verified, refused, outside)
	}
}

func wycheproofVerify(t *testing.T, signers []jose.JSONWebKey, token string) error {
	t.Helper()
	if len(signers) == 0 {
		return ErrUnknownSigner
	}
	o, err := NewOpener(OpenConfig{Signers: signers, AllowUnencrypted: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSigned(token)
	if err != nil {
		return err
	}
	_, err = o.verify(s)
	return err
}
