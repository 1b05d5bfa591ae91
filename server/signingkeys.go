package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// SigningKeys knows the issuers' signing keys: keyring.Keyring.
type SigningKeys interface {
	JWKS(issuer string) (doc []byte, etag string, asOf time.Time, err error)
	List(issuer string) ([]keyring.KeyInfo, error)
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
	if !key.Available {
		// What went wrong names places that callers have no business with.
		key.UnavailableReason = "the key does not sign on this replica: its log and bulla doctor say why"
	}
	for _, l := range k.Locations {
		key.Backends = append(key.Backends, l.Backend)
	}
	return key
}

func (s *signingKeyService) RotateSigningKey(context.Context, *bullav1.RotateSigningKeyRequest) (*bullav1.RotateSigningKeyResponse, error) {
	return nil, fmt.Errorf("%w: RotateSigningKey", errUnimplemented)
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
