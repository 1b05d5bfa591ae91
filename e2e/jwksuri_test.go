package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// b64 writes n bytes, the last of them given, as base64url.
func b64(n int, last byte) string {
	b := bytes.Repeat([]byte{0xc7}, n)
	b[n-1] = last
	return base64.RawURLEncoding.EncodeToString(b)
}

func rsaJWK(bits int, e string) string {
	return fmt.Sprintf(`{"kty":"RSA","use":"enc","kid":"weak","n":%q,"e":%q}`, b64(bits/8, 0xc7), e)
}

// badSets are key sets that nobody should be encrypted to, and what is said of
// them when they are registered as they are.
func badSets(t testing.TB) []badSet {
	t.Helper()
	good := string(anyKey().PublicJWK())
	signing := harness.NewClientKey(t, "P-256", "for-signatures")
	signing.Use = "sig"
	offCurve := fmt.Sprintf(`{"kty":"EC","crv":"P-256","use":"enc","x":%q,"y":%q}`, b64(32, 1), b64(32, 2))
	many := strings.Repeat(good+",", 100_000)
	return []badSet{
		{"a private member", `{"keys":[` + string(anyKey().PrivateJWK()) + `]}`, "KEY_REJECTED", "private"},
		{"a private member in another key", `{"keys":[` + good + "," + string(otherKey().PrivateJWK()) + `]}`, "KEY_REJECTED", "private"},
		{"a symmetric key", `{"keys":[` + good + `,{"kty":"oct","k":"AAAA"}]}`, "KEY_REJECTED", "symmetric"},
		{"only sig keys", string(harness.JWKS(signing)), "CLIENT_KEY_UNUSABLE", "sig"},
		{"an RSA key of 1024 bits", `{"keys":[` + rsaJWK(1024, "AQAB") + `]}`, "KEY_REJECTED", "1024"},
		{"an RSA key with an even exponent", `{"keys":[` + rsaJWK(2048, "AQAA") + `]}`, "KEY_REJECTED", "e"},
		{"a point off the curve", `{"keys":[` + offCurve + `]}`, "KEY_REJECTED", "P-256"},
		{"10 MB of JSON", `{"keys":[` + good + `],"x":"` + strings.Repeat("a", 10<<20) + `"}`, "", ""},
		{"100 000 keys", `{"keys":[` + strings.TrimSuffix(many, ",") + `]}`, "", ""},
		{"10 000 keys", `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{"kty":""},`, 10_000), ",") + `]}`, "KEY_REJECTED", "100"},
		{"101 keys", `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{"kty":"OKP"},`, 101), ",") + `]}`, "KEY_REJECTED", "100"},
		{"deep nesting", `{"keys":[],"x":` + strings.Repeat("[", 50_000) + strings.Repeat("]", 50_000) + `}`, "KEY_REJECTED", "nest"},
		{"a name twice", `{"keys":[` + good + `],"keys":[]}`, "KEY_REJECTED", "twice"},
		{"no JSON", `<html>`, "KEY_REJECTED", "JSON"},
		{"nothing", `{"keys":[]}`, "CLIENT_KEY_UNUSABLE", ""},
	}
}

// badSet is a document, and the reason and a word of the answer when it is
// registered; the reason is empty where a document is too long for that.
type badSet struct{ what, doc, reason, word string }

// settingFor is a setting that the set's key would fit.
func (b badSet) setting() *bullav1.ResponseSetting {
	if strings.Contains(b.doc, `"RSA"`) {
		return setting("RSA-OAEP-256", "A256GCM")
	}
	return setting("ECDH-ES", "A256GCM")
}

func TestBadKeySetsAreRefusedAtRegistration(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	for i, b := range badSets(t) {
		t.Run(b.what, func(t *testing.T) {
			clientID := fmt.Sprintf("bad-set-%d", i)
			_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withJWKS(clientID, []byte(b.doc), b.setting()))
			if b.reason == "" {
				// Longer than a message, or than a registration may be.
				if err == nil {
					t.Fatal("got no error")
				}
				f := failureOf(t, err)
				if !strings.Contains(f.String(), "bytes") && !strings.Contains(f.String(), "larger than max") {
					t.Errorf("got %v, want the limit in it", f)
				}
			} else {
				mustFail(t, err, b.reason, b.word)
			}
			_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: clientID})
			mustFail(t, err, "CLIENT_NOT_REGISTERED")
		})
	}
}

