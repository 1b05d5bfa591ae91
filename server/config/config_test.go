package config

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/authz"
)

var update = flag.Bool("update", false, "write the expected messages of testdata/bad anew; read the difference")

// TestBadConfigs loads each testdata/bad/NAME.yaml and compares all that is
// said of it with NAME.txt.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(file), data)
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("got %v, want problems", err)
			}
			for _, p := range problems {
				if p.Line < 1 || p.Message == "" || p.Advice == "" {
					t.Errorf("problem without line, message or advice: %+v", p)
				}
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func load(t *testing.T, file string) *Config {
	t.Helper()
	c, err := Load(file)
	if err != nil {
		t.Fatalf("Load(%s):\n%v", file, err)
	}
	return c
}

func wantConfig(t *testing.T, got, want *Config) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// in returns the absolute path of a file beside the good configurations.
func in(t *testing.T, file string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join("testdata", "good", file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMinimalConfigGetsTheDefaults(t *testing.T) {
	wantConfig(t, load(t, "testdata/good/minimal.yaml"), &Config{
		GRPC: GRPC{Listen: "127.0.0.1:8443", Health: true, Reflection: true, MaxConnectionAge: 30 * time.Minute, TLS: &MutualTLS{
			CertFile: in(t, "server.crt"), KeyFile: in(t, "server.key"), ClientCAFile: in(t, "callers-ca.crt"),
		}},
		HTTP:  HTTP{Listen: "127.0.0.1:8080"},
		Ops:   Ops{Listen: "127.0.0.1:9090"},
		Store: Store{Bolt: Bolt{Path: in(t, "bulla.db")}, MaxLag: 15 * time.Minute},

		StateDir: in(t, "."), Cache: Cache{Memory: 160 << 20},
		Limits:    Limits{Registrations: 100, FirstFetches: 20, FirstFetchesPerHost: 5},
		Admission: Admission{Queue: 64},
		Tracing:   Tracing{Sample: 0.01},

		Audit: Audit{Path: in(t, "audit.log"), Sync: "group", OnFailure: "deny", FlushEvery: 50 * time.Millisecond},
		Backends: map[string]Backend{"hsm": {PKCS11: &PKCS11{
			Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "bulla", PINFile: in(t, "pin"), Isolation: "none",
		}}},
		Wrapping: Wrapping{Backend: "hsm", Key: "object=wrap-1"},
		Fetch: Fetch{
			AllowPorts: []int{443}, MinRefresh: time.Minute, DefaultRefresh: 10 * time.Minute,
			MaxRefresh: 24 * time.Hour, MaxStale: 24 * time.Hour,
		},
		Issuers: []Issuer{{
			Name: "main", Iss: "https://login.example.com", Profile: "default", DefaultSigningAlgorithm: kms.ES256,
			DefaultLifetime: 5 * time.Minute, MaxLifetime: time.Hour, JWKSMaxAge: 10 * time.Minute,
			Policy: Policy{MinRSABits: 2048, MaxRSABits: 4096},
			SigningKeys: []SigningKey{{
				Algorithm: kms.ES256, Locations: []string{"hsm:object=login-es256"}, Verify: true,
				Keys: []KeyRef{{"hsm", "object=login-es256"}},
			}},
			Rotation: Rotation{Create: "never"},
		}},
	})
}

func TestFullConfigIsTakenAsItIs(t *testing.T) {
	const arn = "key-id=arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	const uri = "pkcs11:token=bulla;object=standby-es256;type=private"
	wantConfig(t, load(t, "testdata/good/full.yaml"), &Config{
		GRPC: GRPC{Listen: "0.0.0.0:443", TLS: &MutualTLS{
			CertFile: in(t, "tls/server.crt"), KeyFile: in(t, "tls/server.key"), ClientCAFile: "/etc/ssl/callers-ca.crt",
		}},
		HTTP:  HTTP{Listen: ":8081", TLS: &TLS{CertFile: in(t, "web.crt"), KeyFile: in(t, "web.key")}},
		Ops:   Ops{Listen: "[::1]:9191", MetricsListen: ":9192"},
		Store: Store{Bolt: Bolt{Path: in(t, "data/registry.db")}, MaxLag: 5 * time.Minute},

		StateDir: in(t, "state"), Cache: Cache{Memory: 1 << 30},
		Tracing:   Tracing{Endpoint: "otel-collector.example.com:4317", CAFile: in(t, "collector-ca.crt"), Sample: 0.5},
		Admission: Admission{Queue: 200, Backends: map[string]AdmissionBackend{"hsm": {InFlight: 12}, "aws": {InFlight: 30}}},
		Limits: Limits{
			Tokens: 500, InFlight: 100, Registrations: 1000, FirstFetches: 20, FirstFetchesPerHost: 1,
			Callers: []CallerLimits{
				{Caller: "spiffe://example.com/idp", Tokens: new(0.0), InFlight: new(0)},
				{Caller: "registrar.example.com", Tokens: new(0.5), Registrations: 50, FirstFetches: 40},
			},
		},

		Audit: Audit{
			Path: "-", Sync: "group", OnFailure: "continue", FlushEvery: 200 * time.Millisecond,
			Checkpoint: &AuditCheckpoint{
				Location: "hsm:object=audit-1", Algorithm: kms.ES384, EveryLines: 50, Every: 10 * time.Second, Key: KeyRef{"hsm", "object=audit-1"},
			},
		},
		Backends: map[string]Backend{
			"hsm": {PKCS11: &PKCS11{
				Module: "/usr/lib/softhsm/libsofthsm2.so", Token: "bulla", Serial: "0123456789abcdef", PINFile: in(t, "pin"),
				InsistOnLogin: true, Sessions: 12, Isolation: "process", InitReserved: "configdir=x",
			}},
			"aws": {AWSKMS: &AWSKMS{Region: "eu-west-1", Endpoint: "http://127.0.0.1:5000", Rate: 100}},
		},
		Wrapping: Wrapping{
			Backend: "hsm", Key: "object=wrap-1", Former: []string{"hsm:object=wrap-0", "aws:alias/wrap"},
			FormerKeys: []KeyRef{{"hsm", "object=wrap-0"}, {"aws", "alias/wrap"}},
		},
		Fetch: Fetch{
			CAFile: in(t, "clients-ca.crt"), AllowHosts: []string{"rp.example.com", "*.apps.example.com"},
			AllowCIDRs: []string{"10.1.0.0/16", "2001:db8::/32"}, AllowPorts: []int{443, 8443},
			MinRefresh: 30 * time.Second, DefaultRefresh: 5 * time.Minute, MaxRefresh: 12 * time.Hour, MaxStale: 48 * time.Hour,
		},
		Grants: []Grant{
			{Caller: "spiffe://example.com/idp", Allow: []authz.Permission{authz.Issue}, Issuers: []string{"main", "bank"}, TokenKinds: tokenKinds, Clients: []string{"*"}},
			{Caller: "registrar.example.com", Allow: []authz.Permission{authz.CreateClientKey, authz.ReadClientKeys, authz.RefreshClientKey}, Issuers: []string{"main"}, Clients: []string{"app-*", "portal"}},
			{Caller: "spiffe://example.com/idp", Allow: []authz.Permission{authz.ReadSigningKeys, authz.RotateSigningKeys}, Issuers: []string{"main"}},
			{
				Caller: "spiffe://example.com/gateway", Allow: []authz.Permission{authz.Issue}, Issuers: []string{"main"}, TokenKinds: []string{"ID_TOKEN", "ACCESS_TOKEN"}, Clients: []string{"*"},
				Claims: &Claims{
					MaxLifetime: 10 * time.Minute, Allow: []string{"sub", "client_id", "auth_time"}, Require: []string{"auth_time"},
					Audiences: []string{"https://api.example.com", "app-*"},
				},
			},
		},
		Issuers: []Issuer{
			{
				Name: "main", Iss: "https://login.example.com", Profile: "default", DefaultSigningAlgorithm: kms.RS256,
				DefaultLifetime: 2 * time.Minute, MaxLifetime: 30 * time.Minute, JWKSMaxAge: time.Hour,
				Policy: Policy{
					Signing:           []kms.Algorithm{kms.RS256, kms.ES256, kms.HS256},
					Encryption:        []encrypter.KeyAlgorithm{encrypter.RSAOAEP256, encrypter.ECDHES, encrypter.Dir, encrypter.RSA15},
					ContentEncryption: []encrypter.ContentEncryption{encrypter.A256GCM, encrypter.A128CBCHS256, encrypter.A128CBCPlusHS256},
					MinRSABits:        3072, MaxRSABits: 8192, Legacy: true,
				},
				SigningKeys: []SigningKey{
					{Algorithm: kms.ES256, Locations: []string{"hsm:object=login-es256", uri}, Verify: true, Keys: []KeyRef{{"hsm", "object=login-es256"}, {"hsm", uri}}},
					{Algorithm: kms.RS256, Locations: []string{"aws:" + arn}, Keys: []KeyRef{{"aws", arn}}},
				},
				Rotation: Rotation{Every: 30 * 24 * time.Hour, Create: "never"}, KeyChangeDelay: 24 * time.Hour,
			},
			{
				Name: "bank", Iss: "https://bank.example.com/tenant", Profile: "fapi", DefaultSigningAlgorithm: kms.PS256,
				DefaultLifetime: 5 * time.Minute, MaxLifetime: time.Hour, JWKSMaxAge: 10 * time.Minute,
				Policy:      Policy{MinRSABits: 2048, MaxRSABits: 4096},
				SigningKeys: []SigningKey{{Algorithm: kms.PS256, Locations: []string{"hsm:id=%01%02"}, Verify: true, Keys: []KeyRef{{"hsm", "id=%01%02"}}}},
				Rotation:    Rotation{Create: "auto"},
			},
		},
	})
}

func TestPostgresTakesThePlaceOfTheFile(t *testing.T) {
	c := load(t, "testdata/good/fleet.yaml")
	want := Store{Postgres: &Postgres{DSNFile: in(t, "secrets/dsn"), ListenDSNFile: "/run/listen-dsn"}, MaxLag: 2 * time.Minute}
	if diff := cmp.Diff(want, c.Store); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if c.StateDir != in(t, ".") || c.Cache.Memory != minMemory || !cmp.Equal(c.Limits, Limits{Registrations: 100, FirstFetches: 3, FirstFetchesPerHost: 0.5}) {
		t.Errorf("got state_dir %s, cache %+v, limits %+v", c.StateDir, c.Cache, c.Limits)
	}
	if c.Audit.RotateSize != 100<<20 || c.Audit.Checkpoint != nil {
		t.Errorf("got audit %+v", c.Audit)
	}
	data := strings.ReplaceAll(minimal(t), "\nbackends:", "\nstore: {postgres: {dsn_file: dsn}}\nbackends:")
	c, err := Parse("bulla.yaml", []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Store.Postgres; p == nil || !p.Migrate || p.ListenDSNFile != "" || c.Store.Bolt.Path != "" {
		t.Errorf("got %+v and the file %q, want the defaults of postgres and no file", p, c.Store.Bolt.Path)
	}
}

func minimal(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("testdata/good/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What this machine remembers stays where it was before there was a field for
// it.
func TestStateIsBesideTheFileUnlessSaidOtherwise(t *testing.T) {
	for store, want := range map[string]string{
		"store: {bolt: {path: /var/lib/bulla/b.db}}":                    "/var/lib/bulla",
		"store: {bolt: {path: data/b.db}}":                              "/etc/bulla/data",
		"store: {bolt: {path: data/b.db}}\nstate_dir: ../state":         "/etc/state",
		"store: {postgres: {dsn_file: secrets/dsn}}":                    "/etc/bulla",
		"store: {postgres: {dsn_file: dsn}}\nstate_dir: /var/lib/bulla": "/var/lib/bulla",
	} {
		c, err := Parse("/etc/bulla/bulla.yaml", []byte(strings.ReplaceAll(minimal(t), "\nbackends:", "\n"+store+"\nbackends:")))
		if err != nil {
			t.Errorf("%s: %v", store, err)
			continue
		}
		if c.StateDir != want {
			t.Errorf("%s: got %s, want %s", store, c.StateDir, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"1KiB": 1 << 10, "160MiB": 160 << 20, "8191KiB": 8191 << 10, "2GiB": 2 << 30, "007MiB": 7 << 20, "8589934591GiB": 8589934591 << 30, "0MiB": 0,
	} {
		got, ok := parseSize(text)
		if !ok || got != want {
			t.Errorf("%s: got %d, %v; want %d", text, got, ok, want)
		}
		if again, ok := parseSize(got.String()); want > 0 && (!ok || again != want) {
			t.Errorf("%s: printed as %s, which is read as %d, %v", text, got, again, ok)
		}
	}
	for _, text := range []string{"", "MiB", "1", "1M", "1MB", "1mib", "1 MiB", " 1MiB", "1MiB ", "+1MiB", "-1MiB", "1.5GiB", "1e3KiB", "0x10KiB", "1_000KiB", "8589934592GiB", "99999999999999999999KiB", "1MiBMiB"} {
		if got, ok := parseSize(text); ok {
			t.Errorf("%q: got %d, want a refusal", text, got)
		}
	}
}

func TestDevelopmentNeedsNoTLSAndTakesItIfGiven(t *testing.T) {
	plain := load(t, "testdata/good/development.yaml")
	if !plain.Development || !plain.Plaintext() || plain.Issuers[0].DefaultSigningAlgorithm != kms.EdDSA {
		t.Errorf("development.yaml: got development %v, plaintext %v, default algorithm %s", plain.Development, plain.Plaintext(), plain.Issuers[0].DefaultSigningAlgorithm)
	}
	if c := load(t, "testdata/good/development-tls.yaml"); !c.Development || c.Plaintext() {
		t.Errorf("development-tls.yaml: got development %v, plaintext %v; want true, false", c.Development, c.Plaintext())
	}
}

func TestGrantsOfTheConfigMakeAPolicy(t *testing.T) {
	c := load(t, "testdata/good/full.yaml")
	p, err := authz.New(c.AuthzGrants())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Allow("registrar.example.com", authz.Request{Permission: authz.CreateClientKey, Issuer: "main", ClientID: "app-7"}); err != nil {
		t.Errorf("granted in the file: %v", err)
	}
	if err := p.Allow("registrar.example.com", authz.Request{Permission: authz.ReplaceClientKey, Issuer: "main", ClientID: "app-7"}); !errors.Is(err, authz.ErrNotAllowed) {
		t.Errorf("not granted in the file: got %v, want ErrNotAllowed", err)
	}
	terms, err := p.Authorize("spiffe://example.com/gateway", authz.Request{Permission: authz.Issue, Issuer: "main", TokenKind: "ID_TOKEN", ClientID: "rp"})
	if err != nil || terms.Free() {
		t.Errorf("granted in the file with a claim policy: %v, free of it %v", err, terms.Free())
	}
	if got := c.Fetch.CIDRs(); len(got) != 2 || got[0].String() != "10.1.0.0/16" {
		t.Errorf("CIDRs: got %v", got)
	}
}

func TestURIBelongsToTheBackendWhoseTokenItNames(t *testing.T) {
	backends := map[string]Backend{
		"a": {PKCS11: &PKCS11{Token: "one & only"}},
		"b": {PKCS11: &PKCS11{Token: "two", Serial: "77"}},
		"c": {AWSKMS: &AWSKMS{}},
	}
	for uri, want := range map[string]string{
		"pkcs11:token=one%20%26%20only;object=x": "a",
		"pkcs11:token=one%20&%20only;object=x":   "a",
		"pkcs11:object=x;token=two":              "b",
		"PKCS11:id=%01;token=two;serial=77":      "b",
	} {
		got, p := parseKeyRef(uri, backends)
		if p != nil || got != (KeyRef{want, uri}) || got.String() != uri {
			t.Errorf("%s: got %v, %v; want backend %s", uri, got, p, want)
		}
	}
	for _, uri := range []string{"pkcs11:object=x", "pkcs11:object=x;token=two;serial=78", "pkcs11:token=two"} {
		if got, p := parseKeyRef(uri, backends); p == nil {
			t.Errorf("%s: got %v, want a problem", uri, got)
		}
	}
	if r := (KeyRef{"c", "key-id=x"}); r.String() != "c:key-id=x" {
		t.Errorf("String: got %s", r)
	}
}

func TestValuesThatMightBeSecretsAreNotRepeated(t *testing.T) {
	for _, file := range []string{"pkcs11-pin-in-file", "unknown-top-level", "key-locations", "control-character", "iss-user", "store-postgres-fields"} {
		_, err := Load("testdata/bad/" + file + ".yaml")
		if err == nil {
			t.Fatalf("%s: no error", file)
		}
		for _, secret := range []string{"123456", "1234;", "pin-value=1234", "MIIB", "me:secret", "hunter2"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the message repeats %q:\n%v", file, secret, err)
			}
		}
	}
}

func TestHugeAndMissingFilesAreRefused(t *testing.T) {
	huge := filepath.Join(t.TempDir(), "huge.yaml")
	if err := os.WriteFile(huge, bytes.Repeat([]byte("# x\n"), MaxSize/4+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		huge: "larger than", filepath.Join(t.TempDir(), "missing.yaml"): "cannot be read", t.TempDir(): "cannot be read",
	} {
		_, err := Load(file)
		var problems Problems
		if !errors.As(err, &problems) || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s): got %v, want problems with %q", file, err, want)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	for name, data := range map[string]string{
		"unknown fields": strings.Repeat("a: 1\nb: 1\n", 1000),
		"wrong entries":  "grants: [" + strings.Repeat("x,", maxEntries) + "]",
		"wrong values":   "fetch: {allow_ports: [" + strings.Repeat("0,", maxEntries) + "]}",
	} {
		_, err := Parse("f.yaml", []byte(data))
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != maxProblems+1 || !strings.Contains(err.Error(), "there are more problems") {
			t.Errorf("%s: got %d problems, want %d and a last one that tells of more", name, len(problems), maxProblems)
		}
	}
	if _, err := Parse("f.yaml", []byte("fetch: {allow_ports: ["+strings.Repeat("1,", maxEntries+1)+"]}")); err == nil || !strings.Contains(err.Error(), "the list has 10001 entries") {
		t.Errorf("a list that is too long: got %.200v", err)
	}
	for name, data := range map[string]string{
		"lists": strings.Repeat("[", MaxSize), "fields": strings.Repeat("{a: ", MaxSize/4),
	} {
		if _, err := Parse("f.yaml", []byte(data)); err == nil || !strings.Contains(err.Error(), "not YAML") {
			t.Errorf("nested %s: got %v, want a problem about the nesting", name, err)
		}
	}
}

func TestPathsStartFromTheFolderOfTheFile(t *testing.T) {
	dir := t.TempDir()
	data, err := os.ReadFile("testdata/good/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(filepath.Join(dir, "bulla.yaml"), data)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		c.GRPC.TLS.CertFile: "server.crt", c.Store.Bolt.Path: "bulla.db", c.Audit.Path: "audit.log", c.Backends["hsm"].PKCS11.PINFile: "pin",
	} {
		if got != filepath.Join(dir, want) {
			t.Errorf("got %s, want %s in %s", got, want, dir)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"listen", "reflection", "tls", "pin_file", "cert_file", "ES256"}
	for name, want := range map[string]string{
		"lisen": "listen", "Listen": "listen", "lsiten": "listen", "pin": "pin_file", "cert-file": "cert_file", "es256": "ES256", "ES265": "ES256",
		"x": "", "": "", "something": "", "slt": "", strings.Repeat("listen", 100): "listen",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest(%.20q): got %q, want %q", name, got, want)
		}
	}
}

// FuzzParse: no file, however broken, does more than be refused with problems
// that have one line each.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f.yaml", data)
		if err == nil {
			if _, err := authz.New(c.AuthzGrants()); err != nil {
				t.Fatalf("accepted grants that authz refuses: %v", err)
			}
			for _, is := range c.Issuers {
				if is.DefaultLifetime > is.MaxLifetime || !is.DefaultSigningAlgorithm.Known() {
					t.Fatalf("accepted issuer %+v", is)
				}
			}
			if !c.Development && c.Plaintext() {
				t.Fatal("accepted plaintext outside development")
			}
			return
		}
		var problems Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("%T instead of problems", err)
		}
		for _, p := range problems {
			if s := p.String(); strings.ContainsAny(s, "\n\r\x1b\x00") || p.Message == "" || p.Advice == "" {
				t.Fatalf("bad problem %q", s)
			}
		}
	})
}
