//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func TestNewRefusesWhatMustBeEdited(t *testing.T) {
	good := Config{Module: "/lib/x.so", Token: "bulla", PINFile: "pin"}
	for text, edit := range map[string]func(*Config){
		"module is empty":            func(c *Config) { c.Module = "" },
		"not an absolute path":       func(c *Config) { c.Module = "libsofthsm2.so" },
		"no token named":             func(c *Config) { c.Token = "" },
		"longer than the 32 bytes":   func(c *Config) { c.Token = strings.Repeat("x", 33) },
		"longer than the 16 bytes":   func(c *Config) { c.Serial = strings.Repeat("0", 17) },
		"no PIN file":                func(c *Config) { c.PINFile = "" },
		"sessions is -1":             func(c *Config) { c.Sessions = -1 },
		"sessions is 100000":         func(c *Config) { c.Sessions = 100000 },
		"retry time -1s is negative": func(c *Config) { c.RetryAfter = -time.Second },
	} {
		c := good
		edit(&c)
		b, err := New(t.Context(), c)
		if err == nil || b != nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got error %v, want one that says %q", err, text)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := New(ctx, good); !errors.Is(err, context.Canceled) || b != nil {
		t.Errorf("with an ended context: got %v and %v", b, err)
	}
}

func TestPoolSize(t *testing.T) {
	cores := 2 * runtime.GOMAXPROCS(0)
	for _, tt := range []struct {
		configured int
		limit      uint
		want       int
	}{
		{0, 0, cores}, {0, unavailableInformation, cores}, {0, 1 << 20, cores}, {0, 3, 1}, {0, 1, 1}, {0, 2, 1},
		{16, 0, 16}, {16, 18, 16}, {16, 17, 15}, {16, 4, 2}, {16, unavailableInformation, 16},
	} {
		if got := poolSize(tt.configured, tt.limit); got != tt.want {
			t.Errorf("%d sessions with a token limit of %d: got %d, want %d", tt.configured, tt.limit, got, tt.want)
		}
	}
}

func TestSessionsAreBounded(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("ec", "01", kms.ES256)
	hsm.GenerateKey("rsa", "02", kms.RS256)
	b := start(t, hsm, func(c *Config) { c.Sessions = 3 })
	keys := []kms.Key{b.key(t, "object=ec", kms.ES256), b.key(t, "object=rsa", kms.PS256)}
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for range 10 {
				if err := signs(t.Context(), keys[g%2]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := b.Stats()
	if n := b.lib.opens.Load(); n > 4 || s.Open > 3 || s.Limit != 3 || s.InUse != 0 || s.Waiting != 0 {
		t.Errorf("32 signers opened %d sessions, the login's among them; stats %+v", n, s)
	}
}

func TestWaitingForASessionEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(1)
		s, err := p.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begin := time.Now()
		if _, err := p.get(ctx); !errors.Is(err, kms.ErrThrottled) || !strings.Contains(err.Error(), "none of 1 sessions") {
			t.Errorf("got error %v", err)
		}
		if took := time.Since(begin); took != time.Hour/2 {
			t.Errorf("waited %v, want half of the hour, for a signature takes time too", took)
		}
		left, leave := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, leave)
		if _, err := p.get(left); !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v after the caller has gone", err)
		}
		got := make(chan *session)
		go func() {
			s, _ := p.get(t.Context())
			got <- s
		}()
		synctest.Wait()
		if n := p.waiting.Load(); n != 1 {
			t.Errorf("%d waiting, want 1", n)
		}
		s.open = true
		p.put(s)
		if <-got != s {
			t.Error("the waiter got another session")
		}
		gone := make(chan error)
		go func() {
			_, err := p.get(t.Context())
			gone <- err
		}()
		synctest.Wait()
		p.retire()
		if err := <-gone; !errors.Is(err, errEpoch) {
			t.Errorf("a pool that is lost keeps its waiters: %v", err)
		}
	})
}

func TestPoolGrowsBackAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(3)
		for i, want := range []bool{true, true, false} {
			mustGet(t, p)
			if got := p.shrink(); got != want {
				t.Errorf("shrink %d: got %v, want %v", i, got, want)
			}
		}
		if n := p.limit(); n != 1 {
			t.Errorf("limit %d, want 1", n)
		}
		for _, want := range []int{2, 3, 3} {
			time.Sleep(regrowPause - time.Second)
			borrow(t, p)
			if n := p.limit(); n >= want && want < 3 {
				t.Errorf("limit %d a second too early", n)
			}
			time.Sleep(time.Second)
			borrow(t, p)
			if n := p.limit(); n != want {
				t.Errorf("limit %d, want %d", n, want)
			}
		}
	})
}

func TestPoolThatMeetsTheLimitAgainWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(2) // and the token has room for one
		borrow(t, p)
		mustGet(t, p)
		right := mustGet(t, p)
		p.shrink() // instead of opening right
		right.open = true
		p.put(right)
		growths := 0
		for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(time.Second) {
			borrow(t, p)
			if p.limit() == 1 {
				continue
			}
			growths++
			one, two := mustGet(t, p), mustGet(t, p)
			if one.open == two.open {
				t.Fatal("want one open session and one right")
			}
			p.shrink()
			one.open = true
			p.put(one)
		}
		// 3, 6, 12 ... 192 s, then each 5 minutes.
		if growths < 15 || growths > 20 {
			t.Errorf("the pool asked for one session more %d times in an hour", growths)
		}

		// The token got room: the next pause is short again.
		for p.limit() == 1 {
			time.Sleep(time.Second)
			borrow(t, p)
		}
		time.Sleep(time.Hour)
		mustGet(t, p)
		p.shrink()
		time.Sleep(regrowPause)
		borrow(t, p)
		if n := p.limit(); n != 2 {
			t.Errorf("limit is %d %v after a first capacity error in an hour, want 2", n, regrowPause)
		}
	})
}

func mustGet(t *testing.T, p *pool) *session {
	t.Helper()
	s, err := p.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// borrow takes a session and gives it back.
func borrow(t *testing.T, p *pool) {
	t.Helper()
	s := mustGet(t, p)
	s.open = true
	p.put(s)
}

func TestGateParksOnlyWhenAllAreOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if g.park(parkLimit) {
			t.Fatal("parked with a call inside")
		}
		if took := time.Since(begin); took != parkLimit {
			t.Errorf("gave up after %v, want %v", took, parkLimit)
		}
		if err := g.enter(t.Context()); err != nil { // open again
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			g.leave()
			g.leave()
		}()
		if !g.park(parkLimit) {
			t.Fatal("did not park when the calls came out")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("entering a shut gate: got %v", err)
		}
		in := make(chan error)
		go func() { in <- g.enter(t.Context()) }()
		synctest.Wait()
		g.reopen()
		if err := <-in; err != nil {
			t.Error(err)
		}
		g.leave()
	})
}

