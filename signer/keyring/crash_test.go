package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/kms/local"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/bolt"
)

// A child process rotates a key on a real store and a real backend and kills
// itself at one of the steps. Then this process goes on where it stopped.

const (
	childEnv = "BULLA_TEST_KEYRING" // the folder of a child's store and backend
	killEnv  = "BULLA_TEST_KILL"    // the step, "before " or "after " what
	tokenEnv = "BULLA_TEST_TOKEN"   // the label of the SoftHSM token
	moduleEn = "BULLA_TEST_MODULE"  // its library
)

// The steps.
const (
	intentStored  = "the intent is stored"
	keyCreated    = "the key is created"
	keyOpened     = "the key is opened"
	entryRecorded = "the entry is recorded"
)

// wrapper wraps the data keys of the store, here and in children.
var wrapper = datakeytest.NewWrapperOf([32]byte{7})

// place is where the store and the backend are.
type place struct {
	dir string
	// Of the token; empty where the backend is a file.
	label, module string
}

// inToken is a place whose keys are in a SoftHSM token.
func inToken(t *testing.T) place {
	p := place{dir: t.TempDir()}
	token := softhsmtest.New(t, "rotation")
	token.GenerateKey("first", "01", kms.ES256)
	p.label, p.module = token.Label, token.Module
	pin, err := os.ReadFile(token.PINFile)
	if err == nil {
		err = os.WriteFile(filepath.Join(p.dir, "pin"), pin, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// inFile is a place whose keys are in a file.
func inFile(t *testing.T) place {
	p := place{dir: t.TempDir()}
	if _, err := local.Create(filepath.Join(p.dir, "keys.json"), kms.ES256, "first"); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p place) open(ctx context.Context) (*bolt.Store, kms.Backend, string, error) {
	store, err := bolt.Open(ctx, bolt.Config{Path: filepath.Join(p.dir, "bulla.db"), DataKeys: datakeytest.Config(wrapper)})
	if err != nil {
		return nil, nil, "", err
	}
	if p.label != "" {
		b, err := pkcs11.New(ctx, pkcs11.Config{Module: p.module, Token: p.label, PINFile: filepath.Join(p.dir, "pin")})
		return store, b, "object=first", err
	}
	b, err := local.New(ctx, local.Config{Path: filepath.Join(p.dir, "keys.json")})
	return store, b, "kid=first", err
}

// config has times short enough to wait for.
func config(store keyring.Store, backend kms.Backend, ref string, log *slog.Logger) keyring.Config {
	return keyring.Config{
		Store: store, Backends: map[string]kms.Backend{"b": backend}, Logger: log,
		Issuers: []keyring.Issuer{{
			Name: "main", Rotation: keyring.Rotation{Create: true},
			Keys: []keyring.Key{{Algorithm: kms.ES256, Locations: []keyring.Location{{Backend: "b", Ref: ref}}}},
		}},
		ReloadInterval: 20 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond,
		Timeout: 5 * time.Second, CreateTimeout: 5 * time.Second, Lease: 15 * time.Second, Skew: time.Millisecond,
	}
}

// child seeds the ring, rotates, and dies at the step that its environment
// names. It comes back only if something is wrong.
func child(dir string) int {
	ctx := context.Background()
	store, backend, ref, err := place{dir: dir, label: os.Getenv(tokenEnv), module: os.Getenv(moduleEn)}.open(ctx)
	if err != nil {
		fmt.Println("child:", err)
		return 1
	}
	d := deadly{step: os.Getenv(killEnv)}
	k, err := keyring.New(ctx, config(deadlyStore{store, d}, deadlyBackend{backend, backend.(kms.Creator), d}, ref, slog.New(slog.NewTextHandler(os.Stdout, nil))))
	if err != nil {
		fmt.Println("child:", err)
		return 1
	}
	go func() { _ = k.Run(ctx) }()
	for range 1000 {
		if _, err = k.Key("main", kms.ES256); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	_, err = k.Rotate(ctx, "main", kms.ES256, false)
	fmt.Println("child: Rotate came back:", err)
	return 1
}

// deadly ends the process at a step, as kill -9 does.
type deadly struct{ step string }

func (d deadly) at(when, step string) {
	if d.step == when+" "+step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

type deadlyStore struct {
	*bolt.Store
	deadly
}

func (s deadlyStore) PutRing(ctx context.Context, ring keyring.Ring, expect uint64) (*keyring.Ring, error) {
	step := ""
	switch {
	case ring.Intent != nil:
		step = intentStored
	case slices.ContainsFunc(ring.Entries, func(e keyring.Entry) bool { return e.Tag != "" }):
		step = entryRecorded
	}
	s.at("before", step)
	got, err := s.Store.PutRing(ctx, ring, expect)
	s.at("after", step)
	return got, err
}

type deadlyBackend struct {
	kms.Backend
	kms.Creator
	deadly
}

func (b deadlyBackend) CreateKey(ctx context.Context, spec kms.KeySpec, tag string) (string, error) {
	b.at("before", keyCreated)
	ref, err := b.Creator.CreateKey(ctx, spec, tag)
	b.at("after", keyCreated)
	return ref, err
}

func (b deadlyBackend) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	step := ""
	if !strings.Contains(ref, "first") {
		step = keyOpened
	}
	b.at("before", step)
	k, err := b.Backend.OpenKey(ctx, ref, alg)
	b.at("after", step)
	return k, err
}

func TestKillAtAnyStepLeavesOneKeyThatIsFound(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{intentStored, keyCreated, keyOpened, entryRecorded} {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" "+step, func(t *testing.T) {
				p := inToken(t)
				cmd := exec.CommandContext(t.Context(), exe)
				cmd.Env = append(os.Environ(), childEnv+"="+p.dir, killEnv+"="+when+" "+step, tokenEnv+"="+p.label, moduleEn+"="+p.module)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the child was not killed: %v\n%s", err, out)
				}

				store, backend, ref, err := p.open(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := errors.Join(backend.Close(), store.Close()); err != nil {
						t.Error(err)
					}
				})
				left(t, store, when, step)
				k := run(t, config(store, backend, ref, nil))
				if when+" "+step == "before "+intentStored {
					// Nothing is left of the rotation: ask again.
					if _, err := k.Rotate(t.Context(), "main", kms.ES256, false); err != nil {
						t.Error(err)
					}
				}
				wait(t, store, func(r *keyring.Ring) bool { return len(r.Entries) == 2 && r.Intent == nil })
				if _, err := k.Rotate(t.Context(), "main", kms.ES256, false); err != nil {
					t.Errorf("Rotate afterwards: %v", err)
				}
				ring, err := store.Ring(t.Context(), "main", kms.ES256)
				if err != nil {
					t.Fatal(err)
				}
				next := ring.Entries[1]
				if len(ring.Entries) != 2 || next.State(time.Now()) != keyring.Next || next.ActivateAt.IsZero() || next.Tag == "" {
					t.Errorf("the ring is %+v, want one next key", ring.Entries)
				}
				refs, err := backend.(kms.Creator).FindKeys(t.Context(), next.Tag)
				if err != nil || len(refs) != 1 || next.Locations[0].Ref != refs[0] {
					t.Errorf("the backend has %q of the tag, %v; want the one in the ring, %v", refs, err, next.Locations)
				}
				if got, err := k.Orphans("main"); err != nil || len(got) != 0 {
					t.Errorf("orphans: %v, %v", got, err)
				}
				p.wantKeys(t, 2)
			})
		}
	}
}

