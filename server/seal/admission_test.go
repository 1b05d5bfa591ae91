package seal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/signer"
)

// doorkeeper is the admission and the quota, and notes in the world's steps who
// was where.
type doorkeeper struct {
	*world
	full, refused, exceeded error
	panics                  bool
	inside, open            int
	timings                 []Timing
}

func (d *doorkeeper) Enter(_ context.Context, backend, caller string) (func(), error) {
	d.step("enter " + backend + " " + caller)
	if d.refused != nil {
		return nil, d.refused
	}
	d.inside++
	return func() { d.step("leave"); d.inside-- }, nil
}

func (d *doorkeeper) Refuses(_ context.Context, backend, caller string) error {
	d.step("refuses " + backend + " " + caller)
	return d.full
}

func (d *doorkeeper) Token(caller string) (func(), error) {
	d.step("quota " + caller)
	if d.exceeded != nil {
		return nil, d.exceeded
	}
	d.open++
	return func() { d.open-- }, nil
}

func (d *doorkeeper) Stage(_ context.Context, t Timing) { d.timings = append(d.timings, t) }

// Backend makes the world's key one of a backend.
func (d *doorkeeper) Backend() string { return "hsm" }

func (d *doorkeeper) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if d.panics {
		panic("in the module")
	}
	return d.world.Sign(ctx, message)
}

func newDoorkeeper(t *testing.T) (*doorkeeper, *Sealer) {
	t.Helper()
	w, s := newWorld(t)
	d := &doorkeeper{world: w}
	var err error
	if w.signing, err = signer.NewSigningKey(d, signer.Options{}); err != nil {
		t.Fatal(err)
	}
	s.cfg.Admission, s.cfg.Quota, s.cfg.Observer = d, d, d
	return d, s
}

// The place is taken last of all, and held for the signature alone.
func TestWhereATokenWaits(t *testing.T) {
	d, s := newDoorkeeper(t)
	if _, err := s.SignAndEncrypt(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, d.world, "authorize issue", "quota caller", "recipient", "key ES256", "refuses hsm caller", "enter hsm caller", "sign", "leave", "audit issued")
	if d.inside != 0 || d.open != 0 {
		t.Errorf("%d places and %d quotas are held after the call", d.inside, d.open)
	}
	var stages []Stage
	for _, timing := range d.timings {
		stages = append(stages, timing.Stage)
		if of := timing.Stage == StageQueue || timing.Stage == StageSign; of && (timing.Backend != "hsm" || timing.Algorithm != "ES256") {
			t.Errorf("%s is told of backend %q and algorithm %q", timing.Stage, timing.Backend, timing.Algorithm)
		}
	}
	if want := []Stage{StageRecipient, StagePrepare, StageQueue, StageSign, StageWrap, StageEncrypt, StageAudit}; !slices.Equal(stages, want) {
		t.Errorf("stages %v, want %v", stages, want)
	}
}

func TestATokenOfASecretHasNoBackend(t *testing.T) {
	d, s := newDoorkeeper(t)
	d.setting.SigningAlgorithm, d.secret = "HS256", []byte("thirty-two octets, which it takes")
	if _, err := s.SignAndEncrypt(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(d.steps, "enter  caller") {
		t.Errorf("steps %v, want a place at no backend", d.steps)
	}
}

func TestWhoIsTurnedAwayCostsLittleAndIsOnRecord(t *testing.T) {
	no := errors.New("no")
	for _, test := range []struct {
		name  string
		set   func(*doorkeeper, *Request)
		steps []string
	}{
		{"over the quota", func(d *doorkeeper, _ *Request) { d.exceeded = no }, []string{"authorize issue", "quota caller", "audit denied"}},
		{"overloaded, before the claims are read", func(d *doorkeeper, r *Request) { d.full, r.Claims = no, []byte("not even JSON") },
			[]string{"authorize issue", "quota caller", "recipient", "key ES256", "refuses hsm caller", "audit failed"}},
		{"overloaded meanwhile", func(d *doorkeeper, _ *Request) { d.refused = no },
			[]string{"authorize issue", "quota caller", "recipient", "key ES256", "refuses hsm caller", "enter hsm caller", "audit failed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, s := newDoorkeeper(t)
			req := request()
			test.set(d, &req)
			if result, err := s.SignAndEncrypt(t.Context(), req); !errors.Is(err, no) || result != nil {
				t.Errorf("got %v, %v", result, err)
			}
			wantSteps(t, d.world, test.steps...)
			if d.inside != 0 || d.open != 0 {
				t.Errorf("%d places and %d quotas are held after the call", d.inside, d.open)
			}
			if e := d.events[0]; !strings.Contains(e.Reason, "no") {
				t.Errorf("on record with the reason %q", e.Reason)
			}
		})
	}
}

// Whoever may not ask for a token uses up nobody's quota.
func TestADeniedCallIsNotCounted(t *testing.T) {
	d, s := newDoorkeeper(t)
	d.denied = authz.ErrNotAllowed
	if _, err := s.SignAndEncrypt(t.Context(), request()); !errors.Is(err, authz.ErrNotAllowed) {
		t.Fatal(err)
	}
	wantSteps(t, d.world, "authorize issue", "audit denied")
}

// Whatever becomes of a signature, the place is given back.
func TestThePlaceIsGivenBack(t *testing.T) {
	d, s := newDoorkeeper(t)
	d.signErr = kms.ErrUnavailable
	if _, err := s.Sign(t.Context(), request()); err == nil {
		t.Error("a token without a signature")
	}
	d.panics = true
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic went no further")
			}
		}()
		_, _ = s.SignAndEncrypt(t.Context(), request())
	}()
	if d.inside != 0 || d.open != 0 {
		t.Errorf("%d places and %d quotas are held", d.inside, d.open)
	}
}
