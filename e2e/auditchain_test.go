package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
)

// auditReport is what "bulla audit verify -o json" prints, as far as the tests
// look at it.
type auditReport struct {
	Good        bool `json:"good"`
	OtherLines  int  `json:"other_lines"`
	Checkpoints struct {
		Verified int `json:"verified"`
	} `json:"checkpoints"`
	Chains []struct {
		Chain     string `json:"chain"`
		First     uint64 `json:"first"`
		Last      uint64 `json:"last"`
		Files     int    `json:"files"`
		Starts    int    `json:"starts"`
		Uncovered []struct{ From, To uint64 }
		Bare      uint64 `json:"uncovered_lines"`
	} `json:"chains"`
	Problems []auditProblem `json:"problems"`
}

type auditProblem struct {
	File string `json:"file"`
	Line int    `json:"line"`
	What string `json:"what"`
}

// auditVerify runs the command and returns its report and exit code.
func auditVerify(t testing.TB, s *harness.Service, stdin []byte, args ...string) (auditReport, int) {
	t.Helper()
	cmd := s.Command(t, append([]string{"audit", "verify", "-o", "json"}, args...)...)
	var errOut bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &errOut
	out, err := cmd.Output()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var r auditReport
	if err := json.Unmarshal(out, &r); err != nil && code != 1 {
		t.Fatalf("%v: %s%s", err, out, &errOut)
	}
	return r, code
}

// output runs a command that must succeed.
func output(t testing.TB, s *harness.Service, args ...string) []byte {
	t.Helper()
	out, err := s.Command(t, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("bulla %q: %v", args, err)
	}
	return out
}

func writeFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func withCheckpoints(key string) func(harness.M) {
	return func(tree harness.M) {
		tree["audit"].(harness.M)["checkpoint"] = harness.M{"key": key, "every_lines": 40, "every": "1s"}
	}
}

// issueMany issues tokens from several callers at once.
func issueMany(t testing.TB, admin *client.Client, n int) {
	t.Helper()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range n / 4 {
				if _, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken("chained")); err != nil {
					t.Errorf("issue: %v", err)
				}
			}
		})
	}
	group.Wait()
}

// link computes the chain of lines anew, with nothing but what docs/audit.md
// says of it.
func link(lines []string) []string {
	prev, out := make([]byte, sha256.Size), slices.Clone(lines)
	for i, line := range lines {
		bare, rest, _ := strings.Cut(line, `,"chain":"`)
		name, _, _ := strings.Cut(rest, `"`)
		line = fmt.Sprintf(`%s,"chain":"%s","seq":%d,"prev":"%s"}`, bare, name, i+1, base64.RawURLEncoding.EncodeToString(prev))
		sum := sha256.Sum256([]byte(line))
		prev, out[i] = sum[:], line+"\n"
	}
	return out
}

