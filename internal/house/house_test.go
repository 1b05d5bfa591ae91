// Package house keeps the house in order: it holds the imports of every package
// against the plan in docs/design.md.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bulla-project/bulla/"

// rule allows one import, by its prefix, to the packages below some folders
// only.
type rule struct {
	what    string   // import path or prefix ending in /...
	folders []string // those that may import it; none: nobody
}

// Who may import what. cmd and the test programs beside it import anything.
var rules = []rule{
	{"google.golang.org/grpc/...", []string{"server", "client", "proto", "cmd", "e2e", "internal/bench"}},
	{"google.golang.org/grpc", []string{"server", "client", "proto", "cmd", "e2e", "internal/bench"}},
	{"github.com/miekg/pkcs11", []string{"kms/pkcs11", "internal/bench"}},
	{"github.com/aws/...", []string{"kms/awskms"}},
	{"go.etcd.io/bbolt", []string{"store/bolt"}},
	{"github.com/jackc/pgx/...", []string{"store/postgres"}},
	{"github.com/prometheus/...", []string{"server/telemetry", "cmd", "internal/bench"}},
	{"go.opentelemetry.io/otel/...", []string{"server/telemetry/trace"}},
	{"go.opentelemetry.io/otel", []string{"server/telemetry/trace"}},
	{"go.opentelemetry.io/proto/...", []string{"server/telemetry/trace/tracetest"}},
	{"github.com/spf13/...", []string{"cmd"}},
	{module + "server/...", []string{"server", "cmd", "internal/bench"}},
	{module + "server", []string{"cmd", "internal/bench"}},
	{module + "store/...", []string{"store", "cmd", "internal/bench"}},
	{module + "signer/...", []string{"signer", "server", "store", "cmd", "internal/bench"}},
	{module + "signer", []string{"signer", "server", "cmd", "internal/bench"}},
	{module + "encrypter/...", []string{"encrypter", "server", "store", "cmd", "internal/bench"}},
	{module + "encrypter", []string{"encrypter", "server", "cmd", "internal/bench"}},
	{module + "kms/pkcs11", []string{"kms/pkcs11", "cmd", "internal/bench", "e2e"}},
	{module + "kms/awskms", []string{"kms/awskms", "cmd"}},
	{module + "kms/local", []string{"kms/local", "cmd", "e2e"}},
	{module + "kms/datakey", []string{"kms/datakey", "store", "cmd", "internal/bench"}},
	{module + "kms/datakey/datakeytest", []string{"store/storetest"}},
	// metadata and secrets: for its table of algorithms.
	{module + "kms", []string{"kms", "signer", "server", "cmd", "store", "e2e", "internal/bench", "encrypter/metadata", "encrypter/secrets"}},
	{module + "proto/...", []string{"proto", "server", "client", "cmd", "e2e", "internal/bench"}},
	{"testing", []string{"kms/kmstest", "kms/pkcs11/softhsmtest", "kms/pkcs11/nsstest", "kms/pkcs11/tpmtest", "kms/pkcs11/faultymodule", "kms/awskms/awstest", "store/storetest", "store/postgres/pgtest", "server/telemetry/trace/tracetest", "interop", "e2e"}},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 20 {
		t.Fatalf("go list found only %d packages", len(list))
	}
	return list
}

func (r rule) covers(path string) bool {
	prefix, below := strings.CutSuffix(r.what, "...")
	return path == r.what || below && strings.HasPrefix(path, prefix)
}

func (r rule) allows(folder string) bool {
	return slices.ContainsFunc(r.folders, func(f string) bool {
		return folder == f || strings.HasPrefix(folder, f+"/")
	})
}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range packages(t) {
		folder := strings.TrimPrefix(p.ImportPath, module)
		for _, path := range p.Imports {
			for _, r := range rules {
				if r.covers(path) && !r.allows(folder) {
					t.Errorf("%s imports %s, which only %v may", folder, path, r.folders)
				}
			}
		}
	}
}
