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

// verify returns the payload if one of the keys for the header verifies the
// signature.
func (o *Opener) verify(s *signed) ([]byte, error) {
	alg, ok := find(o.signatureAlgorithms, s.header.Algorithm)
	if !ok {
		return nil, fmt.Errorf("%w: its signature algorithm (alg) is %s", ErrNotAllowed, quote(s.header.Algorithm))
	}
	keys := o.verifiersFor(s.header.KeyID, alg)
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: its signature names key %s with alg %s", ErrUnknownSigner, quote(s.header.KeyID), alg.name)
	}
	jws, err := jose.ParseSignedCompact(s.token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg.name)})
	if err != nil {
		// What is left after our own reading: a jwk or x5c that is none.
		return nil, fmt.Errorf("%w: a parameter of its signature's header is not valid", ErrMalformed)
	}
	for _, key := range keys {
		if payload, err := jws.Verify(key); err == nil {
			return payload, nil
		}
	}
	return nil, ErrSignature
}

// verifiersFor returns what a signature may be verified with. For an asymmetric
// algorithm these are the keys whose kid and alg both equal the header's: one, unless
// the issuer's set is careless. For a symmetric one they are the client's secrets,
// which have no kid, and nothing else.
func (o *Opener) verifiersFor(kid string, alg signatureAlgorithm) []any {
	var keys []any
	if alg.symmetric() {
		for _, secret := range o.secrets() {
			keys = append(keys, secret)
		}
		return keys
	}
	for _, signer := range o.signers {
		if signer.KeyID != kid || signer.Algorithm != alg.name {
			continue
		}
		if alg.verifier != nil {
			keys = append(keys, alg.verifier(signer.Key))
		} else {
			keys = append(keys, signer.Key)
		}
	}
	return keys
}