// TestAuditLogIsOneSignedChain has a service write a log over rotations, a kill
// and restarts, and a key of its token sign it; then it does to copies of that
// log what somebody could who wants to hide something.
func TestAuditLogIsOneSignedChain(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		withCheckpoints("hsm:object=" + harness.AuditLabel)(tree)
		tree["audit"].(harness.M)["rotate_size"] = "64KiB"
	}})
	leaf := s.Leaf(t, harness.Admin)
	admin := s.CallerWith(t, leaf)
	mustRegister(t, admin, withJWKS("chained", harness.JWKS(anyKey())))
	key := writeFile(t, filepath.Join(t.TempDir(), "audit.jwk"), output(t, s, "audit", "key", "--config", s.ConfigFile))
	log := filepath.Join(s.Dir, "audit.log")

	issueMany(t, admin, 160)
	harness.Eventually(t, func() error {
		m := s.Metrics(t)
		if m["bulla_audit_rotations_total"] < 1 || m["bulla_audit_checkpoints_total"] < 2 || m["bulla_audit_last_checkpoint_timestamp_seconds"] < float64(time.Now().Add(-time.Hour).Unix()) {
			return errorf("rotations %v, checkpoints %v", m["bulla_audit_rotations_total"], m["bulla_audit_checkpoints_total"])
		}
		return nil
	})
	if n := s.Metric(t, "bulla_audit_checkpoint_failures_total"); n != 0 {
		t.Errorf("%v checkpoints failed", n)
	}
	s.Kill(t)
	s.Run(t)
	s.WaitReady(t)
	issueMany(t, s.CallerWith(t, leaf), 40)
	// A rotation by others, beside the service's own.
	if err := os.Rename(log, log+".by-hand"); err != nil {
		t.Fatal(err)
	}
	s.Signal(t, syscall.SIGHUP)
	s.WaitLog(t, "audit log reopened")
	issueMany(t, s.CallerWith(t, leaf), 40)
	s.Terminate(t)

	files, err := filepath.Glob(log + "*")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Fatalf("got the files %q", files)
	}
	kept := writeFile(t, filepath.Join(t.TempDir(), "kept"), output(t, s, append([]string{"audit", "checkpoint", "--key", key}, files...)...))
	slices.Reverse(files) // the order does not matter
	r, code := auditVerify(t, s, nil, append([]string{"--key", key, "--checkpoint", kept}, files...)...)
	if !r.Good || code != 0 || len(r.Chains) != 1 || r.Checkpoints.Verified < 4 {
		t.Fatalf("exit code %d, %+v", code, r)
	}
	if c := r.Chains[0]; c.First != 1 || c.Last < 245 || c.Starts != 2 || c.Files != len(files) {
		t.Errorf("got %+v", c)
	} else if len(c.Uncovered) > 1 { // what the killed process had not signed
		t.Errorf("uncovered: %v", c.Uncovered)
	}

	// The whole as one file, which is as good.
	whole := inOrderOf(t, files)
	t.Run("tampering", func(t *testing.T) {
		tamperWithLog(t, s, key, kept, whole)
	})
	t.Run("a file is missing", func(t *testing.T) {
		t.Parallel()
		ordered := inChainOrder(t, files)
		r, code := auditVerify(t, s, nil, slices.Delete(slices.Clone(ordered), 1, 2)...)
		if code != 2 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, "missing") || r.Problems[0].File != ordered[2] || r.Problems[0].Line != 1 {
			t.Errorf("exit code %d, %+v, want lines to be missing before %s", code, r, ordered[2])
		}
		// The oldest may have been moved away.
		if r, code = auditVerify(t, s, nil, append([]string{"--key", key, "--checkpoint", kept}, ordered[1:]...)...); code != 0 || r.Chains[0].First == 1 {
			t.Errorf("without the oldest: exit code %d, %+v", code, r)
		}
	})
	t.Run("the log of another replica", func(t *testing.T) {
		other := link(strings.SplitAfter(strings.ReplaceAll(strings.Join(whole, ""), r.Chains[0].Chain, "AAAAAAAAAAAAAAAA"), "\n")[:20])
		file := writeFile(t, filepath.Join(t.TempDir(), "other"), []byte(strings.Join(other, "")))
		if r, code := auditVerify(t, s, nil, "--checkpoint", kept, file); code != 2 || !strings.Contains(r.Problems[len(r.Problems)-1].What, "of another log") {
			t.Errorf("exit code %d, %+v", code, r)
		}
	})
}

// firstSeq is the number of the first line of a file.
func firstSeq(t testing.TB, file string) (seq uint64) {
	t.Helper()
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var line struct {
		Seq uint64 `json:"seq"`
	}
	first, _, _ := strings.Cut(string(doc), "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil {
		t.Fatal(err)
	}
	return line.Seq
}

func inChainOrder(t testing.TB, files []string) []string {
	t.Helper()
	return slices.SortedFunc(slices.Values(files), func(a, b string) int { return cmp.Compare(firstSeq(t, a), firstSeq(t, b)) })
}

// inOrderOf is the lines of all files, in the order of the chain.
func inOrderOf(t testing.TB, files []string) []string {
	t.Helper()
	var all []string
	for _, f := range inChainOrder(t, files) {
		doc, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, slices.Collect(strings.Lines(string(doc)))...)
	}
	return all
}

// tamperWithLog wants every change of a log to be found, at its line.
func tamperWithLog(t *testing.T, s *harness.Service, key, kept string, lines []string) {
	edit := func(f func([]string) []string) []string { return f(slices.Clone(lines)) }
	issuedAt := func(from int) int {
		return from + slices.IndexFunc(lines[from:], func(l string) bool {
			return strings.Contains(l, `"outcome":"issued"`) && strings.Contains(l, "token_sha256")
		})
	}
	i := issuedAt(100)
	deny := func(l []string) []string { l[i] = strings.Replace(l[i], `"issued"`, `"denied"`, 1); return l }
	// A line in whose place another stands, which follows as well from the one before.
	forged := link(append(slices.Clone(lines[:i]), strings.Replace(lines[i], `"client_id":"chained"`, `"client_id":"forged"`, 1)))[i]
	noCheckpoints := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.Contains(l, `"log":"checkpoint"`) })
	for name, tc := range map[string]struct {
		lines  []string
		args   []string
		line   int // 0 for anywhere
		what   string
		lonely bool // the chain alone does not show it
	}{
		"changed":              {lines: edit(deny), line: i + 1, what: "was changed"},
		"removed":              {lines: edit(func(l []string) []string { return slices.Delete(l, i, i+1) }), line: i + 1, what: "missing"},
		"swapped":              {lines: edit(func(l []string) []string { l[i], l[i+1] = l[i+1], l[i]; return l }), line: i + 1, what: "missing"},
		"forged in between":    {lines: edit(func(l []string) []string { return slices.Insert(l, i, forged) }), line: i + 1, what: "it was put in"},
		"plain line":           {lines: edit(func(l []string) []string { return slices.Insert(l, i, `{"v":1,"outcome":"issued"}`+"\n") }), line: i + 1, what: "of no chain"},
		"rewritten":            {lines: link(edit(deny)), what: "was signed over another line"},
		"rewritten, unsigned":  {lines: link(noCheckpoints), args: []string{"--key", key}, what: "no checkpoint by a key", lonely: true},
		"end cut":              {lines: lines[:len(lines)-3], args: []string{"--key", key, "--checkpoint", kept}, what: "the end is missing", lonely: true},
		"rewritten to its end": {lines: link(noCheckpoints), args: []string{"--checkpoint", kept}, what: "the end is missing", lonely: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, filepath.Join(t.TempDir(), "audit.log"), []byte(strings.Join(tc.lines, "")))
			r, code := auditVerify(t, s, nil, append(tc.args, file)...)
			found := slices.ContainsFunc(r.Problems, func(p auditProblem) bool {
				return strings.Contains(p.What, tc.what) && (tc.line == 0 || p.Line == tc.line && p.File == file)
			})
			if code != 2 || r.Good || !found {
				t.Errorf("exit code %d, want a problem with %q in line %d of %+v", code, tc.what, tc.line, r.Problems)
			}
			r, code = auditVerify(t, s, nil, file)
			if alone := code == 2; alone == tc.lonely {
				t.Errorf("by the chain alone: exit code %d, %+v", code, r.Problems)
			}
		})
	}
}

