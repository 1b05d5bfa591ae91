package client

import (
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// encrypted is a compact JWE that has been read but not decrypted.
type encrypted struct {
	token        string
	header       *header
	encryptedKey []byte
	tag          []byte
}

// parseEncrypted reads a compact JWE (RFC 7516, section 7.1). What it refuses can be
// seen from outside, without a key.
func parseEncrypted(token string) (*encrypted, error) {
	parts, err := splitCompact(token, 5)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(parts[0])
	if err != nil {
		return nil, err
	}
	if h.ContentEncryption == "" {
		return nil, fmt.Errorf("%w: its header has no enc", ErrMalformed)
	}
	if err := h.refuseExtensions(); err != nil {
		return nil, err
	}
	// Length after compression tells about the content, and a small token could
	// unfold into a huge one (RFC 8725, section 3.6).
	if h.has("zip") {
		return nil, fmt.Errorf("%w: it is compressed (header parameter zip)", ErrNotAllowed)
	}
	return &encrypted{token: token, header: h, encryptedKey: parts[1], tag: parts[4]}, nil
}

// mustContainJWT checks the announcement that the inside is a JWT (RFC 7519,
// section 5.2: cty must be there for a nested one, and it is "JWT").
func (e *encrypted) mustContainJWT() error {
	if !strings.EqualFold(e.header.ContentType, "JWT") {
		return fmt.Errorf("%w: header parameter cty is %s, not JWT, so there is no signed token inside", ErrNotAllowed, quote(e.header.ContentType))
	}
	return nil
}

// decrypt returns the plaintext. From the moment that a private key is used,
// every failure is ErrDecrypt and nothing else.
func (o *Opener) decrypt(e *encrypted) ([]byte, error) {
	alg, ok := find(o.keyAlgorithms, e.header.Algorithm, keyAlgorithm.String)
	if !ok {
		return nil, fmt.Errorf("%w: its key management algorithm (alg) is %s", ErrNotAllowed, quote(e.header.Algorithm))
	}
	enc, ok := find(o.contentEncryptions, e.header.ContentEncryption, contentEncryption.String)
	if !ok {
		return nil, fmt.Errorf("%w: its content encryption (enc) is %s", ErrNotAllowed, quote(e.header.ContentEncryption))
	}
	keys := o.keysFor(e.header.KeyID, alg)
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: it names key %s with alg %s", ErrNoKey, quote(e.header.KeyID), alg.name)
	}
	jwe, err := jose.ParseEncryptedCompact(e.token, []jose.KeyAlgorithm{jose.KeyAlgorithm(alg.name)}, []jose.ContentEncryption{jose.ContentEncryption(enc.name)})
	if err != nil {
		// What is left after our own reading: a jwk or x5c that is none.
		return nil, fmt.Errorf("%w: a parameter of its header is not valid", ErrMalformed)
	}
	// go-jose takes a tag that is too long, as bytes of ciphertext moved over, and
	// overlooks an encrypted key where none may be.
	if len(e.tag) != enc.tagSize || alg.direct != (len(e.encryptedKey) == 0) {
		return nil, ErrDecrypt
	}
	for _, key := range keys {
		if plaintext, err := jwe.Decrypt(key.Key); err == nil {
			return plaintext, nil
		}
	}
	return nil, ErrDecrypt
}

// keysFor returns the private keys to try: those that the header names, else those
// without a name. A header without kid (of a client whose registered key had
// none) leaves all. In every case the key must fit alg and not be bound to another.
func (o *Opener) keysFor(kid string, alg keyAlgorithm) []jose.JSONWebKey {
	var named, unnamed []jose.JSONWebKey
	for _, key := range o.keys {
		switch {
		case !alg.fits(key.Key), key.Algorithm != "" && key.Algorithm != alg.name:
		case kid == "" || key.KeyID == kid:
			named = append(named, key)
		case key.KeyID == "":
			unnamed = append(unnamed, key)
		}
	}
	if len(named) > 0 {
		return named
	}
	return unnamed
}
