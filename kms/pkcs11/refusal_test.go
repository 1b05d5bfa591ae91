package pkcs11

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// remembering makes sources on one PIN file with one file of refusals, as
// processes do that come one after the other.
type remembering struct {
	t     *testing.T
	pins  string
	file  string
	log   bytes.Buffer
	token tokenName
}

func newRemembering(t *testing.T) *remembering {
	dir := t.TempDir()
	r := &remembering{t: t, pins: filepath.Join(dir, "pin"), file: filepath.Join(dir, "refused.json"), token: tokenName{label: "bulla", serial: "01"}}
	r.write("1111")
	return r
}

func (r *remembering) write(pin string) {
	r.t.Helper()
	if err := os.WriteFile(r.pins, []byte(pin), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// process is a source of another process.
func (r *remembering) process() *pinFile {
	return Config{PINFile: r.pins, RefusalFile: r.file, Logger: slog.New(slog.NewTextHandler(&r.log, nil))}.pinFile()
}

// take takes a PIN for a login, or says why there is none.
func (r *remembering) take(f *pinFile, warning string) error {
	p, err := f.take(r.t.Context(), pinQuestion{warning: warning, token: r.token})
	if err == nil {
		p.clear()
	}
	return err
}

// records are what the file holds.
func (r *remembering) records() []record {
	r.t.Helper()
	content, err := newRefusals(r.file, "", nil).read()
	if err != nil {
		r.t.Fatal(err)
	}
	return content.Tokens
}

// dies ends the process that has f, as kill -9 does: the kernel takes its locks.
func dies(f *pinFile) { f.entry.lost() }

func TestRefusedPINIsNotSentByTheNextProcess(t *testing.T) {
	t.Parallel()
	refused := func(f *pinFile) { f.refused(&callError{"C_Login", 0xA0}) }
	type step struct {
		pin, warning string // "" leaves the file as it is
		then         func(*pinFile)
		text         string // of the refusal to give it out
	}
	for _, tt := range []struct {
		name  string
		steps []step
		left  int // records in the end
	}{
		{"Accepted", []step{{then: (*pinFile).accepted}, {then: (*pinFile).accepted}}, 0},
		{"Refused", []step{{then: refused}, {text: "refused by token \"bulla\" on 20"}, {text: "CKR_PIN_INCORRECT"}}, 1},
		{"RefusedWhateverIsInsistedOn", []step{{then: refused}, {warning: "USER_PIN_COUNT_LOW", text: "is not sent again"}}, 1},
		{"ChangedAndAccepted", []step{{then: refused}, {pin: "2222", then: (*pinFile).accepted}, {pin: "1111", then: (*pinFile).accepted}}, 0},
		{"ChangedAndChangedBack", []step{{then: refused}, {pin: "2222", then: refused}, {pin: "1111", text: "is not sent again"}, {pin: "2222", text: "is not sent again"}}, 1},
		{"KilledTwice", []step{{then: dies}, {then: dies}, {text: "nobody knows what became of 2 logins"}, {pin: "2222", then: (*pinFile).accepted}}, 0},
		{"KilledAndWarned", []step{{then: dies}, {warning: "USER_PIN_COUNT_LOW", text: "may have been refused"}}, 1},
		{"KilledAndAccepted", []step{{then: dies}, {then: (*pinFile).accepted}, {then: dies}, {then: (*pinFile).accepted}}, 0},
		{"LostByAWorker", []step{{then: (*pinFile).lost}, {then: (*pinFile).lost}, {text: "nobody knows"}}, 1},
		{"Undecided", []step{{then: (*pinFile).undecided}, {warning: "USER_PIN_COUNT_LOW", then: (*pinFile).undecided}, {then: (*pinFile).undecided}}, 0},
		{"UndecidedSaysNothingOfALostOne", []step{{then: dies}, {then: (*pinFile).undecided}, {then: dies}, {text: "nobody knows"}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRemembering(t)
			for i, s := range tt.steps {
				if s.pin != "" {
					r.write(s.pin)
				}
				f := r.process()
				err := r.take(f, s.warning)
				switch {
				case s.text == "" && err != nil:
					t.Fatalf("step %d: %v", i, err)
				case s.text == "":
					s.then(f)
				default:
					var p *problem
					if !errors.As(err, &p) || p.stage != StepLogin || !containsAll(p.Error(), s.text, r.pins) || p.advice == "" {
						t.Fatalf("step %d: %v, want %q", i, err, s.text)
					}
					if again := r.take(f, s.warning); again == nil || f.taken() != 0 {
						t.Errorf("step %d: asked again it gives the PIN out", i)
					}
				}
			}
			if n := len(r.records()); n != tt.left {
				t.Errorf("%d records are left, want %d", n, tt.left)
			}
			if r.log.Len() > 0 {
				t.Errorf("something was logged: %s", &r.log)
			}
		})
	}
}

func TestRefusalsOfOneTokenSayNothingOfAnother(t *testing.T) {
	t.Parallel()
	r := newRemembering(t)
	f := r.process()
	if err := r.take(f, ""); err != nil {
		t.Fatal(err)
	}
	f.refused(ckr(0xA0))
	r.token.serial = "02" // made anew, say
	if err := r.take(r.process(), ""); err != nil {
		t.Error(err)
	}
}

func TestRecordHoldsASlowHashAndNoPIN(t *testing.T) {
	t.Parallel()
	r := newRemembering(t)
	r.write("90817263")
	f := r.process()
	if err := r.take(f, ""); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(r.file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if rec := r.records(); len(rec) != 1 || rec[0].Trial == nil || rec[0].Rounds < 200_000 || len(rec[0].Salt) < 16 {
		t.Errorf("before the login the file holds %+v", rec)
	}
	f.refused(errors.New("the PIN 90817263 is wrong")) // a module's words are not kept
	text, err := os.ReadFile(r.file)
	if err != nil || bytes.Contains(text, []byte("90817263")) {
		t.Errorf("the file holds the PIN: %s, %v", text, err)
	}
}

func TestRecordThatMakesNoSenseStopsLogins(t *testing.T) {
	t.Parallel()
	good := func(change func(*record)) string {
		one := record{Label: "bulla", Serial: "01", Salt: make([]byte, 16), Rounds: 1, Refused: []refusal{{Hash: make([]byte, 32)}}}
		change(&one)
		text, _ := json.Marshal(recordFile{Version: recordVersion, Tokens: []record{one}})
		return string(text)
	}
	for name, content := range map[string]string{
		"Empty":      "",
		"Nonsense":   "refused",
		"Version":    `{"version":2}`,
		"TooLong":    `{"version":1,"x":"` + strings.Repeat("x", maxRefusalSize) + `"}`,
		"Salt":       good(func(r *record) { r.Salt = nil }),
		"Rounds":     good(func(r *record) { r.Rounds = maxRounds + 1 }),
		"NoRounds":   good(func(r *record) { r.Rounds = 0 }),
		"Hash":       good(func(r *record) { r.Refused[0].Hash = nil }),
		"Trial":      good(func(r *record) { r.Trial = &trial{Hash: make([]byte, 32)} }),
		"TooManyBad": good(func(r *record) { r.Refused = make([]refusal, maxRefusals+1) }),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemembering(t)
			if err := os.WriteFile(r.file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := r.process()
			if err := r.take(f, ""); err == nil || !containsAll(err.Error(), "cannot be understood", "delete "+r.file) {
				t.Errorf("error %v", err)
			}
			if now, err := os.ReadFile(r.file); err != nil || string(now) != content {
				t.Error("the file was changed")
			}
			if err := os.Remove(r.file); err != nil {
				t.Fatal(err)
			}
			if err := r.take(f, ""); err != nil {
				t.Errorf("after it was deleted: %v", err)
			}
		})
	}
}

func TestRecordThatCannotBeKeptIsWarnedOfOnce(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(*testing.T, *remembering){
		"NoFolder": func(_ *testing.T, r *remembering) { r.file = filepath.Join(r.file, "none", "refused.json") },
		"Folder": func(t *testing.T, r *remembering) {
			if err := os.Mkdir(r.file, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"SymbolicLink": func(t *testing.T, r *remembering) {
			other := filepath.Join(t.TempDir(), "other")
			if err := os.WriteFile(other, []byte(`{"version":1}`), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(other, r.file); err != nil {
				t.Fatal(err)
			}
		},
		"LinkForTheNext": func(t *testing.T, r *remembering) { // is taken away, not followed
			other := filepath.Join(t.TempDir(), "other")
			if err := os.Symlink(other, r.file+".new"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if _, err := os.Stat(other); err == nil {
					t.Error("a symbolic link was followed")
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemembering(t)
			harm(t, r)
			f := r.process()
			for range 3 {
				if err := r.take(f, ""); err != nil {
					t.Fatal(err)
				}
				f.undecided()
			}
			if err := r.take(f, ""); err != nil {
				t.Fatal(err)
			}
			f.refused(ckr(0xA0))
			if err := r.take(f, ""); err == nil {
				t.Error("memory does not serve in its place")
			}
			want := 1
			if name == "LinkForTheNext" {
				want = 0
			}
			if n := strings.Count(r.log.String(), "cannot be recorded"); n != want {
				t.Errorf("%d warnings, want %d:\n%s", n, want, &r.log)
			}
		})
	}
}

func TestLoginInAnotherProcessIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRemembering(t)
	one, two := r.process(), r.process()
	if err := r.take(one, ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := two.take(ctx, pinQuestion{token: r.token}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another logs in: %v", err)
	}
	other := r.token
	other.label = "other"
	if p, err := two.take(t.Context(), pinQuestion{token: other}); err != nil {
		t.Errorf("another token: %v", err)
	} else {
		p.clear()
		two.undecided()
	}
	got := make(chan error)
	go func() { got <- r.take(two, "") }()
	one.refused(ckr(0xA0))
	if err := <-got; !errors.Is(err, errRefusedBefore) {
		t.Errorf("after it was refused: %v", err)
	}
}

func BenchmarkRecordOfALogin(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(dir+"/pin", []byte("123456"), 0o600); err != nil {
		b.Fatal(err)
	}
	f := Config{PINFile: dir + "/pin", RefusalFile: dir + "/refused"}.pinFile()
	for b.Loop() {
		p, err := f.take(b.Context(), pinQuestion{})
		if err != nil {
			b.Fatal(err)
		}
		p.clear()
		f.accepted()
	}
}

// The slow hash is that of the one PIN, the one salt and the one count.
func TestTheSlowHashThatIsRememberedIsOfItsOwnPIN(t *testing.T) {
	r := newRefusals(filepath.Join(t.TempDir(), "refused.json"), "", nil)
	a, b := &pin{size: 4}, &pin{size: 4}
	copy(a.buf[:], "1234")
	copy(b.buf[:], "1235")
	one, other := record{Salt: bytes.Repeat([]byte{1}, 16), Rounds: 10}, record{Salt: bytes.Repeat([]byte{2}, 16), Rounds: 10}
	more := record{Salt: one.Salt, Rounds: 11}
	for _, c := range []struct {
		of record
		p  *pin
	}{{one, a}, {one, a}, {one, b}, {one, a}, {other, a}, {more, a}, {one, a}} {
		got, err := r.slow(c.of, c.p)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := pbkdf2.Key(sha256.New, string(c.p.bytes()), c.of.Salt, c.of.Rounds, sha256.Size); !bytes.Equal(got, want) {
			t.Errorf("%q, salt %x, %d rounds: %x, want %x", c.p.bytes(), c.of.Salt[0], c.of.Rounds, got, want)
		}
	}
}
