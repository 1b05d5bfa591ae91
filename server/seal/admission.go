package seal

import (
	"context"
	"time"

	"github.com/bulla-project/bulla/signer"
)

// Admission has calls wait for their turn at a signing backend, or turns them
// away: admit.Admission.
type Admission interface {
	// Enter takes a place at a backend for a caller; an empty backend is this
	// process. Whoever has a place calls leave, once.
	Enter(ctx context.Context, backend, caller string) (leave func(), err error)
	// Refuses is the error with which Enter would turn the caller away at once;
	// nil if it would not.
	Refuses(ctx context.Context, backend, caller string) error
}

// Quota bounds what each caller may ask for: limit.Limits.
type Quota interface {
	// Token counts a token that a caller asks for, until done is called.
	Token(caller string) (done func(), err error)
}

// openDoor lets everybody in.
type openDoor struct{}

func (openDoor) Enter(context.Context, string, string) (func(), error) { return func() {}, nil }
func (openDoor) Refuses(context.Context, string, string) error         { return nil }
func (openDoor) Token(string) (func(), error)                          { return func() {}, nil }

// enter lets a token begin that its caller may ask for, and may ask for now. Only
// who has the permission is counted: nobody uses up what another may do.
func (s *Sealer) enter(t *token) (done func(), err error) {
	if err := s.authorize(t); err != nil {
		return nil, err
	}
	return s.cfg.Quota.Token(t.Caller)
}

// admitAndSign signs a payload when there is a place at the key's backend. The
// place is held for the signature and no longer: what comes after it is work of
// this process, which can do it for one while the backend signs for the next.
func (s *Sealer) admitAndSign(ctx context.Context, caller string, key *signer.SigningKey, payload *signer.Payload) ([]byte, error) {
	t := Timing{Stage: StageQueue, Backend: key.Backend(), Algorithm: string(key.Algorithm()), Began: time.Now()}
	leave, err := s.cfg.Admission.Enter(ctx, t.Backend, caller)
	s.stage(ctx, t, err)
	if err != nil {
		return nil, err
	}
	defer leave() // a panic too gives the place back
	t.Stage, t.Began = StageSign, time.Now()
	jws, err := signer.Sign(ctx, key, payload)
	s.stage(ctx, t, err)
	return jws, err
}
