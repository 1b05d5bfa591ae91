package deploy

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestTwoBuildsAreTheSameBytes builds the source in two folders. Equality alone
// would say little where the second build finds the first one's packages in a
// cache, so nothing of this machine may be in the binary either.
func TestTwoBuildsAreTheSameBytes(t *testing.T) {
	one, two := first.get(t), second.get(t)
	binary := read(t, one.binary)
	if a, b := sha256.Sum256(binary), sha256.Sum256(read(t, two.binary)); a != b {
		t.Errorf("two builds of one source have the SHA-256 %x and %x", a, b)
	}
	where := strings.Fields(run(t, "", "go", "env", "GOROOT", "GOMODCACHE"))
	for what, path := range map[string]string{
		"the source": filepath.Dir(one.dir), "the repository": parent(t), "the toolchain": where[0], "the modules": where[1],
		"a build's temporary folder": "/go-build", "the linker's temporary folder": "/go-link-",
	} {
		if bytes.Contains(binary, []byte(path)) {
			t.Errorf("the binary has the path of %s in it: %s", what, path)
		}
	}
}

func parent(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/"
}

// TestTheBinaryTellsItsVersion: the one of the change log, and the commit if the
// build was told one.
func TestTheBinaryTellsItsVersion(t *testing.T) {
	binary := first.get(t).binary
	var got struct {
		Version   string
		Revision  string
		GoVersion string `json:"go_version"`
		Platform  string
	}
	if err := json.Unmarshal([]byte(run(t, "", binary, "version", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if got.Revision != "" {
		t.Errorf("built without REVISION, it says %q: where does it have that from?", got.Revision)
	}
	if got.GoVersion != runtime.Version() || got.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("got %q, %q; it was built with %s for %s/%s", got.GoVersion, got.Platform, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	}
	if got, want := run(t, "", binary, "--version"), "bulla version "+got.Version+"\n"; got != want {
		t.Errorf("--version: got %q, want %q", got, want)
	}

	heads := regexp.MustCompile(`(?m)^## \[(\S+)\]`).FindAllStringSubmatch(string(read(t, "../CHANGELOG.md")), 2)
	if len(heads) == 0 {
		t.Fatal("CHANGELOG.md has no version")
	}
	number, onItsWay := strings.CutSuffix(got.Version, "-dev")
	switch top := heads[0][1]; {
	case onItsWay && top != "Unreleased":
		t.Errorf("the binary is %s, and CHANGELOG.md begins with %s: write under [Unreleased], or take -dev away", got.Version, top)
	case !onItsWay && top != number:
		t.Errorf("the binary is %s, and CHANGELOG.md begins with %s", got.Version, top)
	}
}

// TestTheBillOfMaterialsIsOfTheBinary holds it against what Go's own reader finds.
func TestTheBillOfMaterialsIsOfTheBinary(t *testing.T) {
	binary := first.get(t).binary
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Deps) < 20 {
		t.Fatalf("the binary has %d modules only", len(info.Deps))
	}
	want := map[string]string{"stdlib " + strings.TrimPrefix(info.GoVersion, "go"): ""}
	for _, m := range info.Deps {
		want[m.Path+" "+m.Version] = m.Sum
	}

	out := run(t, "", binary, "version", "--sbom")
	var doc struct {
		Schema       string `json:"$schema"`
		BOMFormat    string `json:"bomFormat"`
		SpecVersion  string `json:"specVersion"`
		SerialNumber string `json:"serialNumber"`
		Version      int    `json:"version"`
		Metadata     struct {
			Component component `json:"component"`
		} `json:"metadata"`
		Components []component `json:"components"`
	}
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	if doc.BOMFormat != "CycloneDX" || doc.SpecVersion != "1.6" || doc.Version != 1 || doc.Metadata.Component.Name != info.Main.Path {
		t.Errorf("got format %q %q, version %d, of %q", doc.BOMFormat, doc.SpecVersion, doc.Version, doc.Metadata.Component.Name)
	}
	got, refs := map[string]string{}, map[string]bool{}
	for _, c := range append(doc.Components, doc.Metadata.Component) {
		if refs[c.Ref] || c.Ref != c.PURL || !strings.HasPrefix(c.PURL, "pkg:golang/") {
			t.Errorf("%s: bom-ref %q and purl %q must be the same, and no other component's", c.Name, c.Ref, c.PURL)
		}
		refs[c.Ref] = true
	}
	for _, c := range doc.Components {
		sum := ""
		for _, p := range c.Properties {
			if p.Name == "bulla:go.sum" {
				sum = p.Value
			}
		}
		got[c.Name+" "+c.Version] = sum
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules and sums (-in the binary +in its bill):\n%s", diff)
	}
	if again := run(t, "", second.get(t).binary, "version", "--sbom"); again != out {
		t.Error("two builds of one source have different bills of materials")
	}
}

type component struct {
	Type       string `json:"type"`
	Ref        string `json:"bom-ref"`
	Name       string `json:"name"`
	Version    string `json:"version"`
	Licenses   []any  `json:"licenses"`
	PURL       string `json:"purl"`
	Properties []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"properties"`
}

// TestTheLicenseIsTheWholeText: Apache-2.0 as it was published, and the same that
// the image's label and the bill of materials name.
func TestTheLicenseIsTheWholeText(t *testing.T) {
	const published = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30" // of LICENSE-2.0.txt
	if got := sha256.Sum256(read(t, "../LICENSE")); got != sum(t, published) {
		t.Errorf("LICENSE has the SHA-256 %x, want %s", got, published)
	}
}

func sum(t *testing.T, text string) (s [sha256.Size]byte) {
	t.Helper()
	if n, err := hex.Decode(s[:], []byte(text)); err != nil || n != len(s) {
		t.Fatalf("%q is no SHA-256: %v", text, err)
	}
	return s
}
