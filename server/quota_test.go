package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/limit"
)

// newLimited is newClientKeys with other limits.
func newLimited(t *testing.T, cfg limit.Config) (*clientKeyService, *auditor, *keys) {
	t.Helper()
	s, record, cache := newClientKeys(t)
	limits, err := limit.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.limits = limits
	return s, record, cache
}

func withURI(id, uri string) *bullav1.RegisterClientKeyRequest {
	req := registration(id, "", "")
	req.KeySource = &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: uri}
	return req
}

// mustExceed checks that an error is a refusal by quota, with a pause, that is on
// record.
func mustExceed(t *testing.T, what string, err error, record *auditor) {
	t.Helper()
	wantReason(t, what, err, "QUOTA_EXCEEDED")
	st := statusOf(err)
	retry := detail[*errdetails.RetryInfo](st.Details()).GetRetryDelay().AsDuration()
	if st.Code() != codes.ResourceExhausted || retry < time.Second {
		t.Errorf("%s: got %v with a pause of %v, want ResourceExhausted with one", what, st, retry)
	}
	last := record.events[len(record.events)-1]
	if last.Outcome != audit.Denied || last.Reason != "QUOTA_EXCEEDED" || last.Caller == "" || last.ClientID == "" {
		t.Errorf("%s: the last line on record is %+v, want the refusal", what, last)
	}
}

// What is refused has cost its reading, so it counts; what the caller may not do
// has not.
func TestRegistrationsOfACallerAreLimited(t *testing.T) {
	for what, call := range map[string]func(s *clientKeyService, caller string, i int) error{
		"a registration": func(s *clientKeyService, caller string, i int) error {
			_, err := s.RegisterClientKey(as(t, caller), registration(fmt.Sprint("app-", i), "one", ""))
			return err
		},
		"a repeat": func(s *clientKeyService, caller string, _ int) error {
			_, err := s.RegisterClientKey(as(t, caller), registration("app", "one", ""))
			return err
		},
		"a registration that is not valid": func(s *clientKeyService, caller string, _ int) error {
			_, err := s.RegisterClientKey(as(t, caller), &bullav1.RegisterClientKeyRequest{ClientId: "app", Revision: "none"})
			return err
		},
		"a generated key": func(s *clientKeyService, caller string, i int) error {
			_, err := s.GenerateClientKey(as(t, caller), &bullav1.GenerateClientKeyRequest{
				ClientId: fmt.Sprint("app-", i), KeySpec: &bullav1.GenerateClientKeyRequest_Curve{Curve: "P-256"},
				Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES"}},
			})
			return err
		},
		"a generated key that is not valid": func(s *clientKeyService, caller string, _ int) error {
			_, err := s.GenerateClientKey(as(t, caller), &bullav1.GenerateClientKeyRequest{ClientId: "app", Revision: "none"})
			return err
		},
	} {
		s, record, _ := newLimited(t, limit.Config{Registrations: 0.2}) // two at once
		for i := range 2 {
			if err := call(s, registrar, i); err != nil && Reason(err) != "InvalidArgument" {
				t.Fatalf("%s: %v", what, err)
			}
		}
		mustExceed(t, what, call(s, registrar, 2), record)
		for range 10 {
			wantReason(t, what+" by one who may not", call(s, reader, 3), "CALLER_NOT_ALLOWED")
		}
	}
}

func TestLimitsAreOfEachCaller(t *testing.T) {
	s, record, _ := newLimited(t, limit.Config{Registrations: 0.1}) // one at once
	register(t, s, registration("app", "one", ""))
	_, err := s.RegisterClientKey(as(t, registrar), registration("app", "one", ""))
	mustExceed(t, "the second", err, record)
	if _, err := s.RegisterClientKey(as(t, creator), registration("app", "one", "")); err != nil {
		t.Errorf("another caller: %v", err)
	}
	// Reading and deleting are no registrations.
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: "app"}); err != nil {
		t.Error(err)
	}
}

// In development everybody is one caller, with one bucket.
func TestTheDevelopmentCallerIsLimited(t *testing.T) {
	s, record, _ := newLimited(t, limit.Config{Registrations: 0.1})
	s.gate.authorizer = authz.Development()
	if _, err := s.RegisterClientKey(as(t, authz.DevelopmentCaller), registration("app", "one", "")); err != nil {
		t.Fatal(err)
	}
	_, err := s.RegisterClientKey(as(t, authz.DevelopmentCaller), registration("app", "one", ""))
	mustExceed(t, "the second", err, record)
}

