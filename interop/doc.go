// Package interop has other people's JOSE libraries open tokens, so that what Bulla
// writes is judged by code that nobody of Bulla wrote. It is for tests only.
//
// Each client is a small program in its library's own language that runs as long as a
// test. It first says what it is:
//
//	{"library": "jose 6.2.17", "platform": "Node.js 20.20.2"}
//
// and then answers one JSON object a line:
//
//	{"id": 1, "token": "eyJ…", "private_jwk": {…}, "signers_jwks": {"keys": […]},
//	 "key_algorithms": ["ECDH-ES"], "content_encryptions": ["A256GCM"], "signature_algorithms": ["ES256"]}
//
// with
//
//	{"id": 1, "ok": true, "claims": "{…}", "jwe_header": {…}, "jws_header": {…}}
//	{"id": 1, "ok": false, "error": "…"}
//
// where claims is the payload as text, byte for byte. In place of private_jwk there may
// be a "client_secret", from which the client derives its keys by itself (OpenID Connect
// Core 1.0, sections 10.1 and 10.2). A client decrypts if the token names the kid of its
// key, requires cty "JWT", chooses the signer by kid and alg, verifies, and accepts only
// the listed algorithms: by the library's own means where it has them.
//
// Which client opens what is written down in [Matrix]: everything in scope, less the
// exceptions listed there, each with its reason. Tests assert both: that a client opens
// what it should, and that it refuses the rest for the reason given. When an exception
// falls because a library has learned something, a test fails and the matrix is
// corrected.
//
// docs/interop.md is the output of such a test: "make interop" writes it, and every other
// run is held against it.
package interop
