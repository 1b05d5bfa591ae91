// Package interop has other people's JOSE clients open tokens, so that what Bulla
// writes is judged by code that nobody of Bulla wrote. It is for tests only.
//
// Each client is a small program in its own language that runs as long as a test
// and answers one JSON object a line:
//
//	{"id": 1, "token": "eyJ…", "private_jwk": {…}, "signers_jwks": {"keys": […]},
//	 "key_algorithms": ["ECDH-ES"], "content_encryptions": ["A256GCM"], "signature_algorithms": ["ES256"]}
//
// with
//
//	{"id": 1, "ok": true, "claims": "{…}", "jwe_header": {…}, "jws_header": {…}}
//	{"id": 1, "ok": false, "error": "…"}
//
// where claims is the payload as text, byte for byte. A client decrypts with the
// private key if the token names its kid, requires cty "JWT", chooses the
// signer by kid and alg, verifies, and accepts only the listed algorithms.
//
// Which client opens what is written down in [Matrix]: everything in scope, less the
// exceptions listed there, each with its reason. Tests assert both: that a client
// opens what it should, and that it refuses the rest for the reason given. When an
// exception falls because a library has learned something, a test fails and the
// matrix is corrected.
package interop
