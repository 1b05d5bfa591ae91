// Package client is the Go side of those who use Bulla. What stands here is the
// half of the relying party, the OAuth client that a token is for: it opens
// the token.
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
//		Issuer:   "https://login.example.com",
//		Audience: "app-1",
//	})
//	token, err := opener.Open(compact)
//
// What it promises:
//
//   - Only algorithms on explicit lists are accepted. The token's header is looked
//     up in them; it never chooses by itself what code runs. Nothing symmetric
//     verifies a signature, "none" does not exist, nothing is decompressed, and
//     keys or URLs that a header carries (jwk, x5c, jku, x5u) are not used.
//   - A verification key is taken only if its kid and its alg both equal the
//     header's.
//   - Every part of the token is read strictly: canonical base64url, JSON without
//     duplicate names, sizes bounded. Two tokens that differ in one character are
//     never both accepted with the same signature or authentication tag.
//   - A failed decryption says only [ErrDecrypt], always the same value, whatever
//     failed: the key, the wrapped key, the tag or the padding.
//
// The cryptography and the JWK forms are go-jose's: Bulla writes tokens with
// code of its own, so it reads them with the code of others. Around it this
// package adds the strictness above.
//
// Left to the caller: fetching the issuer's JWKS and fetching it again when
// [ErrUnknownSigner] says that the issuer has a new key; keeping the private key
// safe; and the checks of a protocol beyond iss, aud, exp and nbf, such as nonce,
// azp, at_hash or events of OpenID Connect.
package client
