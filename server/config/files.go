package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// CheckFiles looks at the files and folders the configuration names: whether
// those that are read exist and can be, and whether those that are written can
// be written. It reads none. Problems are what will keep the service from
// working; warnings are secrets that others can read, and a folder that nobody
// has named and that cannot be written to.
//
// A file that is missing here may be mounted or written later; whether that
// fails the start is for the caller to decide.
func (c *Config) CheckFiles() (problems, warnings Problems) {
	f := &fileChecker{c: c}
	if t := c.GRPC.TLS; t != nil {
		f.read("grpc.tls.cert_file", t.CertFile)
		f.secret("grpc.tls.key_file", t.KeyFile)
		f.read("grpc.tls.client_ca_file", t.ClientCAFile)
	}
	if t := c.HTTP.TLS; t != nil {
		f.read("http.tls.cert_file", t.CertFile)
		f.secret("http.tls.key_file", t.KeyFile)
	}
	if c.Fetch.CAFile != "" {
		f.read("fetch.ca_file", c.Fetch.CAFile)
	}
	if c.Tracing.CAFile != "" {
		f.read("tracing.ca_file", c.Tracing.CAFile)
	}
	if p := c.Store.Postgres; p != nil {
		f.secret("store.postgres.dsn_file", p.DSNFile)
		if p.ListenDSNFile != "" {
			f.secret("store.postgres.listen_dsn_file", p.ListenDSNFile)
		}
	} else {
		f.written("store.bolt.path", c.Store.Bolt.Path)
	}
	f.state()
	if c.Audit.Path != "-" {
		f.written("audit.path", c.Audit.Path)
	}
	for name, b := range c.Backends {
		path := join("backends", name)
		if b.PKCS11 != nil {
			f.read(join(path, "pkcs11.module"), b.PKCS11.Module)
			f.secret(join(path, "pkcs11.pin_file"), b.PKCS11.PINFile)
		}
		if b.Local != nil {
			f.secret(join(path, "local.path"), b.Local.Path)
		}
	}
	return f.problems.sorted(), f.warnings.sorted()
}

type fileChecker struct {
	c                  *Config
	problems, warnings Problems
}

func (f *fileChecker) problem(path, message, advice string) Problem {
	pos := positionIn(f.c.at, path)
	return Problem{File: f.c.name, Line: pos.line, Column: pos.column, Path: path, Message: message, Advice: advice}
}

func (f *fileChecker) fail(path, message, advice string) {
	f.problems = append(f.problems, f.problem(path, message, advice))
}

// read checks a file that is read, and returns what it is, or nil.
func (f *fileChecker) read(path, file string) fs.FileInfo {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.fail(path, file+" does not exist", "create it, or correct the path")
		return nil
	case err != nil:
		f.fail(path, fmt.Sprintf("%s cannot be looked at (%v)", file, cause(err)), "let this user pass through its folders")
		return nil
	case !info.Mode().IsRegular(): // opening a pipe would wait
		f.fail(path, file+" is no regular file", "name a file")
		return nil
	case info.Size() == 0:
		f.fail(path, file+" is empty", "write it")
		return nil
	}
	h, err := os.Open(file)
	if err != nil {
		f.fail(path, fmt.Sprintf("%s cannot be read (%v)", file, cause(err)), "let this user read it")
		return nil
	}
	_ = h.Close()
	return info
}

// secret is read for a file that only this service should read.
func (f *fileChecker) secret(path, file string) {
	if info := f.read(path, file); info != nil && info.Mode()&0o007 != 0 {
		f.warnings = append(f.warnings, f.problem(path, fmt.Sprintf("every user can use %s (mode %04o)", file, info.Mode().Perm()), "run chmod 600, or 640 with a group of this service's own"))
	}
}

// written checks a file that is created or appended to.
func (f *fileChecker) written(path, file string) {
	info, err := os.Stat(file)
	switch {
	case err == nil && !info.Mode().IsRegular():
		f.fail(path, file+" is no regular file", "name a file")
	case err == nil:
		h, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			f.fail(path, fmt.Sprintf("%s cannot be written (%v)", file, cause(err)), "let this user write it")
			return
		}
		_ = h.Close()
	case errors.Is(err, fs.ErrNotExist):
		f.creatable(path, filepath.Dir(file))
	default:
		f.fail(path, fmt.Sprintf("%s cannot be looked at (%v)", file, cause(err)), "let this user pass through its folders")
	}
}

// creatable checks that a file can be created in folder, by doing so: rights
// alone do not tell of read-only or full disks.
func (f *fileChecker) creatable(path, folder string) {
	h, err := os.CreateTemp(folder, ".bulla-check-*")
	if errors.Is(err, fs.ErrNotExist) {
		f.fail(path, "the folder "+folder+" does not exist", "create it, writable by this user only")
		return
	}
	if err != nil {
		f.fail(path, fmt.Sprintf("no file can be created in %s (%v)", folder, cause(err)), "let this user write there, and see that the disk has room")
		return
	}
	_ = h.Close()
	_ = os.Remove(h.Name())
}

// state checks the folder for what this machine remembers. One that nobody has
// named is not worth a failure: without it a PIN that was refused is remembered
// for as long as the process lives.
func (f *fileChecker) state() {
	if _, given := f.c.at["state_dir"]; given {
		f.creatable("state_dir", f.c.StateDir)
		return
	}
	remembers := false
	for _, b := range f.c.Backends {
		remembers = remembers || b.PKCS11 != nil
	}
	if !remembers || slices.ContainsFunc(f.problems, func(p Problem) bool { return p.Path == "store.bolt.path" }) {
		return
	}
	try := fileChecker{c: f.c}
	try.creatable("state_dir", f.c.StateDir)
	for _, p := range try.problems {
		p.Message = "it is not given, and " + p.Message + ": which PINs a token refused would be forgotten when the process ends"
		p.Advice = "name a folder in state_dir that this user may write to, and no other replica"
		f.warnings = append(f.warnings, p)
	}
}

// cause leaves the path out of an error, which the message has already.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
