package house

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
)

var update = flag.Bool("update", false, "write docs/algorithms.md anew; read the difference")

const algorithmsPage = "../../docs/algorithms.md"

// TestAlgorithmsPageIsTheTables holds docs/algorithms.md against the tables that
// the code goes by.
func TestAlgorithmsPageIsTheTables(t *testing.T) {
	page := algorithms()
	if *update {
		if err := os.WriteFile(algorithmsPage, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(algorithmsPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), page); diff != "" {
		t.Errorf("the page is not what the tables say; run go test ./internal/house -update (-page +tables):\n%s", diff)
	}
}

func algorithms() string {
	var b strings.Builder
	b.WriteString(`# Algorithms

What Bulla can do, written from the tables that validation, the provider metadata and the doctor go by (` + "`go test ./internal/house -update`" + `).
"Default" is what an issuer allows whose policy names no list; "fapi" what the profile of that name allows. What a policy allows beyond its
defaults, and what a client takes, stands in the configuration and the registration.

## Signing (JWS alg)

| alg | key | default | fapi | standard |
| --- | --- | --- | --- | --- |
`)
	for _, a := range kms.Algorithms() {
		key := string(a.KeyType())
		switch a.KeyType() {
		case kms.RSA:
			key += fmt.Sprintf(", %d to %d bits", kms.MinRSABits, kms.MaxRSABits)
		case kms.EC:
			key += ", " + a.Curve().Params().Name
		case kms.OKP:
			key += ", Ed25519"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", a, key, yes(a.AllowedByDefault()), yes(a.AllowedInFAPI()), a.Standard())
	}
	for _, a := range kms.SecretAlgorithms() {
		fmt.Fprintf(&b, "| %s | the client's secret, %d bytes or more; only where the client registered it | %s | %s | %s |\n",
			a, a.MinSecret(), yes(a.AllowedByDefault()), yes(a.AllowedInFAPI()), a.Standard())
	}
	b.WriteString(`
## Key management (JWE alg)

A legacy algorithm takes ` + "`legacy: true`" + ` and its name in the issuer's policy, and ` + "`legacy`" + ` in the client's registration.

| alg | key | default | fapi | legacy | standard |
| --- | --- | --- | --- | --- | --- |
`)
	for _, a := range encrypter.KeyAlgorithms() {
		key := strings.Join(a.KeyTypes(), ", ")
		if curves := a.Curves(); len(curves) > 0 {
			key += ": " + strings.Join(curves, ", ")
		}
		if a.Symmetric() {
			key = "from the client's secret, as long as enc's"
			if n := a.SecretSize(encrypter.A128GCM); n == a.SecretSize(encrypter.A256CBCHS512) {
				key = fmt.Sprintf("from the client's secret, %d bytes", n)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", a, key, yes(a.AllowedByDefault()), yes(a.AllowedInFAPI()), yes(a.Legacy()), a.Standard())
	}
	b.WriteString(`
## Content encryption (JWE enc)

| enc | key | default | fapi | legacy | goes with | standard |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, e := range encrypter.ContentEncryptions() {
		fmt.Fprintf(&b, "| %s | %d bytes | %s | %s | %s | %s | %s |\n", e, e.KeySize(), yes(e.AllowedByDefault()), yes(e.AllowedInFAPI()), yes(e.Legacy()), partners(e), e.Standard())
	}
	return b.String()
}

// partners are the key management algorithms that an enc goes with.
func partners(e encrypter.ContentEncryption) string {
	var with []string
	for _, a := range encrypter.KeyAlgorithms() {
		if encrypter.CheckPair(a, e) == nil {
			with = append(with, string(a))
		}
	}
	if len(with) == len(encrypter.KeyAlgorithms()) {
		return "every alg"
	}
	return strings.Join(with, ", ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
