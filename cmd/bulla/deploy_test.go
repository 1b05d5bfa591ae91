package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestTheExampleConfigurationsAreGood(t *testing.T) {
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples found: %v", err)
	}
	for _, file := range files {
		var out strings.Builder
		root := rootCommand()
		root.SetArgs([]string{"config", "check", file})
		root.SetOut(&out)
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%s:\n%v", file, err)
		}
		if !strings.Contains(out.String(), ": ok:") {
			t.Errorf("%s: printed %q", file, out.String())
		}
	}
}
