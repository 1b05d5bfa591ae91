package faults

import (
	"crypto"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms/awsfault"
	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// goal is the longest that it may take to recover, once the cause is gone.
const goal = 2 * time.Second

// raceGoal is that of the quick pass with the race detector, when the machine
// runs other packages' tests as well: it tells a service that heals from one
// that does not, and no more.
const raceGoal = 5 * time.Second

// sessions is how many signatures may be in flight at once.
const sessions = 16

var full = os.Getenv("BULLA_SOAK") != ""

// limit is how long it may take to recover in this pass.
func limit() time.Duration {
	if harness.RaceEnabled && !full {
		return raceGoal
	}
	return goal
}

// rig is a service under load, and what its keys are in.
type rig struct {
	*harness.Service
	*load
	t        *testing.T // of the fault that is tried
	expected []string   // the reasons that a request may fail with

	// The keys are on a SoftHSM token behind the faulty module, or in KMS.
	module   *faultymodule.Module
	token    *softhsmtest.Token
	signing  crypto.Signer // the key on the token, to be put there again
	wrapping []byte        // likewise
	cloud    *awsfault.Endpoint
}

// newRig makes a rig whose keys build has put where they belong, and starts it.
func newRig(t *testing.T, build func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t}
	build(r)
	r.Run(t)
	r.WaitReady(t)
	r.load = startLoad(t, r.Service)
	return r
}

// inProcess has the module in the service's process, isolated in a worker.
func inProcess(r *rig) { newTokenRig(r, false) }
func isolated(r *rig)  { newTokenRig(r, true) }

func newTokenRig(r *rig, isolated bool) {
	t := r.t
	r.expected = []string{"SIGNING_KEY_UNAVAILABLE", "SIGNING_THROTTLED", "OVERLOADED", "DEADLINE_EXCEEDED"}
	r.token = harness.PrepareToken(t, "faults")
	r.signing, r.wrapping = softhsmtest.NewKey(t, kms.ES256), []byte("thirty-two bytes of a secret key")
	r.token.Init()
	r.importKeys()
	r.module = faultymodule.New(t, r.token.Module)
	r.Service = harness.New(t, harness.Config{
		Token: r.token, Env: r.module.Env(), WorkersCrash: isolated,
		Edit: func(tree harness.M) {
			hsm := tree["backends"].(harness.M)["hsm"].(harness.M)["pkcs11"].(harness.M)
			hsm["module"], hsm["sessions"] = r.module.Path, sessions
			if isolated {
				hsm["isolation"] = "process"
			}
		},
	})
}

func (r *rig) importKeys() {
	r.token.ImportSecret(harness.WrappingLabel, "f0", r.wrapping, "--sensitive", "--usage-decrypt", "--usage-wrap")
	r.importSigningKey()
}

func (r *rig) importSigningKey() { r.token.ImportKey(harness.KeyLabel(kms.ES256), "01", r.signing) }

// initialize initializes the token again, in its place.
func (r *rig) initialize() {
	r.tool("softhsm2-util", "--init-token", "--token", r.token.Label, "--label", r.token.Label, "--pin", softhsmtest.PIN, "--so-pin", softhsmtest.SOPIN)
}

// changePIN changes the user's PIN, from another process.
func (r *rig) changePIN(from, to string) {
	r.tool("pkcs11-tool", "--module", r.token.Module, "--token-label", r.token.Label, "--login", "--pin", from, "--change-pin", "--new-pin", to)
}

func (r *rig) tool(name string, args ...string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), name, args...)
	cmd.Env = r.token.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// workers are the processes that the service has started, by their ids.
