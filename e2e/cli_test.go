package e2e

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
)

// TestCommands runs the scripts in testdata: what the commands print, and how they
// fail, against the shared service. In them
//
//	as NAME ARGS…  runs bulla with the flags that connect NAME (admin, reader or
//	               stranger) to the service, or "old" to one of its own, whose
//	               issuer "old" allows the legacy algorithms
//	mode FILE BITS fails unless the file's permissions are BITS, in octal
//
// $CONFIG is the service's configuration, $URL a jwks_uri with the key that
// client.jwk is the private half of. rsa.jwk is a private RSA key, rsa.pem and
// rsa.crt are its public half and a certificate of it, private.pem is itself.
// $ADMIN, $EXPIRED and $FOREIGN are, with .crt
// and .key, a good certificate of a caller and two bad ones; $NOWHERE,
// $EXPIREDADDR, $HTTPADDR and $SILENTADDR are addresses that no call should name;
// $MAX64 is a file of 64 KiB, $BIG64 and $BIG128 are a byte longer than that many.
func TestCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla")
	if err := os.Symlink(harness.Binary(t), path); err != nil {
		t.Fatal(err)
	}
	old := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca, Issuers: []harness.M{{
		"name": "old", "iss": "https://old.example.com", "signing_keys": harness.SigningKeys(kms.RS256),
		"policy": harness.M{"encryption": []string{"RSA-OAEP", "RSA1_5"}, "content_encryption": []string{"A128CBC-HS256", "A128CBC+HS256"}, "legacy": true},
	}}})
	callers := map[string][]string{"old": old.ConnectFlags(old.Leaf(t, harness.Admin))}
	adminLeaf := shared.Leaf(t, harness.Admin)
	for name, leaf := range map[string]*harness.Leaf{"admin": adminLeaf, "reader": shared.Leaf(t, registrar), "stranger": shared.Leaf(t, stranger)} {
		callers[name] = shared.ConnectFlags(leaf)
	}
	url := shared.host.Serve("/cli", harness.JWKS(anyKey()), time.Hour)
	past := time.Now().Add(-time.Minute)
	expired := shared.CA.Issue(t, harness.LeafConfig{URI: harness.Admin, NotAfter: past})
	foreign := harness.NewCA(t, "another CA").Issue(t, harness.LeafConfig{URI: harness.Admin})
	expiredAddr := listen(t, &tls.Config{
		Certificates: []tls.Certificate{shared.CA.Issue(t, harness.LeafConfig{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: past}).Certificate},
		NextProtos:   []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	silentAddr := listen(t, nil)
	private, ok := rsaKey().Key.(*rsa.PrivateKey)
	if !ok {
		t.Fatalf("rsaKey is a %T", rsaKey().Key)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(path)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("CONFIG", shared.ConfigFile)
			env.Setenv("URL", url)
			env.Setenv("SOFTHSM2_CONF", shared.token.Conf)
			env.Setenv("ADDR", shared.GRPC)
			env.Setenv("SERVERCA", shared.CA.File)
			for name, leaf := range map[string]*harness.Leaf{"ADMIN": adminLeaf, "EXPIRED": expired, "FOREIGN": foreign} {
				env.Setenv(name, strings.TrimSuffix(leaf.CertFile, ".crt"))
			}
			env.Setenv("NOWHERE", "127.0.0.1:1") // tcpmux, which nobody runs
			env.Setenv("EXPIREDADDR", expiredAddr)
			env.Setenv("SILENTADDR", silentAddr)
			env.Setenv("HTTPADDR", shared.HTTP)
			for name, size := range map[string]int{"MAX64": 64 << 10, "BIG64": 64<<10 + 1, "BIG128": 128<<10 + 1} {
				file := filepath.Join(env.WorkDir, name)
				if err := os.WriteFile(file, bytes.Repeat([]byte{' '}, size), 0o600); err != nil {
					return err
				}
				env.Setenv(name, file)
			}
			for name, content := range map[string][]byte{
				"client.jwk": anyKey().PrivateJWK(), "other.jwk": otherKey().PrivateJWK(), "client.jwks": harness.JWKS(anyKey()), "both.jwks": harness.JWKS(anyKey(), rsaKey()),
				"private.jwks": []byte(fmt.Sprintf(`{"keys":[%s]}`, anyKey().PrivateJWK())),
				"rsa.jwk":      rsaKey().PrivateJWK(), "rsa.pem": []byte(spki(t, &private.PublicKey)),
				"rsa.crt":     []byte(pemBlock("CERTIFICATE", certificate(t, private, time.Now().Add(90*24*time.Hour)))),
				"private.pem": []byte(pemBlock("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(private))),
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"as": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) < 2 || callers[args[0]] == nil {
					ts.Fatalf("usage: as admin|reader|stranger|old args...")
				}
				err := ts.Exec("bulla", slices.Concat(args[1:], callers[args[0]])...)
				if failed := err != nil; failed != neg {
					ts.Fatalf("bulla: %v", err)
				}
			},
			"mode": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) != 2 || neg {
					ts.Fatalf("usage: mode file bits")
				}
				info, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
					ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
				}
			},
		},
	})
}

// listen accepts connections until the test ends, makes TLS handshakes if cfg is
// given, and says nothing more. It returns its address.
func listen(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close() // ends the accepting; there is nothing to lose
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if cfg != nil {
					_ = tls.Server(conn, cfg).Handshake() // it is the peer that must fail
				}
				_, _ = io.Copy(io.Discard, conn) // until the peer hangs up
			})
		}
	})
	return l.Addr().String()
}
