//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// The test binary, started again with one of these as its first argument, is
// something else than tests. What follows are arguments of that.
const (
	asWorker = "pkcs11-worker"  // a worker; then what is wrong with its module, if anything
	asParent = "worker-parent"  // a process with a worker: module, token label, PIN file, file for "stick"
	asHarden = "worker-hardens" // prints whether it can be dumped
)

// otherRoles is what the test binary does instead of tests.
func otherRoles() {
	if len(os.Args) < 2 {
		return
	}
	switch rest := os.Args[2:]; os.Args[1] {
	case asWorker:
		fmt.Fprintln(os.Stderr, runWorker(context.Background(), os.NewFile(3, "parent"), harmed(rest)))
	case asParent:
		if err := parentMain(rest[0], rest[1], rest[2], rest[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	case asHarden:
		if err := harden(); err != nil {
			fmt.Println(err)
		}
		const getDumpable = 3
		dumpable, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, getDumpable, 0, 0)
		var core syscall.Rlimit
		_ = syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
		fmt.Printf("dumpable %d, core %d of %d\n", dumpable, core.Cur, core.Max)
		os.Exit(0)
	default:
		return
	}
	os.Exit(1)
}

// harmed is a registry whose modules have a fault: none, or
//
//	hide N…      the mechanisms N are not listed
//	die FILE     the process is killed by each login, right after it, while FILE exists
//	logout FILE  the login is lost before a signature, which takes FILE away
//	stick FILE   while FILE exists, signatures hang and the token answers that it was removed
func harmed(args []string) *Modules {
	lib := &meddler{}
	if len(args) == 0 {
		return NewModules()
	}
	exists := func() bool { _, err := os.Stat(args[1]); return err == nil }
	switch args[0] {
	case "hide":
		for _, s := range args[1:] {
			n, _ := strconv.Atoi(s)
			lib.hide = append(lib.hide, uint(n))
		}
	case "die":
		return newModules(func(path string) (cryptoki, error) {
			module, err := loadModule(path)
			return &deadly{module, exists}, err
		})
	case "logout":
		lib.set(func(call string) error {
			if call == "sign" && os.Remove(args[1]) == nil {
				slots, _ := lib.cryptoki.slots()
				session, _ := lib.cryptoki.openSession(slots[0])
				_ = lib.logout(session)
				_ = lib.cryptoki.closeSession(session)
			}
			return nil
		})
	case "stick":
		lib.set(func(call string) error {
			switch {
			case !exists():
			case call == "sign":
				select {}
			case call == "tokenInfo":
				return &callError{"C_GetTokenInfo", 0x32}
			}
			return nil
		})
	}
	return meddledModules(lib)
}

// parentMain has a worker in which a signature hangs, prints the worker's
// process id, and waits to be killed.
func parentMain(module, token, pinFile, stick string) error {
	b, err := New(context.Background(), Config{Module: module, Token: token, PINFile: pinFile, Worker: workerCommand("stick", stick)})
	if err != nil {
		return err
	}
	k, err := b.OpenKey(context.Background(), "object=k", kms.ES256)
	if err != nil {
		return err
	}
	if err := os.WriteFile(stick, nil, 0o600); err != nil {
		return err
	}
	go k.Sign(context.Background(), []byte("header.payload"))
	for b.Stats().InUse == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(b.vault.(*remote).line.pid)
	select {}
}

// deadly is a module in which the process dies as soon as a login is over.
type deadly struct {
	cryptoki
	now func() bool
}

func (m *deadly) login(session uint, pin []byte) error {
	err := m.cryptoki.login(session, pin)
	if m.now() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return err
}

func workerCommand(args ...string) []string {
	return append([]string{"/proc/self/exe", asWorker}, args...)
}

// isolated has a backend's module run in a worker process, with a fault if
// there are arguments.
func isolated(args ...string) func(*Config) {
	return func(c *Config) { c.Worker, c.Modules = workerCommand(args...), nil }
}

// hasty are the times of a worker for tests that wait for them.
func hasty(c *Config) {
	t := usualTempo
	t.look, t.silence, t.farewell = 400*time.Millisecond, 4, 300*time.Millisecond
	c.tempo = &t
}

// kill sends a signal to the backend's worker, and returns its process id.
func (b *bench) kill(t testing.TB, s syscall.Signal) int {
	t.Helper()
	pid := workerPID(t, b)
	send(t, pid, s)
	return pid
}

// send sends a signal, and waits until SIGSTOP, which each thread gets to when
// it is scheduled, has stopped them all.
func send(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
	if s != syscall.SIGSTOP {
		return
	}
	eventually(t, "standstill", func() error {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, task := range tasks {
			if state := stateOf(task); state != "T" {
				return fmt.Errorf("%s is %s", task, state)
			}
		}
		return nil
	})
}

// stateOf is the state in a file of proc(5) named stat, "" if there is none.
func stateOf(file string) string {
	stat, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:1]
}

