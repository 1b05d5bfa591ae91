package encrypter

import (
	"crypto"
)

// RecipientConfig says to whom, and how, tokens are encrypted.
type RecipientConfig struct {
	// Key is the client's public key: an *rsa.PublicKey, *ecdsa.PublicKey or
	// *ecdh.PublicKey that fits Algorithm. What is needed of it is copied.
	// Required.
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

	// Issuer is the claim "iss" repeated in the header (RFC 7519 section
	// 5.3), where an encrypted logout token carries it so that the client can
	// tell who sent it before it decrypts (OpenID Connect Back-Channel
	// Logout 1.0 section 2.4). Default: none, which leaves the parameter out.
	Issuer string
}

// Recipient is one client's key, with the algorithms to use with it, ready to
// encrypt; [NewRecipient] makes it. It never changes and may be used by any
// number of goroutines at once. It takes between half a kilobyte and a kilobyte
// of memory: the key, its ID and the encoded header.
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
// protected header. Its errors wrap [ErrUnknownAlgorithm], [ErrKeyUnsuitable]
// or [ErrHeaderValue], and hold no part of the key.
func NewRecipient(cfg RecipientConfig) (*Recipient, error) {
	alg := cfg.Algorithm.row()
	if alg == nil {
		return nil, unknownKeyAlgorithm(cfg.Algorithm)
	}
	enc := cfg.ContentEncryption.row()
	if enc == nil {
		return nil, unknownContentEncryption(cfg.ContentEncryption)
	}
	if err := alg.name.Fits(cfg.Key); err != nil {
		return nil, err
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

// KeyID returns the "kid" in the header of the recipient's tokens, or "".
func (r *Recipient) KeyID() string { return r.keyID }

// Algorithm returns the "alg" of the recipient's tokens.
func (r *Recipient) Algorithm() KeyAlgorithm { return r.algorithm }

// ContentEncryption returns the "enc" of the recipient's tokens.
func (r *Recipient) ContentEncryption() ContentEncryption { return r.content.name }
