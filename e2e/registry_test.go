package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// registryCommand runs "bulla registry" on a service's configuration.
func registryCommand(t testing.TB, s *harness.Service, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := s.Command(t, append([]string{"registry", "--config", s.ConfigFile}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// mustCarry is registryCommand for what has to succeed and say so.
func mustCarry(t testing.TB, s *harness.Service, said string, args ...string) (stdout string) {
	t.Helper()
	stdout, stderr, err := registryCommand(t, s, args...)
	if err != nil || stderr != said+"\n" {
		t.Fatalf("bulla registry %v: %v; it said\n%s\nwant\n%s", args, err, stderr, said)
	}
	return stdout
}

// What fillStore leaves behind, in an export.
const filled = "3 clients, 1 deleted client, 0 key sets, 1 key ring, 1 data key"

// lookAlike makes a service on the same token, with a store of its own, that was
// never started.
func lookAlike(t testing.TB) *harness.Service {
	t.Helper()
	return harness.New(t, harness.Config{Token: shared.token, CA: shared.ca})
}

// onPostgres gives a service a new database for its store.
func onPostgres(t testing.TB, s *harness.Service, dsn string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, "dsn"), []byte(dsn+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Reconfigure(t, func(tree harness.M) { tree["store"] = harness.M{"postgres": harness.M{"dsn_file": "dsn"}} })
}

func TestARegistryIsCarriedFromOneFileToAnother(t *testing.T) {
	t.Parallel()
	from := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	fillStore(t, from)
	kid := signingKey(t, from)
	from.Terminate(t)

	file := filepath.Join(from.Dir, "registry.jsonl")
	mustCarry(t, from, "Exported "+filled, "export", "-f", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the export has mode %v, %v; want 0600", info.Mode(), err)
	}
	export, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out := mustCarry(t, from, "Exported "+filled, "export"); out != string(export) {
		t.Error("what is printed is not what is written to a file")
	}
	if bytes.Contains(export, []byte(keptSecret)) {
		t.Error("a client's secret stands in the export")
	}
	if _, stderr, err := registryCommand(t, from, "export", "-f", file); err == nil || !strings.Contains(stderr, "exists already") {
		t.Errorf("a second export to the file: %v, %s; want a refusal", err, stderr)
	}
	mustCarry(t, from, "Exported "+filled, "export", "-f", file, "--force")
	if entries, err := filepath.Glob(filepath.Join(from.Dir, ".registry.jsonl*")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}

	to := lookAlike(t)
	mustCarry(t, to, "Imported "+filled+"; 6 rows written by this run, which is all", "import", "-f", file)
	mustCarry(t, to, "Imported "+filled+"; nothing written by this run, and 6 rows there already", "import", "-f", file)
	wantFilledStore(t, to)
	to.Run(t)
	to.WaitReady(t)
	if got := signingKey(t, to); got != kid {
		t.Errorf("the signing key is %s, want %s as before", got, kid)
	}
	to.Terminate(t)

	// What is no export as it was written changes nothing.
	for name, change := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"changed": func(b []byte) []byte { return bytes.Replace(b, []byte("kept-hs"), []byte("kept-hx"), 1) },
		"empty":   func([]byte) []byte { return nil },
	} {
		bad := lookAlike(t)
		file := filepath.Join(bad.Dir, "registry.jsonl")
		if err := os.WriteFile(file, change(bytes.Clone(export)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, stderr, err := registryCommand(t, bad, "import", "-f", file); err == nil || !strings.HasPrefix(stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:], "bulla: ") {
			t.Errorf("%s: %v, %s; want a refusal", name, err, stderr)
		}
	}
	// Nor is it mixed with what is there.
	other := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	mustRegister(t, other.Caller(t, harness.Admin), withJWKS("kept-jwks", harness.JWKS(otherKey())))
	other.Terminate(t)
	if _, stderr, err := registryCommand(t, other, "import", "-f", file); err == nil || !strings.Contains(stderr, "import into an empty store") {
		t.Errorf("into a store with something else: %v, %s; want a refusal", err, stderr)
	}
}

func TestARegistryGoesToPostgresAndBack(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	from := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	fillStore(t, from)
	kid := signingKey(t, from)
	from.Terminate(t)
	export := mustCarry(t, from, "Exported "+filled, "export")
	file := filepath.Join(from.Dir, "registry.jsonl")
	if err := os.WriteFile(file, []byte(export), 0o600); err != nil {
		t.Fatal(err)
	}

	fleet := lookAlike(t)
	onPostgres(t, fleet, cluster.NewDatabase(t).DSN())
	migrated := struct{ From, To int }{}
	for _, want := range []bool{true, false} {
		out, err := fleet.Command(t, "migrate", "--config", fleet.ConfigFile, "-o", "json").Output()
		if err != nil {
			t.Fatalf("bulla migrate: %v", err)
		}
		if err := json.Unmarshal(out, &migrated); err != nil || migrated.To < 1 || (migrated.From < migrated.To) != want {
			t.Errorf("bulla migrate printed %s (%v)", out, err)
		}
	}
	mustCarry(t, fleet, "Imported "+filled+"; 6 rows written by this run, which is all", "import", "-f", file)
	wantFilledStore(t, fleet)

	// What a running replica has written goes along too, and so does what it
	// was asked for while a command looks.
	fleet.Run(t)
	fleet.WaitReady(t)
	if got := signingKey(t, fleet); got != kid {
		t.Errorf("the signing key is %s, want %s as before", got, kid)
	}
	admin := fleet.Caller(t, harness.Admin)
	mustRegister(t, admin, withJWKS("kept-late", harness.JWKS(anyKey())))
	const more = "4 clients, 1 deleted client, 0 key sets, 1 key ring, 1 data key"
	back := mustCarry(t, fleet, "Exported "+more, "export")
	wantOneKey(t, fleet, harness.WrappingLabel)
	if text := mustDatakey(t, fleet, "replace"); !strings.Contains(text, "dk-2 is the data key now: 6 records sealed anew under it, 1 old data key removed") {
		t.Errorf("datakey replace beside a running service: %s", text)
	}
	openWith(t, fleet, mustIssue(t, admin, idToken("kept-late")).GetToken(), anyKey().Key, nil)
	mustRegister(t, admin, withJWKS("kept-later", harness.JWKS(anyKey())))
	fleet.Terminate(t)

	home := lookAlike(t)
	if err := os.WriteFile(filepath.Join(home.Dir, "back.jsonl"), []byte(back), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCarry(t, home, "Imported "+more+"; 7 rows written by this run, which is all", "import", "-f", filepath.Join(home.Dir, "back.jsonl"))
	wantFilledStore(t, home)
}

// signingKey is the kid of the issuer's active key.
func signingKey(t testing.TB, s *harness.Service) string {
	t.Helper()
	res, err := s.Caller(t, harness.Admin).SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: harness.Issuer})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(res.GetSigningKeys(), func(k *bullav1.SigningKey) bool {
		return k.GetState() == bullav1.SigningKeyState_SIGNING_KEY_STATE_ACTIVE
	})
	if i < 0 {
		t.Fatalf("no key signs: %v", res.GetSigningKeys())
	}
	return res.GetSigningKeys()[i].GetKeyId()
}
