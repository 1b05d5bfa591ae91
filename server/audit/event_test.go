package audit

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

func fullEvent() Event {
	return Event{
		Time:                    time.Date(2026, 3, 1, 13, 4, 5, 678901234, time.FixedZone("CET", 3600)),
		Outcome:                 Issued,
		Reason:                  "NONE",
		Caller:                  "spiffe://example.com/idp",
		RPC:                     "/bulla.v1.TokenService/SignAndEncrypt",
		Issuer:                  "main",
		ClientID:                "app-1",
		TokenKind:               "ID_TOKEN",
		SigningKeyID:            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		SigningAlgorithm:        "ES256",
		EncryptionKeyID:         "enc-1",
		EncryptionKeyThumbprint: "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s",
		EncryptionAlgorithm:     "RSA-OAEP-256",
		ContentEncryption:       "A256GCM",
		JTI:                     "b7a1",
		TokenSHA256:             [32]byte{0: 0xab, 31: 0x01},
		OldThumbprint:           "old",
		NewThumbprint:           "new",
		Permission:              "issue",
		Settings:                "ID_TOKEN=ES256",
		KeySource:               "jwks",
		GrantsSHA256:            [32]byte{0: 0xcd},
		Revision:                7,
		EffectiveAt:             time.Date(2026, 3, 2, 1, 2, 3, 4000, time.FixedZone("CET", 3600)),
		DroppedThumbprint:       "dropped",
	}
}

// TestThePageExplainsEveryField: whoever reads the log reads docs/audit.md.
func TestThePageExplainsEveryField(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	e := fullEvent()
	var line map[string]any
	if err := json.Unmarshal(e.appendLine(nil), &line); err != nil {
		t.Fatal(err)
	}
	words := slices.Collect(maps.Keys(line))
	for _, o := range []Outcome{Issued, Changed, Unchanged, Denied, Failed, TookEffect} {
		words = append(words, string(o))
	}
	for _, word := range words {
		if !strings.Contains(string(page), "`"+word+"`") {
			t.Errorf("docs/audit.md does not explain `%s`", word)
		}
	}
}

func TestLineHoldsEveryField(t *testing.T) {
	e := fullEvent()
	got := string(e.appendLine(nil))
	want := `{"v":1,"time":"2026-03-01T12:04:05.678901Z","outcome":"issued","reason":"NONE",` +
		`"caller":"spiffe://example.com/idp","rpc":"/bulla.v1.TokenService/SignAndEncrypt",` +
		`"permission":"issue","issuer":"main","client_id":"app-1","token_kind":"ID_TOKEN",` +
		`"signing_key_id":"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs","signing_algorithm":"ES256",` +
		`"encryption_key_id":"enc-1","encryption_key_thumbprint":"cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s",` +
		`"encryption_algorithm":"RSA-OAEP-256","content_encryption":"A256GCM","jti":"b7a1",` +
		`"token_sha256":"ab` + strings.Repeat("00", 30) + `01",` +
		`"old_thumbprint":"old","new_thumbprint":"new","settings":"ID_TOKEN=ES256","key_source":"jwks",` +
		`"grants_sha256":"cd` + strings.Repeat("00", 31) + `","revision":7,` +
		`"effective_at":"2026-03-02T00:02:03.000004Z","dropped_thumbprint":"dropped"}` + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	if _, err := hex.DecodeString("ab" + strings.Repeat("00", 30) + "01"); err != nil {
		t.Fatal(err)
	}
}

func TestEmptyFieldsAreLeftOut(t *testing.T) {
	e := Event{Time: time.Unix(0, 0), Outcome: Denied}
	want := `{"v":1,"time":"1970-01-01T00:00:00.000000Z","outcome":"denied"}` + "\n"
	if got := string(e.appendLine(nil)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestHostileTextStaysInItsField(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"quote and line feed":    {"a\"}\n{\"outcome\":\"issued", `"a\"}\u000a{\"outcome\":\"issued"`},
		"terminal escape":        {"\x1b[2J\x7f", `"\u001b[2J\u007f"`},
		"C1 control":             {"\u009b31m", `"\u009b31m"`},
		"right-to-left override": {"a\u202eb", `"a\u202eb"`},
		"line separator":         {"a\u2028b", `"a\u2028b"`},
		"tag beyond the plane":   {"\U000e0041", `"\udb40\udc41"`},
		"broken UTF-8":           {"a\xff\xc3(", `"a\ufffd\ufffd("`},
		"letters of any script":  {"größe 署名", `"größe 署名"`},
		"backslash":              {`a\u0000`, `"a\\u0000"`},
		"cut":                    {strings.Repeat("x", maxText+1), `"` + strings.Repeat("x", maxText) + `…"`},
		"cut through a letter":   {strings.Repeat("x", maxText-1) + "ß", `"` + strings.Repeat("x", maxText-1) + `…"`},
		"just not cut":           {strings.Repeat("x", maxText), `"` + strings.Repeat("x", maxText) + `"`},
	} {
		t.Run(name, func(t *testing.T) {
			want := `,"client_id":` + tc.want
			if got := string(appendText(nil, "client_id", tc.text)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// FuzzLine: whatever the fields hold, one event is one line of strict JSON
// that has only printable characters, is bounded, and gives back short texts.
func FuzzLine(f *testing.F) {
	f.Add("app-1", "CALLER_NOT_ALLOWED")
	f.Add("\"}\n{", "\x00\xff\xe2\x82")
	f.Add("\u2028\U000e0041\ufffd", strings.Repeat("ß", 600))
	f.Fuzz(func(t *testing.T, client, reason string) {
		e := Event{Time: time.Unix(1, 0), Outcome: Failed, ClientID: client, Reason: reason}
		line := e.appendLine(nil)
		body, ok := strings.CutSuffix(string(line), "\n")
		if !ok || !jsontext.Value(body).IsValid() {
			t.Fatalf("not one line of strict JSON: %q", line)
		}
		for _, r := range body {
			if !unicode.IsPrint(r) {
				t.Fatalf("%U is not printable: %q", r, line)
			}
		}
		if len(line) > 2*6*maxText+200 {
			t.Fatalf("the line has %d bytes", len(line))
		}
		var back struct {
			ClientID string `json:"client_id"`
		}
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(client) && len(client) <= maxText && back.ClientID != client {
			t.Fatalf("client_id: got %q, want %q", back.ClientID, client)
		}
	})
}
