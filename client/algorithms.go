package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // RSA-OAEP is defined with it, and does not need its collision resistance
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"strings"
)

// minRSABits is the least size of a usable RSA key (RFC 7518, sections 3.3 and 4.3).
// maxRSABits is beyond all that is in use; a larger one would only cost time.
const (
	minRSABits = 2048
	maxRSABits = 16384
)

// The three tables below are all that this package knows. Their order is that of
// the defaults and of lists in error texts.

// keyAlgorithm is a JWE key management algorithm (RFC 7518, section 4).
type keyAlgorithm struct {
	name string
	// legacy algorithms are accepted only where the configuration names them.
	legacy bool
	// fits tells if a private key is of the algorithm's kind and, where it is
	// symmetric, of the size that alg and enc need.
	fits func(private any, enc contentEncryption) bool
	// direct: the content key is not sent, so the encrypted key is empty
	// (RFC 7516, section 5.2, step 10).
	direct bool
	// secretSize is how many bytes of a client's secret make the key, if the
	// algorithm is symmetric.
	secretSize func(enc contentEncryption) int
	// unwrap returns the content key. Nobody learns what its error says.
	unwrap unwrapper
}

var keyAlgorithms = []keyAlgorithm{
	{name: "RSA-OAEP-256", fits: isRSAPrivate, unwrap: rsaOAEP(crypto.SHA256)},
	{name: "RSA-OAEP-384", fits: isRSAPrivate, unwrap: rsaOAEP(crypto.SHA384)},
	{name: "RSA-OAEP-512", fits: isRSAPrivate, unwrap: rsaOAEP(crypto.SHA512)},
	{name: "RSA-OAEP", fits: isRSAPrivate, unwrap: rsaOAEP(crypto.SHA1)},
	{name: "ECDH-ES", fits: canAgree, direct: true, unwrap: agreedKey},
	{name: "ECDH-ES+A128KW", fits: canAgree, unwrap: agreedKeyWrap(16)},
	{name: "ECDH-ES+A192KW", fits: canAgree, unwrap: agreedKeyWrap(24)},
	{name: "ECDH-ES+A256KW", fits: canAgree, unwrap: agreedKeyWrap(32)},
	symmetric("A128KW", 16, aesKeyWrap),
	symmetric("A192KW", 24, aesKeyWrap),
	symmetric("A256KW", 32, aesKeyWrap),
	symmetric("A128GCMKW", 16, gcmKeyWrap),
	symmetric("A192GCMKW", 24, gcmKeyWrap),
	symmetric("A256GCMKW", 32, gcmKeyWrap),
	{name: "dir", fits: isContentKey, direct: true, unwrap: sharedKey,
		secretSize: func(enc contentEncryption) int { return enc.keySize }},
	{name: "RSA1_5", legacy: true, fits: isRSAPrivate, unwrap: rsaPKCS1v15},
}

// symmetric is the row of an algorithm that wraps the content key with a key of size
// bytes that both sides have.
func symmetric(name string, size int, unwrap unwrapper) keyAlgorithm {
	return keyAlgorithm{
		name:       name,
		fits:       func(private any, _ contentEncryption) bool { return isSecret(private, size) },
		secretSize: func(contentEncryption) int { return size },
		unwrap:     unwrap,
	}
}

// contentEncryption is a JWE content encryption algorithm (RFC 7518, section 5). All
// sizes are in bytes.
type contentEncryption struct {
	name                     string
	legacy                   bool // as in keyAlgorithm
	keySize, ivSize, tagSize int
	// wholeBlocks: the ciphertext is one or more AES blocks.
	wholeBlocks bool
	open        contentOpener
}

var contentEncryptions = []contentEncryption{
	{name: "A256GCM", keySize: 32, ivSize: 12, tagSize: 16, open: openGCM},
	{name: "A192GCM", keySize: 24, ivSize: 12, tagSize: 16, open: openGCM},
	{name: "A128GCM", keySize: 16, ivSize: 12, tagSize: 16, open: openGCM},
	{name: "A256CBC-HS512", keySize: 64, ivSize: 16, tagSize: 32, wholeBlocks: true, open: openCBC(sha512.New)},
	{name: "A192CBC-HS384", keySize: 48, ivSize: 16, tagSize: 24, wholeBlocks: true, open: openCBC(sha512.New384)},
	{name: "A128CBC-HS256", keySize: 32, ivSize: 16, tagSize: 16, wholeBlocks: true, open: openCBC(sha256.New)},
	{name: legacyCBC, legacy: true, keySize: 32, ivSize: 16, tagSize: 32, wholeBlocks: true, open: openLegacyCBC},
}

