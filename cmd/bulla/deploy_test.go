package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestTheExampleConfigurationsAreGood(t *testing.T) {
	var files []string
	for _, pattern := range []string{"examples/*.yaml", "kubernetes/base/bulla.yaml", "kubernetes/overlays/*/bulla.yaml"} {
		found, err := filepath.Glob(filepath.Join("../../deploy", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no examples found at %s: %v", pattern, err)
		}
		files = append(files, found...)
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