// TestBadKeySetsAreNeverTakenFromAHost serves the same sets: whoever registers the
// URL learns that it failed, and under which number the log has the reason; a
// client whose host begins to serve such a set goes on with the last good one.
func TestBadKeySetsAreNeverTakenFromAHost(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	for i, b := range badSets(t) {
		t.Run(b.what, func(t *testing.T) {
			path := fmt.Sprintf("/bad-set-%d", i)
			url := shared.host.Serve(path, []byte(b.doc), time.Hour)
			_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withURI("bad"+path, url, b.setting()))
			f := failureOf(t, err)
			switch f.reason {
			case "CLIENT_KEYS_UNAVAILABLE":
				mustBeOnRecord(t, f)
			case "KEY_REJECTED", "CLIENT_KEY_UNUSABLE":
				// The set is sound and its keys do not fit: the same as above.
				mustFail(t, err, b.reason, b.word)
			default:
				t.Errorf("got %v", f)
			}

			path += "-later"
			key := anyKey()
			if strings.HasPrefix(b.setting().GetEncryptionAlgorithm(), "RSA") {
				key = rsaKey()
			}
			mustRegister(t, admin, withURI("bad"+path, shared.host.Serve(path, harness.JWKS(key), time.Hour), b.setting()))
			shared.host.Serve(path, []byte(b.doc), time.Hour)
			_, err = admin.ClientKeys.RefreshClientKey(t.Context(), &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "bad" + path})
			if f.reason == "CLIENT_KEYS_UNAVAILABLE" {
				mustFail(t, err, f.reason)
				open(t, shared.Service, key, mustIssue(t, admin, idToken("bad"+path)).GetToken())
				if state := mustGet(t, admin, "bad"+path).GetState(); state != stateFailing {
					t.Errorf("the client is %s, want FAILING", state)
				}
				return
			}
			// A sound set that has lost the key stops its use at once.
			if err != nil {
				t.Errorf("refresh: %v", err)
			}
			if state := mustGet(t, admin, "bad"+path).GetState(); state != stateUnfit {
				t.Errorf("the client is %s, want NO_USABLE_KEY", state)
			}
			if _, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken("bad"+path)); err == nil {
				t.Error("a token was issued to a key that its owner has withdrawn")
			}
		})
	}
}

// mustBeOnRecord checks that a failed fetch told its caller nothing but a number,
// and that the log has the reason under it.
func mustBeOnRecord(t testing.TB, f failure) string {
	t.Helper()
	_, id, ok := strings.Cut(strings.TrimSuffix(f.text, ")"), "(incident ")
	if !ok || f.text != "the client's keys could not be fetched (incident "+id+")" {
		t.Fatalf("got %q, want the fixed text and an incident", f.text)
	}
	return shared.WaitLog(t, id)
}

func TestURIsThatCannotBeFetchedAreRefusedByTheirText(t *testing.T) {
	admin := shared.Caller(t, harness.Admin)
	port := shared.host.Port()
	for uri, word := range map[string]string{
		"http://app.example.com/jwks":                              "https",
		"ftp://app.example.com/jwks":                               "https",
		"//app.example.com/jwks":                                   "https",
		"https://user:secret@app.example.com/jwks":                 "leave it out",
		"https://app.example.com/jwks#frag":                        "fragment",
		"https://app.example.com:8443/jwks":                        "allow_ports",
		"https://localhost/jwks":                                   "localhost",
		"https://intranet/jwks":                                    "single label",
		"https://10.0.0.1/jwks":                                    "address",
		"https://169.254.169.254/latest/meta-data":                 "address",
		fmt.Sprintf("https://127.0.0.1:%d/jwks", port):             "address",
		fmt.Sprintf("https://2130706433:%d/jwks", port):            "notation",
		fmt.Sprintf("https://[::ffff:127.0.0.5]:%d/", port):        "IPv6",
		"https://[::1]/jwks":                                       "address",
		"https://app.example.com/" + strings.Repeat("a", 3000):     "bytes",
		"https://app.example.com/\x7f":                             "",
		"https://app.example.com/é":                                "percent-encode",
		"https://app.example.com./jwks":                            "dot",
		"https://app_1.example.com/jwks":                           "DNS name",
		"":                                                         "empty",
		"https://" + strings.Repeat("a", 64) + ".example.com/jwks": "label",
	} {
		req := withURI("bad-uri", uri)
		_, err := admin.ClientKeys.RegisterClientKey(t.Context(), req)
		f := mustFail(t, err, "URI_REJECTED", word)
		if strings.Contains(f.text, "secret") {
			t.Errorf("%q: the error repeats the password: %s", uri, f.text)
		}
		// Nor does allow_unfetched let it in.
		req.AllowUnfetched = true
		_, err = admin.ClientKeys.RegisterClientKey(t.Context(), req)
		mustFail(t, err, "URI_REJECTED")
	}
}

