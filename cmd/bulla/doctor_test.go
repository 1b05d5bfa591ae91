package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms/awstest"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/kms/local"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/bolt"
)

// asProcess makes the test binary the command: see runDoctor.
const asProcess = "BULLA_TEST_COMMAND"

// TestDoctorProcess is not a test of its own: it is the process that runDoctor
// starts.
func TestDoctorProcess(*testing.T) {
	if os.Getenv(asProcess) == "" {
		return
	}
	for i, a := range os.Args {
		if a == "--" {
			os.Args = append([]string{"bulla"}, os.Args[i+1:]...)
			break
		}
	}
	os.Exit(run())
}

// diagnosis is what a run of the doctor came to.
type diagnosis struct {
	t    *testing.T
	code int
	text string    // what it printed
	all  []finding // of a run with -o json
}

// runDoctor runs "bulla doctor" in a process of its own, as it is in the
// field: a module is initialized once in a process, and locks are between
// processes.
func runDoctor(t *testing.T, configFile string, args ...string) *diagnosis {
	t.Helper()
	return runDoctorWith(t, nil, configFile, args...)
}

// runDoctorWith is runDoctor with more environment variables.
func runDoctorWith(t *testing.T, env []string, configFile string, args ...string) *diagnosis {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"-test.run=^TestDoctorProcess$", "--", "doctor", "--config", configFile}, args...)...)
	cmd.Env = slices.Concat(os.Environ(), env, []string{asProcess + "=1"})
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	d := &diagnosis{t: t}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		d.code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	d.text = out.String() + errOut.String()
	for i, a := range args {
		if a == "-o" && args[i+1] == "json" {
			if err := json.Unmarshal(out.Bytes(), &d.all); err != nil {
				t.Fatalf("the output is no JSON: %v\n%s", err, d.text)
			}
		}
	}
	return d
}

// wants holds a run against findings in the form "OUTCOME check words of its
// subject, detail or advice". A number in place of the outcome is how many of
// that kind are ok. Every FAIL and warn must be wanted.
func (d *diagnosis) wants(want ...string) {
	d.t.Helper()
	used := make([]bool, len(d.all))
	for _, w := range want {
		parts := strings.SplitN(w, " ", 3)
		least, err := strconv.Atoi(parts[0])
		if err == nil {
			parts[0] = string(good)
		}
		n := 0
		for i, f := range d.all {
			all := f.Subject + ": " + f.Detail + ": " + f.Advice
			if string(f.Outcome) == parts[0] && f.Check == parts[1] && (len(parts) < 3 || strings.Contains(all, parts[2])) {
				used[i] = true
				n++
			}
		}
		if n < max(least, 1) {
			d.t.Errorf("got no finding %q in\n%s", w, d.text)
		}
	}
	for i, f := range d.all {
		if f.Outcome != good && !used[i] {
			d.t.Errorf("got the unwanted finding %+v", f)
		}
		if f.Outcome != good && f.Advice == "" {
			d.t.Errorf("got the finding %+v without advice", f)
		}
	}
	wantCode := 0
	if count(d.all, failed) > 0 {
		wantCode = 1
	}
	if d.code != wantCode {
		d.t.Errorf("got exit code %d, want %d\n%s", d.code, wantCode, d.text)
	}
}

// site is a set-up that the doctor looks at, all good until it is broken.
type site struct {
	t   *testing.T
	dir string

	GRPC, HTTP, Ops string
	Metrics         string // of the operators, where they have an address of their own
	TLS             bool
	Backends        string
	Wrapping        string
	Keys            string // of signing_keys
	Policy          string // of the issuer
	Fetch           string
	Grants          string
	More            string
}

const goodGrants = `
  - {caller: "spiffe://example.com/idp", allow: [issue], issuers: [main], token_kinds: [ID_TOKEN], clients: ["*"]}
  - {caller: "spiffe://example.com/registrar", allow: [create_client_key], issuers: [main], clients: ["*"]}`