// TestAuditLogOnStandardOutputIsVerified captures it, among other lines.
func TestAuditLogOnStandardOutputIsVerified(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		withCheckpoints("hsm:object=" + harness.AuditLabel)(tree)
		tree["audit"].(harness.M)["path"] = "-"
	}})
	admin := s.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("chained", harness.JWKS(anyKey())))
	issueMany(t, admin, 8)
	s.Terminate(t)
	key := writeFile(t, filepath.Join(t.TempDir(), "audit.jwk"), output(t, s, "audit", "key", "--config", s.ConfigFile))
	captured := slices.Concat([]byte("the supervisor says hello\n"), s.RawAudit(t), []byte("and good-bye\n"))
	r, code := auditVerify(t, s, captured, "--key", key, "--mixed", "--max-uncovered", "0", "-")
	if code != 0 || !r.Good || r.OtherLines != 2 || len(r.Chains) != 1 || r.Chains[0].Bare != 0 || r.Checkpoints.Verified == 0 {
		t.Errorf("exit code %d, %+v", code, r)
	}
	if r, code = auditVerify(t, s, captured, "--key", key, "-"); code != 2 {
		t.Errorf("without --mixed: exit code %d, %+v", code, r)
	}
	if r, code = auditVerify(t, s, bytes.Replace(captured, []byte("issued"), []byte("denied"), 1), "--key", key, "--mixed", "-"); code != 2 {
		t.Errorf("a changed line: exit code %d, %+v", code, r)
	}
}

// TestCheckpointsWaitForTheirKey: calls do not, and no other key is taken.
func TestCheckpointsWaitForTheirKey(t *testing.T) {
	t.Parallel()
	t.Run("that is made later", func(t *testing.T) {
		t.Parallel()
		s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: withCheckpoints("hsm:object=audit-later")})
		admin := s.Caller(t, harness.Admin)
		mustRegister(t, admin, withJWKS("chained", harness.JWKS(anyKey())))
		open(t, s, anyKey(), mustIssue(t, admin, idToken("chained")).GetToken())
		s.WaitLog(t, "the audit log cannot be signed")
		shared.token.GenerateKey("audit-later", "f2", kms.ES256)
		harness.Eventually(t, func() error {
			if s.Metric(t, "bulla_audit_checkpoints_total") == 0 || s.Metric(t, "bulla_audit_checkpoint_failures_total") == 0 {
				return errors.New("there is no checkpoint")
			}
			return nil
		})
		s.WaitLog(t, "the audit log has checkpoints again")
	})
	t.Run("that signs tokens", func(t *testing.T) {
		t.Parallel()
		// By its id, which the configuration cannot tell from the label. It is
		// the first of the token's keys.
		s := harness.Start(t, harness.Config{
			Token: shared.token, CA: shared.ca, Algorithms: []kms.Algorithm{kms.ES256},
			Edit: withCheckpoints(fmt.Sprintf("hsm:id=%%%02x", slices.Index(kms.Algorithms(), kms.ES256)+1)),
		})
		admin := s.Caller(t, harness.Admin)
		mustRegister(t, admin, withJWKS("chained", harness.JWKS(anyKey())))
		s.WaitLog(t, "it is a signing key of issuer main")
		mustIssue(t, admin, idToken("chained"))
		if n := s.Metric(t, "bulla_audit_checkpoints_total"); n != 0 {
			t.Errorf("%v checkpoints were signed with a key of tokens", n)
		}
	})
}