func TestFetchesByRegistrationAreLimited(t *testing.T) {
	t.Run("of each caller", func(t *testing.T) {
		s, record, cache := newLimited(t, limit.Config{FirstFetches: 0.2}) // two at once
		for i := range 2 {
			register(t, s, withURI(fmt.Sprint("app-", i), fmt.Sprintf("https://%d.example/", i)))
		}
		req := withURI("app-3", "https://three.example/")
		req.AllowUnfetched = true
		_, err := s.RegisterClientKey(as(t, registrar), req)
		mustExceed(t, "the third", err, record)
		if _, err := s.GetClientKey(as(t, registrar), &bullav1.GetClientKeyRequest{ClientId: "app-3"}); Reason(err) != "CLIENT_NOT_REGISTERED" {
			t.Errorf("got %v, want that nothing was registered", err)
		}
		if cache.checked != 2 {
			t.Errorf("%d were tried out, want 2", cache.checked)
		}
		// What needs no fetch goes on: keys by themselves, and a repeat.
		register(t, s, registration("app-4", "one", ""))
		register(t, s, withURI("app-1", "https://1.example/"))
		if _, err := s.RegisterClientKey(as(t, creator), withURI("app-5", "https://five.example/")); err != nil {
			t.Errorf("another caller: %v", err)
		}
	})
	t.Run("of each host", func(t *testing.T) {
		s, record, _ := newLimited(t, limit.Config{FirstFetchesPerHost: 0.2})
		for i, caller := range []string{registrar, creator} {
			if _, err := s.RegisterClientKey(as(t, caller), withURI(fmt.Sprint("app-", i), fmt.Sprintf("https://%d.victim.example/", i))); err != nil {
				t.Fatal(err)
			}
		}
		for _, uri := range []string{"https://x.victim.example/", "https://victim.example:443/1", "https://0.victim.example/"} {
			_, err := s.RegisterClientKey(as(t, creator), withURI("another", uri))
			mustExceed(t, uri, err, record)
		}
		if _, err := s.RegisterClientKey(as(t, creator), withURI("another", "https://other.example/")); err != nil {
			t.Errorf("another host: %v", err)
		}
	})
	t.Run("within metadata", func(t *testing.T) {
		s, record, _ := newLimited(t, limit.Config{FirstFetchesPerHost: 0.1})
		metadata := func(id string) *bullav1.RegisterClientKeyRequest {
			return &bullav1.RegisterClientKeyRequest{ClientId: id, KeySource: &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: []byte(
				`{"jwks_uri":"https://victim.example/","id_token_encrypted_response_alg":"RSA-OAEP-256","id_token_signed_response_alg":"ES256"}`,
			)}}
		}
		register(t, s, metadata("app-0"))
		_, err := s.RegisterClientKey(as(t, registrar), metadata("app-1"))
		mustExceed(t, "the second", err, record)
	})
}

// slowKeys is a cache for which some hosts hang until their callers leave.
type slowKeys struct {
	*keys
	entered chan string // the URL of each fetch that begins
}

func (k slowKeys) Check(ctx context.Context, reg *registry.Registration) (*keycache.Status, error) {
	k.entered <- reg.Source.JWKSURI
	if strings.Contains(reg.Source.JWKSURI, "hangs") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return k.Status(ctx, reg)
}

func TestHangingHostsOfOneCallerLeaveRoomForOthers(t *testing.T) {
	s, _, cache := newLimited(t, limit.Config{})
	slow := slowKeys{cache, make(chan string, 100)}
	s.keys = slow
	ctx, leave := context.WithCancel(as(t, registrar))
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			_, err := s.RegisterClientKey(ctx, withURI(fmt.Sprint("app-", i), fmt.Sprintf("https://%d-hangs.example/", i)))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want that it was given up", err)
			}
		})
	}
	for range 16 {
		<-slow.entered
	}
	if _, err := s.RegisterClientKey(as(t, creator), withURI("quick", "https://quick.example/")); err != nil {
		t.Error(err)
	}
	if uri := <-slow.entered; uri != "https://quick.example/" {
		t.Errorf("%s is fetched beside 16 of its caller", uri)
	}
	leave()
	all.Wait()
	if n := len(slow.entered); n != 0 {
		t.Errorf("%d more fetches began as those before were given up, which go on by themselves", n)
	}
}
