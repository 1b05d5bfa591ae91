package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// maxTries is how many private keys are tried on a token that names none. Each may
// cost a private-key operation, and whoever sends the token pays for none.
const maxTries = 16

// encrypted is a compact JWE that has been read but not decrypted.
type encrypted struct {
	token  string
	header *header

	encryptedKey, iv, ciphertext, tag []byte
}

// protected is the header as the token has it, which the content encryption
// authenticates (RFC 7516, section 5.2, step 14).
func (e *encrypted) protected() string {
	return e.token[:strings.IndexByte(e.token, '.')]
}

// beforeTag is all of the token before the last dot.
func (e *encrypted) beforeTag() string {
	return e.token[:strings.LastIndexByte(e.token, '.')]
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
	return &encrypted{token: token, header: h, encryptedKey: parts[1], iv: parts[2], ciphertext: parts[3], tag: parts[4]}, nil
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
	alg, ok := find(o.keyAlgorithms, e.header.Algorithm)
	if !ok {
		return nil, fmt.Errorf("%w: its key management algorithm (alg) is %s", ErrNotAllowed, quote(e.header.Algorithm))
	}
	enc, ok := find(o.contentEncryptions, e.header.ContentEncryption)
	if !ok {
		return nil, fmt.Errorf("%w: its content encryption (enc) is %s", ErrNotAllowed, quote(e.header.ContentEncryption))
	}
	if !enc.goesWith(alg) {
		return nil, fmt.Errorf("%w: its content encryption (enc) is %s, which does not go with alg %s", ErrNotAllowed, enc.name, alg.name)
	}
	keys := o.keysFor(e.header.KeyID, alg, enc)
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("%w: it names key %s with alg %s", ErrNoKey, quote(e.header.KeyID), alg.name)
	case len(keys) > maxTries:
		return nil, fmt.Errorf("%w: %d keys could be the one, more than the %d that are tried; give the keys a kid each", ErrNoKey, len(keys), maxTries)
	case alg.direct != (len(e.encryptedKey) == 0), !enc.fits(e):
		return nil, ErrDecrypt
	}
	for _, key := range keys {
		if plaintext, ok := e.decryptWith(key, alg, enc); ok {
			return plaintext, nil
		}
	}
	return nil, ErrDecrypt
}

// decryptWith tries one key. Where the content key does not come out, a random one
// takes its place, so that the way goes on to the same end and takes about the same
// time (RFC 7516, section 11.5).
func (e *encrypted) decryptWith(private any, alg keyAlgorithm, enc contentEncryption) ([]byte, bool) {
	random, err := randomKey(enc.keySize)
	if err != nil {
		return nil, false
	}
	cek, err := alg.unwrap(private, e, enc)
	if err != nil || len(cek) != enc.keySize {
		cek = random
	}
	plaintext, err := enc.open(cek, e)
	return plaintext, err == nil
}

// keysFor returns the private keys to try: those that the header names, else those
// without a name, among them what the client's secrets make. A header without kid
// (of a client whose registered key had none) leaves all. In every case the key must
// fit alg and not be bound to another.
func (o *Opener) keysFor(kid string, alg keyAlgorithm, enc contentEncryption) []any {
	var named, unnamed []any
	for _, key := range o.keys() {
		switch {
		case !alg.fits(key.Key, enc) || !boundTo(key, alg, enc):
		case kid != "" && key.KeyID == kid:
			named = append(named, key.Key)
		case kid == "" || key.KeyID == "":
			unnamed = append(unnamed, key.Key)
		}
	}
	if len(named) > 0 {
		return named
	}
	if alg.secretSize != nil {
		for _, secret := range o.secrets() {
			unnamed = append(unnamed, secretKey(secret, alg.secretSize(enc)))
		}
	}
	return unnamed
}

// boundTo tells if a key's own alg, where it has one, allows a pair of algorithms. A
// content key is bound to an enc (RFC 7517, section 4.4).
func boundTo(key jose.JSONWebKey, alg keyAlgorithm, enc contentEncryption) bool {
	names := []string{"", alg.name}
	if alg.name == "dir" {
		names = append(names, enc.name)
	}
	return slices.Contains(names, key.Algorithm)
}
