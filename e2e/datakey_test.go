package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// datakey runs "bulla datakey" on a service's configuration.
func datakey(t testing.TB, s *harness.Service, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := s.Command(t, append([]string{"datakey", "--config", s.ConfigFile}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// mustDatakey is datakey for what has to succeed without a word of warning.
func mustDatakey(t testing.TB, s *harness.Service, args ...string) string {
	t.Helper()
	stdout, stderr, err := datakey(t, s, args...)
	if err != nil || stderr != "" {
		t.Fatalf("bulla datakey %v: %v\n%s%s", args, err, stdout, stderr)
	}
	return stdout
}

// mustRefuse is datakey for what has to fail with some words.
func mustRefuse(t testing.TB, s *harness.Service, args []string, words ...string) {
	t.Helper()
	stdout, stderr, err := datakey(t, s, args...)
	if err == nil || stdout != "" {
		t.Errorf("bulla datakey %v: got %v and %q, want a refusal", args, err, stdout)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("bulla datakey %v: got %q, want %q in it", args, stderr, word)
		}
	}
}

// keyInfo is an object of "datakey list -o json".
type keyInfo struct {
	ID        string    `json:"id"`
	Current   bool      `json:"current"`
	WrappedBy string    `json:"wrapped_by"`
	CreatedAt time.Time `json:"created_at"`
	Problem   string    `json:"problem"`
}

func dataKeys(t testing.TB, s *harness.Service) []keyInfo {
	t.Helper()
	var list []keyInfo
	if err := json.Unmarshal([]byte(mustDatakey(t, s, "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// wantOneKey fails the test unless one data key is left: the current one, sound
// and wrapped by a key of the token "hsm". It returns its id.
func wantOneKey(t testing.TB, s *harness.Service, label string) string {
	t.Helper()
	list := dataKeys(t, s)
	if len(list) != 1 || !list[0].Current || list[0].Problem != "" || list[0].WrappedBy != "hsm:object="+label {
		t.Fatalf("got the data keys %+v, want one, current and wrapped by %s", list, label)
	}
	return list[0].ID
}

// wantNothingUnder fails the test if a row of the store names a data key.
func wantNothingUnder(t testing.TB, s *harness.Service, id string) {
	t.Helper()
	editStore(t, s, func(tx *bbolt.Tx) error {
		return rowsWith(tx, "", func(_ *bbolt.Bucket, k, v []byte) error {
			if bytes.Contains(k, []byte(id)) || bytes.Contains(v, []byte(id)) {
				t.Errorf("the row %q still names %s", k, id)
			}
			return nil
		})
	})
}

const keptSecret = "a secret that is sealed again and again: 0123456789abcdef"

// fillStore registers a client of each kind of source.
func fillStore(t testing.TB, s *harness.Service) {
	t.Helper()
	admin := s.Caller(t, harness.Admin)
	hs := setting("A256KW", "A256GCM")
	hs.SigningAlgorithm = "HS256"
	mustRegister(t, admin, withSecret("kept-hs", keptSecret, hs))
	mustRegister(t, admin, withSecret("kept-dir", keptSecret, setting("dir", "A256CBC-HS512")))
	mustRegister(t, admin, withJWKS("kept-jwks", harness.JWKS(anyKey())))
	mustRegister(t, admin, withJWKS("kept-gone", harness.JWKS(anyKey())))
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "kept-gone"}); err != nil {
		t.Fatal(err)
	}
}

// wantFilledStore starts the service, has it issue tokens for the clients of
// fillStore, opens them with go-jose, and stops it.
func wantFilledStore(t testing.TB, s *harness.Service) {
	t.Helper()
	s.Run(t)
	s.WaitReady(t)
	admin := s.Caller(t, harness.Admin)
	openWith(t, s, mustIssue(t, admin, idToken("kept-hs")).GetToken(), leftmost(keptSecret, 32), []byte(keptSecret))
	openWith(t, s, mustIssue(t, admin, idToken("kept-dir")).GetToken(), leftmost(keptSecret, 64), nil)
	openWith(t, s, mustIssue(t, admin, idToken("kept-jwks")).GetToken(), anyKey().Key, nil)
	_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("kept-gone"))
	mustFail(t, err, "CLIENT_NOT_REGISTERED")
	if r := mustGet(t, admin, "kept-hs").GetRevision(); r != "1" {
		t.Errorf("got revision %s, want that of the registration: sealing anew changes nothing of it", r)
	}
	if log := s.Log(); strings.Contains(log, "fails its authentication") {
		t.Errorf("the log tells of records that fail their authentication:\n%s", log)
	}
	s.Terminate(t)
}

func TestDataKeyIsReplaced(t *testing.T) {
	t.Parallel()
	s := harness.New(t, harness.Config{Token: shared.token, CA: shared.ca})
	mustRefuse(t, s, []string{"list"}, "there is no store at "+filepath.Join(s.Dir, "bulla.db"), "the service makes it when it starts")
	if _, err := os.Stat(filepath.Join(s.Dir, "bulla.db")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("to look at the data keys made a store (%v)", err)
	}
	mustRefuse(t, s, []string{"list", "--config", "nowhere.yaml"}, "nowhere.yaml: the configuration cannot be read")
	mustRefuse(t, s, []string{"replace", "now"}, `unexpected argument "now"`)

	s.Run(t)
	s.WaitReady(t)
	fillStore(t, s)
	for _, what := range []string{"list", "replace"} {
		mustRefuse(t, s, []string{what}, "bulla: the service is running", "stop it")
	}
	s.Terminate(t)

	if first := wantOneKey(t, s, harness.WrappingLabel); first != "dk-1" {
		t.Errorf("got %s, want dk-1", first)
	}
	text := mustDatakey(t, s, "list")
	for _, want := range []string{"ID ", "dk-1  yes      hsm:object=wrap  20"} {
		if !strings.Contains(text, want) {
			t.Errorf("got the list\n%s\nwant %q in it", text, want)
		}
	}
	const said = "dk-2 is the data key now: 5 records sealed anew under it, 1 old data key removed\n" // a ring and four clients
	if text := mustDatakey(t, s, "replace"); text != said {
		t.Errorf("got %q, want %q", text, said)
	}
	wantOneKey(t, s, harness.WrappingLabel)
	wantNothingUnder(t, s, "dk-1")
	wantFilledStore(t, s)

	// What the doctor says of it, beside no service.
	cmd := s.Command(t, "doctor", "--config", s.ConfigFile)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "dk-2: unwrapped; dk-2 is the current one") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

func TestWrappingKeyIsReplaced(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-rewrap", kms.ES256, kms.RS256)
	token.GenerateWrappingKey("wrap-2", "f1")
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	fillStore(t, s)
	s.Terminate(t)

	next := harness.M{"backend": "hsm", "key": "object=wrap-2"}
	s.Reconfigure(t, func(tree harness.M) { tree["wrapping"] = next })
	list := dataKeys(t, s)
	if len(list) != 1 || list[0].Current || !strings.Contains(list[0].Problem, "name it as a former one") {
		t.Errorf("without the former wrapping key: got %+v", list)
	}
	s.Reconfigure(t, func(harness.M) { next["former"] = []string{"hsm:object=" + harness.WrappingLabel} })
	if list := dataKeys(t, s); len(list) != 1 || list[0].Current || list[0].Problem != "" {
		t.Errorf("with it: got %+v", list)
	}
	// To look has made no key.
	if text := mustDatakey(t, s, "replace"); !strings.Contains(text, " is the data key now: 5 records sealed anew under it, ") {
		t.Errorf("got %q", text)
	}
	wantOneKey(t, s, "wrap-2")
	s.Reconfigure(t, func(harness.M) { delete(next, "former") })
	token.DeleteObject("secrkey", harness.WrappingLabel)
	wantFilledStore(t, s)
}

// TestReplaceWithAForgottenWrappingKeyLosesNothing: what is stored under a data
// key that the configuration does not know must outlive the command.
func TestReplaceWithAForgottenWrappingKeyLosesNothing(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-forgotten", kms.ES256, kms.RS256)
	token.GenerateWrappingKey("wrap-2", "f1")
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	fillStore(t, s)
	s.Terminate(t)

	next := harness.M{"backend": "hsm", "key": "object=wrap-2"}
	s.Reconfigure(t, func(tree harness.M) { tree["wrapping"] = next })
	refuse := func() {
		t.Helper()
		mustRefuse(t, s, []string{"replace"}, "bulla: no data key was made and no record was changed", `"dk-1"`,
			"the configuration does not name", "wrapping.former", `"bulla doctor"`)
	}
	for range 3 {
		refuse()
	}
	if list := dataKeys(t, s); len(list) != 1 || list[0].ID != "dk-1" {
		t.Errorf("got %+v, want dk-1 and no other", list)
	}
	s.Reconfigure(t, func(harness.M) { next["former"] = []string{"hsm:object=" + harness.WrappingLabel} })
	if text := mustDatakey(t, s, "replace"); text != "dk-2 is the data key now: 5 records sealed anew under it, 1 old data key removed\n" {
		t.Errorf("got %q", text)
	}
	wantOneKey(t, s, "wrap-2")
	wantFilledStore(t, s)
}

// TestReplaceGoesOnWithTheKeyOfTheService: the service makes a data key when it
// finds another wrapping key in its configuration.
func TestReplaceGoesOnWithTheKeyOfTheService(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-goes-on", kms.ES256, kms.RS256)
	token.GenerateWrappingKey("wrap-2", "f1")
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	fillStore(t, s)
	s.Terminate(t)
	s.Reconfigure(t, func(tree harness.M) {
		tree["wrapping"] = harness.M{"backend": "hsm", "key": "object=wrap-2", "former": []string{"hsm:object=" + harness.WrappingLabel}}
	})
	s.Run(t)
	s.WaitReady(t)
	mustRegister(t, s.Caller(t, harness.Admin), withJWKS("new", harness.JWKS(anyKey())))
	s.Terminate(t)

	text := mustDatakey(t, s, "replace")
	if !strings.HasPrefix(text, "dk-2 is the data key now: 5 records sealed anew under it, 1 old data key removed\n") || !strings.Contains(text, "run this again for a newer one") {
		t.Errorf("got %q", text)
	}
	wantOneKey(t, s, "wrap-2")
	if text := mustDatakey(t, s, "replace"); text != "dk-3 is the data key now: 6 records sealed anew under it, 1 old data key removed\n" {
		t.Errorf("again: got %q", text)
	}
	wantFilledStore(t, s)
}

// TestKeysArePublishedUncachedUntilTheyAreVerified: what is served while nothing
// can tell forged keys must not outlive that time in anybody's cache.
func TestKeysArePublishedUncachedUntilTheyAreVerified(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-unverified", kms.ES256, kms.RS256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	_, sound, jwks := s.Get(t, s.HTTP, "/jwks/main")
	if got := sound.Get("Cache-Control"); !strings.HasPrefix(got, "public, max-age=") {
		t.Errorf("got Cache-Control %q", got)
	}
	s.Terminate(t)
	bringBack := token.TakeAway()
	s.Run(t)
	s.WaitLive(t)
	code, header, doc := s.Get(t, s.HTTP, "/jwks/main")
	if code != http.StatusOK || doc != jwks || header.Get("Cache-Control") != "no-store" {
		t.Errorf("without the token: got %d, Cache-Control %q, %s; want the keys, and no-store", code, header.Get("Cache-Control"), doc)
	}
	s.WaitLog(t, "key rings are used unverified")
	bringBack()
	s.WaitReady(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, header, doc = s.Get(t, s.HTTP, "/jwks/main")
		if doc == jwks && header.Get("Cache-Control") == sound.Get("Cache-Control") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with the token back: got Cache-Control %q, %s", header.Get("Cache-Control"), doc)
		}
	}
}

// TestReplaceMayBeKilled kills the command at later and later moments, until it
// ends before that.
func TestReplaceMayBeKilled(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-killed", kms.ES256, kms.RS256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	fillStore(t, s)
	admin := s.Caller(t, harness.Admin)
	const many = 300 // more than a batch
	for i := range many {
		mustRegister(t, admin, withSecret(fmt.Sprintf("many-%d", i), keptSecret, setting("A128KW", "A128GCM")))
	}
	s.Terminate(t)

	// SoftHSM rewrites a file of its token when somebody logs in. One who is
	// killed at that leaves half of it, which is not what is tested here.
	whole := filepath.Join(t.TempDir(), "token")
	if err := os.CopyFS(whole, os.DirFS(token.Dir)); err != nil {
		t.Fatal(err)
	}
	mend := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(token.Dir), os.CopyFS(token.Dir, os.DirFS(whole))); err != nil {
			t.Fatal(err)
		}
	}

	killed, most := 0, 0
	// Later and later, by steps that grow: how long a run takes depends on the
	// machine.
	for after := time.Duration(0); ; after += 3*time.Millisecond + after/4 {
		cmd := s.Command(t, "datakey", "replace", "--config", s.ConfigFile)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			break
		}
		killed++
		mend()
		if killed%5 == 0 {
			most = max(most, len(dataKeys(t, s)))
		}
	}
	t.Logf("killed %d times, with %d data keys at most", killed, most)
	if killed < 3 {
		t.Errorf("the command was killed %d times: nothing is shown", killed)
	}
	if most > 2 {
		t.Errorf("%d data keys were left: each run has made another instead of going on", most)
	}
	mustDatakey(t, s, "replace")
	id := wantOneKey(t, s, harness.WrappingLabel)
	editStore(t, s, func(tx *bbolt.Tx) error {
		rows := 0
		err := rowsWith(tx, "", func(_ *bbolt.Bucket, k, v []byte) error {
			if bytes.Contains(k, []byte("\x00many-")) && bytes.Contains(v, []byte(`"data_key":"`+id+`"`)) {
				rows++
			}
			return nil
		})
		if rows != many {
			t.Errorf("%d of %d secrets are under %s", rows, many, id)
		}
		return err
	})
	wantFilledStore(t, s)
}

