package seal

import (
	"context"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// Tracker is an optional ability of an Observer: to follow a token from its
// beginning to its end. No method may wait.
type Tracker interface {
	// Begin is called before the first stage. The stages, and End, are told with
	// the context that it returns.
	Begin(ctx context.Context) context.Context
	// End is told how it ended.
	End(ctx context.Context, e Ending)
}

// Ending is how a token ended, as far as others than the audit log may know. It
// holds neither the token nor anything of its claims.
type Ending struct {
	Caller   string
	Issuer   string // empty if there is no such issuer
	ClientID string
	Kind     signer.TokenKind
	// Reason is why no token was issued, by Config.Reason; empty if one was.
	Reason string

	// The rest is empty as far as the token did not get.
	SigningKeyID        string
	SigningAlgorithm    kms.Algorithm
	EncryptionKeyID     string
	EncryptionAlgorithm encrypter.KeyAlgorithm
	ContentEncryption   encrypter.ContentEncryption
}

func (s *Sealer) begin(ctx context.Context) context.Context {
	if s.tracker == nil {
		return ctx
	}
	return s.tracker.Begin(ctx)
}

func (s *Sealer) end(ctx context.Context, t *token, err error) {
	if s.tracker == nil {
		return
	}
	e := Ending{
		Caller: t.Caller, ClientID: t.ClientID, Kind: t.Kind,
		SigningKeyID: t.result.SigningKeyID, SigningAlgorithm: t.result.SigningAlgorithm,
		EncryptionKeyID: t.result.EncryptionKeyID, EncryptionAlgorithm: t.result.EncryptionAlgorithm, ContentEncryption: t.result.ContentEncryption,
	}
	if t.issuer != nil {
		e.Issuer = t.issuer.Name()
	}
	if err != nil {
		e.Reason = s.cfg.Reason(err)
	}
	s.tracker.End(ctx, e)
}

// stage tells of a stage that began at t.Began and ends now, with err.
func (s *Sealer) stage(ctx context.Context, t Timing, err error) {
	t.Took = time.Since(t.Began)
	if err != nil {
		t.Reason = s.cfg.Reason(err)
	}
	s.cfg.Observer.Stage(ctx, t)
}

// encrypt encloses a signed token, in two stages.
func (s *Sealer) encrypt(ctx context.Context, to *encrypter.Recipient, jws []byte) (string, error) {
	began := time.Now()
	var wrapped time.Time
	jwe, err := to.EncryptStaged(jws, func() { wrapped = time.Now() })
	wrap := Timing{Stage: StageWrap, Algorithm: string(to.Algorithm()), Began: began}
	if wrapped.IsZero() {
		s.stage(ctx, wrap, err)
		return "", err
	}
	wrap.Took = wrapped.Sub(began)
	s.cfg.Observer.Stage(ctx, wrap)
	s.stage(ctx, Timing{Stage: StageEncrypt, Algorithm: string(to.ContentEncryption()), Began: wrapped}, err)
	return jwe, err
}
