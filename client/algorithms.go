package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
)

// minRSABits is the least size of a usable RSA key (RFC 7518, sections 3.3 and 4.3).
const minRSABits = 2048

// The three tables below are all that this package knows. Their order is that of
// the defaults and of lists in error texts.

// keyAlgorithm is a JWE key management algorithm (RFC 7518, section 4).
type keyAlgorithm struct {
	name string
	// fits tells if a private key is of the algorithm's kind.
	fits func(private any) bool
	// direct: the content key is agreed on, so the encrypted key is empty
	// (RFC 7516, section 5.2, step 10).
	direct bool
}

var keyAlgorithms = []keyAlgorithm{
	{name: "RSA-OAEP-256", fits: isRSAPrivate},
	{name: "RSA-OAEP", fits: isRSAPrivate},
	{name: "ECDH-ES", fits: isECPrivate, direct: true},
	{name: "ECDH-ES+A128KW", fits: isECPrivate},
	{name: "ECDH-ES+A192KW", fits: isECPrivate},
	{name: "ECDH-ES+A256KW", fits: isECPrivate},
}

// contentEncryption is a JWE content encryption algorithm (RFC 7518, section 5).
type contentEncryption struct {
	name string
	// Bytes of the authentication tag. The standard fixes them; go-jose takes more.
	tagSize int
}

var contentEncryptions = []contentEncryption{
	{name: "A256GCM", tagSize: 16},
	{name: "A192GCM", tagSize: 16},
	{name: "A128GCM", tagSize: 16},
	{name: "A256CBC-HS512", tagSize: 32},
	{name: "A192CBC-HS384", tagSize: 24},
	{name: "A128CBC-HS256", tagSize: 16},
}

// signatureAlgorithm is a JWS signature algorithm (RFC 7518, section 3; RFC 8037;
// RFC 9864).
type signatureAlgorithm struct {
	name string
	fits func(public any) bool
	// verifier makes of a key that fits what go-jose verifies with, where the bare
	// key will not do.
	verifier func(public any) any
}

var signatureAlgorithms = []signatureAlgorithm{
	{"ES256", onCurve(elliptic.P256()), nil},
	{"ES384", onCurve(elliptic.P384()), nil},
	{"ES512", onCurve(elliptic.P521()), nil},
	{"PS256", isRSAPublic, pss(crypto.SHA256)},
	{"PS384", isRSAPublic, pss(crypto.SHA384)},
	{"PS512", isRSAPublic, pss(crypto.SHA512)},
	{"RS256", isRSAPublic, nil},
	{"RS384", isRSAPublic, nil},
	{"RS512", isRSAPublic, nil},
	{"EdDSA", isEd25519, nil},
	{"Ed25519", isEd25519, ed25519ByNewName},
}

func isRSAPrivate(key any) bool {
	k, ok := key.(*rsa.PrivateKey)
	return ok && k.N.BitLen() >= minRSABits
}

func isECPrivate(key any) bool {
	_, ok := key.(*ecdsa.PrivateKey)
	return ok
}

func isRSAPublic(key any) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && k.N.BitLen() >= minRSABits
}

func isEd25519(key any) bool {
	_, ok := key.(ed25519.PublicKey)
	return ok
}

func onCurve(curve elliptic.Curve) func(any) bool {
	return func(key any) bool {
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k.Curve == curve
	}
}

// pick returns the rows of table that list names, all of them if the list is
// empty. A name that the table lacks is an error with advice.
func pick[T any](field string, list []string, table []T, name func(T) string) ([]T, error) {
	if len(list) == 0 {
		return table, nil
	}
	var names []string
	for _, row := range table {
		names = append(names, name(row))
	}
	var picked []T
	for _, want := range list {
		i := slices.Index(names, want)
		if i < 0 {
			return nil, fmt.Errorf("OpenConfig.%s: %s is not supported here; remove it, or choose of %s",
				field, quote(want), strings.Join(names, ", "))
		}
		picked = append(picked, table[i])
	}
	return picked, nil
}

// find returns the row that has this name.
func find[T any](table []T, want string, name func(T) string) (T, bool) {
	i := slices.IndexFunc(table, func(row T) bool { return name(row) == want })
	if i < 0 {
		var none T
		return none, false
	}
	return table[i], true
}

func (a keyAlgorithm) String() string       { return a.name }
func (c contentEncryption) String() string  { return c.name }
func (s signatureAlgorithm) String() string { return s.name }
