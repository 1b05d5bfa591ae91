//go:build unix

package audit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// softKey is a key in memory that can be made to fail.
type softKey struct {
	private *ecdsa.PrivateKey
	kid     string

	mu     sync.Mutex // guards what follows
	err    error      // what Sign answers
	wrong  bool       // Sign signs something else
	opened int
	signed []string
}

func newKey(t testing.TB) *softKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	kid, err := signer.Thumbprint(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &softKey{private: private, kid: kid}
}

func (k *softKey) Algorithm() kms.Algorithm { return kms.ES256 }
func (k *softKey) Public() crypto.PublicKey { return k.private.Public() }

func (k *softKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	k.signed = append(k.signed, string(message))
	sum := sha256.Sum256(message)
	if k.wrong {
		sum[0]++
	}
	r, s, err := ecdsa.Sign(rand.Reader, k.private, sum[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

func (k *softKey) set(err error, wrong bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err, k.wrong = err, wrong
}

func (k *softKey) open(context.Context) (kms.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.opened++
	return k, nil
}

func (k *softKey) keys() Keys { return Keys{k.kid: k.private.Public()} }

// checkpointed runs checkpoints until the function that it returns is called.
func checkpointed(t testing.TB, l *Log, cfg CheckpointConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.RunCheckpoints(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("RunCheckpoints: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// verified verifies files.
func verified(t testing.TB, o VerifyOptions, files ...string) *Report {
	t.Helper()
	r, err := Verify(t.Context(), files, o)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return r
}

// mustBeGood wants a report without problems, of one chain with so many lines.
func mustBeGood(t testing.TB, r *Report, lines int) {
	t.Helper()
	if !r.Good || len(r.Problems) != 0 {
		t.Errorf("problems: %v", r.Problems)
	}
	if len(r.Chains) != 1 || r.Chains[0].Lines != lines {
		t.Errorf("chains: %+v, want one of %d lines", r.Chains, lines)
	}
}

// mustHave wants the texts in the findings, each in one of its own.
func mustHave(t testing.TB, what string, findings []Finding, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !slices.ContainsFunc(findings, func(f Finding) bool { return strings.Contains(f.String(), text) }) {
			t.Errorf("no %s with %q in %q", what, text, findings)
		}
	}
}

func linesOf(t testing.TB, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(data)))
}

func write(t testing.TB, path string, lines ...string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLinesAreAChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path, Host: "replica-1"})
	record(t, l, "a")
	record(t, l, "b")
	var before [32]byte
	chain := ""
	for i, line := range linesOf(t, path) {
		var got struct {
			Log   string `json:"log"`
			Host  string `json:"host"`
			Chain string `json:"chain"`
			Seq   uint64 `json:"seq"`
			Prev  string `json:"prev"`
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if chain = got.Chain; len(chain) != chainIDSize || got.Log != "opened" || got.Host != "replica-1" {
				t.Errorf("the first line is %s", line)
			}
		}
		if want := base64.RawURLEncoding.EncodeToString(before[:]); got.Seq != uint64(i+1) || got.Chain != chain || got.Prev != want {
			t.Errorf("line %d is %s, want the hash %s", i+1, line, want)
		}
		before = sha256.Sum256([]byte(strings.TrimSuffix(line, "\n")))
	}
	mustBeGood(t, verified(t, VerifyOptions{}, path), 3)
}

func TestChainGoesOnOverRestartsAndRotations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	files := []string{path}
	for i := range 3 {
		l := open(t, Config{Path: path})
		record(t, l, "a")
		if err := os.Rename(path, fmt.Sprint(path, ".", i)); err != nil {
			t.Fatal(err)
		}
		record(t, l, "b")
		if err := l.Reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		files = append(files, fmt.Sprint(path, ".", i))
		if i != 1 { // one file has only its beginning
			record(t, l, "c")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r := verified(t, VerifyOptions{}, files...)
	mustBeGood(t, r, 3+3+3+5)
	if c := r.Chains[0]; c.Starts != 3 || c.Files != 4 || c.First != 1 || c.Last != 14 {
		t.Errorf("got %+v", c)
	}
	if len(r.Notes) != 0 {
		t.Errorf("notes: %v", r.Notes)
	}
	// Without the oldest file it is good too, and said.
	r = verified(t, VerifyOptions{}, path, path+".2", path+".1")
	if !r.Good {
		t.Errorf("problems: %v", r.Problems)
	}
	mustHave(t, "note", r.Notes, "the lines before it were not given")
	// Without one in the middle it is not.
	r = verified(t, VerifyOptions{}, path, path+".0", path+".2")
	mustHave(t, "problem", r.Problems, "missing: the line before, "+path+".0:3, has the number 3, and this one ")
}

func TestWhatACrashLeavesIsPartOfTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lines := linesOf(t, path)
	write(t, path, lines[0], lines[1], lines[1][:40])
	r := verified(t, VerifyOptions{}, path)
	mustBeGood(t, r, 2)
	mustHave(t, "note", r.Notes, path+":3: the file ends within a line, after 40 bytes")

	l = open(t, Config{Path: path})
	record(t, l, "b")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r = verified(t, VerifyOptions{}, path)
	mustBeGood(t, r, 4)
	mustHave(t, "note", r.Notes, path+":3: 41 bytes of no chain, unchanged since line 4")

	lines = linesOf(t, path)
	for name, changed := range map[string][]string{
		"not what was here": {lines[0], lines[1], strings.Replace(lines[2], "time", "tame", 1), lines[3], lines[4]},
		"they are gone":     {lines[0], lines[1], lines[3], lines[4]},
	} {
		mustHave(t, "problem", verified(t, VerifyOptions{}, write(t, path+".changed", changed...)).Problems, name)
	}
}

func TestLinesOfAnEarlierVersionAreCoveredAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	old := strings.Repeat(`{"v":1,"time":"2026-01-01T00:00:00.000000Z","outcome":"issued"}`+"\n", 10_000)
	write(t, path, old)
	r := verified(t, VerifyOptions{}, path)
	mustHave(t, "problem", r.Problems, "no line of a chain")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	r = verified(t, VerifyOptions{}, path)
	mustBeGood(t, r, 2)
	mustHave(t, "note", r.Notes, path+":1: 640000 bytes of no chain, unchanged since line 10001")
	write(t, path, strings.Replace(old, "issued", "denied", 1), strings.Join(linesOf(t, path)[10_000:], ""))
	mustHave(t, "problem", verified(t, VerifyOptions{}, path).Problems, "it was changed since")
}