// logged gathers what is logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) into(c *Config) {
	c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&l.mu, &l.b}, nil))
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) count(text string) int { return strings.Count(l.String(), text) }

func TestWorkerConformsOnSoftHSM(t *testing.T) {
	hsm := softhsmtest.New(t, "conform")
	keys := allKeys(hsm)
	modules := NewModules()
	kmstest.Run(t, kmstest.Harness{
		Open:     func(t testing.TB) kms.Backend { return openIsolated(t, hsm, modules) },
		Keys:     keys,
		Missing:  "object=nobody",
		Nonsense: []string{"object=", "pkcs11:token=conform", "token=other;object=rsa"},
		Patience: 10 * time.Second, Signatures: 64,
		Down:  func(testing.TB) func() { return hsm.TakeAway() },
		Stall: func(t testing.TB) func() { return stopWorkers(t, modules) },
	})
}

func TestWorkerWrapsAsTheModuleDoes(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	unfit := wrappingKeys(hsm)
	for _, way := range ways[:2] { // one of each kind; the others differ only in numbers
		t.Run(way.name, func(t *testing.T) {
			modules := NewModules()
			hide := []string{"hide"}
			for _, m := range way.hide {
				hide = append(hide, strconv.Itoa(int(m)))
			}
			kmstest.RunWrapper(t, kmstest.WrapperHarness{
				Open: func(t testing.TB) kms.Backend { return openIsolated(t, hsm, modules, hide...) },
				Key:  way.key, Other: way.other, Signs: way.method == methodRSA,
				Missing:  "object=nobody",
				Nonsense: []string{"object=", "token=other;object=aes", "object=aes;type=public"},
				Unfit:    unfit,
				Patience: 10 * time.Second,
				Down:     func(testing.TB) func() { return hsm.TakeAway() },
				Stall:    func(t testing.TB) func() { return stopWorkers(t, modules) },
			})
		})
	}
}

func TestWorkerMakesKeysAsTheModuleDoes(t *testing.T) {
	hsm := softhsmtest.New(t, "create")
	modules := NewModules()
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open:  func(t testing.TB) kms.Backend { return openIsolated(t, hsm, modules) },
		Specs: []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.EdDSA}, {Algorithm: kms.RS256}},
	})
}

// openIsolated opens a backend whose worker other backends of modules share.
func openIsolated(t testing.TB, hsm *softhsmtest.Token, modules *Modules, args ...string) *Backend {
	t.Helper()
	cfg := config(hsm)
	cfg.Modules, cfg.Worker = modules, workerCommand(args...)
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stopWorkers stops all workers until the returned function is called.
func stopWorkers(t testing.TB, modules *Modules) (release func()) {
	t.Helper()
	var pids []int
	modules.mu.Lock()
	for _, r := range modules.remotes {
		r.mu.Lock()
		pids = append(pids, r.line.pid)
		r.mu.Unlock()
	}
	modules.mu.Unlock()
	for _, pid := range pids {
		send(t, pid, syscall.SIGSTOP)
	}
	return func() {
		for _, pid := range pids {
			send(t, pid, syscall.SIGCONT)
		}
	}
}

func TestKilledWorkerCostsNoSignature(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		t.Run(s.String(), func(t *testing.T) {
			var log logged
			b := start(t, hsm, isolated(), log.into)
			k := b.key(t, "object=k", kms.ES256)
			var signed, failed atomic.Int64
			var last atomic.Int64
			var worst time.Duration
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for range 32 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
						err := signs(ctx, k) // a wrong signature is an error too
						cancel()
						last.Store(time.Now().UnixNano())
						if err != nil {
							failed.Add(1)
							t.Errorf("a signature was lost: %v", err)
							continue
						}
						signed.Add(1)
					}
				})
			}
			const kills = 2
			for n := range kills {
				before := signed.Load()
				eventually(t, "signatures", func() error {
					if signed.Load() < before+64 {
						return errors.New("too few")
					}
					return nil
				})
				pid := b.kill(t, s)
				begin := time.Now()
				eventually(t, "another worker", func() error {
					if s := b.Stats(); !s.Up || s.WorkerRestarts != uint64(n+1) {
						return fmt.Errorf("%+v", s)
					}
					return nil
				})
				signs := signed.Load()
				eventually(t, "signatures of the new worker", func() error {
					if signed.Load() == signs {
						return errors.New("none")
					}
					return nil
				})
				worst = max(worst, time.Since(begin))
				if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
					t.Errorf("the dead worker %d was not reaped: %v", pid, err)
				}
			}
			close(stop)
			wg.Wait()
			t.Logf("%d signatures, %d lost, %v at most until the next", signed.Load(), failed.Load(), worst)
			if worst > time.Second {
				t.Errorf("a new worker signs after %v, want a second at most", worst)
			}
			if died, back := log.count("worker process died"), log.count("worker process is back"); died != kills || back != kills {
				t.Errorf("%d deaths are logged %d times, and %d returns:\n%s", kills, died, back, log.String())
			}
		})
	}
}

