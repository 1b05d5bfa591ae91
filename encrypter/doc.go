// Package encrypter encloses a signed token so that one OAuth client, and
// nobody else, can open it: it turns a JWS into a nested JWT, a JWE in the
// compact serialization of RFC 7516 section 7.1,
//
//	BASE64URL(header) . BASE64URL(encrypted key) . BASE64URL(IV) . BASE64URL(ciphertext) . BASE64URL(tag)
//
// A [Recipient] is one public key of one client, or a secret key that it shares
// with the issuer, together with the key management algorithm (alg) and the
// content encryption algorithm (enc) that are to be used with it. [NewRecipient] does once what is the same for every
// token: it checks the key against the algorithm and encodes the protected
// header. [Recipient.Encrypt] does the rest for each token. A Recipient never
// changes, is meant to be kept for as long as the client's key is valid, and
// may be used by any number of goroutines at once.
//
// # What it promises
//
//   - Every token gets an initialization vector, a content encryption key
//     (except with dir, where that is the key they share) and, for ECDH-ES, an
//     ephemeral key of its own, all of them from crypto/rand. None of them is
//     ever used twice, and nothing here lets a caller choose one.
//   - Only something that looks like a signed token is enclosed
//     ([ErrNotSigned]), and the header always says so: "cty":"JWT" (RFC 7519
//     section 5.2). Sign, then encrypt.
//   - The header names the client's key whenever it has a name ("kid"), and
//     its certificate if it came with one ("x5t#S256", and "x5t" for clients
//     that know no other).
//   - A key is only accepted for an algorithm it fits, and only if an
//     encryption to it cannot fail later ([ErrKeyUnsuitable]).
//   - No compression ("zip"): the length of compressed claims tells about
//     their content.
//   - Errors hold nothing of the token, and neither errors nor a formatted
//     [Recipient] anything of a [SecretKey].
//
// # Algorithms
//
// [KeyAlgorithm] and [ContentEncryption] are names from the JOSE registry. One
// table, in algorithm.go, says of each which keys it takes, where it is
// defined and who may use it; [KeyAlgorithms] and [ContentEncryptions] list it,
// [CheckPair] says which go together, and [KeyAlgorithm.Warnings] what is to be
// known before. Two are legacy, for clients that know nothing better: they are
// for those to allow who know the client.
//
// All cryptographic primitives are those of the Go standard library, except
// X25519 and X448, which are Cloudflare's circl's, and the constructions that
// JOSE asks for on top: AES Key Wrap, AES-CBC with HMAC, and the Concat KDF.
//
// # What it leaves to others
//
// Which of a client's keys is used, and whether that key is any good, is
// decided by package encrypter/jwks; how keys are fetched and kept by
// encrypter/fetch and encrypter/keycache; which algorithms a client and an
// issuer have agreed upon by encrypter/registry; where secret keys are kept by
// encrypter/secrets. This package does no I/O, holds no private key, and does not
// decrypt.
package encrypter
