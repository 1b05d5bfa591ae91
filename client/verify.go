package client

import (
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// signed is a compact JWS that has been read but not verified.
type signed struct {
	token  string
	header *header
}

// parseSigned reads a compact JWS (RFC 7515, section 7.1).
func parseSigned(token string) (*signed, error) {
	parts, err := splitCompact(token, 3)
	if err != nil {
		return nil, fmt.Errorf("signed part: %w", err)
	}
	h, err := parseHeader(parts[0])
	if err != nil {
		return nil, fmt.Errorf("signed part: %w", err)
	}
	if err := h.refuseExtensions(); err != nil {
		return nil, fmt.Errorf("signed part: %w", err)
	}
	return &signed{token: token, header: h}, nil
}

// verify returns the payload if a signer's key that bears the header's kid and its
// alg verifies the signature.
func (o *Opener) verify(s *signed) ([]byte, error) {
	alg, ok := find(o.signatureAlgorithms, s.header.Algorithm, signatureAlgorithm.String)
	if !ok {
		return nil, fmt.Errorf("%w: its signature algorithm (alg) is %s", ErrNotAllowed, quote(s.header.Algorithm))
	}
	signers := o.signersFor(s.header.KeyID, alg)
	if len(signers) == 0 {
		return nil, fmt.Errorf("%w: its signature names key %s with alg %s", ErrUnknownSigner, quote(s.header.KeyID), alg.name)
	}
	jws, err := jose.ParseSignedCompact(s.token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg.name)})
	if err != nil {
		// What is left after our own reading: a jwk or x5c that is none.
		return nil, fmt.Errorf("%w: a parameter of its signature's header is not valid", ErrMalformed)
	}
	for _, signer := range signers {
		key := signer.Key
		if alg.verifier != nil {
			key = alg.verifier(key)
		}
		if payload, err := jws.Verify(key); err == nil {
			return payload, nil
		}
	}
	return nil, ErrSignature
}

// signersFor returns the keys whose kid and alg both equal the header's: one, unless
// the issuer's set is careless.
func (o *Opener) signersFor(kid string, alg signatureAlgorithm) []jose.JSONWebKey {
	var signers []jose.JSONWebKey
	for _, key := range o.signers {
		if key.KeyID == kid && key.Algorithm == alg.name {
			signers = append(signers, key)
		}
	}
	return signers
}
