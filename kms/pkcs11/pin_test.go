package pkcs11

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestPINOfALostLoginIsGivenOutOnceMore(t *testing.T) {
	const low = "USER_PIN_COUNT_LOW"
	take := func(warning string, then func(*pinFile)) func(*pinFile) error {
		return func(f *pinFile) error {
			p, err := f.take(t.Context(), pinQuestion{warning: warning})
			if err == nil {
				p.clear()
				then(f)
			}
			return err
		}
	}
	refuse := func(f *pinFile) { f.refused(ckr(0xA0)) }
	write := func(pin string) func(*pinFile) error {
		return func(f *pinFile) error { return os.WriteFile(f.path, []byte(pin), 0o600) }
	}
	for _, tt := range []struct {
		name  string
		steps []func(*pinFile) error
		given uint64
		text  string // of the last step's error
	}{
		{"Accepted", []func(*pinFile) error{take("", (*pinFile).accepted), take("", (*pinFile).accepted), take(low, (*pinFile).accepted)}, 3, ""},
		{"Refused", []func(*pinFile) error{take("", refuse), take("", refuse)}, 1, "was refused before"},
		{"RefusedWhateverIsInsistedOn", []func(*pinFile) error{take(low, refuse), take(low, refuse)}, 1, "was refused before"},
		{"RefusedAndChanged", []func(*pinFile) error{take("", refuse), write("2222"), take(low, (*pinFile).accepted)}, 2, ""},
		{"LostTwice", []func(*pinFile) error{take("", (*pinFile).lost), take("", (*pinFile).lost), take("", (*pinFile).lost)}, 2, "the process died in each of 2 logins"},
		{"NeverTold", []func(*pinFile) error{take("", func(*pinFile) {}), take("", func(*pinFile) {}), take("", func(*pinFile) {})}, 2, "the process died in each of 2 logins"},
		{"LostAndWarned", []func(*pinFile) error{take("", (*pinFile).lost), take(low, (*pinFile).lost)}, 1, "may have been refused"},
		{"LostAndChanged", []func(*pinFile) error{take("", (*pinFile).lost), take("", (*pinFile).lost), write("2222"), take(low, (*pinFile).accepted)}, 3, ""},
		{"LostAndAccepted", []func(*pinFile) error{
			take("", (*pinFile).lost), take("", (*pinFile).accepted), take("", (*pinFile).lost), take("", (*pinFile).accepted),
		}, 4, ""},
		{"Undecided", []func(*pinFile) error{take("", (*pinFile).undecided), take(low, (*pinFile).undecided), take("", (*pinFile).undecided)}, 3, ""},
		{"UndecidedSaysNothingOfALostOne", []func(*pinFile) error{
			take("", (*pinFile).lost), take("", (*pinFile).undecided), take("", (*pinFile).lost), take("", (*pinFile).lost),
		}, 3, "the process died in each of 2 logins"},
		{"LostWithoutOne", []func(*pinFile) error{func(f *pinFile) error { f.lost(); f.lost(); f.lost(); return nil }, take("", (*pinFile).accepted)}, 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &pinFile{path: filepath.Join(t.TempDir(), "pin")}
			if err := write("1111")(f); err != nil {
				t.Fatal(err)
			}
			for i, step := range tt.steps {
				err := step(f)
				if last := i == len(tt.steps)-1; !last || tt.text == "" {
					if err != nil {
						t.Fatalf("step %d: %v", i, err)
					}
					continue
				}
				var p *problem
				if !errors.As(err, &p) || p.stage != StepLogin || !containsAll(p.Error(), tt.text, f.path) || p.advice == "" {
					t.Errorf("step %d: %v", i, err)
				}
			}
			if want := tt.text != "" && tt.text != "may have been refused"; f.barred(t.Context()) != want {
				t.Errorf("barred is %t, want %t", !want, want)
			}
			if f.taken() != tt.given {
				t.Errorf("the PIN was given out %d times, want %d", f.taken(), tt.given)
			}
		})
	}
}
