package interop

import (
	"fmt"
	"slices"
	"strings"
)

// Case is one way to make a token.
type Case struct {
	Algorithm         string // JWE alg
	Curve             string // crv of the client's key; empty if it has none
	ContentEncryption string // JWE enc
	Signature         string // JWS alg
}

func (c Case) String() string {
	return fmt.Sprintf("%s, %s, %s", c.Key(), c.ContentEncryption, c.Signature)
}

// Key is the alg and the curve: what the client's key must fit.
func (c Case) Key() string { return strings.TrimSuffix(c.Algorithm+" "+c.Curve, " ") }

// Symmetric reports whether the client's key is derived from its secret.
func (c Case) Symmetric() bool {
	return c.Algorithm == "dir" || strings.HasPrefix(c.Algorithm, "A")
}

// Legacy reports whether the token is for clients that are registered as legacy.
func (c Case) Legacy() bool {
	return c.Algorithm == "RSA1_5" || c.ContentEncryption == LegacyEncryption
}

// What is in scope, by the names of RFC 7518, RFC 8037, RFC 9864 and, for
// RSA-OAEP-384 and RSA-OAEP-512, of the Web Cryptography API.
var (
	RSAAlgorithms       = []string{"RSA1_5", "RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"}
	SecretAlgorithms    = []string{"A128KW", "A192KW", "A256KW", "A128GCMKW", "A192GCMKW", "A256GCMKW", "dir"}
	ECDHAlgorithms      = []string{"ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"}
	Curves              = []string{"P-256", "P-384", "P-521", "X25519", "X448"}
	ContentEncryptions  = []string{"A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512", "A128GCM", "A192GCM", "A256GCM"}
	SignatureAlgorithms = []string{
		"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
		"EdDSA", "Ed25519", "HS256", "HS384", "HS512",
	}
)

// LegacyEncryption is the enc of drafts of RFC 7518. It goes with the algorithms
// in LegacyAlgorithms only.
const LegacyEncryption = "A128CBC+HS256"

// LegacyAlgorithms are what LegacyEncryption goes with.
var LegacyAlgorithms = []string{"RSA1_5", "RSA-OAEP"}

// usualSignatures are those that every client verifies. Only these take part in
// EncryptionCases, so that a client's lack of one says nothing of an alg or enc.
var usualSignatures = []string{"RS256", "PS256", "ES256", "RS384", "PS384", "ES384", "RS512", "PS512", "ES512"}

// EncryptionCases returns every key management algorithm on every curve with every
// content encryption that goes with it. The layers of a token do not touch each
// other, so the signature algorithms take turns instead of multiplying the list.
func EncryptionCases() []Case {
	var cases []Case
	add := func(alg, curve string, encs ...string) {
		for _, enc := range encs {
			sig := usualSignatures[len(cases)%len(usualSignatures)]
			cases = append(cases, Case{Algorithm: alg, Curve: curve, ContentEncryption: enc, Signature: sig})
		}
	}
	for _, alg := range RSAAlgorithms {
		add(alg, "", ContentEncryptions...)
		if slices.Contains(LegacyAlgorithms, alg) {
			add(alg, "", LegacyEncryption)
		}
	}
	for _, alg := range SecretAlgorithms {
		add(alg, "", ContentEncryptions...)
	}
	for _, alg := range ECDHAlgorithms {
		for _, curve := range Curves {
			add(alg, curve, ContentEncryptions...)
		}
	}
	return cases
}

// SignatureCases returns every signature algorithm, in an encryption that every
// client opens.
func SignatureCases() []Case {
	var cases []Case
	for _, sig := range SignatureAlgorithms {
		c := Case{Algorithm: "ECDH-ES+A128KW", Curve: "P-256", ContentEncryption: "A128CBC-HS256", Signature: sig}
		if strings.HasPrefix(sig, "HS") {
			// The key is the client's secret, and so is that of the encryption.
			c.Algorithm, c.Curve = "A256KW", ""
		}
		cases = append(cases, c)
	}
	return cases
}

// Cases returns all cases.
func Cases() []Case { return slices.Concat(EncryptionCases(), SignatureCases()) }
