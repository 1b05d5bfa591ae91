package bolt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/storetest"
)

// childEnv names the store that a child process of the test shall write to.
const childEnv = "BULLA_TEST_STORE"

// child registers one client after the other, with a key set each, and prints
// what has been acknowledged, until it is killed.
func child(path string) int {
	ctx := context.Background()
	s, err := Open(ctx, Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	if _, err := fmt.Println("open"); err != nil {
		return 1
	}
	for i := 0; ; i++ {
		reg := storetest.Client(fmt.Sprintf("run%d-%d", os.Getpid(), i), fmt.Sprintf("https://client.example/%d/%d", os.Getpid(), i))
		if _, err = s.Put(ctx, reg, 0); err != nil {
			break
		}
		fmt.Println("client", reg.ClientID)
		if err = s.PutKeySet(ctx, registry.KeySet{URI: reg.Source.JWKSURI, Document: []byte(`{"keys":[]}`)}); err != nil {
			break
		}
		fmt.Println("set", reg.Source.JWKSURI)
	}
	fmt.Println("error", err)
	return 1
}

// startChild runs this test binary as a writer to path.
func startChild(t *testing.T, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

func TestKillLosesNothingThatWasAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla.db")
	clients, sets := map[string]bool{}, map[string]bool{}
	const rounds = 8
	for range rounds {
		cmd, lines := startChild(t, path)
		var timer *time.Timer
		for lines.Scan() {
			kind, name, _ := strings.Cut(lines.Text(), " ")
			switch kind {
			case "open": // from here on, any moment is a good one
				timer = time.AfterFunc(rand.N(150*time.Millisecond), func() { _ = cmd.Process.Kill() })
			case "client":
				clients[name] = true
			case "set":
				sets[name] = true
			default:
				t.Error(lines.Text())
			}
		}
		_ = cmd.Wait() // it was killed
		if timer == nil {
			t.Fatal("the child did not open the store")
		}
		timer.Stop()

		// After each round: what the child said it had is there, and the file
		// is sound.
		s, err := Open(t.Context(), Config{Path: path, DataKeys: datakeytest.Config(wrapper)})
		if err != nil {
			t.Fatal(err)
		}
		for id := range clients {
			if _, err := s.Get(t.Context(), "main", id); err != nil {
				t.Errorf("acknowledged client %s: %v", id, err)
			}
		}
		for uri := range sets {
			if _, err := s.KeySet(t.Context(), uri); err != nil {
				t.Errorf("acknowledged key set of %s: %v", uri, err)
			}
		}
		if err := s.file.db.View(func(tx *bbolt.Tx) error {
			var errs []error
			for err := range tx.Check() {
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}); err != nil {
			t.Errorf("the file is not sound: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(clients) < rounds {
		t.Errorf("only %d clients were registered in %d rounds; the test has no force", len(clients), rounds)
	}
	t.Logf("%d clients and %d key sets survived %d kills", len(clients), len(sets), rounds)
}

func TestOtherProcessIsToldThatTheFileIsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla.db")
	s := open(t, path)
	cmd, lines := startChild(t, path)
	began := time.Now()
	lines.Scan()
	text := lines.Text()
	_ = cmd.Process.Kill() // had it got in, it would write on
	_ = cmd.Wait()
	if took := time.Since(began); took > 5*time.Second || !strings.Contains(text, ErrInUse.Error()) {
		t.Errorf("got %q after %s, want %q after about 1 s", text, took, ErrInUse)
	}
	register(t, s, 1)
}

func TestKillWhileTheFileIsCreatedLeavesNoHalfStore(t *testing.T) {
	for i := range 10 {
		path := filepath.Join(t.TempDir(), "bulla.db")
		cmd, lines := startChild(t, path)
		timer := time.AfterFunc(time.Duration(i)*2*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Error(lines.Text())
			}
		}
		_ = cmd.Wait()
		timer.Stop()
		register(t, open(t, path), 1)
	}
}