func TestDataKeysWithTheirBackendDown(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t, "e2e-datakey-down", kms.ES256, kms.RS256)
	s := harness.Start(t, harness.Config{Token: token, CA: shared.ca})
	fillStore(t, s)
	s.Terminate(t)
	before, err := os.ReadFile(filepath.Join(s.Dir, "bulla.db"))
	if err != nil {
		t.Fatal(err)
	}

	bringBack := token.TakeAway()
	mustRefuse(t, s, []string{"replace"}, "hsm:object=wrap", `"bulla doctor" says what is wrong`)
	out, _, err := datakey(t, s, "list")
	if err != nil || !strings.Contains(out, "dk-1") || !strings.Contains(out, "hsm:object=wrap") || strings.Contains(out, "yes") {
		t.Errorf("list: got %v\n%s\nwant the key, and why it cannot be used", err, out)
	}
	if after, err := os.ReadFile(filepath.Join(s.Dir, "bulla.db")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the store was changed (%v)", err)
	}
	bringBack()
	mustDatakey(t, s, "replace")
	wantFilledStore(t, s)
}

func TestReplaceNamesWhatSomebodyHasChanged(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	fillStore(t, s)
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withSecret("changed-a", keptSecret, setting("A128KW", "")))
	mustRegister(t, admin, withJWKS("changed-b", harness.JWKS(anyKey())))
	s.Terminate(t)
	editStore(t, s, func(tx *bbolt.Tx) error {
		var own []byte
		err := rowsWith(tx, "\x00kept-hs", func(_ *bbolt.Bucket, _, v []byte) error { own = v; return nil })
		return errors.Join(err,
			rowsWith(tx, "\x00changed-a", func(b *bbolt.Bucket, k, _ []byte) error { return b.Put(k, own) }),
			rowsWith(tx, "\x00changed-b", func(b *bbolt.Bucket, k, v []byte) error {
				return b.Put(k, bytes.Replace(v, []byte("ECDH-ES"), []byte("ECDH-Es"), 1))
			}))
	})
	stdout, stderr, err := datakey(t, s, "replace")
	if err == nil || !strings.HasPrefix(stdout, "dk-2 is the data key now: 5 records") {
		t.Errorf("got %v and %q", err, stdout)
	}
	for _, want := range []string{"changed-a", "changed-b", "bulla: 2 records failed the authentication", "register such clients anew"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got on standard error\n%s\nwant %q in it", stderr, want)
		}
	}
	if strings.Contains(stderr, "kept-") || strings.Contains(stderr, keptSecret) {
		t.Errorf("got on standard error\n%s\nwant nothing of the others, and no secret", stderr)
	}
	wantOneKey(t, s, harness.WrappingLabel)

	s.Run(t)
	s.WaitReady(t)
	for _, id := range []string{"changed-a", "changed-b"} {
		_, err := s.Caller(t, harness.Admin).Tokens.SignAndEncrypt(t.Context(), idToken(id))
		mustFail(t, err, "CLIENT_KEY_UNUSABLE", "changed")
	}
	openWith(t, s, mustIssue(t, s.Caller(t, harness.Admin), idToken("kept-hs")).GetToken(), leftmost(keptSecret, 32), []byte(keptSecret))
}
