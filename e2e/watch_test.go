package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// watcher is a "bulla client watch" that runs.
type watcher struct {
	cmd          *exec.Cmd
	lines, notes chan string // what it prints, on standard output and standard error
	reading      sync.WaitGroup
}

// startWatcher runs "bulla client watch" as a caller, and waits until it watches.
func startWatcher(t *testing.T, s *harness.Service, caller string, args ...string) *watcher {
	t.Helper()
	args = slices.Concat([]string{"client", "watch", "--issuer", harness.Issuer}, s.ConnectFlags(s.Leaf(t, caller)), args)
	w := &watcher{cmd: s.Command(t, args...), lines: make(chan string, 1000), notes: make(chan string, 1000)}
	for _, pipe := range []struct {
		open func() (io.ReadCloser, error)
		to   chan string
	}{{w.cmd.StdoutPipe, w.lines}, {w.cmd.StderrPipe, w.notes}} {
		from, err := pipe.open()
		if err != nil {
			t.Fatal(err)
		}
		w.reading.Go(func() {
			defer close(pipe.to)
			for in := bufio.NewScanner(from); in.Scan(); {
				pipe.to <- in.Text()
			}
		})
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // it may have ended
		w.reading.Wait()
	})
	w.wantNote(t, "^bulla: watching$")
	return w
}

// nextLine is the next line that is printed to from.
func nextLine(t *testing.T, from chan string) string {
	t.Helper()
	select {
	case line, ok := <-from:
		if !ok {
			t.Fatal("the watcher has ended")
		}
		return line
	case <-time.After(harness.Patience):
		t.Fatal("the watcher says nothing")
	}
	return ""
}

func (w *watcher) want(t *testing.T, pattern string) {
	t.Helper()
	if line := nextLine(t, w.lines); !regexp.MustCompile(pattern).MatchString(line) {
		t.Errorf("the watcher shows %q, want %q", line, pattern)
	}
}

func (w *watcher) wantNote(t *testing.T, pattern string) {
	t.Helper()
	if line := nextLine(t, w.notes); !regexp.MustCompile(pattern).MatchString(line) {
		t.Errorf("the watcher says %q, want %q", line, pattern)
	}
}

// skipTo reads notes up to one that matches.
func (w *watcher) skipTo(t *testing.T, pattern string) {
	t.Helper()
	for !regexp.MustCompile(pattern).MatchString(nextLine(t, w.notes)) {
	}
}

// end ends the watcher by a signal, and checks that it ends well and silently.
func (w *watcher) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	for _, from := range []chan string{w.lines, w.notes} {
		for line := range from {
			t.Errorf("after %v the watcher says %q", sig, line)
		}
	}
	w.reading.Wait()
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("after %v the watcher ended with %v", sig, err)
	}
}

const timePattern = `^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ  `

