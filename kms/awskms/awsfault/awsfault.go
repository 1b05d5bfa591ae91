// Package awsfault is an AWS KMS endpoint for tests that does what the real one
// does when it is well, and what a network, an account or an operator does to
// it when it is not.
//
// It really signs, with software keys, and really wraps, with AES-GCM and the
// encryption context as its additional data. It checks each request's Signature
// Version 4 by an implementation of its own, written from AWS's published
// description, so that a client whose signing is wrong does not get by because
// both ends share a library. It knows the length rules of MessageType RAW and
// DIGEST, key states, tags and pages. It imports neither the AWS SDK nor
// package testing: a test starts it inside its own process, and gives its URL
// and credentials to whatever process is under test.
//
// What it knows of KMS comes from the API reference and has not been held
// against AWS itself; awstest has two endpoints that others wrote.
package awsfault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Where the endpoint claims to be.
const (
	Region  = "eu-west-1"
	account = "111122223333"
)

// The one identity that the endpoint knows. No AWS account has it.
const (
	accessKey = "AKIDAWSFAULTEXAMPLE0"
	secretKey = "known/to/tests+only/EXAMPLEKEY0000000000"
)

// maxBody bounds a request, in bytes.
const maxBody = 64 << 10

// Endpoint is a running endpoint. All methods may be called by any number of
// goroutines.
type Endpoint struct {
	address string
	secrets map[string]string // access key to secret key; does not change

	mu     sync.Mutex // guards what follows
	server *http.Server
	served chan struct{} // closed when server has ended
	keys   map[string]*key
	fault  Fault
	lifted chan struct{} // closed when fault is replaced
	hits   int           // requests since fault was set that it could have hit
	calls  map[string]int
}

// New returns an endpoint that listens on a free port of the loopback address.
// Whoever made it closes it.
func New() (*Endpoint, error) {
	e := &Endpoint{
		address: "127.0.0.1:0",
		secrets: map[string]string{accessKey: secretKey},
		keys:    map[string]*key{},
		lifted:  make(chan struct{}),
		calls:   map[string]int{},
	}
	return e, e.Up()
}

// URL is the endpoint's address, for AWS_ENDPOINT_URL_KMS or a configuration.
func (e *Endpoint) URL() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return "http://" + e.address
}

// Credentials are what AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY have to be.
func (e *Endpoint) Credentials() (id, secret string) { return accessKey, secretKey }

// Environ is the environment, as "name=value", in which the AWS SDK finds the
// endpoint and its credentials, and no other configuration of the machine.
func (e *Endpoint) Environ() []string {
	id, secret := e.Credentials()
	return []string{
		"AWS_ENDPOINT_URL_KMS=" + e.URL(), "AWS_REGION=" + Region,
		"AWS_ACCESS_KEY_ID=" + id, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_SESSION_TOKEN=",
		"AWS_PROFILE=", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
	}
}

// Up lets the endpoint listen, again after Down on the same port as before.
func (e *Endpoint) Up() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", e.address)
	if err != nil {
		return fmt.Errorf("awsfault: %w", err)
	}
	e.address = l.Addr().String()
	server, served := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second}, make(chan struct{})
	e.server, e.served = server, served
	go func() {
		defer close(served)
		_ = server.Serve(l) // it ends by Close, and says so
	}()
	return nil
}

// Down closes the port and all connections, until Up. Keys and faults stay.
func (e *Endpoint) Down() {
	e.mu.Lock()
	server, served := e.server, e.served
	e.server = nil
	e.mu.Unlock()
	if server != nil {
		_ = server.Close() // what does not close is closed already
		<-served
	}
}

// Close ends the endpoint. It may be called more than once.
func (e *Endpoint) Close() { e.Down() }

// Calls is how often an operation, such as "Sign", was asked for, or all of
// them for "". Requests whose signature was wrong, and those that a fault
// swallowed, count too.
func (e *Endpoint) Calls(op string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if op != "" {
		return e.calls[op]
	}
	all := 0
	for _, n := range e.calls {
		all += n
	}
	return all
}

// ServeHTTP implements http.Handler, for tests that put the endpoint behind a
// server of their own, with TLS say.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return // the client went away
	}
	op := operation(r)
	f, lifted := e.strike(op)
	now := time.Now().Add(f.Skew)
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	if f.Stall > 0 {
		select {
		case <-time.After(f.Stall):
		case <-lifted:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case f.Reset:
		reset(w)
		return
	case f.Code != "":
		refuse(w, &apiError{code: f.Code, status: f.Status, message: "a fault that the test asked for"})
		return
	}
	answer, err := e.answer(r, op, body, now, f)
	switch {
	case f.Lose:
		reset(w)
	case err != nil:
		refuse(w, err)
	default:
		write(w, http.StatusOK, answer)
	}
}

// answer does what a request asks for.
func (e *Endpoint) answer(r *http.Request, op string, body []byte, now time.Time, f Fault) (any, error) {
	if err := checkSignature(r, body, scope{region: Region, service: "kms", secrets: e.secrets}, now); err != nil {
		return nil, err
	}
	do, known := operations[op]
	if !known {
		return nil, &apiError{code: "UnknownOperationException", message: "no operation " + op}
	}
	return do(e, body, f)
}

// sortedKeys are all keys, in the order of their ids.
func (e *Endpoint) sortedKeys() []*key {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := make([]string, 0, len(e.keys))
	for id := range e.keys {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	all := make([]*key, len(ids))
	for i, id := range ids {
		all[i] = e.keys[id]
	}
	return all
}

// errNoKey is what the methods that tests call say of a key that is not there.
var errNoKey = errors.New("awsfault: no such key")