func TestOnlyWhatMayBeDoneTwiceIsDoneTwice(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, isolated())
	k := b.key(t, "object=k", kms.ES256)
	r := b.vault.(*remote)
	inFlight := func(n int) func() error {
		return func() error {
			r.mu.Lock()
			l := r.line
			r.mu.Unlock()
			l.out.mu.Lock()
			defer l.out.mu.Unlock()
			if len(l.waiters) != n {
				return fmt.Errorf("%d calls in flight", len(l.waiters))
			}
			return nil
		}
	}
	b.kill(t, syscall.SIGSTOP)
	signed, created := make(chan error, 1), make(chan error, 1)
	go func() { signed <- signs(t.Context(), k) }()
	go func() {
		_, err := r.create(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "tag")
		created <- err
	}()
	eventually(t, "two calls", inFlight(2))
	b.kill(t, syscall.SIGKILL)
	if err := <-signed; err != nil {
		t.Errorf("a signature in flight: %v", err)
	}
	wantErr(t, <-created, errEnded)
}

func TestCallerThatLeftTakesNoSession(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, isolated())
	k := b.key(t, "object=k", kms.ES256)
	b.kill(t, syscall.SIGSTOP)
	for name, limit := range map[error]func() (context.Context, context.CancelFunc){
		context.DeadlineExceeded: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 20*time.Millisecond)
		},
		context.Canceled: func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		ctx, cancel := limit()
		_, err := k.Sign(ctx, []byte("header.payload"))
		wantErr(t, err, name)
		cancel()
	}
	b.kill(t, syscall.SIGCONT)
	if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func TestSilentWorkerIsReplaced(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	var log logged
	b := start(t, hsm, isolated(), hasty, log.into)
	k := b.key(t, "object=k", kms.ES256)
	pid := b.kill(t, syscall.SIGSTOP)
	if err := signs(t.Context(), k); err != nil { // made again by the next one
		t.Error(err)
	}
	if now := workerPID(t, b); now == pid {
		t.Error("the worker is the same")
	}
	if log.count("no sign of life") != 1 {
		t.Errorf("the reason is not in the log:\n%s", log.String())
	}
}

func TestWorkerStuckInItsModuleIsReplaced(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	file := filepath.Join(t.TempDir(), "stick")
	var log logged
	b := start(t, hsm, isolated("stick", file), log.into)
	k := b.key(t, "object=k", kms.ES256)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantErr(t, signs(ctx, k), context.DeadlineExceeded) // it hangs on
	eventually(t, "the loss of the token", func() error {
		_ = b.Check(t.Context()) // the token was removed, so the module is initialized again
		if b.Stats().WorkerRestarts == 0 {
			return errors.New("the worker goes on")
		}
		return nil
	})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a signature", func() error { return signs(t.Context(), k) })
	if log.count("a call was stuck inside the module") == 0 {
		t.Errorf("the reason is not in the log:\n%s", log.String())
	}
}

func TestPINRefusedOnceIsNotSentByAnyWorker(t *testing.T) {
	for _, insist := range []bool{false, true} {
		t.Run(fmt.Sprintf("Insisting%t", insist), func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			hsm.SetPIN("654321")
			b := start(t, hsm, isolated(), func(c *Config) { c.InsistOnLogin = insist })
			for n := range 4 {
				for range 5 {
					_, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
					wantErr(t, err, kms.ErrUnavailable, hsm.PINFile, "right PIN")
				}
				b.kill(t, syscall.SIGKILL)
				eventually(t, "another worker", func() error {
					if s := b.Stats(); s.WorkerRestarts != uint64(n+1) || s.Reason == "" || strings.Contains(s.Reason, "worker") {
						return fmt.Errorf("%+v", s)
					}
					return nil
				})
			}
			if n := b.Stats().Logins; n != 1 {
				t.Fatalf("five workers made %d logins with a wrong PIN, want 1", n)
			}
			if !insist {
				hsm.Tool("--list-objects") // takes the warning away
			}
			hsm.SetPIN(softhsmtest.PIN)
			eventually(t, "Check with the right PIN", func() error { return b.Check(t.Context()) })
			if n := b.Stats().Logins; n != 2 {
				t.Errorf("%d logins in all, want 2", n)
			}
		})
	}
}

