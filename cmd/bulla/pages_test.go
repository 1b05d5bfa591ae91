package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPagesNameCommandsThatExist: what a page or a runbook tells to run is copied
// in a hurry, so its command, its flags and the flags that it needs are those of
// the binary.
func TestPagesNameCommandsThatExist(t *testing.T) {
	span := regexp.MustCompile("`bulla ([^`]+)`")
	needed := regexp.MustCompile(`--[a-z][a-z0-9-]*`)
	checked := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range span.FindAllStringSubmatch(string(text), -1) {
			checked++
			args := strings.Fields(strings.ReplaceAll(m[1], "|", " ")) // get|list: the first stands for all
			cmd, rest, err := rootCommand().Find(args)
			if err != nil {
				t.Errorf("%s: bulla %s: %v", page, m[1], err)
				continue
			}
			if cmd.HasSubCommands() && len(rest) > 0 {
				t.Errorf("%s: bulla %s: %s has no command %q", page, m[1], cmd.CommandPath(), rest[0])
			}
			given := needed.FindAllString(m[1], -1)
			for _, flag := range given {
				if name := flag[2:]; cmd.Flag(name) == nil {
					t.Errorf("%s: bulla %s: there is no flag %s", page, m[1], flag)
				}
			}
			if len(given) == 0 {
				continue // only speaks of the command
			}
			for _, flag := range needed.FindAllString(cmd.Use, -1) {
				if cmd.Flag(flag[2:]).DefValue == "" && !strings.Contains(m[1], flag) {
					t.Errorf("%s: bulla %s: it needs %s", page, m[1], flag)
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("found %d commands only", checked)
	}
}

// pages are all that is written for users of Bulla.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"docs", "deploy", "examples"} {
		err := filepath.WalkDir(filepath.Join("../..", folder), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "node_modules" {
				return fs.SkipDir
			}
			if err == nil && filepath.Ext(path) == ".md" {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}