// TestHostsThatMisbehaveAreNamedOnlyInTheLog has hosts that fail in every way: their
// caller learns one fixed text and a number.
func TestHostsThatMisbehaveAreNamedOnlyInTheLog(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	good := harness.JWKS(anyKey())
	redirect := func(status int) harness.Answer {
		return harness.Answer{Status: status, Header: map[string]string{"Location": shared.host.URL("/good")}}
	}
	shared.host.Serve("/good", good, time.Hour)
	for _, test := range []struct {
		name   string
		answer harness.Answer
		uri    string // in place of the host's
		log    string
	}{
		{"not-found", harness.Answer{Status: http.StatusNotFound}, "", "status_404"},
		{"error", harness.Answer{Status: 500, Body: good, Header: map[string]string{"Cache-Control": "max-age=86400"}}, "", "status_500"},
		{"moved", redirect(http.StatusMovedPermanently), "", "redirect"},
		{"see-other", redirect(http.StatusTemporaryRedirect), "", "redirect"},
		{"not-modified", harness.Answer{Status: http.StatusNotModified}, "", "304"},
		{"html", harness.Answer{Body: []byte("<html>"), Header: map[string]string{"Content-Type": "text/html"}}, "", "content_type"},
		{"compressed", harness.Answer{Body: good, Header: map[string]string{"Content-Encoding": "gzip"}}, "", "content_encoding"},
		{"too-large", harness.Answer{Body: append(bytes.Repeat([]byte(" "), 128<<10), good...)}, "", "too_large"},
		{"hang", harness.Answer{Hang: true}, "", "timeout"},
		{"no-name", harness.Answer{}, "https://nothing-there.invalid/jwks", "dns"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := "/misbehaves/" + test.name
			shared.host.Set(path, test.answer)
			uri := shared.host.URL(path)
			if test.uri != "" {
				uri = test.uri
			}
			id := "misbehaves-" + test.name
			began := time.Now()
			_, err := admin.ClientKeys.RegisterClientKey(t.Context(), withURI(id, uri))
			f := mustFail(t, err, "CLIENT_KEYS_UNAVAILABLE")
			if line := mustBeOnRecord(t, f); !strings.Contains(line, test.log) {
				t.Errorf("the log says %q, want %q in it", line, test.log)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("it took %v, want some 5 s at most", took)
			}
			_, err = admin.ClientKeys.GetClientKey(t.Context(), &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: id})
			mustFail(t, err, "CLIENT_NOT_REGISTERED")

			// Registered all the same, it is not served before there is a key.
			req := withURI(id, uri)
			req.AllowUnfetched = true
			key := mustRegister(t, admin, req)
			if key.GetState() != stateFailing || key.GetStateReason() == "" {
				t.Errorf("got %s %q, want FAILING and why", key.GetState(), key.GetStateReason())
			}
			_, err = admin.Tokens.SignAndEncrypt(t.Context(), idToken(id))
			f = mustFail(t, err, "CLIENT_KEYS_UNAVAILABLE")
			mustHavePushback(t, trailer(t, func(ctx context.Context, opts ...grpc.CallOption) error {
				_, err := admin.Tokens.SignAndEncrypt(ctx, idToken(id), opts...)
				return err
			}))
			// An error's max-age is not believed: the next look is soon.
			if f.retry > 10*time.Minute {
				t.Errorf("to be tried again after %v", f.retry)
			}
		})
	}
	t.Cleanup(func() {
		if n := shared.host.Hits("/good"); n != 0 {
			t.Errorf("a redirect was followed %d times", n)
		}
	})
}

