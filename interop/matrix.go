package interop

import (
	"fmt"
	"slices"
)

// Client is a JOSE implementation that Bulla's tokens are proven with.
type Client string

// The clients, by the name of their folder.
const (
	// Node is npm jose, in the version of node/package.json, on Node.js.
	Node Client = "node"
	// Python is Debian's python3-jwcrypto, on Debian's Python.
	Python Client = "python"
)

// Clients lists all clients.
var Clients = []Client{Node, Python}

// Case is one way to make a token.
type Case struct {
	Algorithm         string // JWE alg
	Curve             string // of the client's key: P-256, P-384 or P-521; empty with RSA
	ContentEncryption string // JWE enc
	Signature         string // JWS alg
}

func (c Case) String() string {
	alg := c.Algorithm
	if c.Curve != "" {
		alg += " " + c.Curve
	}
	return fmt.Sprintf("%s, %s, %s", alg, c.ContentEncryption, c.Signature)
}

// What is in scope, by the names of RFC 7518, RFC 8037 and RFC 9864.
var (
	RSAAlgorithms       = []string{"RSA-OAEP", "RSA-OAEP-256"}
	ECDHAlgorithms      = []string{"ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"}
	Curves              = []string{"P-256", "P-384", "P-521"}
	ContentEncryptions  = []string{"A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512"}
	SignatureAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)

// Cases returns the ways to make a token: every key management algorithm on every
// curve with every content encryption, and every signature algorithm. The two
// layers do not touch each other, so the signature algorithms take turns instead of
// multiplying the list; each occurs several times.
func Cases() []Case {
	var cases []Case
	add := func(alg, curve string) {
		for _, enc := range ContentEncryptions {
			sig := SignatureAlgorithms[len(cases)%len(SignatureAlgorithms)]
			cases = append(cases, Case{Algorithm: alg, Curve: curve, ContentEncryption: enc, Signature: sig})
		}
	}
	for _, alg := range RSAAlgorithms {
		add(alg, "")
	}
	for _, alg := range ECDHAlgorithms {
		for _, curve := range Curves {
			add(alg, curve)
		}
	}
	return cases
}

// Exception is a part of the scope that a client does not open.
type Exception struct {
	Client Client
	// What it is about; an empty field stands for every value.
	Algorithm, Curve, ContentEncryption, Signature string
	// Reason is for people.
	Reason string
	// Error is a part of the client's error text, so that a refusal for another
	// reason does not count.
	Error string
}

// Matrix lists the exceptions. All else in scope, every client opens.
var Matrix = []Exception{
	{
		Client:    Python,
		Signature: "Ed25519",
		Reason:    "jwcrypto 1.1.0 is older than RFC 9864 and knows the algorithm only as EdDSA",
		Error:     "Ed25519 is not a valid Signing algorithm name",
	},
}

// Expect tells whether a client opens tokens of a case; if not, by which exception.
func Expect(client Client, c Case) (opens bool, because Exception) {
	matches := func(pattern, value string) bool { return pattern == "" || pattern == value }
	i := slices.IndexFunc(Matrix, func(e Exception) bool {
		return e.Client == client &&
			matches(e.Algorithm, c.Algorithm) && matches(e.Curve, c.Curve) &&
			matches(e.ContentEncryption, c.ContentEncryption) && matches(e.Signature, c.Signature)
	})
	if i < 0 {
		return true, Exception{}
	}
	return false, Matrix[i]
}
