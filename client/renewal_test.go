package client_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// TestEachConnectionIsMadeWithTheCertificateOfTheDay replaces the files between two
// connections, and then spoils them.
func TestEachConnectionIsMadeWithTheCertificateOfTheDay(t *testing.T) {
	ca := harness.NewCA(t, "everybody")
	server := ca.Issue(t, harness.LeafConfig{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	seen := make(chan string, 10)
	lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{server.Certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			if c := conn.(*tls.Conn); c.HandshakeContext(t.Context()) == nil {
				seen <- c.ConnectionState().PeerCertificates[0].URIs[0].String()
			}
			_ = conn.Close() // the call fails, and the next one connects again
		}
	})
	defer accepting.Wait()
	defer lis.Close()

	dir := t.TempDir()
	cfg := client.Config{Address: lis.Addr().String(), CAFile: ca.File, CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), Attempts: 1}
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	renew := func(uri string) {
		leaf := ca.Issue(t, harness.LeafConfig{URI: uri})
		for from, to := range map[string]string{leaf.CertFile: "tls.crt", leaf.KeyFile: "tls.key"} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			write(to, text)
		}
	}
	renew("spiffe://example.com/first")
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next := func(want string) {
		t.Helper()
		for {
			_, _ = c.SigningKeys.GetJWKS(t.Context(), &bullav1.GetJWKSRequest{}) // it cannot succeed
			select {
			case got := <-seen:
				if got == want {
					return
				}
			case <-time.After(10 * time.Millisecond):
			}
			if t.Context().Err() != nil {
				t.Fatalf("no connection by %s", want)
			}
		}
	}
	next("spiffe://example.com/first")
	renew("spiffe://example.com/second")
	next("spiffe://example.com/second")
	write("tls.key", []byte("half of a k"))
	next("spiffe://example.com/second") // the last that could be used
}
