package seal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// follower is a world that is told of stages, and follows tokens.
type follower struct {
	*world
	t       *testing.T
	stages  []string // what was told, with the reason of failures
	timings []Timing
	ended   []Ending
}

type followed struct{}

func (f *follower) Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, followed{}, true)
}

func (f *follower) Stage(ctx context.Context, t Timing) {
	if ctx.Value(followed{}) == nil {
		f.t.Errorf("stage %s is told with another context than Begin's", t.Stage)
	}
	text := string(t.Stage)
	for _, s := range []string{t.Algorithm, t.Reason} {
		if s != "" {
			text += " " + s
		}
	}
	f.stages, f.timings = append(f.stages, text), append(f.timings, t)
}

func (f *follower) End(ctx context.Context, e Ending) {
	if ctx.Value(followed{}) == nil {
		f.t.Error("the end is told with another context than Begin's")
	}
	f.ended = append(f.ended, e)
}

func newFollower(t *testing.T) (*follower, *Sealer) {
	t.Helper()
	w, s := newWorld(t)
	f := &follower{world: w, t: t}
	cfg := s.cfg
	cfg.Observer = f
	cfg.Reason = func(err error) string {
		for reason, is := range map[string]error{"DOWN": kms.ErrUnavailable, "CLAIMS": signer.ErrClaims, "AUDIT": errAudit} {
			if errors.Is(err, is) {
				return reason
			}
		}
		return "OTHER"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f, s
}

var errAudit = errors.New("the disk is full")

func TestStagesAreToldInTheirOrder(t *testing.T) {
	f, s := newFollower(t)
	before := time.Now()
	if _, err := s.SignAndEncrypt(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	after := time.Now()
	want := []string{"recipient", "prepare", "queue ES256", "sign ES256", "wrap RSA-OAEP-256", "encrypt A256GCM", "audit"}
	if diff := cmp.Diff(want, f.stages); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	for _, stage := range f.timings {
		if stage.Took <= 0 || stage.Began.Before(before) || stage.Began.Add(stage.Took).After(after) {
			t.Errorf("stage %s began at %v and took %v; the call was from %v to %v", stage.Stage, stage.Began, stage.Took, before, after)
		}
		before = stage.Began.Add(stage.Took) // they do not overlap
	}
	wantEnd := []Ending{{
		Caller: "caller", Issuer: "main", ClientID: "app", Kind: signer.IDToken, SigningKeyID: f.signing.KeyID(), SigningAlgorithm: "ES256",
		EncryptionKeyID: "rp", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM",
	}}
	if diff := cmp.Diff(wantEnd, f.ended); diff != "" {
		t.Errorf("the end (-want +got):\n%s", diff)
	}
}

func TestTheStageThatFailedIsTold(t *testing.T) {
	for _, test := range []struct {
		name   string
		edit   func(*follower, *Request)
		stages []string
		reason string
	}{
		{"a backend that is down", func(f *follower, _ *Request) { f.signErr = kms.ErrUnavailable }, []string{"recipient", "prepare", "queue ES256", "sign ES256 DOWN", "audit"}, "DOWN"},
		{"bad claims", func(_ *follower, r *Request) { r.Claims = []byte(`[]`) }, []string{"recipient", "prepare CLAIMS", "audit"}, "CLAIMS"},
		{"an unknown client", func(f *follower, _ *Request) { f.recipientErr = kms.ErrUnavailable }, []string{"recipient DOWN", "audit"}, "DOWN"},
		{"no audit log", func(f *follower, _ *Request) { f.auditErr = errAudit }, []string{"recipient", "prepare", "queue ES256", "sign ES256", "wrap RSA-OAEP-256", "encrypt A256GCM", "audit AUDIT"}, "AUDIT"},
		{"an unknown issuer", func(_ *follower, r *Request) { r.Issuer = "another" }, []string{"audit"}, "OTHER"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, s := newFollower(t)
			r := request()
			test.edit(f, &r)
			if _, err := s.SignAndEncrypt(t.Context(), r); err == nil {
				t.Fatal("a token was issued")
			}
			if diff := cmp.Diff(test.stages, f.stages); diff != "" {
				t.Errorf("stages (-want +got):\n%s", diff)
			}
			if len(f.ended) != 1 || f.ended[0].Reason != test.reason || (f.ended[0].Issuer == "") != (test.name == "an unknown issuer") {
				t.Errorf("got the end %+v, want one with the reason %s", f.ended, test.reason)
			}
		})
	}
}
