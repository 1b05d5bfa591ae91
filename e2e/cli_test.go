package e2e

import (
	"bytes"
	"crypto/tls"
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
)

// TestCommands runs the scripts in testdata: what the commands print, and how they
// fail, against the shared service. In them
//
//	as NAME ARGS…  runs bulla with the flags that connect NAME (admin, reader or
//	               stranger) to the service
//
// $CONFIG is the service's configuration, $URL a jwks_uri with the key that
// client.jwk is the private half of. $ADMIN, $EXPIRED and $FOREIGN are, with .crt
// and .key, a good certificate of a caller and two bad ones; $NOWHERE,
// $EXPIREDADDR, $HTTPADDR and $SILENTADDR are addresses that no call should name;
// $MAX64 is a file of 64 KiB, $BIG64 and $BIG128 are a byte longer than that many.
func TestCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla")
	if err := os.Symlink(harness.Binary(t), path); err != nil {
		t.Fatal(err)
	}
	callers := map[string]*harness.Leaf{
		"admin": shared.Leaf(t, harness.Admin), "reader": shared.Leaf(t, registrar), "stranger": shared.Leaf(t, stranger),
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
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(path)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("CONFIG", shared.ConfigFile)
			env.Setenv("URL", url)
			env.Setenv("SOFTHSM2_CONF", shared.token.Conf)
			env.Setenv("ADDR", shared.GRPC)
			env.Setenv("SERVERCA", shared.CA.File)
			for name, leaf := range map[string]*harness.Leaf{"ADMIN": callers["admin"], "EXPIRED": expired, "FOREIGN": foreign} {
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
					ts.Fatalf("usage: as admin|reader|stranger args...")
				}
				err := ts.Exec("bulla", slices.Concat(args[1:], shared.ConnectFlags(callers[args[0]]))...)
				if failed := err != nil; failed != neg {
					ts.Fatalf("bulla: %v", err)
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
