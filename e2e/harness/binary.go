package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// BinaryVar is the environment variable that names a binary to test instead of
// one that is built here.
const BinaryVar = "BULLA_BINARY"

var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(BinaryVar); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "bulla-e2e-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "bulla")
	args := []string{"build", "-o", path}
	if RaceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "github.com/bulla-project/bulla/cmd/bulla")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build ./cmd/bulla: %w\n%s", err, out.Bytes())
	}
	return path, nil
})

// Binary is the path of the binary: the one BULLA_BINARY names, else one that
// is built once for the process, with the race detector if the test has it.
// RemoveBinary deletes the latter.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// RemoveBinary deletes what Binary has built. It is called once, at the end of
// the process.
func RemoveBinary() {
	if os.Getenv(BinaryVar) != "" {
		return
	}
	if path, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a file in a temporary folder
	}
}
