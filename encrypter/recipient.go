package encrypter

import (
	"crypto"
	"fmt"
)

// RecipientConfig says to whom, and how, tokens are encrypted.
type RecipientConfig struct {
	// Key is the client's public key, an *rsa.PublicKey, *ecdsa.PublicKey,
	// *ecdh.PublicKey or [X448PublicKey] that fits Algorithm; or, if that is
	// symmetric, a [SecretKey] of exactly the size that its SecretSize tells.
	// What is needed of it is copied. Required.
	Key crypto.PublicKey

	// KeyID is the header parameter "kid", by which the client finds its
	// private key: the "kid" of its JWK, as it is. Default: none, which leaves
	// the parameter out.
	KeyID string

	// Algorithm is the key management algorithm, "alg". Required: there is no
	// default that could be guessed from the key.
	Algorithm KeyAlgorithm

	// ContentEncryption is the content encryption algorithm, "enc". Required:
	// that A128CBC-HS256 stands for a missing one is a rule of OpenID Connect
	// registrations, and applied there.
	ContentEncryption ContentEncryption

	// X5TS256 is the header parameter "x5t#S256": the SHA-256 thumbprint of
	// the certificate that the key came with, 32 bytes in base64url without
	// padding (RFC 7516 section 4.1.10). Default: none, which leaves the
	// parameter out.
	X5TS256 string

	// X5T is the header parameter "x5t": the SHA-1 thumbprint of the
	// certificate, 20 bytes in base64url without padding (RFC 7516 section
	// 4.1.9), for clients that know no other. Default: none, which leaves the
	// parameter out.
	X5T string

	// Issuer is the claim "iss" repeated in the header (RFC 7519 section
	// 5.3), where an encrypted logout token carries it so that the client can
	// tell who sent it before it decrypts (OpenID Connect Back-Channel
	// Logout 1.0 section 2.4). Default: none, which leaves the parameter out.
	Issuer string
}

// Recipient is one client's key, with the algorithms to use with it, ready to
// encrypt; [NewRecipient] makes it. It never changes and may be used by any
// number of goroutines at once. It takes between a third of a kilobyte and a
// kilobyte of memory: the key, or what AES makes of it, its ID and the encoded
// header.
type Recipient struct {
	keyID     string
	algorithm KeyAlgorithm
	content   *contentEncryptionRow
	manage    keyManagement

	// The protected header comes in three parts: what is the same in every
	// token, what the key management adds ("epk" and the like), and the
	// closing brace. Base64url turns three bytes into four characters, so the
	// first part can be encoded ahead up to a multiple of three bytes; what
	// remains is encoded with the second.
	headerEncoded string // base64url
	headerRest    string // JSON: the last 0 to 2 bytes of the first part
}

// NewRecipient checks a client's key against the algorithms and prepares the
// protected header. Its errors wrap [ErrUnknownAlgorithm], [ErrPair],
// [ErrKeyUnsuitable] or [ErrHeaderValue], and hold no part of the key.
func NewRecipient(cfg RecipientConfig) (*Recipient, error) {
	if err := CheckPair(cfg.Algorithm, cfg.ContentEncryption); err != nil {
		return nil, err
	}
	alg, enc := cfg.Algorithm.row(), cfg.ContentEncryption.row()
	if err := alg.name.Fits(cfg.Key); err != nil {
		return nil, err
	}
	if secret, ok := cfg.Key.(SecretKey); ok {
		if size := alg.name.SecretSize(enc.name); len(secret) != size {
			return nil, fmt.Errorf("%w: %s with %s takes a secret key of exactly %d bytes; derive one of that size", ErrKeyUnsuitable, alg.name, enc.name, size)
		}
	}
	header, err := newHeader(cfg)
	if err != nil {
		return nil, err
	}
	manage, err := alg.compile(cfg.Key, enc)
	if err != nil {
		return nil, err
	}
	return &Recipient{
		keyID:         header.keyID,
		algorithm:     alg.name,
		content:       enc,
		manage:        manage,
		headerEncoded: header.encoded,
		headerRest:    header.rest,
	}, nil
}

// WithIssuer returns a recipient with the same key that repeats iss in the
// header: see RecipientConfig.Issuer. It shares what r has made of the key, so
// that it takes little more memory than its header. r must have no issuer yet.
// Its errors wrap [ErrHeaderValue].
func (r *Recipient) WithIssuer(iss string) (*Recipient, error) {
	header, err := r.headerWith("iss", iss)
	if err != nil {
		return nil, err
	}
	other := *r
	other.headerEncoded, other.headerRest = header.encoded, header.rest
	return &other, nil
}

// KeyID returns the "kid" in the header of the recipient's tokens, or "".
func (r *Recipient) KeyID() string { return r.keyID }

// Algorithm returns the "alg" of the recipient's tokens.
func (r *Recipient) Algorithm() KeyAlgorithm { return r.algorithm }

// ContentEncryption returns the "enc" of the recipient's tokens.
func (r *Recipient) ContentEncryption() ContentEncryption { return r.content.name }