// legacyCBC is the content encryption of drafts older than RFC 7516.
const legacyCBC = "A128CBC+HS256"

// goesWith tells if a token may have both. The drafts that defined the legacy
// content encryption had only these two algorithms beside it.
func (c contentEncryption) goesWith(alg keyAlgorithm) bool {
	return c.name != legacyCBC || alg.name == "RSA1_5" || alg.name == "RSA-OAEP"
}

// signatureAlgorithm is a JWS signature algorithm (RFC 7518, section 3; RFC 8037;
// RFC 9864).
type signatureAlgorithm struct {
	name string
	fits func(public any) bool
	// verifier makes of a key that fits what go-jose verifies with, where the bare
	// key will not do.
	verifier func(public any) any
	// minSecret is the length of the shortest secret that may be the key of the
	// MAC (RFC 7518, section 3.2); zero if the algorithm is asymmetric.
	minSecret int
}

// symmetric algorithms are verified with a client's secret and never with a key of
// Signers, the others never with a secret: so a public key can never be taken for
// the key of a MAC.
func (s signatureAlgorithm) symmetric() bool { return s.minSecret > 0 }

var signatureAlgorithms = []signatureAlgorithm{
	{name: "ES256", fits: onCurve(elliptic.P256())},
	{name: "ES384", fits: onCurve(elliptic.P384())},
	{name: "ES512", fits: onCurve(elliptic.P521())},
	{name: "PS256", fits: isRSAPublic, verifier: pss(crypto.SHA256)},
	{name: "PS384", fits: isRSAPublic, verifier: pss(crypto.SHA384)},
	{name: "PS512", fits: isRSAPublic, verifier: pss(crypto.SHA512)},
	{name: "RS256", fits: isRSAPublic},
	{name: "RS384", fits: isRSAPublic},
	{name: "RS512", fits: isRSAPublic},
	{name: "EdDSA", fits: isEd25519},
	{name: "Ed25519", fits: isEd25519, verifier: ed25519ByNewName},
	{name: "HS256", fits: noKey, minSecret: 32},
	{name: "HS384", fits: noKey, minSecret: 48},
	{name: "HS512", fits: noKey, minSecret: 64},
}

func isRSAPrivate(key any, _ contentEncryption) bool {
	k, ok := key.(*rsa.PrivateKey)
	return ok && soundSize(&k.PublicKey)
}

func isSecret(key any, size int) bool {
	k, ok := key.([]byte)
	return ok && len(k) == size
}

func isContentKey(key any, enc contentEncryption) bool { return isSecret(key, enc.keySize) }

func isRSAPublic(key any) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && soundSize(k)
}

func soundSize(k *rsa.PublicKey) bool {
	return k.N.BitLen() >= minRSABits && k.N.BitLen() <= maxRSABits
}

func isEd25519(key any) bool {
	k, ok := key.(ed25519.PublicKey)
	return ok && len(k) == ed25519.PublicKeySize
}

func onCurve(curve elliptic.Curve) func(any) bool {
	return func(key any) bool {
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k.Curve == curve
	}
}

func noKey(any) bool { return false }

// pick returns the rows of table that list names, or the default ones if the list
// is empty. A name that the table lacks is an error with advice.
func pick[T fmt.Stringer](field string, list []string, table []T, byDefault func(T) bool) ([]T, error) {
	var picked []T
	if len(list) == 0 {
		for _, row := range table {
			if byDefault(row) {
				picked = append(picked, row)
			}
		}
		return picked, nil
	}
	for _, want := range list {
		row, ok := find(table, want)
		if !ok {
			var names []string
			for _, row := range table {
				names = append(names, row.String())
			}
			return nil, fmt.Errorf("OpenConfig.%s: %s is not supported here; remove it, or choose of %s",
				field, quote(want), strings.Join(names, ", "))
		}
		picked = append(picked, row)
	}
	return picked, nil
}

// find returns the row that has this name.
func find[T fmt.Stringer](table []T, want string) (T, bool) {
	i := slices.IndexFunc(table, func(row T) bool { return row.String() == want })
	if i < 0 {
		var none T
		return none, false
	}
	return table[i], true
}

func (a keyAlgorithm) String() string       { return a.name }
func (c contentEncryption) String() string  { return c.name }
func (s signatureAlgorithm) String() string { return s.name }
