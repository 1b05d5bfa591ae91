package interop

import (
	"slices"
	"strings"
)

// Exception is a part of the scope that a client does not open.
type Exception struct {
	Client Client
	// Platforms are those that it holds on, by the start of their names; empty for
	// all.
	Platforms []string
	// What it is about; an empty list stands for every value.
	Algorithms, Curves, ContentEncryptions, Signatures []string
	// Reason is for people.
	Reason string
	// Error is a part of the client's error text, so that a refusal for another
	// reason does not count.
	Error string
}

// Matrix lists the exceptions, by client. All else in scope, every client opens. Where
// several apply to a case, the first counts.
var Matrix = []Exception{
	{
		Client:             Jose,
		ContentEncryptions: []string{LegacyEncryption},
		Reason:             "No RFC has it, and neither has the library.",
		Error:              `unsupported "enc"`,
	},
	{
		Client:     Jose,
		Algorithms: []string{"RSA1_5"},
		Reason:     "It builds on the Web Cryptography API, which has no PKCS #1 v1.5 encryption.",
		Error:      `unsupported JWK "alg"`,
	},
	{
		Client: Jose,
		Curves: []string{"X448"},
		Reason: "It takes X25519 of the OKP curves, and no other.",
		Error:  `unsupported JWK "alg"`,
	},

	{
		Client:     NodeJose,
		Platforms:  []string{"Node.js 18.", "Node.js 20."},
		Algorithms: []string{"RSA1_5"},
		Reason: "Node.js 18 and 20 refuse PKCS #1 v1.5 decryption, against CVE-2023-46809, unless they are run with " + Revert +
			"; from version 22 on they answer bad padding with a random key, and node-jose opens RSA1_5 without a flag.",
		Error: "no key found",
	},
	{
		Client:     NodeJose,
		Algorithms: []string{"RSA-OAEP-384", "RSA-OAEP-512"},
		Reason:     "It has OAEP with SHA-1 and SHA-256 only.",
		Error:      "to unwrap with a key of type RSA",
	},
	{
		Client: NodeJose,
		Curves: []string{"X25519", "X448"},
		Reason: "It has no keys of type OKP.",
		Error:  "unsupported key type",
	},
	{
		Client:             NodeJose,
		Algorithms:         []string{"ECDH-ES"},
		ContentEncryptions: []string{"A192CBC-HS384", "A256CBC-HS512"},
		Reason: "Its Concat KDF divides the key's length in bytes by the hash's in bits, so that it always makes one round: " +
			"a content encryption key of 384 or 512 bits ends after 256.",
		Error: "unsupported algorithm",
	},
	{
		Client:     NodeJose,
		Signatures: []string{"EdDSA", "Ed25519"},
		Reason: "It has no keys of type OKP. Its JWK.asKeyStore refuses a whole JWK Set that has one: " +
			"where the issuer publishes an Ed25519 key, take the signer by its kid and give that to JWK.asKey.",
		Error: "unsupported key type",
	},

	{
		Client:     JWCrypto,
		Algorithms: []string{"RSA-OAEP-384", "RSA-OAEP-512"},
		Reason:     "It has OAEP with SHA-1 and SHA-256 only.",
		Error:      "is not a valid Key Management algorithm name",
	},
	{
		Client:             JWCrypto,
		ContentEncryptions: []string{LegacyEncryption},
		Reason:             "No RFC has it, and neither has the library.",
		Error:              "is not a valid Encryption algorithm name",
	},
	{
		Client:     JWCrypto,
		Signatures: []string{"Ed25519"},
		Reason:     "It is older than RFC 9864 and knows the algorithm as EdDSA only.",
		Error:      "Ed25519 is not a valid Signing algorithm name",
	},

	{
		Client:     ErlangJose,
		Algorithms: []string{"RSA-OAEP-384", "RSA-OAEP-512"},
		Reason:     "It has OAEP with SHA-1 and SHA-256 only.",
		Error:      "function_clause in jose_jwe_alg_rsa",
	},
	{
		Client:             ErlangJose,
		ContentEncryptions: []string{LegacyEncryption},
		Reason:             "No RFC has it, and neither has the library.",
		Error:              "function_clause in jose_jwe_enc_aes",
	},

	{
		Client: Nimbus,
		Curves: []string{"X448"},
		Reason: "Its ECDH on OKP keys is that of Tink, which has X25519 only.",
		Error:  "Unsupported elliptic curve X448, must be X25519",
	},
}

// Expect tells whether a client, started on some platform, opens tokens of a case; if
// not, by which exception.
func Expect(client Client, on About, c Case) (opens bool, because *Exception) {
	i := slices.IndexFunc(Matrix, func(e Exception) bool {
		return e.holdsFor(client) && e.holdsOn(on) && e.covers(c)
	})
	if i < 0 {
		return true, nil
	}
	return false, &Matrix[i]
}

// holdsFor: what node-jose lacks it lacks with the flag, too, but for what the flag is
// there for.
func (e *Exception) holdsFor(client Client) bool {
	return e.Client == client || client == NodeJoseReverted && e.Client == NodeJose && len(e.Platforms) == 0
}

func (e *Exception) holdsOn(on About) bool {
	return len(e.Platforms) == 0 || slices.ContainsFunc(e.Platforms, func(p string) bool { return strings.HasPrefix(on.Platform, p) })
}

func (e *Exception) covers(c Case) bool {
	has := func(values []string, value string) bool { return len(values) == 0 || slices.Contains(values, value) }
	return has(e.Algorithms, c.Algorithm) && has(e.Curves, c.Curve) &&
		has(e.ContentEncryptions, c.ContentEncryption) && has(e.Signatures, c.Signature)
}