// TestHostThatComesToLifeIsUsed registers a client before its host is there.
func TestHostThatComesToLifeIsUsed(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	req := withURI("late-host", shared.host.URL("/late-host"))
	req.AllowUnfetched = true
	mustRegister(t, admin, req)
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("late-host"))
	mustFail(t, err, "CLIENT_KEYS_UNAVAILABLE")
	shared.host.Serve("/late-host", harness.JWKS(anyKey()), time.Hour)
	if _, err := admin.ClientKeys.RefreshClientKey(t.Context(), &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "late-host"}); err != nil {
		t.Fatal(err)
	}
	open(t, shared.Service, anyKey(), mustIssue(t, admin, idToken("late-host")).GetToken())
}

// TestRotatedKeyIsPickedUpWithoutAsking lets a set run out and be fetched in the
// background.
func TestRotatedKeyIsPickedUpWithoutAsking(t *testing.T) {
	t.Parallel()
	admin := shared.Caller(t, harness.Admin)
	url := shared.host.Serve("/rotated", harness.JWKS(anyKey()), time.Second)
	mustRegister(t, admin, withURI("rotated", url))
	mustIssue(t, admin, idToken("rotated"))
	shared.host.Serve("/rotated", harness.JWKS(otherKey()), time.Second)
	harness.Eventually(t, func() error {
		if to := mustIssue(t, admin, idToken("rotated")).GetEncryptionKeyId(); to != otherKey().KeyID {
			return fmt.Errorf("encrypted to %s, want the new key", to)
		}
		return nil
	})
}

// TestClientIsServedWhileItsHostIsDown covers the life of a last good set: host
// down, service killed and started again, and the bound after which it is over.
func TestClientIsServedWhileItsHostIsDown(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host, Fetch: harness.M{"min_refresh": "1s"}})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withURI("short", host.Serve("/short", harness.JWKS(anyKey()), time.Second)))
	mustRegister(t, admin, withURI("long", host.Serve("/long", harness.JWKS(anyKey()), time.Hour)))
	if mustIssue(t, admin, idToken("long")).GetClientKeysStale() {
		t.Error("the keys are stale from the start")
	}

	host.Down()
	mustBeStale := func(when string) {
		t.Helper()
		harness.Eventually(t, func() error {
			res := mustIssue(t, admin, idToken("short"))
			open(t, s, anyKey(), res.GetToken())
			if !res.GetClientKeysStale() {
				return fmt.Errorf("%s: not flagged as stale", when)
			}
			return nil
		})
		if key := mustGet(t, admin, "short"); key.GetState() != stateStale || key.GetExpiresAt() == nil {
			t.Errorf("%s: got %v, want STALE and when it ends", when, key)
		}
		res := mustIssue(t, admin, idToken("long"))
		open(t, s, anyKey(), res.GetToken())
		if res.GetClientKeysStale() || res.GetClientKeysFetchedAt() == nil {
			t.Errorf("%s: got %v, want fresh keys and when they were fetched", when, res)
		}
	}
	mustBeStale("host down")
	s.Kill(t)
	s.Run(t)
	s.WaitReady(t)
	mustBeStale("after a restart")

	s.Kill(t)
	s.Reconfigure(t, func(tree harness.M) { tree["fetch"].(harness.M)["max_stale"] = "1s" })
	s.Run(t)
	s.WaitReady(t)
	harness.Eventually(t, func() error {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("short"))
		if err == nil {
			return fmt.Errorf("still served")
		}
		mustFail(t, err, "CLIENT_KEYS_EXPIRED", "too old")
		return nil
	})
	if state := mustGet(t, admin, "short").GetState(); state != stateExpired {
		t.Errorf("got %s, want EXPIRED", state)
	}
	open(t, s, anyKey(), mustIssue(t, admin, idToken("long")).GetToken())

	host.Serve("/short", harness.JWKS(otherKey()), time.Hour)
	host.Up(t)
	harness.Eventually(t, func() error {
		res, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("short"))
		if err != nil {
			return err
		}
		open(t, s, otherKey(), res.GetToken())
		return nil
	})
}

// TestNameThatLeadsInsideIsNotDialed: a name is let through by its text and stands
// for an address that has not been opened.
func TestNameThatLeadsInsideIsNotDialed(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host, Fetch: harness.M{"allow_hosts": []string{"localhost"}}})
	_, err := s.Caller(t, harness.Admin).ClientKeys.RegisterClientKey(t.Context(), withURI("inside", fmt.Sprintf("https://localhost:%d/jwks", host.Port())))
	mustFail(t, err, "CLIENT_KEYS_UNAVAILABLE")
	s.WaitLog(t, "blocked_address")
}
