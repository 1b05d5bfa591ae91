package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// demoFolder is the private folder of the demo (mode 0700), locked for this
// process.
//
// What is made once (madeOnce) is made in one go, and the stamp is written
// after all of it. Whatever a run that was killed has left without a stamp is
// removed and made anew; so is a whole of which something is gone. All other
// files are written anew by each run, or belong to the service, which knows
// how to find them after a crash.
type demoFolder struct {
	path string // absolute
	lock *os.File
}

const (
	demoStamp  = "complete"
	demoLayout = "2\n"       // content of the stamp: another layout is made anew
	demoLock   = "demo.lock" // its presence also says that a demo made the folder
)

// madeOnce is what belongs together: keys, and what was made with them.
var madeOnce = []string{
	"pin", "tokens", "ca.crt",
	"server.crt", "server.key", "web.crt", "web.key", "rp.crt", "rp.key",
	"idp.crt", "idp.key", "registrar.crt", "registrar.key", "operator.crt", "operator.key",
	"rp.jwk",
}

// ofTheService is what the service keeps about the keys above; it means
// nothing to others.
var ofTheService = []string{"bulla.db", "audit.log"}

// lockPatience is how long a run waits for the lock. A pkcs11-tool that
// outlived a killed demo holds it until it is done.
const lockPatience = 4 * time.Second

// errLocked: another process has the lock.
var errLocked = errors.New("locked")

// openDemoFolder creates the folder if need be, and locks it. It refuses a
// folder that holds anything and was not made by a demo.
func openDemoFolder(ctx context.Context, dir string) (*demoFolder, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(path, "\r\n") {
		return nil, errors.New("the name of the folder has a line break: name another with --dir")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("%w: name a folder that can be created with --dir", err)
	}
	f := &demoFolder{path: path}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	ours := func(e os.DirEntry) bool { return e.Name() == demoLock }
	if len(entries) > 0 && !slices.ContainsFunc(entries, ours) {
		return nil, fmt.Errorf("%s holds files that no demo made: name an empty folder with --dir, or none", path)
	}
	if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // a folder needs the x
		return nil, err
	}
	if f.lock, err = os.OpenFile(f.file(demoLock), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := lockFile(f.lock)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, errLocked) && time.Since(start) < lockPatience {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(50 * time.Millisecond):
				continue
			}
		}
		if errors.Is(err, errLocked) {
			err = fmt.Errorf("another demo runs in %s: stop it with Ctrl-C where it runs, or name another folder with --dir", f.show())
		}
		return nil, errors.Join(err, f.lock.Close())
	}
}

// Close unlocks the folder. The lock's file stays: to remove it would let two
// processes lock two files of one name.
func (f *demoFolder) Close() error { return f.lock.Close() }

// file is the path of a file in the folder.
func (f *demoFolder) file(name string) string { return filepath.Join(f.path, name) }

// show is the path of the folder, or of a file in it, as a user in the working
// directory would write it.
func (f *demoFolder) show(name ...string) string {
	path := filepath.Join(append([]string{f.path}, name...)...)
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(wd, path)
	if err != nil || !filepath.IsLocal(rel) {
		return path
	}
	return rel
}

// write writes a file that only this user can read.
func (f *demoFolder) write(name string, data []byte) error {
	return os.WriteFile(f.file(name), data, 0o600)
}

// create opens a new file for writing in place of what is there.
func (f *demoFolder) create(name string) (*os.File, error) {
	return os.OpenFile(f.file(name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
}

// provision makes what is made once, unless it is there. It returns what was
// lacking, "" if nothing was.
func (f *demoFolder) provision(ctx context.Context, module string) (lacks string, err error) {
	// The path may have changed since the last run, with the folder's.
	conf := "directories.tokendir = " + f.file("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := errors.Join(f.write("softhsm2.conf", []byte(conf)), f.write(".gitignore", []byte("*\n"))); err != nil {
		return "", err
	}
	if lacks = f.lacks(); lacks == "" {
		return "", nil
	}
	for _, name := range slices.Concat([]string{demoStamp}, madeOnce, ofTheService) { // the stamp first
		if err := os.RemoveAll(f.file(name)); err != nil {
			return lacks, err
		}
	}
	for _, step := range []func() error{
		func() error { return f.makeToken(ctx, module) },
		f.makeCertificates,
		f.makePartyKey,
		func() error { return f.write(demoStamp, []byte(demoLayout)) }, // the stamp last
	} {
		if err := step(); err != nil {
			return lacks, err
		}
	}
	return lacks, nil
}

// lacks says what is missing of what is made once.
func (f *demoFolder) lacks() string {
	switch stamp, err := os.ReadFile(f.file(demoStamp)); {
	case err != nil && !f.exists("pin") && !f.exists("tokens"):
		return "new"
	case err != nil || string(stamp) != demoLayout:
		return "an earlier run did not come to its end"
	}
	for _, name := range madeOnce {
		if !f.exists(name) {
			return name + " was missing"
		}
	}
	if f.certificatesEnd().Before(time.Now().Add(24 * time.Hour)) {
		return "the certificates were unreadable or about to expire"
	}
	return ""
}

// exists reports whether a file is there that is not empty.
func (f *demoFolder) exists(name string) bool {
	info, err := os.Stat(f.file(name))
	if err != nil {
		return false
	}
	if !info.IsDir() {
		return info.Size() > 0
	}
	entries, err := os.ReadDir(f.file(name))
	return err == nil && len(entries) > 0
}

// certificatesEnd is when the certificates expire, all at once; never, in the
// past, if they cannot be read.
func (f *demoFolder) certificatesEnd() time.Time {
	data, err := os.ReadFile(f.file("ca.crt"))
	if err != nil {
		return time.Time{}
	}
	block, _ := pem.Decode(bytes.TrimSpace(data))
	if block == nil {
		return time.Time{}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return cert.NotAfter
}
