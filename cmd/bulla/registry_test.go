package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/store/records"
)

func TestTheLastLineOfAnImportSaysWhatTheRunDid(t *testing.T) {
	c := records.Counts{DataKeys: 1, Rings: 1, Registrations: 3, Tombstones: 1, KeySets: 2}
	for _, tc := range []struct {
		written, there int
		want           string
	}{
		{8, 0, "8 rows written by this run, which is all"},
		{0, 8, "nothing written by this run, and 8 rows there already"},
		{1, 7, "1 row written by this run, and 7 there already"},
		{6, 0, "6 rows written by this run; left out 2 key sets that no client names"},
		{4, 3, "4 rows written by this run, and 3 there already; left out 1 key set that no client names"},
		{0, 7, "nothing written by this run, and 7 rows there already; left out 1 key set that no client names"},
	} {
		c.Written, c.There = tc.written, tc.there
		if got := describeImport(c); got != tc.want {
			t.Errorf("%d written and %d there: %q, want %q", tc.written, tc.there, got, tc.want)
		}
	}
	if got := describeImport(records.Counts{}); got != "there was nothing to be written by this run" {
		t.Errorf("of an empty export: %q", got)
	}
}

// A new file never takes the place of another, also where a file cannot have two
// names.
func TestAnExportIsPutInItsPlace(t *testing.T) {
	noLinks := func(from, to string) error {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM}
	}
	for name, link := range map[string]func(from, to string) error{"links": os.Link, "no links": noLinks} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "registry.jsonl")
			export := func(force bool, text string, before func(*exportOutput)) error {
				t.Helper()
				o, err := newExportOutput(&cobra.Command{}, path, force)
				if err != nil {
					t.Fatal(err)
				}
				o.link = link
				if _, err := o.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				if before != nil {
					before(o)
				}
				return o.end(nil)
			}
			holds := func(want string) {
				t.Helper()
				text, err := os.ReadFile(path)
				info, statErr := os.Stat(path)
				if err != nil || statErr != nil || string(text) != want || info.Mode().Perm() != 0o600 {
					t.Errorf("the file: %q, %v, %v; want %q with mode 0600", text, err, statErr, want)
				}
				entries, err := os.ReadDir(dir)
				if err != nil || len(entries) != 1 {
					t.Errorf("the folder has %v, %v; want the file alone", entries, err)
				}
			}

			if err := export(false, "first", nil); err != nil {
				t.Fatal(err)
			}
			holds("first")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			// Somebody takes the name while the export is written.
			err := export(false, "second", func(*exportOutput) {
				if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			if err == nil || !strings.Contains(err.Error(), "exists already") {
				t.Errorf("over somebody's file: %v; want a refusal", err)
			}
			holds("somebody's")
			if err := export(true, "third", nil); err != nil {
				t.Fatal(err)
			}
			holds("third")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			// Nothing is left behind of what cannot be put there.
			err = export(false, "fourth", func(o *exportOutput) {
				if err := os.Remove(o.file.Name()); err != nil {
					t.Fatal(err)
				}
			})
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("with the file gone: %v", err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}
