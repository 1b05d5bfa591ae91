package deploy

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheSoftHSMImageStarts runs the entry point of the image with SoftHSM, with
// the binary of a bare build, in an empty folder: it makes its token, keys and
// certificates, and serves; a token is issued and opened; and a second start has
// the keys of the first.
func TestTheSoftHSMImageStarts(t *testing.T) {
	c := newContainer(t)
	c.start(t)
	kid := c.kid(t)

	const claims = `{"sub":"alice","nonce":"n-0S6_WzA2Mj"}`
	c.bulla(t, "registrar", claims, "client", "register", "app-1", "--jwks", c.clientKey(t), "--setting", "ID_TOKEN,alg=ECDH-ES+A128KW,enc=A256GCM")
	token := c.bulla(t, "idp", claims, "token", "issue", "--client", "app-1")
	c.write(t, "token.jwt", token)
	c.write(t, "signers.json", c.bulla(t, "idp", "", "key", "jwks"))
	opened := run(t, c.home, c.binary, "token", "open", "--key", "rp.jwk", "--jwks", "signers.json", "--iss", "https://login.example.com", "--aud", "app-1", "token.jwt")
	for _, want := range []string{`"sub": "alice"`, `"nonce": "n-0S6_WzA2Mj"`, kid} {
		if !strings.Contains(opened, want) {
			t.Errorf("the opened token has no %s:\n%s", want, opened)
		}
	}
	c.stop(t)

	c.start(t)
	if again := c.kid(t); again != kid {
		t.Errorf("after a second start the key is %s, before it was %s", again, kid)
	}
	c.bulla(t, "idp", claims, "token", "issue", "--client", "app-1") // who registered is still known
	c.stop(t)
	if n := strings.Count(c.said(t), "making a token"); n != 1 {
		t.Errorf("two starts made %d tokens, want 1:\n%s", n, c.said(t))
	}

	// What is secret is nobody else's, and has not been said.
	err := filepath.WalkDir(c.home, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 && path != c.home {
			t.Errorf("%s has the mode %04o: others can use it", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if pin := strings.TrimSpace(string(read(t, filepath.Join(c.home, "pin")))); strings.Contains(c.said(t), pin) {
		t.Error("the PIN is in the log")
	}
}

// TestTheSoftHSMImageBeginsAnew where its first start was cut short, and refuses
// to where a registry has lost the keys it was written with.
func TestTheSoftHSMImageBeginsAnew(t *testing.T) {
	c := newContainer(t)
	if err := os.MkdirAll(filepath.Join(c.home, "tokens", "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.write(t, "ca.crt", "half a certif")
	c.start(t)
	c.kid(t)
	c.stop(t)

	if err := os.Remove(filepath.Join(c.home, "bulla.yaml")); err != nil {
		t.Fatal(err)
	}
	cmd := c.command(t.Context())
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no bulla.yaml: put the latter back") {
		t.Errorf("got %v and %q, want a refusal", err, out)
	}
	if _, err := os.Stat(filepath.Join(c.home, "pin")); err != nil {
		t.Errorf("the refused start has taken the token's PIN away: %v", err)
	}
}

// A container stands for one: the entry point, the binary beside it, a volume.
type container struct {
	binary, home, ip string
	log              string // file with what all starts said
	process          *exec.Cmd
	ended            chan struct{} // closed when the process has ended
}

func (c *container) said(t *testing.T) string { t.Helper(); return string(read(t, c.log)) }

func newContainer(t *testing.T) *container {
	t.Helper()
	var b [2]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	// An address of its own on loopback, as a container has one.
	return &container{
		binary: first.get(t).binary, home: t.TempDir(), log: filepath.Join(t.TempDir(), "log"), ip: net.IPv4(127, 84, b[0], b[1]|1).String(),
	}
}

// command is the entry point. Its environment is that of the image: no more than
// PATH, with the binary on it, and what the image sets.
func (c *container) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "softhsm/start.sh")
	cmd.Env = []string{"PATH=" + filepath.Dir(c.binary) + ":" + os.Getenv("PATH"), "BULLA_HOME=" + c.home, "BULLA_LISTEN=" + c.ip}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// start runs the entry point until the service says that it is ready.
func (c *container) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	process, ended := c.command(context.WithoutCancel(t.Context())), make(chan struct{})
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	c.process, c.ended = process, ended
	go func() { _ = process.Wait(); close(ended) }() // its exit code is looked at by stop
	t.Cleanup(func() { _ = process.Process.Kill(); <-ended })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := c.get(t.Context(), &http.Client{Timeout: 5 * time.Second}, "http://"+c.ip+":9090/readyz", nil)
		if err == nil {
			return
		}
		select {
		case <-ended:
			t.Fatalf("the entry point ended: %v\n%s", process.ProcessState, c.said(t))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready after a minute: %v\n%s", err, c.said(t))
		}
	}
}

// stop does what "docker stop" does. The shell must have given way to the service,
// or the signal does not reach it.
func (c *container) stop(t *testing.T) {
	t.Helper()
	if err := c.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the service goes on 30 s after SIGTERM")
	}
	if !c.process.ProcessState.Success() {
		t.Errorf("after SIGTERM: %v\n%s", c.process.ProcessState, c.said(t))
	}
}

func (c *container) get(ctx context.Context, client *http.Client, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// kid is the key that verifiers are shown, over TLS with the CA that was made.
func (c *container) kid(t *testing.T) string {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read(t, filepath.Join(c.home, "ca.crt"))) {
		t.Fatal("ca.crt has no certificate")
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	var set struct{ Keys []struct{ Kid string } }
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = c.get(t.Context(), client, "https://"+c.ip+":8444/jwks/main", &set); err == nil && len(set.Keys) == 1 {
			return set.Keys[0].Kid
		}
		if err == nil {
			err = errors.New("no key in it")
		}
	}
	t.Fatal(err)
	return ""
}

// clientKey makes a client's key pair, and returns the file with its public half.
func (c *container) clientKey(t *testing.T) string {
	t.Helper()
	private, public := clientKeyPair(t)
	c.write(t, "rp.jwk", private)
	return c.write(t, "rp.jwks", `{"keys":[`+public+`]}`)
}

func (c *container) write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(c.home, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// bulla calls the service as one of the callers that the entry point made.
func (c *container) bulla(t *testing.T, caller, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, append(args, "--addr", c.ip+":8443", "--tls-ca", "ca.crt", "--tls-cert", caller+".crt", "--tls-key", caller+".key")...)
	cmd.Dir, cmd.Stdin = c.home, strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s, as %s: %v\n%s", strings.Join(args, " "), caller, err, errs.Bytes())
	}
	return out.String()
}

// clientKeyPair is a pair for ECDH-ES: its private JWK, and its public one.
func clientKeyPair(t *testing.T) (private, public string) {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	point := key.PublicKey().Bytes() // 4, x, y
	members := fmt.Sprintf(`"kty":"EC","crv":"P-256","use":"enc","kid":"rp-1","x":%q,"y":%q`, b64(point[1:33]), b64(point[33:]))
	return fmt.Sprintf(`{%s,"d":%q}`, members, b64(key.Bytes())), "{" + members + "}"
}
