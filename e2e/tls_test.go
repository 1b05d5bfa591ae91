package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// openssl makes a connection with OpenSSL's client and returns all that it says.
// With wait it stays until the server ends the connection.
func openssl(t testing.TB, address string, wait bool, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	args = append([]string{"s_client", "-connect", address, "-CAfile", shared.ca.File, "-verify_return_error"}, args...)
	if wait {
		args = append(args, "-ign_eof")
	}
	cmd := exec.CommandContext(ctx, "openssl", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); ctx.Err() != nil {
		t.Errorf("openssl %q does not end (%v):\n%s", args, err, out.String())
	}
	return out.String()
}

// ofHTTP gives the verifiers' listener TLS, with a certificate of the shared CA.
func ofHTTP(t testing.TB) func(harness.M) {
	return func(tree harness.M) {
		web := tree["http"].(harness.M)
		ip, _, err := net.SplitHostPort(web["listen"].(string))
		if err != nil {
			t.Fatal(err)
		}
		leaf := shared.ca.Issue(t, harness.LeafConfig{IPs: []net.IP{net.ParseIP(ip)}})
		web["tls"] = harness.M{"cert_file": leaf.CertFile, "key_file": leaf.KeyFile}
	}
}

// TestTLSAsOpenSSLSeesIt looks at both listeners with a TLS library that is not
// the service's own.
func TestTLSAsOpenSSLSeesIt(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("%v: scripts/install.sh test installs it", err)
	}
	s := harness.New(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: ofHTTP(t)})
	s.Run(t)
	s.WaitReady(t)
	with := func(leaf *harness.Leaf, args ...string) []string {
		return append([]string{"-cert", leaf.CertFile, "-key", leaf.KeyFile}, args...)
	}
	good := shared.Leaf(t, harness.Admin)
	// OpenSSL itself refuses what is old, unless it is told to be lax.
	lax := func(args ...string) []string { return append(args, "-cipher", "ALL:@SECLEVEL=0") }
	const refused = "Cipher is (NONE)"
	for _, test := range []struct {
		name    string
		address string
		wait    bool
		args    []string
		want    []string
		not     []string
	}{
		{"gRPC speaks TLS 1.3 and HTTP/2", s.GRPC, false, with(good, "-alpn", "h2"),
			[]string{"New, TLSv1.3, Cipher is TLS_", "ALPN protocol: h2", "Verify return code: 0 (ok)", "Acceptable client certificate CA names\nCN = callers and services"}, nil},
		{"gRPC over TLS 1.2", s.GRPC, false, lax(with(good, "-alpn", "h2", "-tls1_2")...), []string{"alert protocol version", refused}, nil},
		{"gRPC over TLS 1.1", s.GRPC, false, lax(with(good, "-alpn", "h2", "-tls1_1")...), []string{"alert protocol version", refused}, nil},
		{"gRPC over TLS 1.0", s.GRPC, false, lax(with(good, "-alpn", "h2", "-tls1")...), []string{"alert protocol version", refused}, nil},
		{"gRPC with AES-128", s.GRPC, false, with(good, "-alpn", "h2", "-ciphersuites", "TLS_AES_128_GCM_SHA256"), []string{"Cipher is TLS_AES_128_GCM_SHA256"}, nil},
		{"gRPC with AES-256", s.GRPC, false, with(good, "-alpn", "h2", "-ciphersuites", "TLS_AES_256_GCM_SHA384"), []string{"Cipher is TLS_AES_256_GCM_SHA384"}, nil},
		{"gRPC with ChaCha20", s.GRPC, false, with(good, "-alpn", "h2", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"), []string{"Cipher is TLS_CHACHA20_POLY1305_SHA256"}, nil},
		{"gRPC with a short tag", s.GRPC, false, with(good, "-alpn", "h2", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256"), []string{"handshake failure", refused}, nil},
		{"gRPC with another protocol", s.GRPC, false, with(good, "-alpn", "spdy/3"), []string{"alert no application protocol", refused}, nil},
		{"gRPC with HTTP/1.1", s.GRPC, true, with(good, "-alpn", "http/1.1"), []string{"No ALPN negotiated", "closed"}, []string{"HTTP/1.1 "}},
		{"gRPC without a certificate", s.GRPC, true, []string{"-alpn", "h2"}, []string{"alert certificate required"}, nil},
		{"gRPC with an expired certificate", s.GRPC, true, with(shared.ca.Issue(t, harness.LeafConfig{URI: harness.Admin, NotAfter: time.Now().Add(-time.Minute)}), "-alpn", "h2"), []string{"alert certificate expired"}, nil},
		{"gRPC with a certificate of another CA", s.GRPC, true, with(harness.NewCA(t, "somebody else").Issue(t, harness.LeafConfig{URI: harness.Admin}), "-alpn", "h2"), []string{"alert unknown ca"}, nil},

		{"verifiers speak TLS 1.3 and need no certificate", s.HTTP, false, []string{"-alpn", "h2"},
			[]string{"New, TLSv1.3, Cipher is TLS_", "ALPN protocol: h2", "Verify return code: 0 (ok)", "No client certificate CA names sent"}, nil},
		{"verifiers over TLS 1.2", s.HTTP, false, []string{"-tls1_2", "-alpn", "http/1.1"}, []string{"New, TLSv1.2, Cipher is ECDHE-ECDSA-", "ALPN protocol: http/1.1"}, []string{refused}},
		{"verifiers over TLS 1.1", s.HTTP, false, lax("-tls1_1"), []string{"alert protocol version", refused}, nil},
		{"verifiers over TLS 1.0", s.HTTP, false, lax("-tls1"), []string{"alert protocol version", refused}, nil},
		{"verifiers with CBC", s.HTTP, false, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"}, []string{"handshake failure", refused}, nil},
		{"verifiers without encryption", s.HTTP, false, []string{"-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"}, []string{"handshake failure", refused}, nil},
		{"verifiers without forward secrecy", s.HTTP, false, []string{"-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"}, []string{"handshake failure", refused}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := openssl(t, test.address, test.wait, test.args...)
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("want %q:\n%s", want, out)
				}
			}
			for _, not := range test.not {
				if strings.Contains(out, not) {
					t.Errorf("want no %q:\n%s", not, out)
				}
			}
		})
	}
	// Who was turned away reads little; the operator reads why.
	for _, why := range []string{"client offered only unsupported versions", "didn't provide a certificate", "certificate has expired", "unknown authority", "unsupported application protocols"} {
		s.WaitLog(t, why)
	}
	if n := s.Metric(t, "bulla_tls_handshake_failures_total"); n < 8 {
		t.Errorf("%v failed handshakes counted, want 8 at least", n)
	}
}

// mounted is the files of a listener as Kubernetes mounts them: each is a link to
// ..data/NAME, and ..data a link to a folder, which is replaced as one.
type mounted struct {
	t          testing.TB
	dir        string
	generation int
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// swap replaces all files at once.
func (m *mounted) swap(files map[string][]byte) {
	m.t.Helper()
	m.generation++
	folder := fmt.Sprintf("..%d", m.generation)
	check := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	check(os.Mkdir(m.path(folder), 0o700))
	for name, data := range files {
		check(os.WriteFile(filepath.Join(m.dir, folder, name), data, 0o600))
		if _, err := os.Lstat(m.path(name)); err != nil {
			check(os.Symlink(filepath.Join("..data", name), m.path(name)))
		}
	}
	check(os.Symlink(folder, m.path("..new")))
	check(os.Rename(m.path("..new"), m.path("..data")))
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestCertificatesAreRenewedUnderConnections changes all that the gRPC listener's
// TLS is made of, while callers of two CAs keep their connections and one watches.
func TestCertificatesAreRenewedUnderConnections(t *testing.T) {
	t.Parallel()
	one, two := harness.NewCA(t, "callers one"), harness.NewCA(t, "callers two")
	mount := &mounted{t: t, dir: t.TempDir()}
	var address net.IP
	issue := func(end time.Duration) *harness.Leaf {
		return shared.ca.Issue(t, harness.LeafConfig{IPs: []net.IP{address}, NotAfter: time.Now().Add(end)})
	}
	files := func(leaf *harness.Leaf, callers ...*harness.CA) map[string][]byte {
		bundle := read(t, shared.ca.File) // which the harness's own callers are of
		for _, ca := range callers {
			bundle = append(bundle, read(t, ca.File)...)
		}
		return map[string][]byte{"tls.crt": read(t, leaf.CertFile), "tls.key": read(t, leaf.KeyFile), "ca.crt": bundle}
	}
	var leaf *harness.Leaf
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Edit: func(tree harness.M) {
		host, _, err := net.SplitHostPort(tree["grpc"].(harness.M)["listen"].(string))
		if err != nil {
			t.Fatal(err)
		}
		address = net.ParseIP(host)
		leaf = issue(time.Hour)
		mount.swap(files(leaf, one, two))
		tree["grpc"].(harness.M)["tls"] = harness.M{"cert_file": mount.path("tls.crt"), "key_file": mount.path("tls.key"), "client_ca_file": mount.path("ca.crt")}
	}})
	dial := func(ca *harness.CA) *client.Client {
		leaf := ca.Issue(t, harness.LeafConfig{URI: harness.Admin})
		return s.Dial(t, client.Config{CAFile: shared.ca.File, CertFile: leaf.CertFile, KeyFile: leaf.KeyFile})
	}
	// call returns which end of a connection it was made on.
	call := func(c *client.Client) (string, error) {
		var from peer.Peer
		_, err := c.SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{Issuer: harness.Issuer}, grpc.Peer(&from))
		if err != nil {
			return "", err
		}
		return from.LocalAddr.String(), nil
	}
	ofOne, ofTwo := dial(one), dial(two)
	var ends [2]string
	for i, c := range []*client.Client{ofOne, ofTwo} {
		end, err := call(c)
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = end
	}
	watched, err := ofOne.ClientKeys.WatchClientKeys(t.Context(), &bullav1.WatchClientKeysRequest{Issuer: harness.Issuer})
	if err == nil {
		_, err = watched.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	own := s.Leaf(t, harness.Admin)
	shown := func(leaf *harness.Leaf) {
		t.Helper()
		want := leaf.Certificate.Leaf.SerialNumber
		harness.Eventually(t, func() error {
			out := openssl(t, s.GRPC, false, "-alpn", "h2", "-cert", own.CertFile, "-key", own.KeyFile)
			if !strings.Contains(out, strings.TrimSpace(string(read(t, leaf.CertFile)))) {
				return fmt.Errorf("certificate %x is not shown", want)
			}
			return nil
		})
	}
	notAfter := `bulla_tls_certificate_not_after_timestamp_seconds{listener="grpc"}`
	failures := `bulla_tls_reload_failures_total{listener="grpc"}`
	failing := `bulla_tls_reload_failing{listener="grpc"}`
	stand := func(what string) {
		t.Helper()
		for i, c := range []*client.Client{ofOne, ofTwo} {
			if end, err := call(c); err != nil || end != ends[i] {
				t.Errorf("%s: got %v, on the connection of before %t", what, err, end == ends[i])
			}
		}
	}
	shown(leaf)

	leaf = issue(2 * time.Hour)
	mount.swap(files(leaf, one, two))
	shown(leaf)
	stand("after a new certificate")
	if got, want := s.Metric(t, notAfter), float64(leaf.Certificate.Leaf.NotAfter.Unix()); got != want {
		t.Errorf("it is said to end at %v, want %v", got, want)
	}

	broken := files(issue(3*time.Hour), one, two)
	broken["tls.key"] = read(t, issue(3*time.Hour).KeyFile)
	mount.swap(broken)
	s.WaitLog(t, "private key does not match public key")
	time.Sleep(5 * time.Second) // more looks at it
	if n, lines := s.Metric(t, failures), strings.Count(s.Log(), "certificates not reloaded"); n != 1 || lines != 1 {
		t.Errorf("a key that does not fit: counted %v times and logged %d times, want once", n, lines)
	}
	if n := s.Metric(t, failing); n != 1 {
		t.Errorf("a key that does not fit: %s is %v, want 1 while it is there", failing, n)
	}
	shown(leaf)
	stand("after a key that does not fit")

	mount.swap(files(leaf, two))
	_, err = watched.Recv()
	mustFail(t, err, "CALLER_UNKNOWN", "trusted no more")
	if _, err := call(ofOne); status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.Unavailable {
		t.Errorf("a call on the connection of a CA that was taken out: %v", err)
	}
	if _, err := call(dial(one)); status.Code(err) != codes.Unavailable {
		t.Errorf("a new connection: got %v, want that there is none", err)
	}
	if end, err := call(ofTwo); err != nil || end != ends[1] {
		t.Errorf("a caller of another CA: got %v, on the connection of before %t", err, end == ends[1])
	}
	s.WaitLog(t, "connections revoked")
	// A Go client shows no certificate that the server did not ask for.
	old := one.Issue(t, harness.LeafConfig{URI: harness.Admin})
	if out := openssl(t, s.GRPC, true, "-alpn", "h2", "-cert", old.CertFile, "-key", old.KeyFile); !strings.Contains(out, "alert unknown ca") {
		t.Errorf("who shows it all the same gets no alert of it:\n%s", out)
	}
	s.WaitLog(t, "unknown authority")
	if n := s.Metric(t, "bulla_connections_revoked_total"); n != 1 {
		t.Errorf("%v connections revoked, want 1", n)
	}
	if n := s.Metric(t, failures); n != 1 {
		t.Errorf("%v failures, want the one of before", n)
	}
	if n := s.Metric(t, failing); n != 0 {
		t.Errorf("%s is %v, want 0 with good files again", failing, n)
	}
}
