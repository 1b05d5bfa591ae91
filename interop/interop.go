package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a client may take for one answer, its start included.
const patience = 60 * time.Second

// Opener is a running client. It serves one request at a time and may be used
// by concurrent tests.
type Opener struct {
	client Client

	mu      sync.Mutex // guards what follows: one request and its answer
	lastID  int
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	process *os.Process
	stderr  bytes.Buffer // written by the process until it has ended
}

// Request is what a client is asked. The three lists are all that it may accept.
type Request struct {
	Token               string          `json:"token"`
	PrivateJWK          json.RawMessage `json:"private_jwk"`
	SignersJWKS         json.RawMessage `json:"signers_jwks"`
	KeyAlgorithms       []string        `json:"key_algorithms"`
	ContentEncryptions  []string        `json:"content_encryptions"`
	SignatureAlgorithms []string        `json:"signature_algorithms"`
}

// Opened is what a client found in a token.
type Opened struct {
	Claims    string         `json:"claims"` // the payload, byte for byte
	JWEHeader map[string]any `json:"jwe_header"`
	JWSHeader map[string]any `json:"jws_header"`
}

// Start starts a client; it ends with the test. What the client needs must have been
// installed: if it is missing the test fails with the command to run.
func Start(t testing.TB, client Client) *Opener {
	t.Helper()
	cmd, err := command(client)
	if err != nil {
		t.Fatal(err)
	}
	o := &Opener{client: client}
	if o.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.stdout = bufio.NewReader(stdout)
	cmd.Stderr = &o.stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("interop client %s: %v", client, err)
	}
	o.process = cmd.Process
	t.Cleanup(func() {
		// The end of its input is the client's sign to leave.
		_ = o.stdin.Close()
		late := time.AfterFunc(patience, func() { _ = o.process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("interop client %s ended with %v\n%s", client, err, o.stderr.String())
		}
	})
	return o
}

// Open asks the client to open a token. An error of type Refusal is the client's own
// answer; any other means that it does not work.
func (o *Opener) Open(r Request) (*Opened, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastID++
	line, err := json.Marshal(struct {
		ID int `json:"id"`
		Request
	}{o.lastID, r})
	if err != nil {
		return nil, err
	}
	late := time.AfterFunc(patience, func() { _ = o.process.Kill() })
	defer late.Stop()
	if _, err := o.stdin.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("interop client %s does not read: %w", o.client, err)
	}
	raw, err := o.stdout.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("interop client %s gave no answer within %v: %w", o.client, patience, err)
	}
	var answer struct {
		ID    int    `json:"id"`
		OK    bool   `json:"ok"`
		Error string `json:"error"`
		Opened
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("interop client %s: answer is not JSON: %w", o.client, err)
	}
	if answer.ID != o.lastID {
		return nil, fmt.Errorf("interop client %s answered request %d, not %d", o.client, answer.ID, o.lastID)
	}
	if !answer.OK {
		return nil, Refusal(answer.Error)
	}
	return &answer.Opened, nil
}

// Refusal is a client's reason for not opening a token, in its own words.
type Refusal string

func (r Refusal) Error() string { return "refused: " + string(r) }

// Check asks the client to open a token made as c says and compares with what the
// matrix expects: the claims, byte for byte, or the right refusal.
func (o *Opener) Check(t testing.TB, c Case, r Request, claims string) {
	t.Helper()
	opened, err := o.Open(r)
	opens, because := Expect(o.client, c)
	var refusal Refusal
	switch {
	case err != nil && !errors.As(err, &refusal):
		t.Errorf("%s: %s: %v", o.client, c, err)
	case opens && err != nil:
		t.Errorf("%s: %s: got %q, want it opened", o.client, c, refusal)
	case opens && opened.Claims != claims:
		t.Errorf("%s: %s: got claims %s, want %s", o.client, c, opened.Claims, claims)
	case opens:
		for name, want := range map[string]string{"alg": c.Algorithm, "enc": c.ContentEncryption, "cty": "JWT"} {
			if opened.JWEHeader[name] != want {
				t.Errorf("%s: %s: got %s %v in the JWE header, want %s", o.client, c, name, opened.JWEHeader[name], want)
			}
		}
		if got := opened.JWSHeader["alg"]; got != c.Signature {
			t.Errorf("%s: %s: got alg %v in the JWS header, want %s", o.client, c, got, c.Signature)
		}
	case err == nil:
		t.Errorf("%s: %s: opened, although the matrix says: %s. Correct the matrix.", o.client, c, because.Reason)
	case !strings.Contains(string(refusal), because.Error):
		t.Errorf("%s: %s: refused with %q, want %q in it (%s)", o.client, c, refusal, because.Error, because.Reason)
	}
}

// command returns the program of a client, having looked for what it needs.
func command(client Client) (*exec.Cmd, error) {
	dir, err := folder()
	if err != nil {
		return nil, err
	}
	switch client {
	case Node:
		if _, err := exec.LookPath("node"); err != nil {
			return nil, errors.New("interop client node: there is no node; install Node.js 20 or newer")
		}
		dir = filepath.Join(dir, "node")
		if _, err := os.Stat(filepath.Join(dir, "node_modules", "jose")); err != nil {
			return nil, errors.New("interop client node: npm jose is not installed; run: npm ci --prefix interop/node")
		}
		return exec.Command("node", filepath.Join(dir, "open.mjs")), nil
	case Python:
		// Debian's jwcrypto belongs to Debian's Python, which need not be the first
		// in the path.
		const python = "/usr/bin/python3"
		if err := exec.Command(python, "-c", "import jwcrypto").Run(); err != nil {
			return nil, errors.New("interop client python: python3-jwcrypto is not installed; run: apt-get install -y python3-jwcrypto")
		}
		return exec.Command(python, filepath.Join(dir, "python", "open.py")), nil
	}
	return nil, fmt.Errorf("interop client %q is unknown; choose of %v", client, Clients)
}

// folder finds this package's folder: tests run in the folder of their package,
// which lies somewhere in the same module.
func folder() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "interop"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("interop: no go.mod above the working directory; run the tests inside the module")
		}
		dir = parent
	}
}
