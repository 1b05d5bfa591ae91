//go:build cgo

package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// use asks for everything there is, n times, as fast as it goes.
func (b *bench) use(t *testing.T, n int, texts ...string) {
	t.Helper()
	for i := range n {
		if i%10 == 0 {
			b.token().mu.Lock()
			b.token().tried = b.token().tried.Add(-b.cfg.RetryAfter) // it is time for an attempt
			b.token().mu.Unlock()
		}
		_, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
		wantErr(t, err, kms.ErrUnavailable, texts...)
		wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, texts...)
		for _, s := range b.Diagnose(t.Context(), nil) {
			if s.Name == StepLogin && s.Outcome != Failed {
				t.Errorf("diagnosis of the login: %+v", s)
			}
		}
	}
}

func TestRefusedPINIsSentOnce(t *testing.T) {
	for _, insist := range []bool{false, true} {
		name := "Cautious"
		if insist {
			name = "Insisting"
		}
		t.Run(name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "bulla")
			hsm.GenerateKey("k", "01", kms.ES256)
			hsm.SetPIN("654321")
			b := start(t, hsm, func(c *Config) { c.InsistOnLogin = insist })
			if reason := b.Stats().Reason; !containsAll(reason, "refused the PIN in "+hsm.PINFile, "put the right PIN into the file",
				"log in once by hand", "pkcs11-tool --module "+hsm.Module+" --token-label bulla --login --list-objects") {
				t.Errorf("the first refusal does not say both steps: %s", reason)
			}
			b.use(t, 50)
			if n := b.lib.logins.Load(); n != 1 {
				t.Fatalf("50 uses with a wrong PIN made %d logins, want 1", n)
			}

			// Another wrong PIN, and the same again with another line end.
			hsm.SetPIN("111111")
			b.use(t, 20)
			if err := os.WriteFile(hsm.PINFile, []byte("111111\r\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			b.use(t, 20)
			want := int64(1) // the token reports the first refusal
			if insist {
				want = 2
			}
			if n := b.lib.logins.Load(); n != want {
				t.Fatalf("after a second wrong PIN: %d logins, want %d", n, want)
			}

			// The right PIN.
			hsm.SetPIN(softhsmtest.PIN)
			if !insist {
				b.use(t, 20, "USER_PIN_COUNT_LOW", hsm.PINFile, "log in once by hand", "insist_on_login: true",
					"pkcs11-tool --module "+hsm.Module+" --token-label bulla --login --list-objects")
				if n := b.lib.logins.Load(); n != 1 {
					t.Fatalf("a token that reports failed logins was sent a PIN (%d logins)", n)
				}
				hsm.Tool("--list-objects") // as the message says
			}
			eventually(t, "Check with the right PIN", func() error { return b.Check(t.Context()) })
			if err := signs(t.Context(), b.key(t, "object=k", kms.ES256)); err != nil {
				t.Error(err)
			}
			if n := b.lib.logins.Load(); n != want+1 {
				t.Errorf("%d logins in all, want %d", n, want+1)
			}
		})
	}
}

func TestCommandForTheOperatorIsQuotedForAShell(t *testing.T) {
	for label, want := range map[string]string{
		"bulla-1.a":  "bulla-1.a",
		"":           "''",
		"my token":   "'my token'",
		"$(id)`id`":  "'$(id)`id`'",
		"it's":       `'it'\''s'`,
		"a\x1b[2J\n": "'a?[2J?'",
	} {
		got := toolCommand("/usr/lib/m.so", label, "--login")
		if want := "pkcs11-tool --module /usr/lib/m.so --token-label " + want + " --login"; got != want {
			t.Errorf("command for label %q = %s, want %s", label, got, want)
		}
	}
}

func TestRestartAfterARefusedPINSendsNone(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.SetPIN("654321")
	var logins int64
	for range 5 {
		b := start(t, hsm)
		_ = b.Check(t.Context())
		b.Diagnose(t.Context(), nil)
		logins += b.lib.logins.Load()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if logins != 1 {
		t.Errorf("five starts with a wrong PIN made %d logins, want 1", logins)
	}
}

func TestUnreadablePINFileIsNoLogin(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	for _, tt := range []struct {
		name string
		harm func() error
		text string
	}{
		{"Missing", func() error { return os.Remove(hsm.PINFile) }, "no such file"},
		{"Empty", func() error { return os.WriteFile(hsm.PINFile, nil, 0o600) }, "is empty"},
		{"OnlyALineEnd", func() error { return os.WriteFile(hsm.PINFile, []byte("\r\n"), 0o600) }, "is empty"},
		{"TooLong", func() error { return os.WriteFile(hsm.PINFile, make([]byte, maxPIN+1), 0o600) }, "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.harm(); err != nil {
				t.Fatal(err)
			}
			b := start(t, hsm)
			wantErr(t, b.Check(t.Context()), kms.ErrUnavailable, tt.text)
			if n := b.lib.logins.Load(); n != 0 {
				t.Errorf("%d logins, want none", n)
			}
			hsm.SetPIN(softhsmtest.PIN)
			eventually(t, "Check with the PIN in its file", func() error { return b.Check(t.Context()) })
		})
	}
}