func TestWriteThatBreaksOffLeavesAWholeChain(t *testing.T) {
	for _, short := range []int{0, 1, 200, 300, 420, 700} {
		t.Run(fmt.Sprint(short), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := open(t, Config{Path: path})
			f := inject(l)
			f.noBack = true
			for i := range 4 {
				f.set(short, nil)
				for range i {
					if err := l.Record(t.Context(), Event{Outcome: Denied, ClientID: "lost"}); err == nil && short < 300 {
						t.Error("a record was acknowledged that was not written")
					}
				}
				f.set(-1, nil)
				record(t, l, "a")
				record(t, l, "b")
			}
			r := verified(t, VerifyOptions{}, path)
			if !r.Good {
				t.Errorf("problems: %v", r.Problems)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, Config{Path: path})
			record(t, l, "c")
			mustBeGood(t, verified(t, VerifyOptions{}, path), int(l.end.seq))
		})
	}
}

func TestFailedWritesDoNotBreakTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path, Sync: SyncAlways})
	f := inject(l)
	for i := range 5 {
		record(t, l, "a")
		f.set(100*i, nil)
		_ = l.Record(t.Context(), Event{Outcome: Denied}) // fails
		f.set(-1, syscall.EIO)
		_ = l.Record(t.Context(), Event{Outcome: Denied}) // likewise
		f.set(-1, nil)
	}
	mustBeGood(t, verified(t, VerifyOptions{}, path), 6)
}

func TestCheckpointsCoverTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	key := newKey(t)
	l := open(t, Config{Path: path, Host: "replica-1"})
	stop := checkpointed(t, l, CheckpointConfig{Open: key.open, EveryLines: 5, Every: time.Hour})
	for range 23 {
		record(t, l, "a")
	}
	eventually(t, func() bool { return l.Stats().Checkpoints > 0 })
	record(t, l, "b")
	stop()
	r := verified(t, VerifyOptions{Keys: key.keys()}, path)
	if !r.Good || r.Checkpoints.Verified < 2 || uint64(r.Checkpoints.Verified) != l.Stats().Checkpoints || len(r.Chains) != 1 {
		t.Fatalf("got %+v", r)
	}
	c := r.Chains[0]
	if c.UncoveredLines != 0 || len(c.Uncovered) != 0 || !slices.Equal(c.Keys, []string{key.kid}) || c.CoveredTo != c.Last-1 {
		t.Errorf("got %+v, want all lines covered by %s", c, key.kid)
	}
	if at := l.Stats().LastCheckpoint; time.Since(at) > time.Hour {
		t.Errorf("the last checkpoint was at %v", at)
	}
	record(t, l, "c") // after the end of checkpoints
	record(t, l, "d")
	c = verified(t, VerifyOptions{Keys: key.keys()}, path).Chains[0]
	if want := []Range{{c.Last - 1, c.Last}}; !slices.Equal(c.Uncovered, want) || c.UncoveredLines != 2 {
		t.Errorf("uncovered: got %v, want %v", c.Uncovered, want)
	}

	// What is signed cannot be taken for a token.
	for _, input := range key.signed {
		head, payload, _ := strings.Cut(input, ".")
		var h, p map[string]any
		for text, into := range map[string]*map[string]any{head: &h, payload: &p} {
			raw, err := base64.RawURLEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, into); err != nil {
				t.Fatal(err)
			}
		}
		if h["typ"] != CheckpointType || h["kid"] != key.kid || h["alg"] != "ES256" || p["host"] != "replica-1" {
			t.Errorf("signed: %v %v", h, p)
		}
		for _, claim := range []string{"iss", "sub", "aud", "exp", "iat"} {
			if p[claim] != nil {
				t.Errorf("a checkpoint has the claim %s", claim)
			}
		}
	}
}

func TestCrashLeavesLinesUncovered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	key := newKey(t)
	l := open(t, Config{Path: path})
	stop := checkpointed(t, l, CheckpointConfig{Open: key.open})
	record(t, l, "a")
	stop()
	record(t, l, "b") // the process dies: nothing signs this
	record(t, l, "c")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, Config{Path: path})
	stop = checkpointed(t, l, CheckpointConfig{Open: key.open})
	record(t, l, "d")
	stop()
	// opened a checkpoint b c opened d checkpoint
	r := verified(t, VerifyOptions{Keys: key.keys()}, path)
	mustBeGood(t, r, 8)
	if c := r.Chains[0]; !slices.Equal(c.Uncovered, []Range{{4, 5}}) || c.UncoveredLines != 2 || c.Checkpoints != 2 {
		t.Errorf("got %+v, want the lines 4 and 5 uncovered: the process that signed after them only found them", c)
	}
}

