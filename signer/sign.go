package signer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

// ErrFault: a backend returned something that is not the signature of what it
// was given. Nothing was released. An operator has to look at the backend;
// the caller may try again, and gets a token if another session or device
// answers.
var ErrFault = errors.New("signing fault")

// Options of a SigningKey.
type Options struct {
	// SkipVerify lets signatures out without verifying them. It saves the CPU
	// time of a verification and gives up the protection against a device
	// that signs wrongly, which can leak its key. Default false.
	SkipVerify bool
}

// Composite is an optional ability of a kms.Key that is made of several, of
// which any may sign: to say which of them did, so that a signature that does
// not verify is held against that one alone.
type Composite interface {
	kms.Key
	// SignBy is Sign, and returns beside the signature whoever made it; nil if
	// that one cannot be told anything.
	SignBy(ctx context.Context, message []byte) (signature []byte, maker kms.Distruster, err error)
}

// Placed is an optional ability of a kms.Key: to say by its name in which
// backend the next signature will be asked for.
type Placed interface {
	Backend() string
}

// SigningKey is a key of a backend or a client's secret, ready to sign tokens:
// its kid and protected headers are made once. It does not change and may be
// used by any number of goroutines.
type SigningKey struct {
	key           kms.Key
	keyID         string
	algorithm     kms.Algorithm
	signatureSize int
	options       Options
	// headers are the protected headers of each kind, base64url and followed
	// by the period.
	headers map[TokenKind][]byte
}

// NewSigningKey makes a SigningKey of a backend's key. It fails with
// kms.ErrKeyMismatch if the public half does not fit the key's algorithm, and
// for every symmetric algorithm: that is NewSecretKey's.
func NewSigningKey(key kms.Key, options Options) (*SigningKey, error) {
	alg, pub := key.Algorithm(), key.Public()
	if err := alg.CheckPublic(pub); err != nil {
		return nil, err
	}
	kid, err := Thumbprint(pub)
	if err != nil {
		return nil, err
	}
	return &SigningKey{
		key:           key,
		keyID:         kid,
		algorithm:     alg,
		signatureSize: signatureSize(alg, pub),
		options:       options,
		headers:       protectedHeaders(alg, kid),
	}, nil
}

// protectedHeaders are the JWS protected headers of all kinds, base64url and
// followed by the period. Without a kid they have none.
func protectedHeaders(alg kms.Algorithm, kid string) map[TokenKind][]byte {
	headers := make(map[TokenKind][]byte, len(kinds))
	for kind := range kinds {
		// Three strings always marshal.
		header, _ := json.Marshal(struct {
			Alg string `json:"alg"`
			Kid string `json:"kid,omitempty"`
			Typ string `json:"typ,omitempty"`
		}{string(alg), kid, kind.Type()})
		headers[kind] = append(base64.RawURLEncoding.AppendEncode(nil, header), '.')
	}
	return headers
}

// KeyID is the key's kid: its RFC 7638 SHA-256 thumbprint; empty for a secret.
func (k *SigningKey) KeyID() string { return k.keyID }

// Algorithm is the JWS algorithm the key signs with.
func (k *SigningKey) Algorithm() kms.Algorithm { return k.algorithm }

// Public is the key's public half, nil for a secret.
func (k *SigningKey) Public() crypto.PublicKey { return k.key.Public() }

// Backend names the backend that the next signature will be asked of; empty for
// a secret, which needs none, and where the key cannot tell.
func (k *SigningKey) Backend() string {
	if p, ok := k.key.(Placed); ok {
		return p.Backend()
	}
	return ""
}

// Sign signs a prepared payload and returns the token as a JWS in compact
// serialization (RFC 7515, section 7.1). Unless the key's options say
// otherwise the signature has been verified; that of a secret, which would be
// held against itself, has the right length.
//
// Errors are ErrFault, those of kms.Key.Sign, and one for a payload that was
// prepared for another algorithm.
func Sign(ctx context.Context, k *SigningKey, p *Payload) ([]byte, error) {
	if p.algorithm != k.algorithm {
		return nil, fmt.Errorf("the payload was prepared for %s and the key signs %s", p.algorithm, k.algorithm)
	}
	token := k.signingInput(p)
	signature, err := k.sign(ctx, token, !k.options.SkipVerify)
	if err != nil {
		return nil, err
	}
	token = append(token, '.')
	return base64.RawURLEncoding.AppendEncode(token, signature), nil
}

// Probe signs a message that can be no token and verifies it, whatever the
// key's options say: it returns nil only if the key really works.
func (k *SigningKey) Probe(ctx context.Context) error {
	_, err := k.sign(ctx, []byte(kms.ProbePrefix+rand.Text()), true)
	return err
}

// signingInput is the JWS signing input, with room behind it for the
// signature.
func (k *SigningKey) signingInput(p *Payload) []byte {
	header, encoding := k.headers[p.kind], base64.RawURLEncoding
	size := len(header) + encoding.EncodedLen(len(p.json)) + 1 + encoding.EncodedLen(k.signatureSize)
	buf := append(make([]byte, 0, size), header...)
	return encoding.AppendEncode(buf, p.json)
}

// sign is the one way to a signature.
func (k *SigningKey) sign(ctx context.Context, message []byte, verify bool) ([]byte, error) {
	signature, maker, err := k.ask(ctx, message)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", k.name(), err)
	}
	if len(signature) != k.signatureSize {
		err = fmt.Errorf("%w: %s returned %d bytes, a signature of %s has %d", ErrFault, k.name(), len(signature), k.algorithm, k.signatureSize)
	} else if verify && !k.algorithm.Symmetric() && kms.Verify(k.algorithm, k.key.Public(), message, signature) != nil {
		err = fmt.Errorf("%w: %s returned a signature that does not verify", ErrFault, k.name())
	}
	if err != nil {
		if maker != nil {
			maker.Distrust()
		}
		return nil, err
	}
	return signature, nil
}

// ask has the key sign, and returns whom to tell if the signature does not
// verify; nil if there is nobody.
func (k *SigningKey) ask(ctx context.Context, message []byte) ([]byte, kms.Distruster, error) {
	if c, ok := k.key.(Composite); ok {
		return c.SignBy(ctx, message)
	}
	signature, err := k.key.Sign(ctx, message)
	maker, _ := k.key.(kms.Distruster)
	return signature, maker, err
}

// name is what errors call the key.
func (k *SigningKey) name() string {
	if k.keyID == "" {
		return "the client's secret"
	}
	return "key " + k.keyID
}

// signatureSize is the length in bytes of alg's signatures by a key that fits.
func signatureSize(alg kms.Algorithm, pub crypto.PublicKey) int {
	switch alg.KeyType() {
	case kms.RSA:
		if k, ok := pub.(*rsa.PublicKey); ok {
			return k.Size()
		}
		return 0
	case kms.EC:
		return 2 * alg.CoordinateSize()
	default:
		return 64 // Ed25519: RFC 8032, section 5.1.6
	}
}