func TestPINIsNeverShown(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	var mu sync.Mutex
	var log bytes.Buffer
	var shown strings.Builder
	for _, pin := range []string{"90817263", softhsmtest.PIN} {
		hsm.SetPIN(pin)
		b := start(t, hsm, func(c *Config) {
			c.InsistOnLogin = true
			c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		})
		if err := b.Check(t.Context()); err != nil {
			shown.WriteString(err.Error())
		}
		for _, s := range b.Diagnose(t.Context(), []KeyRef{{Ref: "object=none", Algorithm: kms.ES256}}) {
			shown.WriteString(s.Detail + s.Advice)
		}
		shown.WriteString(b.Stats().Reason)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if log.Len() == 0 || shown.Len() == 0 {
		t.Fatal("nothing was said at all")
	}
	for _, pin := range []string{"90817263", softhsmtest.PIN} {
		if strings.Contains(log.String()+shown.String(), pin) {
			t.Errorf("the PIN %s is shown", pin)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func TestReadPINTakesOneLineEndAway(t *testing.T) {
	for content, want := range map[string]string{
		"1234": "1234", "1234\n": "1234", "1234\r\n": "1234", "  12\t34\n": "  12\t34", "1234\n\n": "1234\n", "\n1\n": "\n1",
	} {
		file := t.TempDir() + "/pin"
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := readPIN(file)
		if err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		if got := string(p.bytes()); got != want {
			t.Errorf("readPIN of %q = %q, want %q", content, got, want)
		}
		var m pinMemory
		if m.knows(p) {
			t.Error("an empty memory knows a PIN")
		}
		m.remember(p, nil)
		if !m.knows(p) {
			t.Error("a refused PIN is not known")
		}
		buf := p.bytes()
		p.clear()
		if bytes.ContainsAny(buf, "1234") {
			t.Error("clear leaves the PIN in memory")
		}
		if m.knows(p) {
			t.Error("another PIN is taken for the refused one")
		}
	}
}

func TestLoginLostAndRefusedClosesAllSessions(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	b := start(t, hsm)
	k := b.key(t, "object=k", kms.ES256)
	for i := range 3 {
		b.alone(t, func(l *link) {
			if err := l.lib.logout(l.login.handle); err != nil {
				t.Fatal(err)
			}
		})
		hsm.SetPIN(fmt.Sprintf("00000%d", i))
		logins := b.lib.logins.Load()
		wantErr(t, signs(t.Context(), k), kms.ErrUnavailable, "refused the PIN")
		b.use(t, 10)
		if n := b.lib.logins.Load() - logins; n != 1 {
			t.Errorf("%d logins with one wrong PIN", n)
		}
		eventually(t, "closing of all sessions", func() error {
			if open := b.lib.opens.Load() - b.lib.closes.Load(); open != 0 {
				return fmt.Errorf("%d open", open)
			}
			return nil
		})
		hsm.Tool("--list-objects")
		hsm.SetPIN(softhsmtest.PIN)
		eventually(t, "signing with the right PIN", func() error {
			_ = b.Check(t.Context())
			return signs(t.Context(), k)
		})
	}
}

// A vendor's own code may mean a wrong PIN that counts, or a token that is out
// of reach.
func TestLoginsWithoutAVerdictComeLessAndLessOften(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	lib := &meddler{}
	lib.set(func(call string) error {
		if call == "login" {
			return &callError{"C_Login", 0x80000011}
		}
		return nil
	})
	cfg := config(hsm)
	cfg.Modules = meddledModules(lib)
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	// At 20 ms, then 40, 80, 160, 320 ms after the one before.
	for until := time.Now().Add(700 * time.Millisecond); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		_, _ = b.OpenKey(t.Context(), "object=k", kms.ES256)
	}
	if n := lib.logins.Load(); n < 2 || n > 7 {
		t.Errorf("%d logins in 700 ms, want some 6", n)
	}
	lib.set(nil)
	begin := time.Now()
	for err = errors.New("not tried"); err != nil && time.Since(begin) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		_, err = b.OpenKey(t.Context(), "object=k", kms.ES256)
	}
	if err != nil {
		t.Errorf("a login that would do now is not made: %v", err)
	}
}

// A token that is being initialized says that it has no PIN though its flags say
// that it has. The PIN in the file is right, and nobody will touch the file.
func TestPINOfATokenInTheMakingIsSentAgain(t *testing.T) {
	hsm := softhsmtest.New(t, "bulla")
	hsm.GenerateKey("k", "01", kms.ES256)
	lib := &meddler{}
	lib.set(func(call string) error {
		if call == "login" {
			return &callError{"C_Login", ckrPINNotInitialized}
		}
		return nil
	})
	cfg := config(hsm)
	cfg.Modules = meddledModules(lib)
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, err = b.OpenKey(t.Context(), "object=k", kms.ES256)
	wantErr(t, err, kms.ErrUnavailable, "has no user PIN yet", "--init-pin")
	if n := lib.logins.Load(); n < 1 {
		t.Fatal("no login was tried")
	}
	// Modules look at what a token says of its PIN when they are initialized.
	eventually(t, "the module initialized again", func() error {
		if b.Stats().Restarts == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	lib.set(nil)
	eventually(t, "a login with the same PIN", func() error {
		_, err := b.OpenKey(t.Context(), "object=k", kms.ES256)
		return err
	})
}