// TestWatchShowsEachChange has clients registered, their keys rotated, and
// deleted, before the eyes of one who may read all and one who may read some.
func TestWatchShowsEachChange(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, shared.host.CA)
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Host: host, Grants: []harness.M{
		{"caller": registrar, "allow": []string{"read_client_keys"}, "issuers": []string{harness.Issuer}, "clients": []string{"app-*"}},
		{"caller": idp, "allow": []string{"issue"}, "issuers": []string{harness.Issuer}, "token_kinds": []string{"ID_TOKEN"}, "clients": []string{"*"}},
	}})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("before", harness.JWKS(anyKey())))
	all, some := startWatcher(t, s, harness.Admin), startWatcher(t, s, registrar, "-o", "json")
	all.want(t, `^TIME +CLIENT +STATE +REVISION +KEYS +REASON$`)

	url := host.Serve("/watched", harness.JWKS(anyKey()), time.Hour)
	mustRegister(t, admin, withURI("app-watched", url))
	all.want(t, timePattern+`app-watched +READY +1 +ID_TOKEN=`+anyKey().KeyID+` +-$`)
	mustRegister(t, admin, withURI("other-watched", url))
	all.want(t, timePattern+`other-watched +READY +1 +ID_TOKEN=`+anyKey().KeyID)

	// The clients of one URL have their keys changed together, and one of them was
	// asked for.
	host.Serve("/watched", harness.JWKS(otherKey()), time.Hour)
	if _, err := admin.ClientKeys.RefreshClientKey(t.Context(), &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: "other-watched"}); err != nil {
		t.Fatal(err)
	}
	all.want(t, timePattern+`app-watched +READY +1 +ID_TOKEN=`+otherKey().KeyID)
	all.want(t, timePattern+`other-watched +READY +1 +ID_TOKEN=`+otherKey().KeyID)

	unfetched := withURI("app-unfetched", host.URL("/never-there"))
	unfetched.AllowUnfetched = true
	mustRegister(t, admin, unfetched)
	all.want(t, timePattern+`app-unfetched +FAILING +1 +- +the jwks_uri .*`)
	mustDelete := func(id string) {
		t.Helper()
		if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id}); err != nil {
			t.Fatal(err)
		}
	}
	mustDelete("app-watched")
	all.want(t, timePattern+`app-watched +DELETED +2 +- +-$`)
	mustDelete("before")
	all.want(t, timePattern+`before +DELETED +2 +- +-$`)

	// The other one saw the same of the clients that it may read.
	for _, want := range []string{
		"app-watched READY 1 " + anyKey().KeyID, "app-watched READY 1 " + otherKey().KeyID, "app-unfetched FAILING 1", "app-watched UNSPECIFIED 2 deleted",
	} {
		if got := watchedLine(t, nextLine(t, some.lines)); got != want {
			t.Errorf("the reader is shown %q, want %q", got, want)
		}
	}
	all.end(t, syscall.SIGINT)
	some.end(t, syscall.SIGTERM)

	for caller, reason := range map[string]string{idp: "PermissionDenied CALLER_NOT_ALLOWED", stranger: "Unauthenticated CALLER_UNKNOWN"} {
		out, err := s.Command(t, slices.Concat([]string{"client", "watch", "--issuer", harness.Issuer}, s.ConnectFlags(s.Leaf(t, caller)))...).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "bulla: "+reason+": ") {
			t.Errorf("%s: got %v, %s; want %s", caller, err, out, reason)
		}
	}
	var denied []string
	for _, line := range s.AuditOf(t, "") {
		if strings.HasSuffix(line.RPC, "/WatchClientKeys") {
			denied = append(denied, line.Outcome+" "+line.Reason+" "+line.Permission)
		}
	}
	slices.Sort(denied)
	if want := []string{"denied CALLER_NOT_ALLOWED read_client_keys", "denied CALLER_UNKNOWN read_client_keys"}; !slices.Equal(denied, want) {
		t.Errorf("on record of watches: %q, want %q", denied, want)
	}
}

// watchedLine reads a line of JSON.
func watchedLine(t *testing.T, line string) string {
	t.Helper()
	var doc struct {
		Deleted bool
		Key     struct {
			ID       string `json:"client_id"`
			State    string
			Revision string
			Chosen   []struct {
				KeyID string `json:"key_id"`
			} `json:"chosen_keys"`
		} `json:"client_key"`
	}
	if err := json.Unmarshal([]byte(line), &doc); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	state := strings.TrimPrefix(doc.Key.State, "CLIENT_KEY_STATE_")
	if state == "" {
		state = "UNSPECIFIED"
	}
	text := fmt.Sprint(doc.Key.ID, " ", state, " ", doc.Key.Revision)
	for _, c := range doc.Key.Chosen {
		text += " " + c.KeyID
	}
	if doc.Deleted {
		text += " deleted"
	}
	return text
}

// TestWatchGoesOnAfterARestart ends the service orderly and by a kill.
func TestWatchGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	w := startWatcher(t, s, harness.Admin)
	w.want(t, "^TIME ")
	for i, end := range []func(){
		func() {
			began := time.Now()
			if code := s.Terminate(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("the end took %v: a watch held it up", took)
			}
			w.wantNote(t, `^bulla: the watch was cut off \(this replica is stopping: .*\); trying again in `)
		},
		func() {
			s.Kill(t)
			w.wantNote(t, `^bulla: the watch was cut off \(`)
		},
	} {
		end()
		s.Run(t)
		s.WaitReady(t)
		w.skipTo(t, `^bulla: watching again; what changed meanwhile is not shown: "bulla client list" shows how clients stand$`)
		id := fmt.Sprint("after-", i)
		mustRegister(t, s.Caller(t, harness.Admin), withJWKS(id, harness.JWKS(anyKey())))
		w.want(t, timePattern+id+` +READY +1 `)
	}
	w.end(t, syscall.SIGTERM)
}