// newSite is a set-up with certificates and addresses, but no backend yet.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), TLS: true, Grants: goodGrants}
	for _, a := range []*string{&s.GRPC, &s.HTTP, &s.Ops} {
		lis := listen(t, "127.0.0.1:0")
		defer lis.Close()
		*a = lis.Addr().String()
	}
	ca := newTestCA(t)
	s.write("ca.crt", pemBlock("CERTIFICATE", ca.cert.Raw))
	ca.server(s, "server", nil)
	return s
}

// newLocalSite is a set-up with software keys, in development.
func newLocalSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.More = "development: true"
	s.Backends = "dev: {local: {path: keys.json}}"
	s.Keys = `{algorithm: ES256, keys: ["dev:kid=ec"]}`
	s.Wrapping = `{backend: dev, key: "kid=wrap"}`
	s.key("keys.json", kms.ES256, "ec")
	s.wrappingKey("keys.json", "wrap")
	return s
}

func (s *site) key(file string, alg kms.Algorithm, name string) {
	s.t.Helper()
	if _, err := local.Create(s.path(file), alg, name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) wrappingKey(file, name string) {
	s.t.Helper()
	if _, err := local.CreateWrapping(s.path(file), name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// config writes the configuration and returns its path.
func (s *site) config() string {
	s.t.Helper()
	tlsLines := ", tls: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}"
	if !s.TLS {
		tlsLines = ""
	}
	grants := s.Grants
	if grants != "" {
		grants = "grants:" + grants
	}
	s.write("bulla.yaml", fmt.Appendf(nil, `grpc: {listen: %q%s}
http: {listen: %q}
ops: {listen: %q, metrics_listen: %q}
backends:
  %s
wrapping: %s
%s
%s
issuers:
  - name: main
    iss: https://login.example.com
    signing_keys: [%s]
    policy: {%s}
%s
`, s.GRPC, tlsLines, s.HTTP, s.Ops, s.Metrics, s.Backends, s.Wrapping, s.Fetch, grants, s.Keys, s.Policy, s.More))
	return s.path("bulla.yaml")
}

func (s *site) doctor(args ...string) *diagnosis {
	s.t.Helper()
	return runDoctor(s.t, s.config(), append([]string{"-o", "json"}, args...)...)
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	return lis
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	lis := listen(t, "127.0.0.1:0")
	defer lis.Close()
	return lis.Addr().String()
}

// testCA issues certificates with whatever mistake a test wants.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	ca.cert, ca.key = ca.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return ca
}

func (ca *testCA) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.Subject.CommonName == "" {
		template.Subject = pkix.Name{CommonName: "for tests"}
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-48 * time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// server writes NAME.crt and NAME.key for a server; spoil may change the
// template.
func (ca *testCA) server(s *site, name string, spoil func(*x509.Certificate)) {
	ca.t.Helper()
	template := &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if spoil != nil {
		spoil(template)
	}
	cert, key := ca.issue(template)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	s.write(name+".crt", pemBlock("CERTIFICATE", cert.Raw))
	s.write(name+".key", pemBlock("PRIVATE KEY", der))
}

// developing is the warning that every set-up with software keys has.
const developing = "warn config development mode"

func TestDoctorFindsNothingWrongWithSoftwareKeys(t *testing.T) {
	s := newLocalSite(t)
	s.doctor().wants(developing,
		"ok config 1 issuer, 1 backend, 2 grants", "ok policy main: signs with ES256, HS256, HS384, HS512; encrypts with 15 key management algorithms, 6 content encryptions; RSA keys of clients have 2048 to 4096 bits",
		"ok files", "ok tls for localhost, 127.0.0.1", "ok tls fits", "ok tls 1 CA certificate",
		"ok file keys.json", "ok key key on P-256", "ok probe a signature with ES256 verifies",
		"ok wrapping dev:kid=wrap", "ok probe dev:kid=wrap: a random data key was wrapped and unwrapped",
		"ok store not there yet", "ok audit not there yet", "ok fetch", "ok grants issue: 1 caller, create_client_key: 1 caller",
		"ok listener grpc.listen", "ok listener http.listen", "ok listener ops.listen")
	for _, name := range []string{"bulla.db", "audit.log"} {
		if _, err := os.Stat(s.path(name)); err == nil {
			t.Errorf("the doctor made %s", name)
		}
	}
}

func TestDoctorSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		spoil func(t *testing.T, s *site)
		want  []string
	}{
		"expired certificate": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
			},
			[]string{"FAIL tls grpc.tls.cert_file: expired on "},
		},
		"certificate of tomorrow": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "server", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
			},
			[]string{"FAIL tls not valid before"},
		},
		"certificate that expires soon": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(29*24*time.Hour + time.Hour) })
			},
			[]string{"warn tls in 29 days"},
		},
		"certificate without names": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "server", func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil })
			},
			[]string{"FAIL tls subject alternative name"},
		},
		"certificate of a caller": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
			},
			[]string{"FAIL tls serverAuth"},
		},
		"key of another certificate": {
			func(t *testing.T, s *site) {
				newTestCA(t).server(s, "other", nil)
				s.move("other.key", "server.key")
			},
			[]string{"FAIL tls grpc.tls.key_file: tls: private key does not match public key"},
		},
		"encrypted key": {
			func(_ *testing.T, s *site) { s.write("server.key", pemBlock("ENCRYPTED PRIVATE KEY", []byte("x"))) },
			[]string{"FAIL tls encrypted with a password"},
		},
		"chain in disorder": {
			func(t *testing.T, s *site) { s.append("server.crt", newTestCA(t).cert.Raw) },
			[]string{"warn tls did not issue the one above"},
		},
		"no certificate in the file": {
			func(_ *testing.T, s *site) { s.write("server.crt", []byte("hello\n")) },
			[]string{"FAIL tls holds no certificate in PEM"},
		},
		"damaged CA": {
			func(_ *testing.T, s *site) { s.append("ca.crt", []byte("x")) },
			[]string{"FAIL tls certificate 2 of"},
		},
		"CA that was cut off": {
			func(_ *testing.T, s *site) {
				whole, err := os.ReadFile(s.path("ca.crt"))
				if err != nil {
					t.Fatal(err)
				}
				s.write("ca.crt", append(whole, whole[:len(whole)/2]...))
			},
			[]string{"FAIL tls grpc.tls: client_ca_file: 1 of 2 PEM blocks are not whole"},
		},
		"one expired CA of two": {
			func(t *testing.T, s *site) {
				c, _ := (&testCA{t: t}).issue(&x509.Certificate{Subject: pkix.Name{CommonName: "old CA"}, IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(-time.Hour)})
				s.append("ca.crt", c.Raw)
			},
			[]string{`warn tls "old CA": expired on`},
		},
		"no CA certificate": {
			func(t *testing.T, s *site) {
				c, _ := newTestCA(t).issue(&x509.Certificate{})
				s.write("ca.crt", pemBlock("CERTIFICATE", c.Raw))
			},
			[]string{"warn tls is no CA certificate"},
		},
		"missing certificate": {
			func(_ *testing.T, s *site) { s.remove("server.crt") },
			[]string{"FAIL file bulla.yaml:1: grpc.tls.cert_file"},
		},
		"key that others can read": {
			func(t *testing.T, s *site) { chmod(t, s.path("server.key"), 0o644) },
			[]string{"warn file grpc.tls.key_file"},
		},
		"CA file for fetches": {
			func(_ *testing.T, s *site) { s.Fetch = "fetch: {ca_file: server.key}" },
			[]string{"FAIL fetch fetch.ca_file"},
		},
		"nobody may issue": {
			func(_ *testing.T, s *site) { s.Grants = "" },
			[]string{"warn grants main: nobody may issue"},
		},
		"nobody may register": {
			func(_ *testing.T, s *site) {
				s.Grants = strings.Replace(goodGrants, "create_client_key", "read_client_keys", 1)
			},
			[]string{"warn grants nobody may register"},
		},
		"plaintext": {
			func(_ *testing.T, s *site) { s.TLS, s.Grants = false, "" },
			[]string{"warn tls no TLS", "ok grants development"},
		},
		"busy port": {
			func(t *testing.T, s *site) { listen(t, s.HTTP) },
			[]string{"FAIL listener http.listen"},
		},
		"busy port for metrics": {
			func(t *testing.T, s *site) { s.Metrics = listen(t, "127.0.0.1:0").Addr().String() },
			[]string{"FAIL listener ops.metrics_listen"},
		},
		"something else on the operators' port": {
			func(t *testing.T, s *site) {
				lis := listen(t, s.Ops)
				go func() {
					_ = http.Serve(lis, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }))
				}()
			},
			[]string{"FAIL listener ops.listen"},
		},
		"store that is none": {
			func(_ *testing.T, s *site) { s.write("bulla.db", bytes.Repeat([]byte("no store "), 4096)) },
			[]string{"FAIL store is not a store of Bulla"},
		},
		"empty store": {
			func(_ *testing.T, s *site) { s.write("bulla.db", nil) },
			[]string{"FAIL store is empty"},
		},
		"store that others can read": {
			func(t *testing.T, s *site) { makeStore(t, s); chmod(t, s.path("bulla.db"), 0o644) },
			[]string{"warn store mode 0644"},
		},
		"store of a process that is no service": {
			func(t *testing.T, s *site) { makeStore(t, s); openFile(t, s) },
			[]string{"warn store in use by another process"},
		},
		"audit log of a process that is no service": {
			func(t *testing.T, s *site) {
				log, err := audit.Open(t.Context(), audit.Config{Path: s.path("audit.log")})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = log.Close() })
			},
			[]string{"warn audit in use by another process"},
		},
		"audit key": {
			func(_ *testing.T, s *site) {
				s.key("keys.json", kms.ES384, "audit")
				s.More += "\naudit: {checkpoint: {key: \"dev:kid=audit\", algorithm: ES384}}"
			},
			[]string{"ok key dev:kid=audit: key on P-384", "ok probe dev:kid=audit: a signature with ES384 verifies"},
		},
		"missing audit key": {
			func(_ *testing.T, s *site) {
				s.More += "\naudit: {checkpoint: {key: \"dev:kid=nobody\"}}"
			},
			[]string{`FAIL key dev:kid=nobody`, "FAIL key correct audit.checkpoint.key, or create the key"},
		},
		"audit key that signs tokens under another name": {
			func(t *testing.T, s *site) {
				doc, err := os.ReadFile(s.path("keys.json"))
				if err != nil {
					t.Fatal(err)
				}
				var set struct {
					Keys []map[string]any `json:"keys"`
				}
				if err := json.Unmarshal(doc, &set); err != nil {
					t.Fatal(err)
				}
				twin := maps.Clone(set.Keys[0])
				twin["kid"] = "twin"
				set.Keys = append(set.Keys, twin)
				if doc, err = json.Marshal(set); err != nil {
					t.Fatal(err)
				}
				s.write("keys.json", doc)
				s.More += "\naudit: {checkpoint: {key: \"dev:kid=twin\"}}"
			},
			[]string{"FAIL key dev:kid=twin: it is the key pair of dev:kid=ec, which signs tokens"},
		},
		"audit log that others can read": {
			func(t *testing.T, s *site) { s.write("audit.log", nil); chmod(t, s.path("audit.log"), 0o644) },
			[]string{"warn audit mode 0644"},
		},
		"audit log that is a folder": {
			func(t *testing.T, s *site) {
				if err := os.Mkdir(s.path("audit.log"), 0o700); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"FAIL file audit.path", "FAIL audit no regular file"},
		},
		"software keys that others can read": {
			func(t *testing.T, s *site) { chmod(t, s.path("keys.json"), 0o644) },
			[]string{"warn file local.path", "FAIL file dev: local keys", "warn key dev:kid=ec, dev:kid=wrap not looked at"},
		},
		"missing software key": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: ES256, keys: ["dev:kid=nobody"]}` },
			[]string{`FAIL key has no key with kid "nobody"`},
		},
		"software key of another type": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: RS256, keys: ["dev:kid=ec"]}` },
			[]string{"FAIL key use a key that fits the algorithm"},
		},
		"missing wrapping key": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: dev, key: "kid=nobody"}` },
			[]string{`FAIL wrapping has no key with kid "nobody"`, "FAIL wrapping correct wrapping.key, or make the key: add {\"kty\":\"oct\"", "FAIL wrapping openssl rand 32"},
		},
		"wrapping key that signs": {
			func(_ *testing.T, s *site) {
				s.key("keys.json", kms.ES256, "second")
				s.Wrapping = `{backend: dev, key: "kid=second"}`
			},
			[]string{"FAIL wrapping is a signing key", "FAIL wrapping openssl rand 32"},
		},
		"missing former wrapping key": {
			func(_ *testing.T, s *site) { s.Wrapping = `{backend: dev, key: "kid=wrap", former: ["dev:kid=old"]}` },
			[]string{"ok probe wrapped and unwrapped", "FAIL wrapping dev:kid=old", "FAIL wrapping a new key does not help"},
		},
		"legacy algorithms": {
			func(_ *testing.T, s *site) {
				s.Policy = `encryption: [RSA1_5, RSA-OAEP], content_encryption: [A128CBC+HS256, A256GCM], legacy: true`
			},
			[]string{
				"ok policy encrypts with RSA-OAEP, RSA1_5, A256GCM, A128CBC+HS256", "warn policy main: allows RSA1_5 and A128CBC+HS256 to clients that are registered as legacy",
				"warn policy RSA-OAEP-256 for RSA1_5 and A128CBC-HS256 for A128CBC+HS256",
			},
		},
		"RSA keys that are longer than those that are made": {
			func(_ *testing.T, s *site) { s.Policy = `min_rsa_bits: 6144, max_rsa_bits: 8192` },
			[]string{"ok policy RSA keys of clients have 6144 to 8192 bits", "warn policy min_rsa_bits is above the 4096 bits"},
		},
		"locations with different key pairs": {
			func(_ *testing.T, s *site) {
				s.key("keys.json", kms.ES256, "second")
				s.Keys = `{algorithm: ES256, keys: ["dev:kid=ec", "dev:kid=second"]}`
			},
			[]string{"FAIL locations dev:kid=ec and dev:kid=second hold different key pairs"},
		},
		"a location that is missing": {
			func(_ *testing.T, s *site) { s.Keys = `{algorithm: ES256, keys: ["dev:kid=ec", "dev:kid=nobody"]}` },
			[]string{"FAIL key nobody", "warn locations main ES256: 1 of 2"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLocalSite(t)
			test.spoil(t, s)
			want := test.want
			if !strings.HasPrefix(want[0], "FAIL config") {
				want = append(want, developing)
			}
			s.doctor().wants(want...)
		})
	}
}

func (s *site) move(from, to string) {
	s.t.Helper()
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) remove(name string) {
	s.t.Helper()
	if err := os.Remove(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

// append adds a certificate to a file.
func (s *site) append(name string, der []byte) {
	s.t.Helper()
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name, append(data, pemBlock("CERTIFICATE", der)...))
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func makeStore(t *testing.T, s *site) {
	t.Helper()
	if err := openFile(t, s).Close(); err != nil {
		t.Fatal(err)
	}
}

func openFile(t *testing.T, s *site) *bolt.Store {
	t.Helper()
	store, err := bolt.Open(t.Context(), bolt.Config{Path: s.path("bulla.db"), DataKeys: datakeytest.Config(datakeytest.NewWrapper())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// writeStore makes the store as the service does, with a data key, and lets edit
// at it.
func (s *site) writeStore(edit func(*bolt.Store)) {
	s.t.Helper()
	cfg, err := config.Load(s.config())
	if err != nil {
		s.t.Fatal(err)
	}
	open, err := openBackends(s.t.Context(), cfg, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	wrapping := newWrappingKeys(cfg)
	wrapping.backends.Store(open)
	store, err := bolt.Open(s.t.Context(), bolt.Config{Path: s.path("bulla.db"), DataKeys: dataKeysConfig(cfg, wrapping, nil)})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := store.Keys().Current(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if edit != nil {
		edit(store)
	}
	if err := errors.Join(store.Close(), open.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func TestDoctorTellsOfAnImportThatWasBrokenOff(t *testing.T) {
	const uri = "https://client.example/jwks"
	from := newLocalSite(t)
	var export bytes.Buffer
	from.writeStore(func(store *bolt.Store) {
		client := registry.Registration{
			Issuer: "main", ClientID: "app", Source: registry.Source{JWKSURI: uri},
			Settings: []registry.Setting{{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}},
		}
		if _, err := store.Put(t.Context(), client, 0); err != nil {
			t.Fatal(err)
		}
		if err := store.PutKeySet(t.Context(), registry.KeySet{URI: uri, Document: []byte(`{"keys":[]}`)}); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Export(t.Context(), &export); err != nil {
			t.Fatal(err)
		}
	})

	to := newLocalSite(t)
	keys, err := os.ReadFile(from.path("keys.json")) // the wrapping key goes along
	if err != nil {
		t.Fatal(err)
	}
	to.write("keys.json", keys)
	whole := export.Bytes()
	file := to.path("bulla.db")
	importOf := func(data []byte) error {
		cfg, err := config.Load(to.config())
		if err != nil {
			t.Fatal(err)
		}
		open, err := openBackends(t.Context(), cfg, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		wrapping := newWrappingKeys(cfg)
		wrapping.backends.Store(open)
		store, err := bolt.Open(t.Context(), bolt.Config{Path: file, DataKeys: dataKeysConfig(cfg, wrapping, nil)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = store.Import(t.Context(), bytes.NewReader(data))
		if err := errors.Join(store.Close(), open.Close()); err != nil {
			t.Fatal(err)
		}
		return err
	}
	if err := importOf(whole[:len(whole)-10]); err == nil {
		t.Fatal("half an export was imported")
	}
	to.doctor().wants(developing, "ok store opens", "FAIL datakeys an import was not completed")
	if err := importOf(whole); err != nil {
		t.Fatal(err)
	}
	to.doctor().wants(developing, "ok store opens", "ok datakeys dk-1: unwrapped; dk-1 is the current one")
}

func TestDoctorUnwrapsTheDataKeysAndMakesNone(t *testing.T) {
	s := newLocalSite(t)
	s.wrappingKey("keys.json", "next")
	makeStore(t, s)
	s.doctor().wants(developing, "ok store opens", "ok datakeys none yet")

	s.writeStore(nil)
	s.doctor().wants(developing, "ok store opens", "ok datakeys dk-1: unwrapped; dk-1 is the current one")

	s.Wrapping = `{backend: dev, key: "kid=next"}`
	s.doctor().wants(developing, "FAIL datakeys wrapped by \"dev:kid=wrap\", which the configuration does not name", "FAIL datakeys wrapping.former")

	s.Wrapping = `{backend: dev, key: "kid=next", former: ["dev:kid=wrap"]}`
	s.doctor().wants(developing, "warn datakeys bulla datakey replace")

	s.Wrapping = `{backend: dev, key: "kid=gone", former: ["dev:kid=wrap"]}`
	s.doctor().wants(developing, "FAIL wrapping kid \"gone\"", "warn datakeys dk-1: unwrapped; none by the wrapping key")

	s.Wrapping = `{backend: dev, key: "kid=next", former: ["dev:kid=gone"]}`
	s.writeStore(func(store *bolt.Store) {
		forged := datakey.Record{ID: "dk-9", Wrapped: []byte("forged"), WrappedBy: "dev:kid=next", CreatedAt: time.Now()}
		if err := store.AddDataKey(t.Context(), forged); err != nil {
			t.Fatal(err)
		}
		forged.ID, forged.WrappedBy = "dk-8", "dev:kid=gone"
		if err := store.AddDataKey(t.Context(), forged); err != nil {
			t.Fatal(err)
		}
	})
	before, err := os.ReadFile(s.path("bulla.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.doctor().wants(developing, "ok datakeys dk-2: unwrapped; dk-2 is the current one", "FAIL wrapping dev:kid=gone",
		`FAIL datakeys "dk-1" is said to be wrapped by "dev:kid=wrap"`, "warn datakeys dk-8 not looked at", "FAIL datakeys dk-9", "FAIL datakeys changed the store")
	if after, err := os.ReadFile(s.path("bulla.db")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the doctor has changed the store (%v)", err)
	}
}

func TestDoctorNamesEveryMistakeOfABadConfiguration(t *testing.T) {
	s := newLocalSite(t)
	s.More += "\nlisten: x\nstore: {blot: {}}"
	d := s.doctor()
	d.wants("FAIL config listen", "FAIL config store.blot")
	if len(d.all) != 2 || !strings.HasPrefix(d.all[0].Subject, "bulla.yaml:") {
		t.Errorf("got %+v, want two findings with file and line", d.all)
	}

	d = runDoctor(t, s.path("nothing.yaml"))
	if d.code != 1 || !strings.Contains(d.text, "FAIL  config  nothing.yaml: the configuration cannot be read") {
		t.Errorf("got exit code %d and\n%s\nwant one line about the file", d.code, d.text)
	}
}

func TestDoctorPrintsAlignedText(t *testing.T) {
	s := newLocalSite(t)
	s.Keys = `{algorithm: ES256, keys: ["dev:kid=nobody"]}`
	d := runDoctor(t, s.config())
	for _, line := range []string{
		"ok    config          bulla.yaml: 1 issuer, 1 backend, 2 grants\n",
		"warn  config          development: ",
		"ok    dev: file       " + s.path("keys.json") + ": private keys in the clear\n",
		"FAIL  dev: key        dev:kid=nobody: key not found: ",
		"ok    listener        grpc.listen " + s.GRPC + ": free\n",
		"bulla: 1 of ",
	} {
		if !strings.Contains(d.text, line) {
			t.Errorf("got no line %q in\n%s", line, d.text)
		}
	}
	if d.code != 1 {
		t.Errorf("got exit code %d, want 1", d.code)
	}
}

func TestDoctorRefusesOtherFormatsAndTimes(t *testing.T) {
	s := newLocalSite(t)
	for _, args := range [][]string{{"-o", "xml"}, {"--timeout", "-1s"}} {
		if d := runDoctor(t, s.config(), args...); d.code != 1 || strings.Contains(d.text, "config  bulla.yaml") {
			t.Errorf("%v: got exit code %d and\n%s\nwant a refusal", args, d.code, d.text)
		}
	}
}

// serveSite runs the service in this process until the test ends.
func serveSite(t *testing.T, s *site) {
	t.Helper()
	cfg, err := config.Load(s.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	started, done := make(chan addresses, 1), make(chan error, 1)
	go func() {
		done <- serve(ctx, cfg, slog.New(slog.DiscardHandler), listenTCP, func(a addresses) { started <- a })
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case <-started:
	case err := <-done:
		done <- nil
		t.Fatalf("serve: %v", err)
	}
	ready := func() bool {
		return findService(t.Context(), config.Ops{Listen: s.Ops, MetricsListen: s.Metrics}) == neighbor{address: s.Ops}
	}
	for deadline := time.Now().Add(10 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the service does not become ready: %+v", findService(t.Context(), config.Ops{Listen: s.Ops, MetricsListen: s.Metrics}))
		}
	}
}

// beside is what the doctor says of all that a running service holds.
var beside = []string{
	"ok store in use by the running service", "ok audit in use by the running service",
	"3 listener in use by the running service", "ok running and is ready",
}

func TestDoctorWorksBesideARunningService(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("with software keys", func(t *testing.T) { // a service of its own ends with it
		s := newLocalSite(t)
		serveSite(t, s)
		s.doctor().wants(append(beside, developing)...)
		s.Metrics = free(t) // it was started before
		s.doctor().wants(append(beside, developing)...)
	})
	t.Run("with metrics apart", func(t *testing.T) {
		s := newLocalSite(t)
		s.Metrics = free(t)
		serveSite(t, s)
		s.doctor().wants(append([]string{"4 listener in use by the running service", developing}, beside[:2]...)...)
		for address, want := range map[string]int{s.Ops: http.StatusNotFound, s.Metrics: http.StatusOK} {
			code, _, err := ask(t.Context(), http.DefaultClient, address, "/metrics")
			if err != nil || code != want {
				t.Errorf("/metrics at %s: got %d (%v), want %d", address, code, err, want)
			}
			code, _, err = ask(t.Context(), http.DefaultClient, address, "/readyz")
			if other := http.StatusOK + http.StatusNotFound - want; err != nil || code != other {
				t.Errorf("/readyz at %s: got %d (%v), want %d", address, code, err, other)
			}
		}
	})
}

func TestDoctorTellsThatARunningServiceIsNotReady(t *testing.T) {
	s := newLocalSite(t)
	lis := listen(t, s.Ops)
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# HELP x\nbulla_clients_in_memory 0\n")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "issuer main cannot sign \x1b[31m", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(func() { _ = server.Close() })

	s.doctor().wants("warn running issuer main cannot sign", developing)
	if text := runDoctor(t, s.config()).text; strings.Contains(text, "\x1b") {
		t.Errorf("got a control sequence of another process in %q", text)
	}
}

func TestDoctorLooksAtAWSKMS(t *testing.T) {
	server := awstest.Start(t, awstest.MiniStack)
	awstest.Environment(t)
	backend := func(endpoint string) string {
		return fmt.Sprintf("aws: {awskms: {region: %s, endpoint: %q}}", awstest.Region, endpoint)
	}
	key := func(id string) string { return fmt.Sprintf(`{algorithm: ES256, keys: ["aws:key-id=%s"]}`, id) }
	const nobody, nobodyElse = "11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-666666666666"
	id := makeKMSKey(t, server.Endpoint, `{"KeySpec":"ECC_NIST_P256","KeyUsage":"SIGN_VERIFY"}`)
	wraps := makeKMSKey(t, server.Endpoint, `{"KeySpec":"SYMMETRIC_DEFAULT","KeyUsage":"ENCRYPT_DECRYPT"}`)
	deaf := listen(t, "127.0.0.1:0") // accepts, and never answers
	closed := listen(t, "127.0.0.1:0")
	_ = closed.Close()

	for name, test := range map[string]struct {
		backend, key, wraps string
		args, want          []string
	}{
		"all good": {
			backend(server.Endpoint), key(id), wraps, nil,
			[]string{"ok region eu-west-1", "ok service credentials", "ok key P-256", "ok probe ES256", "ok wrapping aws:key-id=" + wraps, "ok probe wrapped and unwrapped"},
		},
		"unknown keys": {
			backend(server.Endpoint), key(nobody), nobodyElse, nil,
			[]string{"ok service", "FAIL key create the key", "FAIL wrapping aws kms create-key --region eu-west-1 --key-usage ENCRYPT_DECRYPT --key-spec SYMMETRIC_DEFAULT"},
		},
		"nobody answers": {
			backend("http://" + closed.Addr().String()), key(id), wraps, nil,
			[]string{"ok region", "FAIL service cannot be reached", "warn key not looked at"},
		},
		"no answer": {
			backend("http://" + deaf.Addr().String()), key(id), wraps, []string{"--timeout", "12s"},
			[]string{"FAIL service aws: no answer within 3s", "warn key not looked at"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Backends, s.Keys, s.Wrapping = test.backend, test.key, fmt.Sprintf(`{backend: aws, key: "key-id=%s"}`, test.wraps)
			s.doctor(test.args...).wants(test.want...)
		})
	}
	// The signing key in place of the wrapping key, whose usage does not allow it.
	s := newSite(t)
	s.Backends, s.Keys, s.Wrapping = backend(server.Endpoint), key(id), fmt.Sprintf(`{backend: aws, key: "key-id=%s"}`, makeKMSKey(t, server.Endpoint, `{"KeySpec":"ECC_NIST_P256","KeyUsage":"SIGN_VERIFY"}`))
	s.doctor().wants("FAIL wrapping aws kms create-key")
}

// makeKMSKey makes a key of a kind and returns its id. The emulator looks at the
// region in a request's signature, and at nothing else of it.
func makeKMSKey(t *testing.T, endpoint, kind string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, endpoint, strings.NewReader(kind))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "TrentService.CreateKey")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/"+awstest.Region+"/kms/aws4_request, SignedHeaders=host, Signature=00")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct{ KeyMetadata struct{ KeyId string } }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.KeyMetadata.KeyId == "" {
		t.Fatalf("no key was made: %v, %s", err, res.Status)
	}
	return answer.KeyMetadata.KeyId
}