// left checks what the child left behind, and makes its claim old: nobody wants
// to wait for the lease in a test.
func left(t *testing.T, store *bolt.Store, when, step string) {
	t.Helper()
	ring, err := store.Ring(t.Context(), "main", kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	recorded := when+" "+step == "after "+entryRecorded
	ordered := !recorded && when+" "+step != "before "+intentStored
	if (ring.Intent != nil) != ordered || (len(ring.Entries) == 2) != recorded {
		t.Fatalf("the child left %+v", ring)
	}
	if !ordered {
		return
	}
	old := *ring.Intent
	old.ClaimedAt = old.ClaimedAt.Add(-time.Minute)
	ring.Intent = &old
	if _, err := store.PutRing(t.Context(), *ring, ring.Revision); err != nil {
		t.Fatal(err)
	}
}

// wantKeys checks how many key pairs the backend has, in a way of its own: one
// that no tag finds would show.
func (p place) wantKeys(t *testing.T, want int) {
	t.Helper()
	if p.label != "" {
		out, err := exec.CommandContext(t.Context(), "pkcs11-tool", "--module", p.module, "--token-label", p.label,
			"--login", "--pin", softhsmtest.PIN, "--list-objects", "--type", "privkey").CombinedOutput()
		if got := strings.Count(string(out), "Private Key Object"); err != nil || got != want {
			t.Errorf("the token has %d private keys, %v; want %d\n%s", got, err, want, out)
		}
		return
	}
	raw, err := os.ReadFile(filepath.Join(p.dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(raw), `"kid"`); got != want {
		t.Errorf("the backend has %d keys, want %d", got, want)
	}
}

// run runs a keyring until the end of the test and waits until it signs.
func run(t *testing.T, cfg keyring.Config) *keyring.Keyring {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	k, err := keyring.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 2000 {
		if _, err = k.Key("main", kms.ES256); err == nil {
			return k
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("it does not sign: %v", err)
	return nil
}

// wait waits until the stored ring is good.
func wait(t *testing.T, store keyring.Store, good func(*keyring.Ring) bool) {
	t.Helper()
	var ring *keyring.Ring
	for range 2000 {
		var err error
		if ring, err = store.Ring(t.Context(), "main", kms.ES256); err != nil {
			t.Fatal(err)
		}
		if good(ring) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the ring does not come to be: %+v", ring)
}