func TestKeyThatIsDownDelaysCheckpointsOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	key := newKey(t)
	key.set(kms.ErrUnavailable, false)
	var logged lockedBuffer
	l := open(t, Config{Path: path, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	stop := checkpointed(t, l, CheckpointConfig{Open: key.open, EveryLines: 1, Every: time.Millisecond})
	record(t, l, "a")
	eventually(t, func() bool { return l.Stats().CheckpointFailures >= 1 })
	key.set(nil, true) // it signs something else
	record(t, l, "b")
	eventually(t, func() bool { return l.Stats().CheckpointFailures >= 2 })
	key.set(nil, false)
	record(t, l, "c")
	eventually(t, func() bool { return l.Stats().Checkpoints == 1 })
	stop()
	if n := strings.Count(logged.String(), "cannot be signed"); n != 1 {
		t.Errorf("the failure was logged %d times, want once:\n%s", n, &logged)
	}
	if !strings.Contains(logged.String(), "has checkpoints again") {
		t.Errorf("the recovery was not logged:\n%s", &logged)
	}
	if key.opened < 3 {
		t.Errorf("the key was opened %d times, want again after each failure", key.opened)
	}
	r := verified(t, VerifyOptions{Keys: key.keys()}, path)
	mustBeGood(t, r, 5)
	if r.Checkpoints.Verified != 1 || r.Chains[0].UncoveredLines != 0 {
		t.Errorf("got %+v", r)
	}
	// Its end does not wait for a key that does not answer.
	key.set(kms.ErrUnavailable, false)
	stop = checkpointed(t, l, CheckpointConfig{Open: key.open, Every: time.Hour})
	record(t, l, "d")
	stop()
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func eventually(t testing.TB, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("still not so after 30 s")
}

func TestRunCheckpointsRefuses(t *testing.T) {
	l := open(t, Config{})
	key := newKey(t)
	for _, cfg := range []CheckpointConfig{{}, {Open: key.open, EveryLines: -1}, {Open: key.open, EveryLines: maxBehind + 1}, {Open: key.open, Every: -1}} {
		if err := l.RunCheckpoints(t.Context(), cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	checkpointed(t, l, CheckpointConfig{Open: key.open})
	eventually(t, func() bool { l.writing.Lock(); defer l.writing.Unlock(); return l.due > 0 })
	if err := l.RunCheckpoints(t.Context(), CheckpointConfig{Open: key.open}); err == nil {
		t.Error("two run at once")
	}
}

func TestRotatesAtItsSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	key := newKey(t)
	l := open(t, Config{Path: path, RotateSize: 8 << 10})
	stop := checkpointed(t, l, CheckpointConfig{Open: key.open, EveryLines: 10})
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	want := 0
	for l.Stats().Rotations < 4 {
		concurrently(t, l, 4, 10)
		want += 40
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1+int(l.Stats().Rotations) {
		t.Errorf("%d rotations and the files %q", l.Stats().Rotations, files)
	}
	got := 0
	for _, f := range files {
		got += len(ids(t, f))
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v %v, want the mode that the operator gave the first", f, info.Mode(), err)
		}
	}
	if got != want {
		t.Errorf("%d records in the files, want %d", got, want)
	}
	r := verified(t, VerifyOptions{Keys: key.keys()}, files...)
	if !r.Good || r.Chains[0].UncoveredLines != 0 || r.Chains[0].Files != len(files) {
		t.Errorf("got %+v", r)
	}
}

func TestRotationThatFailsGoesOnInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.MkdirAll(filepath.Join(path+nextSuffix, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), Config{Path: path, RotateSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	record(t, l, "a")
	record(t, l, "b")
	if err := l.rotate(t.Context()); err == nil {
		t.Error("rotated into a folder")
	}
	record(t, l, "c")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeGood(t, verified(t, VerifyOptions{}, path), 4)
}

// TestRotationCutOffAtAnyStep puts the files as a process leaves them that dies
// between the steps of a rotation.
func TestRotationCutOffAtAnyStep(t *testing.T) {
	for step, name := range []string{"before the next file has its line", "before the old file is renamed", "before the next file has its name"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := open(t, Config{Path: path})
			record(t, l, "a")
			switch step {
			case 0:
				write(t, path+nextSuffix)
			default:
				next, _, _, err := l.prepare()
				if err != nil {
					t.Fatal(err)
				}
				if err := next.Close(); err != nil {
					t.Fatal(err)
				}
				if step == 2 {
					if err := os.Rename(path, path+".1"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, Config{Path: path})
			record(t, l, "b")
			files, err := filepath.Glob(path + "*")
			if err != nil {
				t.Fatal(err)
			}
			want, lines := []string{path}, 4
			if step == 2 {
				want, lines = []string{path, path + ".1"}, 5
			}
			if !slices.Equal(files, want) {
				t.Errorf("got the files %q, want %q", files, want)
			}
			mustBeGood(t, verified(t, VerifyOptions{}, files...), lines)
		})
	}
}

// TestWhatARotationHasLeftIsNotReopened: a process dies within a rotation, and the
// file is renamed by hand before the next one has written anything.
func TestWhatARotationHasLeftIsNotReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	next, _, _, err := l.prepare()
	if err == nil {
		err = errors.Join(next.Close(), l.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	l = open(t, Config{Path: path})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	record(t, l, "b")
	mustBeGood(t, verified(t, VerifyOptions{}, path, path+".1"), 4)
}

func TestNextFileOfARunningRotationIsNotTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	next, _, _, err := l.prepare()
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if other, err := Open(t.Context(), Config{Path: path}); !errors.Is(err, ErrInUse) {
		_ = other.Close()
		t.Errorf("got %v, want ErrInUse", err)
	}
}

func TestKeysAreReadInEveryForm(t *testing.T) {
	key := newKey(t)
	jwk, err := signer.PublicJWK(key.private.Public(), kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, document := range map[string][]byte{
		"JWK": jwk, "JWK Set": signer.JWKS([]json.RawMessage{jwk}), "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	} {
		if keys, err := ParseKeys(document); err != nil || len(keys) != 1 || keys[key.kid] == nil {
			t.Errorf("%s: %v %v", name, keys, err)
		}
	}
	for _, bad := range []string{"", "{}", `{"keys":[]}`, `{"kty":"oct","k":"AAAA"}`, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if keys, err := ParseKeys([]byte(bad)); err == nil {
			t.Errorf("%q was taken: %v", bad, keys)
		}
	}
}
