package server

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// SigningKeys knows the issuers' signing keys: keyring.Keyring.
type SigningKeys interface {
	JWKS(issuer string) (doc []byte, etag string, asOf time.Time, err error)
	List(issuer string) ([]keyring.KeyInfo, error)
	Rotate(ctx context.Context, issuer string, alg kms.Algorithm, emergency bool) (keyring.Rotated, error)
	Healthy(issuer string) (ok bool, reason string)
}

// signingKeyService is SigningKeyService.
type signingKeyService struct {
	bullav1.UnsafeSigningKeyServiceServer
	gate gate
	keys SigningKeys
}

var _ bullav1.SigningKeyServiceServer = (*signingKeyService)(nil)

// allow resolves the issuer and asks for the permission to read its keys.
func (s *signingKeyService) allow(ctx context.Context, name string) (*issuer.Issuer, error) {
	e, err := s.gate.enter(ctx, name, "", false)
	if err != nil {
		return nil, err
	}
	return e.issuer, e.allow(ctx, authz.ReadSigningKeys)
}

func (s *signingKeyService) GetJWKS(ctx context.Context, req *bullav1.GetJWKSRequest) (*bullav1.GetJWKSResponse, error) {
	found, err := s.allow(ctx, req.GetIssuer())
	if err != nil {
		return nil, err
	}
	doc, _, asOf, err := s.keys.JWKS(found.Name())
	if err != nil {
		return nil, err
	}
	return &bullav1.GetJWKSResponse{Jwks: doc, AsOf: timestamp(asOf)}, nil
}

func (s *signingKeyService) ListSigningKeys(ctx context.Context, req *bullav1.ListSigningKeysRequest) (*bullav1.ListSigningKeysResponse, error) {
	found, err := s.allow(ctx, req.GetIssuer())
	if err != nil {
		return nil, err
	}
	list, err := s.keys.List(found.Name())
	if err != nil {
		return nil, err
	}
	res := &bullav1.ListSigningKeysResponse{}
	for _, k := range list {
		res.SigningKeys = append(res.SigningKeys, signingKey(found.Name(), k))
	}
	return res, nil
}

func signingKey(issuerName string, k keyring.KeyInfo) *bullav1.SigningKey {
	key := &bullav1.SigningKey{
		Issuer:     issuerName,
		KeyId:      k.KeyID,
		Algorithm:  string(k.Algorithm),
		State:      bullav1.SigningKeyState(bullav1.SigningKeyState_value["SIGNING_KEY_STATE_"+string(k.State)]),
		PublicJwk:  k.PublicJWK,
		Available:  k.Open && k.Problem == "",
		PublishAt:  timestamp(k.PublishAt),
		ActivateAt: timestamp(k.ActivateAt),
		RetireAt:   timestamp(k.RetireAt),
		RemoveAt:   timestamp(k.RemoveAt),
	}
	if signs := k.State == keyring.Active || k.State == keyring.Next; signs && !key.Available {
		// What went wrong names places that callers have no business with.
		key.UnavailableReason = "the key does not sign on this replica: its log and bulla doctor say why"
	}
	for _, l := range k.Locations {
		key.Backends = append(key.Backends, l.Backend)
	}
	for _, p := range k.Places {
		if !p.Open || p.Problem != "" {
			key.UnavailableBackends = append(key.UnavailableBackends, p.Location.Backend)
		}
	}
	return key
}

// RotateSigningKey is put on record when the change is: a schedule would have
// made it too, and nobody is asked then.
func (s *signingKeyService) RotateSigningKey(ctx context.Context, req *bullav1.RotateSigningKeyRequest) (*bullav1.RotateSigningKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), "", false)
	if err != nil {
		return nil, err
	}
	alg := kms.Algorithm(req.GetAlgorithm())
	if alg.Known() {
		e.event.SigningAlgorithm = string(alg)
	}
	if err := e.allow(ctx, authz.RotateSigningKeys); err != nil {
		return nil, err
	}
	var c checker
	if !alg.Known() {
		c.wrong("algorithm", "is one of %v: that of the key to change", kms.Algorithms())
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	name := e.issuer.Name()
	event := e.event
	if req.GetEmergency() {
		event.Settings = "emergency"
	}
	event.OldThumbprint = s.signing(name, alg)
	rotated, err := s.keys.Rotate(ctx, name, alg, req.GetEmergency())
	if err != nil {
		event.Outcome, event.Reason = audit.Failed, Reason(err)
		return nil, errors.Join(err, e.auditor.Record(ctx, event))
	}
	res := &bullav1.RotateSigningKeyResponse{Breaks: rotated.Breaks}
	for _, k := range rotated.Keys {
		res.SigningKeys = append(res.SigningKeys, signingKey(name, k))
	}
	event.Outcome, event.NewThumbprint = audit.Changed, latest(rotated.Keys)
	if err := e.auditor.Record(ctx, event); err != nil {
		return nil, err
	}
	return res, nil
}

// signing is the kid of the key that signs, "none" if there is none.
func (s *signingKeyService) signing(issuerName string, alg kms.Algorithm) string {
	list, err := s.keys.List(issuerName)
	if err != nil {
		return "none"
	}
	list = slices.DeleteFunc(list, func(k keyring.KeyInfo) bool { return k.Algorithm != alg || k.State != keyring.Active })
	return latest(list)
}

// latest is the kid of the key that signs when all switches have been made.
func latest(list []keyring.KeyInfo) string {
	kid := "none"
	var since time.Time
	for _, k := range list {
		if !k.ActivateAt.IsZero() && !k.ActivateAt.Before(since) && k.State != keyring.Retired {
			kid, since = k.KeyID, k.ActivateAt
		}
	}
	return kid
}

// metadataPrefixes are those of the members that list what an issuer can do for
// each kind of token, and where they are defined.
var metadataPrefixes = []string{
	"id_token",      // OpenID Connect Discovery 1.0, section 3
	"userinfo",      // likewise
	"authorization", // JARM, section 4
	"introspection", // RFC 9701, section 7
}

// GetProviderMetadata lists what the issuer can do. Verifiers and clients read
// it as a promise: it holds only what the issuer's policy and keys allow.
func (s *signingKeyService) GetProviderMetadata(ctx context.Context, req *bullav1.GetProviderMetadataRequest) (*bullav1.GetProviderMetadataResponse, error) {
	found, err := s.allow(ctx, req.GetIssuer())
	if err != nil {
		return nil, err
	}
	members := make(map[string]any)
	for _, prefix := range metadataPrefixes {
		members[prefix+"_signing_alg_values_supported"] = found.Signing()
		members[prefix+"_encryption_alg_values_supported"] = found.Encryption()
		members[prefix+"_encryption_enc_values_supported"] = found.ContentEncryption()
	}
	doc, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	return &bullav1.GetProviderMetadataResponse{Metadata: doc}, nil
}
