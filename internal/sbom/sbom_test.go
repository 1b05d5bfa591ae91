package sbom

import (
	"bytes"
	"encoding/json"
	"regexp"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func binary() Binary {
	return Binary{
		Version: "1.2.3", Revision: "0123abc", License: "Apache-2.0",
		Info: &debug.BuildInfo{
			GoVersion: "go1.26.8 X:loopvar",
			Main:      debug.Module{Path: "example.com/Main", Version: "(devel)"},
			Deps: []*debug.Module{
				{Path: "example.com/Upper/Case", Version: "v2.0.0+incompatible", Sum: "h1:aaa="},
				{Path: "example.com/old", Version: "v1.0.0", Sum: "h1:bbb=", Replace: &debug.Module{Path: "example.com/new", Version: "v1.1.0", Sum: "h1:ccc="}},
				{Path: "example.com/here", Version: "v1.0.0", Replace: &debug.Module{Path: "./there"}},
			},
			Settings: []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "CGO_CFLAGS", Value: "-I/home/somebody"}, {Key: "GOOS", Value: "linux"}},
		},
	}
}

func write(t *testing.T, b Binary) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestABillSaysWhatIsInTheBinary reads the bill as any reader of CycloneDX would.
func TestABillSaysWhatIsInTheBinary(t *testing.T) {
	var got struct {
		Metadata   struct{ Component map[string]any }
		Components []map[string]any
	}
	if err := json.Unmarshal(write(t, binary()), &got); err != nil {
		t.Fatal(err)
	}
	type m = map[string]any
	wantMain := m{
		"type": "application", "name": "example.com/Main", "version": "1.2.3",
		"bom-ref": "pkg:golang/example.com/main@1.2.3", "purl": "pkg:golang/example.com/main@1.2.3",
		"licenses": []any{m{"license": m{"id": "Apache-2.0"}}},
		"properties": []any{
			m{"name": "bulla:vcs.revision", "value": "0123abc"},
			m{"name": "bulla:build.trimpath", "value": "true"},
			m{"name": "bulla:build.GOOS", "value": "linux"}, // and no path
		},
	}
	if diff := cmp.Diff(wantMain, got.Metadata.Component); diff != "" {
		t.Errorf("main component (-want +got):\n%s", diff)
	}
	want := []map[string]any{
		{"type": "library", "name": "stdlib", "version": "1.26.8", "bom-ref": "pkg:golang/stdlib@1.26.8", "purl": "pkg:golang/stdlib@1.26.8"},
		{
			"type": "library", "name": "example.com/Upper/Case", "version": "v2.0.0+incompatible",
			"bom-ref": "pkg:golang/example.com/upper/case@v2.0.0%2Bincompatible", "purl": "pkg:golang/example.com/upper/case@v2.0.0%2Bincompatible",
			"properties": []any{m{"name": "bulla:go.sum", "value": "h1:aaa="}},
		},
		{ // what is linked, not what it stands for
			"type": "library", "name": "example.com/new", "version": "v1.1.0", "bom-ref": "pkg:golang/example.com/new@v1.1.0",
			"purl": "pkg:golang/example.com/new@v1.1.0", "properties": []any{m{"name": "bulla:go.sum", "value": "h1:ccc="}},
		},
		{"type": "library", "name": "./there", "bom-ref": "pkg:golang/./there", "purl": "pkg:golang/./there"},
	}
	if diff := cmp.Diff(want, got.Components); diff != "" {
		t.Errorf("components (-want +got):\n%s", diff)
	}
}

// TestABillIsAsReproducibleAsItsBinary: the same twice, and another serial number
// as soon as anything differs.
func TestABillIsAsReproducibleAsItsBinary(t *testing.T) {
	one, two := write(t, binary()), write(t, binary())
	if !bytes.Equal(one, two) {
		t.Errorf("two bills of a binary differ:\n%s\n%s", one, two)
	}
	serial := regexp.MustCompile(`"serialNumber": "(urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"`)
	other := binary()
	other.Info.Deps[0].Sum = "h1:changed="
	first, second := serial.FindSubmatch(one), serial.FindSubmatch(write(t, other))
	if first == nil || second == nil {
		t.Fatalf("no serial number of the form of RFC 9562 in:\n%s", one)
	}
	if bytes.Equal(first[1], second[1]) {
		t.Errorf("two binaries have one serial number, %s", first[1])
	}
}
