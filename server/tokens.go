package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/signer"
)

// Sealer issues tokens: seal.Sealer.
type Sealer interface {
	SignAndEncrypt(ctx context.Context, req seal.Request) (*seal.Result, error)
	Sign(ctx context.Context, req seal.Request) (*seal.Result, error)
}

// tokenService is TokenService.
type tokenService struct {
	bullav1.UnsafeTokenServiceServer
	sealer  Sealer
	streams *streams
	server  *Server // what items of a batch or a stream pass through, as calls do
}

var _ bullav1.TokenServiceServer = (*tokenService)(nil)

// tokenRequest is what SignAndEncryptRequest and SignRequest have in common.
type tokenRequest interface {
	GetIssuer() string
	GetClientId() string
	GetTokenKind() bullav1.TokenKind
	GetClaims() []byte
	GetLifetime() *durationpb.Duration
	GetSigningAlgorithm() string
	GetAccessToken() string
	GetCode() string
	GetState() string
}

func (s *tokenService) SignAndEncrypt(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	asked, err := sealRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	result, err := s.sealer.SignAndEncrypt(ctx, asked)
	if err != nil {
		return nil, err
	}
	return &bullav1.SignAndEncryptResponse{
		Token:               result.Token,
		SigningKeyId:        result.SigningKeyID,
		SigningAlgorithm:    string(result.SigningAlgorithm),
		EncryptionKeyId:     result.EncryptionKeyID,
		EncryptionAlgorithm: string(result.EncryptionAlgorithm),
		ContentEncryption:   string(result.ContentEncryption),
		ClientKeysStale:     result.ClientKeysStale,
		ClientKeysFetchedAt: timestamp(result.ClientKeysFetchedAt),
		RegistryStale:       result.RegistryStale,
	}, nil
}

func (s *tokenService) Sign(ctx context.Context, req *bullav1.SignRequest) (*bullav1.SignResponse, error) {
	asked, err := sealRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	asked.AllowUnencrypted = req.GetAllowUnencrypted()
	result, err := s.sealer.Sign(ctx, asked)
	if err != nil {
		return nil, err
	}
	return &bullav1.SignResponse{
		Token:            result.Token,
		SigningKeyId:     result.SigningKeyID,
		SigningAlgorithm: string(result.SigningAlgorithm),
		RegistryStale:    result.RegistryStale,
	}, nil
}

// sealRequest checks the form of a request. Whether its claims can become a
// token is decided on the token's way.
func sealRequest(ctx context.Context, req tokenRequest) (seal.Request, error) {
	var c checker
	c.name("issuer", req.GetIssuer(), false)
	kind := signer.TokenKind(c.kind("token_kind", req.GetTokenKind()))
	c.name("client_id", req.GetClientId(), kind.ClientBound())
	c.name("signing_algorithm", req.GetSigningAlgorithm(), false)
	c.input("access_token", req.GetAccessToken())
	c.input("code", req.GetCode())
	c.input("state", req.GetState())
	lifetime := c.lifetime(req.GetLifetime())
	if err := c.err(); err != nil {
		return seal.Request{}, err
	}
	call := callOf(ctx)
	return seal.Request{
		RPC:              call.rpc,
		Caller:           call.caller,
		Issuer:           req.GetIssuer(),
		ClientID:         req.GetClientId(),
		Kind:             kind,
		Claims:           req.GetClaims(),
		Lifetime:         lifetime,
		SigningAlgorithm: kms.Algorithm(req.GetSigningAlgorithm()),
		AccessToken:      req.GetAccessToken(),
		Code:             req.GetCode(),
		State:            req.GetState(),
	}, nil
}

// timestamp is nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