func TestBackendsOfOneTokenShareItsSessions(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	first := start(t, hsm)
	second, err := New(t.Context(), first.cfg)
	if err != nil {
		t.Fatal(err)
	}
	k := first.key(t, "object=k", kms.ES256)
	if n := first.lib.logins.Load(); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	wantErr(t, second.Check(t.Context()), kms.ErrUnavailable, "closed")
	if err := signs(t.Context(), k); err != nil {
		t.Errorf("after the other was closed: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if s := first.Stats(); s.Up {
		t.Errorf("closed, and up: %+v", s)
	}
	if e := first.token().mod.epoch.Load(); e != 0 {
		t.Error("the last Close did not finalize the module")
	}
}

func TestModuleOfAnotherOwnerIsLeftAlone(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	owner := start(t, hsm)
	k := owner.key(t, "object=k", kms.ES256)
	stranger := start(t, hsm) // with a registry of its own
	wantErr(t, stranger.Check(t.Context()), kms.ErrUnavailable, "something else in this process", "same registry")
	if err := stranger.Close(); err != nil {
		t.Error(err)
	}
	if err := signs(t.Context(), k); err != nil {
		t.Errorf("the owner's key: %v", err)
	}
}

func TestDiagnose(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("ec", "01", kms.ES256)
	b := start(t, hsm)
	refs := []KeyRef{{Ref: "object=ec", Algorithm: kms.ES256}, {Ref: "object=nobody", Algorithm: kms.ES256}, {Ref: "object=ec", Algorithm: kms.RS256}, {Ref: "slot-id=1", Algorithm: kms.ES256}}

	// A running service signs all the while.
	k := b.key(t, "object=ec", kms.ES256)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := signs(t.Context(), k); err != nil {
				t.Errorf("beside the diagnosis: %v", err)
				return
			}
		}
	})
	steps := b.Diagnose(t.Context(), refs)
	stop()
	wg.Wait()
	wantSteps(t, steps,
		"module ok", "token ok", "login ok",
		"key object=ec ok", "mechanism object=ec ok", "probe object=ec ok",
		"key object=nobody failed", "mechanism object=nobody skipped", "probe object=nobody skipped",
		"key object=ec failed", "mechanism object=ec skipped", "probe object=ec skipped",
		"key slot-id=1 failed", "mechanism slot-id=1 skipped", "probe slot-id=1 skipped",
	)
	if n := b.lib.logins.Load(); n != 1 {
		t.Errorf("the diagnosis logged in again: %d logins", n)
	}
	wrapping := []KeyRef{{Ref: "object=wrap", Wrapping: true}, {Ref: "object=given", Wrapping: true}, {Ref: "object=rsa", Wrapping: true}, {Ref: "object=ec", Wrapping: true}, {Ref: "object=", Wrapping: true}, {Ref: "object=wrap", Algorithm: kms.ES256}}
	hsm.GenerateWrappingKey("wrap", "02")
	hsm.GenerateSecret("AES:16", "given", "03", "--sensitive", "--extractable", "--usage-wrap", "--usage-decrypt")
	hsm.GenerateKey("rsa", "04", kms.RS256)
	steps = b.Diagnose(t.Context(), wrapping)
	wantSteps(t, steps[3:],
		"key object=wrap ok", "mechanism object=wrap ok", "probe object=wrap ok",
		"key object=given warning", "mechanism object=given ok", "probe object=given ok",
		"key object=rsa ok", "mechanism object=rsa ok", "probe object=rsa ok",
		"key object=ec failed", "mechanism object=ec skipped", "probe object=ec skipped",
		"key object= failed", "mechanism object= skipped", "probe object= skipped",
		"key object=wrap failed", "mechanism object=wrap skipped", "probe object=wrap skipped",
	)
	for i, detail := range []string{"AES key of 256 bits", "CKM_AES_GCM (0x1087)", "wrapped and unwrapped", "AES key of 128 bits", "", "", "RSA private key", "CKM_RSA_PKCS", "signature"} {
		if s := steps[3+i]; !containsAll(s.Detail, detail) {
			t.Errorf("%s of %s: %q does not say %q", s.Name, s.Key, s.Detail, detail)
		}
	}

	if err := os.Chmod(hsm.PINFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if s := b.Diagnose(t.Context(), nil)[2]; s.Outcome != Warned || !containsAll(s.Advice, "chmod 600") {
		t.Errorf("a PIN file that all may read: %+v", s)
	}
}

func TestDiagnoseSaysAtWhichStepItFails(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	ref := []KeyRef{{Ref: "object=k", Algorithm: kms.ES256}}
	rest := []string{"key object=k skipped", "mechanism object=k skipped", "probe object=k skipped"}
	for _, tt := range []struct {
		name   string
		harm   func(*Config)
		steps  []string
		failed int
		texts  []string
	}{
		{"Module", func(c *Config) { c.Module = "/nonexistent/lib.so" }, []string{"module failed", "token skipped", "login skipped"}, 0, []string{"no module at"}},
		{"NotAModule", func(c *Config) { c.Module = hsm.PINFile }, []string{"module failed", "token skipped", "login skipped"}, 0, []string{"cannot be loaded"}},
		{"Token", func(c *Config) { c.Token = "other" }, []string{"module ok", "token failed", "login skipped"}, 1, []string{`no token "other"`}},
		{"Login", func(c *Config) { c.PINFile += ".none" }, []string{"module ok", "token ok", "login failed"}, 2, []string{"PIN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := start(t, hsm, tt.harm)
			steps := b.Diagnose(t.Context(), ref)
			wantSteps(t, steps, append(tt.steps, rest...)...)
			s := steps[tt.failed]
			if !containsAll(s.Detail, tt.texts...) || s.Advice == "" {
				t.Errorf("failed step: %+v", s)
			}
			wantErr(t, s.Err, kms.ErrUnavailable)
		})
	}
	b := start(t, hsm)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, b.Diagnose(t.Context(), ref), "module failed")
}

func wantSteps(t *testing.T, steps []Step, want ...string) {
	t.Helper()
	var got []string
	for _, s := range steps {
		line := s.Name
		if s.Key != "" {
			line += " " + s.Key
		}
		got = append(got, line+" "+string(s.Outcome))
		if s.Outcome == Failed && (s.Detail == "" || s.Err == nil) {
			t.Errorf("a failed step without a reason: %+v", s)
		}
		if s.Outcome == Passed && s.Detail == "" {
			t.Errorf("a passed step that says nothing: %+v", s)
		}
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got steps\n%s\nwant\n%s", g, w)
	}
}