func (r *rig) workers() []int {
	of := "PPid:\t" + strconv.Itoa(r.PID(r.t)) + "\n"
	var pids []int
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, file := range files {
		doc, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(doc), of) && !strings.Contains(string(doc), "State:\tZ") {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killWorkers ends the processes that the service has started.
func (r *rig) killWorkers() {
	pids := r.workers()
	if len(pids) == 0 {
		r.t.Error("there is no worker to kill")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			r.t.Error(err)
		}
	}
}

// fault is one thing that goes wrong.
type fault struct {
	name string
	what string // for the page: what is done
	// short and long are how long the cause lasts, beyond what it takes to do
	// it: long with BULLA_SOAK. Zero is a moment.
	short, long time.Duration
	// do begins the fault and returns what ends it, nil if it ends by itself.
	do func(*rig) (end func())
	// most is how many requests may fail; unlimited while a token cannot sign.
	most int
	// also are reasons that requests may fail with beside the expected ones.
	also []string
	// apart says that the quick pass has it with the module in a worker too.
	apart bool
	// codes are those that C_Sign answers with, to be listed.
	codes []faultymodule.Code
	// quiet is how long nothing may have failed before the service counts as
	// well again. Default: 300 ms.
	quiet time.Duration
}

// unlimited: requests fail as long as the cause lasts.
const unlimited = -1

// row is what came of a fault.
type row struct {
	fault
	took     time.Duration // the cause
	requests int
	failed   int
	reasons  map[string]int
	first    time.Duration // from the end of the cause to the first token that was asked for after it
	all      time.Duration // and to the end of the last request that failed
	wrong    int           // tokens that do not verify
	alive    bool
	restarts int      // of workers
	misses   []string // the goals that it missed
}

// miss notes a goal that was missed.
func (w *row) miss(format string, a ...any) { w.misses = append(w.misses, fmt.Sprintf(format, a...)) }

// patience is how long a service may take to recover before the run goes on
// without it.
const patience = 15 * time.Second

// try does a fault, as a test of its own, and tells what came of it.
func (r *rig) try(t *testing.T, f fault) row {
	t.Helper()
	r.t = t
	if f.quiet == 0 {
		f.quiet = 300 * time.Millisecond
	}
	if !r.recover(time.Now(), f.quiet, patience) {
		t.Logf("%s: the service is not well to begin with, and is started anew", f.name)
		r.restart()
	}
	r.forget()
	w := row{fault: f, reasons: map[string]int{}}
	before := r.counts()
	pid := r.PID(t)
	had := r.workers()

	from := time.Now()
	end := f.do(r)
	length := f.short
	if full {
		length = f.long
	}
	time.Sleep(length)
	if end != nil {
		end()
	}
	over := time.Now()
	w.took = over.Sub(from)
	recovered := r.recover(over, f.quiet, patience)
	to := time.Now()

	w.first = -1
	for _, q := range r.between(from, to) {
		w.requests++
		if q.wrong != nil {
			w.wrong++
			w.miss("a token does not verify: %v", q.wrong)
		}
		switch {
		case q.reason != "":
			w.failed++
			w.reasons[q.reason]++
			w.all = max(w.all, q.end.Sub(over))
		case q.start.After(over) && w.first < 0:
			w.first = q.end.Sub(over)
		}
	}
	w.alive = r.PID(t) == pid && syscall.Kill(pid, 0) == nil
	for _, p := range r.workers() {
		if !slices.Contains(had, p) {
			w.restarts++
		}
	}
	after := r.counts()
	switch {
	case !w.alive:
		w.miss("the process died")
	case !recovered:
		w.miss("it had not recovered after %v", patience)
	case w.all > limit():
		w.miss("it took %v to recover, the goal is %v", w.all.Round(time.Millisecond), limit())
	}
	if f.most != unlimited && w.failed > f.most {
		w.miss("%d requests failed, at most %d may", w.failed, f.most)
	}
	for reason, n := range w.reasons {
		if !slices.Contains(r.expected, reason) && !slices.Contains(f.also, reason) {
			w.miss("%d requests failed with %s", n, reason)
		}
	}
	if n := after.Overlaps - before.Overlaps; n > 0 {
		w.miss("%d calls were made in a session that another call was in", n)
	}
	if n := after.Intrusions - before.Intrusions; n > 0 {
		w.miss("%d times C_Initialize or C_Finalize met another call", n)
	}
	t.Logf("%-52s %8v  %6d requests, %5d failed %v; first token after %v, all after %v", f.name, w.took.Round(time.Millisecond), w.requests, w.failed,
		slices.Sorted(maps.Keys(w.reasons)), w.first.Round(time.Millisecond), w.all.Round(time.Millisecond))
	if len(w.misses) > 0 {
		t.Errorf("%s:\n\t%s\n%s", f.name, strings.Join(slices.Compact(w.misses), "\n\t"), lastLines(r.Log(), 10))
	}
	return w
}

// counts is what the module has counted; nothing where there is none.
func (r *rig) counts() faultymodule.Counts {
	if r.module == nil {
		return faultymodule.Counts{}
	}
	return r.module.Counts()
}

// recover waits until all callers get tokens, which they asked for after since.
func (r *rig) recover(since time.Time, quiet, limit time.Duration) bool {
	for until := time.Now().Add(limit); !r.wellSince(since, quiet); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			return false
		}
	}
	return true
}

// restart starts the service anew, without faults.
func (r *rig) restart() {
	if r.module != nil {
		r.module.Clear()
	}
	if r.cloud != nil {
		r.cloud.Set(awsfault.Fault{})
	}
	r.Kill(r.t)
	r.Run(r.t)
	r.WaitReady(r.t)
	if !r.recover(time.Now(), 300*time.Millisecond, harness.Patience) {
		r.t.Fatal("the callers get no tokens of a service that was started anew")
	}
}

// lastLines is the last n lines of a log, without those of calls that failed.
func lastLines(log string, n int) string {
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(log), "\n"), func(l string) bool {
		return strings.Contains(l, `"msg":"call failed"`)
	})
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = l[:min(len(l), 400)]
	}
	return strings.Join(lines, "\n")
}