func TestLoginThatKillsTheWorkerIsNotMadeForEver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pin    string
		insist bool
		want   uint64
	}{
		{"RightPIN", softhsmtest.PIN, false, maxLapses},
		{"WrongPIN", "654321", false, 1}, // the token warns
		{"WrongPINInsisting", "654321", true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			hsm.SetPIN(tt.pin)
			file := filepath.Join(t.TempDir(), "die")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			b := start(t, hsm, isolated("die", file), func(c *Config) { c.InsistOnLogin = tt.insist })
			eventually(t, "a worker that lives", func() error {
				s := b.Stats()
				if s.WorkerRestarts == tt.want && s.Reason != "" && !strings.Contains(s.Reason, "worker process") {
					return nil
				}
				return fmt.Errorf("%+v", s)
			})
			for range 5 {
				wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, "PIN")
				time.Sleep(2 * b.cfg.RetryAfter)
			}
			if s := b.Stats(); s.Logins != tt.want || s.WorkerRestarts != tt.want {
				t.Fatalf("%d logins and %d restarts, want %d of each", s.Logins, s.WorkerRestarts, tt.want)
			}

			// The module is mended, and another PIN is in the file.
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if tt.pin == softhsmtest.PIN {
				return // nothing to change it to: a restart is needed
			}
			hsm.Tool("--list-objects")
			hsm.SetPIN(softhsmtest.PIN)
			eventually(t, "Check with the right PIN", func() error { return b.Check(t.Context()) })
		})
	}
}

func TestWorkerSurvivesTheSignalsOfAServiceAndGoesWithIt(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, isolated())
	k := b.key(t, "object=k", kms.ES256)
	var pid int
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		pid = b.kill(t, s)
		if err := signs(t.Context(), k); err != nil {
			t.Errorf("after %v: %v", s, err)
		}
	}
	if s := b.Stats(); s.WorkerRestarts != 0 || !s.Isolated {
		t.Errorf("stats: %+v", s)
	}
	for _, file := range []string{"cmdline", "environ"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err == nil && bytes.Contains(content, []byte(softhsmtest.PIN)) {
			t.Errorf("the PIN is in %s of the worker", file)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the worker %d is there after Close: %v", pid, err)
	}
	wantErr(t, signs(t.Context(), k), kms.ErrUnavailable, errClosed.Error())
}

func TestCloseKillsAWorkerThatHangs(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm, isolated(), hasty, func(c *Config) { c.tempo.silence = 1000 })
	k := b.key(t, "object=k", kms.ES256)
	pid := b.kill(t, syscall.SIGSTOP)
	hung := make(chan error, 1)
	go func() { hung <- signs(t.Context(), k) }()
	eventually(t, "a signature in flight", func() error {
		if b.calls.mu.Lock(); b.calls.inside == 0 {
			b.calls.mu.Unlock()
			return errors.New("none")
		}
		b.calls.mu.Unlock()
		return nil
	})
	begin := time.Now()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > closeWait+2*time.Second {
		t.Errorf("Close took %v", took)
	}
	wantErr(t, <-hung, kms.ErrUnavailable)
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the worker %d is there after Close: %v", pid, err)
	}
}

func TestWorkerEndsWithItsParentWhateverHangs(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	parent := exec.Command("/proc/self/exe", asParent, hsm.Module, hsm.Label, hsm.PINFile, filepath.Join(t.TempDir(), "stick"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer parent.Wait()
	defer parent.Process.Kill()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Fatal("there is no worker")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the worker", func() error {
		if alive(pid) {
			return errors.New("it lives")
		}
		return nil
	})
}

// alive reports whether a process runs: an orphan may stay a zombie where
// nothing reaps it.
func alive(pid int) bool {
	state := stateOf(fmt.Sprintf("/proc/%d/stat", pid))
	return state != "" && state != "Z" && state != "X"
}

func TestWorkerLeavesNoCoreFile(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", asHarden).CombinedOutput()
	if want := "dumpable 0, core 0 of 0\n"; err != nil || string(out) != want {
		t.Errorf("a worker says %q (%v), want %q", out, err, want)
	}
}

