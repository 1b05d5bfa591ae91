// Package client is the Go side of those who use Bulla. It has two halves: that of
// the identity backend, which calls the service, and that of the relying party,
// the OAuth client that a token is for, which opens the token.
//
// [Dial] connects to a service, or to all its replicas in turn, and makes again
// what failed in a way that passes and does no harm when done twice ([Config]
// says what). Tokens are issued one by one ([Client].Tokens), in lists
// ([Client.SignAndEncryptAll]), or over a [Stream].
//
// A token of Bulla is a nested JWT (RFC 7519, section 5.2): claims signed by the
// issuer (JWS, RFC 7515), and the signed whole encrypted to one client (JWE,
// RFC 7516). To open it is to undo both in the right order: choose the private
// key, decrypt, look that the inside is a signed JWT and nothing else, choose
// the issuer's key, verify, and only then look at the claims. [Opener.Open] does
// all of it in one call and returns nothing unless all of it succeeded.
//
//	keys, err := client.ParseKeys(privateJWK)      // the client's own private key or keys
//	signers, err := client.ParseSigners(issuerJWKS) // the issuer's public keys
//	opener, err := client.NewOpener(client.OpenConfig{
//		Keys:     keys,
//		Signers:  signers,
//		Kind:     client.IDToken,
//		Issuer:   "https://login.example.com",
//		Audience: "app-1",
//	})
//	token, err := opener.Open(compact)
//
// A client that shares its secret with the issuer instead of a public key gives
// ClientSecrets, and the keys are made of it here.
//
// What it promises:
//
//   - Only algorithms on explicit lists are accepted. The token's header is looked
//     up in them; it never chooses by itself what code runs. What the lists name by
//     default is every algorithm that is sound; the two legacy ones (RSA1_5,
//     A128CBC+HS256) have to be named. "none" and the password-based ones (PBES2) do
//     not exist, nothing is decompressed, and keys or URLs that a header carries
//     (jwk, x5c, jku, x5u) are not used.
//   - Every algorithm has its type and size of key. A public key never verifies a
//     MAC, a secret never a signature, and a verification key is taken only if its
//     kid and its alg both equal the header's.
//   - Every part of the token is read strictly: canonical base64url, JSON without
//     duplicate names, sizes bounded. Two tokens that differ in one character are
//     never both accepted with the same signature or authentication tag.
//   - Where Kind is set, a token of another kind is refused; where Audience is set
//     too, so is one that names other audiences, unless they are trusted: it may have
//     been meant for them, and be passed on.
//   - Printing an [Opener], an [OpenConfig] or an [X448PrivateKey] shows no key and no
//     secret. (The jose.JSONWebKey that ParseKeys returns is not ours: what it has of
//     an oct key is printed.)
//   - A failed decryption says only [ErrDecrypt], always the same value, whatever
//     failed: the key, the wrapped key, the tag or the padding. A wrapped key that
//     does not unwrap is replaced by a random one, so that the failure takes the same
//     way to its end; ciphertext is not decrypted before its tag is compared.
//
// Tokens are decrypted by code of this package on the standard library's primitives
// (and CIRCL's X448), for no library knows all of the algorithms. It shares nothing
// with the code that writes tokens, and is proven by what others made: the vectors of
// Wycheproof and the RFCs, and tokens of go-jose, npm jose, npm node-jose and
// jwcrypto. Signatures and JWKs are go-jose's.
//
// Left to the caller: fetching the issuer's JWKS and fetching it again when
// [ErrUnknownSigner] says that the issuer has a new key; keeping the private key
// safe; and the checks of a protocol that need to know more than the token: nonce,
// at_hash, c_hash and s_hash of an ID token, sub of a UserInfo response, and the jti
// of a logout token that was seen before.
package client
