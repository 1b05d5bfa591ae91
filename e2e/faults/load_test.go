package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

const (
	callers  = 32
	deadline = 5 * time.Second // of a request
	// A caller whose request failed waits a little. One that did as RetryInfo
	// says would not see how soon the service is well again.
	pause = 20 * time.Millisecond

	subject  = "alice"
	clientID = "faults"
)

// request is one that has ended.
type request struct {
	start, end time.Time
	reason     string // why it failed; "" if there is a token
	wrong      error  // what is wrong with the token
}

// load is callers that ask for tokens without end. Each has a connection of
// its own.
type load struct {
	stop    context.CancelFunc
	callers sync.WaitGroup

	mu      sync.Mutex
	ended   []request   // guarded by mu, in the order of their ends
	started []time.Time // guarded by mu: by caller, of the request under way
}

// startLoad registers a client and starts callers, who end with the test.
func startLoad(t *testing.T, s *harness.Service) *load {
	t.Helper()
	leaf := s.Leaf(t, harness.Admin)
	key := harness.NewClientKey(t, "P-256", "faults")
	admin := s.CallerWith(t, leaf)
	_, err := admin.ClientKeys.RegisterClientKey(t.Context(), &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: clientID,
		KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: harness.JWKS(key)},
		Settings: []*bullav1.ResponseSetting{{
			TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A128GCM",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	code, _, doc := s.Get(t, s.HTTP, "/jwks/"+harness.Issuer)
	var signers jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(doc), &signers); err != nil || code != 200 {
		t.Fatalf("jwks: %d, %v", code, err)
	}

	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop, started: make([]time.Time, callers)}
	for i := range callers {
		c := s.CallerWith(t, leaf)
		l.callers.Go(func() { l.call(ctx, i, c, verifier{key.Key, signers}) })
	}
	t.Cleanup(l.end)
	return l
}

// end stops the callers.
func (l *load) end() {
	l.stop()
	l.callers.Wait()
}

func (l *load) call(ctx context.Context, i int, c *client.Client, v verifier) {
	for ctx.Err() == nil {
		r := request{start: time.Now()}
		l.mu.Lock()
		l.started[i] = r.start
		l.mu.Unlock()

		bounded, cancel := context.WithTimeout(ctx, deadline)
		res, err := c.Tokens.SignAndEncrypt(bounded, &bullav1.SignAndEncryptRequest{
			Issuer: harness.Issuer, ClientId: clientID, Claims: []byte(`{"sub":"` + subject + `"}`),
		})
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.end = time.Now()
		if err != nil {
			r.reason = reasonOf(err)
		} else {
			r.wrong = v.verify(res.GetToken())
		}
		l.mu.Lock()
		l.ended = append(l.ended, r)
		l.mu.Unlock()
		if err != nil {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// between is the requests that ended after from, and not after to.
func (l *load) between(from, to time.Time) []request {
	l.mu.Lock()
	defer l.mu.Unlock()
	var some []request
	for _, r := range l.ended {
		if r.end.After(from) && !r.end.After(to) {
			some = append(some, r)
		}
	}
	return some
}

// forget forgets what ended before.
func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = l.ended[:0]
}

// wellSince reports whether each caller's request under way began after since,
// so that the one before it has been seen, and nothing failed in the last
// quiet.
func (l *load) wellSince(since time.Time, quiet time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.started {
		if !s.After(since) {
			return false
		}
	}
	now := time.Now()
	if now.Sub(since) < quiet {
		return false
	}
	good := 0
	for _, r := range slices.Backward(l.ended) {
		switch {
		case r.end.Before(since) || now.Sub(r.end) > quiet && good >= callers:
			return good >= callers
		case r.reason != "":
			return false
		}
		good++
	}
	return good >= callers
}

// codeName is what a gRPC code without a reason is called.
var codeName = map[grpccodes.Code]string{
	grpccodes.DeadlineExceeded: "DEADLINE_EXCEEDED", grpccodes.Unavailable: "UNAVAILABLE", grpccodes.Canceled: "CANCELED",
	grpccodes.Internal: "INTERNAL", grpccodes.Unknown: "UNKNOWN", grpccodes.ResourceExhausted: "RESOURCE_EXHAUSTED",
}

// reasonOf is the reason that the service gave, else the gRPC code.
func reasonOf(err error) string {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return codeName[st.Code()]
}

// verifier reads tokens as a relying party does, by go-jose.
type verifier struct {
	private any
	signers jose.JSONWebKeySet
}

func (v verifier) verify(token string) error {
	jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A128GCM})
	if err != nil {
		return err
	}
	inner, err := jwe.Decrypt(v.private)
	if err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(string(inner), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	keys := v.signers.Key(jws.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		return fmt.Errorf("the issuer's JWK Set has %d keys %q", len(keys), jws.Signatures[0].Header.KeyID)
	}
	payload, err := jws.Verify(keys[0])
	if err != nil {
		return err
	}
	var claims struct {
		Issuer  string `json:"iss"`
		Subject string `json:"sub"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return err
	}
	if claims.Issuer != harness.IssuerURL || claims.Subject != subject {
		return errors.New("another token than the one that was asked for")
	}
	return nil
}