func TestWorkerCommandThatFails(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	cfg := config(hsm)
	for name, command := range map[string][]string{"Missing": {"/nonexistent/bulla"}, "Empty": {}, "Nameless": {""}} {
		t.Run(name, func(t *testing.T) {
			cfg.Worker = command
			if b, err := New(t.Context(), cfg); err == nil || b != nil || !strings.Contains(err.Error(), "command of the worker process") {
				t.Errorf("New: got %v and %v", b, err)
			}
		})
	}
	t.Run("EndsAtOnce", func(t *testing.T) {
		var log logged
		b := start(t, hsm, log.into, hasty, func(c *Config) { c.Worker, c.tempo.longest = []string{"/bin/false"}, time.Second })
		eventually(t, "giving up hope", func() error {
			if b.Stats().WorkerRestarts < 5 {
				return errors.New("it is still replaced at once")
			}
			return nil
		})
		begin := time.Now()
		wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, "worker process died", "exit status 1")
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a call without a worker in sight took %v", took)
		}
		if s := b.Diagnose(t.Context(), nil); s[0].Outcome != Failed || !containsAll(s[0].Detail, "worker process", "exit status 1") || s[0].Advice == "" {
			t.Errorf("diagnosis: %+v", s)
		}
		if n := log.count("\n"); n > 8 {
			t.Errorf("%d lines were logged:\n%s", n, log.String())
		}
	})
}

func TestWorkerThatSpeaksNonsenseIsReplaced(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	var log logged
	b := start(t, hsm, log.into, func(c *Config) {
		c.Worker = []string{"/bin/sh", "-c", "printf 'GET / HTTP/1.1\\r\\n' >&3; sleep 5"}
	})
	wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, "worker process died", errFrame.Error())
}

func TestIsolationOfOneTokenIsOne(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	modules := NewModules()
	b := openIsolated(t, hsm, modules)
	defer b.Close()
	cfg := config(hsm)
	cfg.Modules = modules
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another isolation") {
		t.Errorf("the same token in this process: %v", err)
	}
	cfg.Worker, cfg.Sessions = workerCommand(), 7
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "other settings") {
		t.Errorf("the same token with other settings: %v", err)
	}
}

func TestDiagnosisThroughAWorkerIsTheSame(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	hsm.GenerateWrappingKey("aes", "02")
	refs := []KeyRef{
		{Ref: "object=k", Algorithm: kms.ES256}, {Ref: "object=k", Algorithm: kms.RS256}, {Ref: "object=none", Algorithm: kms.ES256},
		{Ref: "nonsense", Algorithm: kms.ES256}, {Ref: "object=aes", Wrapping: true}, {Ref: "object=k", Wrapping: true},
	}
	for _, tt := range []struct {
		name string
		harm func(*Config)
	}{
		{"Healthy", func(*Config) {}},
		{"PINFileIsMissing", func(c *Config) { c.PINFile += ".none" }},
		{"TokenIsMissing", func(c *Config) { c.Token = "none" }},
		{"ModuleIsMissing", func(c *Config) { c.Module = "/nonexistent/module.so" }},
		{"ModuleIsNone", func(c *Config) { c.Module = "/bin/sh" }},
		{"PINFileIsOpenToAll", func(c *Config) { _ = os.Chmod(c.PINFile, 0o644) }},
		{"PINIsWrong", func(c *Config) { // last: it leaves its mark
			c.InsistOnLogin = true
			_ = os.WriteFile(c.PINFile, []byte("654321"), 0o644)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			direct := start(t, hsm, tt.harm).Diagnose(t.Context(), refs)
			away := start(t, hsm, tt.harm, isolated()).Diagnose(t.Context(), refs)
			for i := range direct {
				d, a := direct[i], away[i]
				for _, e := range append(allSentinels(), ckr(0xA0), ckr(0x82)) {
					if errors.Is(d.Err, e) != errors.Is(a.Err, e) {
						t.Errorf("step %s: the error is %v: %t in this process, and not so through a worker (%v)", d.Name, e, errors.Is(d.Err, e), a.Err)
					}
				}
				d.Err, a.Err = nil, nil
				if !reflect.DeepEqual(d, a) {
					t.Errorf("in this process:\n%+v\nthrough a worker:\n%+v", d, a)
				}
			}
		})
	}
}

// allSentinels are the errors of the contract.
func allSentinels() []error {
	return []error{kms.ErrUnavailable, kms.ErrThrottled, kms.ErrKeyNotFound, kms.ErrKeyDisabled, kms.ErrKeyMismatch, kms.ErrUnwrap, kms.ErrReference}
}

func TestRunWorkerByHandSaysWhatItIs(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", asWorker)
	cmd.ExtraFiles = []*os.File{r}
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "is started by the service") {
		t.Errorf("got %q", out)
	}
}
