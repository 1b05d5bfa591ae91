package server

import (
	"context"
	"errors"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
)

// GenerateClientKey makes a key pair and registers its public half. The private
// half is in the reply and nowhere else: if the reply is lost, it is lost, and
// the caller generates again.
func (s *clientKeyService) GenerateClientKey(ctx context.Context, req *bullav1.GenerateClientKeyRequest) (*bullav1.GenerateClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := e.allow(ctx, authz.GenerateClientKey); err != nil {
		return nil, err
	}
	if err := s.count(ctx, e); err != nil {
		return nil, err
	}
	var c checker
	w := &wish{
		record:    registry.Registration{Issuer: e.issuer.Name(), ClientID: e.clientID},
		generated: true,
		revision:  c.revision(req.GetRevision()),
	}
	if w.record.Settings, err = readSettings(&c, req.GetSettings()); err != nil {
		return nil, err
	}
	c.needKeys(w)
	if err := c.err(); err != nil {
		return nil, err
	}
	if err := allowed(e.issuer, w); err != nil {
		return nil, err
	}
	spec := keySpec(req, e.issuer, w.record.Settings)
	if spec.RSABits != 0 {
		if err := e.issuer.CheckRSABits(spec.RSABits); err != nil {
			return nil, err
		}
	}
	if err := s.mayGenerate(ctx, e, w); err != nil {
		return nil, err
	}
	public, private, err := s.generate(ctx, spec)
	if err != nil {
		return nil, err
	}
	w.record.Source = registry.Source{JWKS: public, Generated: true}
	stored, err := s.registerAnew(ctx, e, w)
	if err != nil {
		return nil, err
	}
	key, err := s.shown(ctx, stored)
	if err != nil {
		// The key is registered, and this is the only time that its private
		// half can be had.
		return &bullav1.GenerateClientKeyResponse{ClientKey: bareClientKey(stored), PrivateJwk: private}, nil //nolint:nilerr // as the comment says
	}
	key.Warnings = append(key.Warnings, waits(key)...)
	return &bullav1.GenerateClientKeyResponse{ClientKey: key, PrivateJwk: private}, nil
}

// mayGenerate looks whether the key that is to be made would be registered: it
// costs too much to be made for nothing.
func (s *clientKeyService) mayGenerate(ctx context.Context, e *entry, w *wish) error {
	current, err := s.current(ctx, e)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	want := w.record
	want.Source = registry.Source{JWKS: []byte("{}"), Generated: true} // stands for the key
	decision, err := registry.Decide(current, want, w.revision)
	if err != nil {
		return err
	}
	return e.allowChange(ctx, w, decision.Change)
}

// maxGenerating is how many RSA key pairs are made at once: a large one takes
// seconds, and tokens are not to wait for it.
const maxGenerating = 1

// generate makes a key pair, of RSA when it is its turn.
func (s *clientKeyService) generate(ctx context.Context, spec jwks.KeySpec) (public, private []byte, err error) {
	if spec.RSABits == 0 {
		return jwks.Generate(spec)
	}
	select {
	case s.generating <- struct{}{}:
		defer func() { <-s.generating }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	return jwks.Generate(spec)
}

// keySpec says which key to make: what the request asks for, else what the
// first setting that encrypts can use.
func keySpec(req *bullav1.GenerateClientKeyRequest, i *issuer.Issuer, settings []registry.Setting) jwks.KeySpec {
	spec := jwks.KeySpec{Algorithm: commonAlgorithm(settings)}
	switch given := req.GetKeySpec().(type) {
	case *bullav1.GenerateClientKeyRequest_RsaBits:
		spec.RSABits = int(given.RsaBits)
		return spec
	case *bullav1.GenerateClientKeyRequest_Curve:
		spec.Curve = given.Curve
		return spec
	}
	for _, setting := range settings {
		alg := encrypter.KeyAlgorithm(setting.EncryptionAlgorithm)
		if curves := alg.Curves(); len(curves) > 0 {
			spec.Curve = curves[0]
			return spec
		}
		if alg.Known() {
			break
		}
	}
	spec.RSABits = i.MinRSABits()
	return spec
}

// commonAlgorithm is the alg of all settings that encrypt, empty if they differ:
// a JWK names one at most.
func commonAlgorithm(settings []registry.Setting) string {
	alg := ""
	for _, setting := range settings {
		switch {
		case setting.EncryptionAlgorithm == "":
		case alg == "":
			alg = setting.EncryptionAlgorithm
		case alg != setting.EncryptionAlgorithm:
			return ""
		}
	}
	return alg
}
