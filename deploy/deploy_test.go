// Package deploy holds no code: it is a folder of what is needed to run Bulla in
// production, and the tests that hold it to what docs/deploy.md promises. What
// needs the types of Kubernetes is tested in check, a module of its own.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if dir := scratch.dir; dir != "" {
		_ = os.RemoveAll(dir) // a temporary folder
	}
	os.Exit(code)
}

// scratch is a folder for what several tests share.
var scratch struct {
	once sync.Once
	dir  string
	err  error
}

func scratchDir(t *testing.T) string {
	t.Helper()
	scratch.once.Do(func() { scratch.dir, scratch.err = os.MkdirTemp("", "bulla-deploy-") })
	if scratch.err != nil {
		t.Fatal(scratch.err)
	}
	return scratch.dir
}

// A copy is the source as the Dockerfile's COPY would bring it into an image, in
// a folder that was empty, and the binary built there.
type copied struct{ dir, binary string }

// first and second are two such copies, at paths of different lengths and with
// different home folders. They are built when they are first asked for.
var first, second = &copyOnce{name: "one", env: cached}, &copyOnce{name: "another/and/deeper", env: fresh}

type copyOnce struct {
	name string
	env  func(dir string) ([]string, error)
	once sync.Once
	made copied
	err  error
}

func (c *copyOnce) get(t *testing.T) copied {
	t.Helper()
	base := filepath.Join(scratchDir(t), c.name)
	c.once.Do(func() {
		c.made = copied{dir: filepath.Join(base, "src"), binary: filepath.Join(base, "out", "bulla")}
		c.err = c.build(base)
	})
	if c.err != nil {
		t.Fatal(c.err)
	}
	return c.made
}

// build runs the steps of the Dockerfile's first stage, in an environment that has
// nothing but what an image has.
func (c *copyOnce) build(base string) error {
	home := filepath.Join(base, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	if err := copySource("..", c.made.dir); err != nil {
		return err
	}
	env, err := c.env(home)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute) // cold and on a busy machine
	defer cancel()
	cmd := exec.CommandContext(ctx, "deploy/build.sh", c.made.binary)
	cmd.Dir, cmd.Env = c.made.dir, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build.sh in a bare folder: %w\n%s", err, out)
	}
	return nil
}

// bare is the environment of an image: PATH and HOME. How Go reaches modules is
// the machine's business, and so is where it caches them.
func bare(home string) ([]string, error) {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GONOPROXY", "GOTOOLCHAIN", "GOMODCACHE"} {
		value, err := exec.Command("go", "env", name).Output()
		if err != nil {
			return nil, fmt.Errorf("go env %s: %w", name, err)
		}
		if v := strings.TrimSpace(string(value)); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env, nil
}

// cached builds with this machine's build cache.
func cached(home string) ([]string, error) {
	env, err := bare(home)
	if err != nil {
		return nil, err
	}
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOCACHE: %w", err)
	}
	return append(env, "GOCACHE="+strings.TrimSpace(string(cache))), nil
}

// fresh does the same in "make test", where a minute is dear, and compiles
// everything again, the standard library too, in "make soak". In both it brings
// what must not get into the binary.
func fresh(home string) ([]string, error) {
	env, err := cached(home)
	if err != nil {
		return nil, err
	}
	if os.Getenv("BULLA_SOAK") != "" {
		env = append(env, "GOCACHE="+filepath.Join(home, "cache"))
	}
	return append(env, "GOFLAGS=-buildvcs=true", "CGO_CFLAGS=-O0 -g3", "USER=somebody"), nil
}

// copySource copies a tree, without what .dockerignore names, as "docker build"
// does. Links are left out: there are none in the repository.
func copySource(from, to string) error {
	ignored, err := readIgnored(filepath.Join(from, ".dockerignore"))
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case ignored.has(name) && entry.IsDir():
			return filepath.SkipDir
		case ignored.has(name):
			return nil
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		case !entry.Type().IsRegular():
			return nil
		}
		return copyFile(path, filepath.Join(to, name), entry)
	})
}

func copyFile(from, to string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) { // another test's, and gone
		return nil
	}
	if err != nil {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}

// ignoredFiles are the lines of a .dockerignore, in the two forms that ours has:
// a name at the top, and **/ with a name anywhere.
type ignoredFiles []string

func readIgnored(file string) (ignoredFiles, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var lines ignoredFiles
	for _, line := range strings.Fields(string(text)) {
		if strings.ContainsAny(strings.TrimPrefix(line, "**/"), "*?[!/#") {
			return nil, fmt.Errorf("%s: %q is of a form that this test does not read: teach it", file, line)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func (i ignoredFiles) has(name string) bool {
	for _, line := range i {
		if anywhere, ok := strings.CutPrefix(line, "**/"); ok {
			if filepath.Base(name) == anywhere {
				return true
			}
		} else if name == line || strings.HasPrefix(name, line+"/") {
			return true
		}
	}
	return false
}

// run runs a program and returns what it prints on its standard output.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return out.String()
}
