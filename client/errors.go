package client

import "errors"

// The reasons why a token does not open. Errors of [Opener.Open] wrap one of
// them, to be told apart with errors.Is; their texts name header parameters and
// claims, but never a claim's value, the token or a key.
var (
	// ErrMalformed: the text is not a compact JWE or JWS in strict form, is larger
	// than MaxBytes, or its headers contradict the standards. Whoever made or
	// forwarded it has to look; to try again does not help.
	ErrMalformed = errors.New("token is malformed")

	// ErrNotAllowed: the token is well formed but uses what the configuration (an
	// algorithm, a token without encryption) or this package (compression, a JWE
	// inside a JWE, alg none) does not accept. Change the registration of the
	// client or the lists in OpenConfig, if it is meant to be accepted.
	ErrNotAllowed = errors.New("token is not allowed")

	// ErrNoKey: none of the client's private keys is the one that the header names,
	// none fits its algorithm, or too many do. The token is for somebody else, or the issuer
	// still has an older public key of the client.
	ErrNoKey = errors.New("no private key for this token")

	// ErrDecrypt: the token did not decrypt, with a key or with what a secret makes
	// (has the client a new secret?). It is returned as it is, with nothing
	// wrapped or added, so that its sender learns nothing from it.
	ErrDecrypt = errors.New("token cannot be decrypted: it was made for another key, or changed on its way")

	// ErrUnknownSigner: no key in Signers has the kid and the alg of the signature.
	// Fetch the issuer's JWKS again (with a limit on how often) and build a new
	// Opener; if it still fails, the token is not of this issuer.
	ErrUnknownSigner = errors.New("no signer for this token")

	// ErrSignature: the signature does not verify under the signer's key. Refuse
	// the token.
	ErrSignature = errors.New("signature of the token does not verify")

	// ErrClaims: the payload is not a JSON object, its iss, aud, iat or nbf are not what
	// OpenConfig expects, or it is a token of another kind. Refuse the token.
	ErrClaims = errors.New("claims of the token are not acceptable")

	// ErrExpired: the token was good until its exp. Ask for a new one.
	ErrExpired = errors.New("token has expired")
)
