package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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
	about  About

	mu      sync.Mutex // guards what follows: one request and its answer
	lastID  int
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	process *os.Process
	stderr  bytes.Buffer // written by the process until it has ended
}

// About is what a client says of itself when it starts.
type About struct {
	Library  string `json:"library"`  // with its version: "jose 6.2.17"
	Platform string `json:"platform"` // what it runs on: "Node.js 20.20.2"
}

// Request is what a client is asked. It has a private key or a secret, not both. The
// three lists are all that it may accept.
type Request struct {
	Token               string          `json:"token"`
	PrivateJWK          json.RawMessage `json:"private_jwk,omitempty"`
	ClientSecret        string          `json:"client_secret,omitempty"`
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
	if client == NodeJoseReverted {
		// Node.js writes its warning of Revert where the answers are.
		if _, err := o.line(); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.read(&o.about); err != nil {
		t.Fatal(err)
	}
	return o
}

// StartAll starts the clients that there are: all of them, but NodeJoseReverted only
// on a Node.js that it makes a difference to.
func StartAll(t testing.TB) map[Client]*Opener {
	t.Helper()
	openers := map[Client]*Opener{}
	for _, client := range Clients {
		if client == NodeJoseReverted && !reverts(openers[NodeJose].about) {
			t.Logf("%s is left out: %s knows no %s", client, openers[NodeJose].about.Platform, Revert)
			continue
		}
		openers[client] = Start(t, client)
	}
	return openers
}

// reverts reports whether a Node.js has the patch that Revert takes back.
func reverts(node About) bool {
	return strings.HasPrefix(node.Platform, "Node.js 18.") || strings.HasPrefix(node.Platform, "Node.js 20.")
}

// Client returns which client it is.
func (o *Opener) Client() Client { return o.client }

// About returns what the client says of itself.
func (o *Opener) About() About { return o.about }

// line reads one line of the client.
func (o *Opener) line() ([]byte, error) {
	late := time.AfterFunc(patience, func() { _ = o.process.Kill() })
	defer late.Stop()
	raw, err := o.stdout.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("interop client %s gave no answer within %v: %w", o.client, patience, err)
	}
	return raw, nil
}

// read reads one line of the client, which is JSON.
func (o *Opener) read(into any) error {
	raw, err := o.line()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("interop client %s: answer is not JSON: %w", o.client, err)
	}
	return nil
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
	if _, err := o.stdin.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("interop client %s does not read: %w", o.client, err)
	}
	var answer struct {
		ID    int    `json:"id"`
		OK    bool   `json:"ok"`
		Error string `json:"error"`
		Opened
	}
	if err := o.read(&answer); err != nil {
		return nil, err
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
// matrix expects: the claims, byte for byte, or the right refusal. It reports
// whether the client opened the token.
func (o *Opener) Check(t testing.TB, c Case, r Request, claims string) bool {
	t.Helper()
	opened, err := o.Open(r)
	opens, because := Expect(o.client, o.about, c)
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
		t.Errorf("%s: %s: opened, although the matrix says: %s Correct the matrix.", o.client, c, because.Reason)
	case !strings.Contains(string(refusal), because.Error):
		t.Errorf("%s: %s: refused with %q, want %q in it (%s)", o.client, c, refusal, because.Error, because.Reason)
	}
	return err == nil
}
