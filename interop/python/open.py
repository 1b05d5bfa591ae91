"""Opens nested JWTs with jwcrypto, for package interop. See its documentation
for the protocol: one JSON object a line on stdin, one answer a line on stdout."""

import hashlib
import json
import platform
import sys
from importlib.metadata import version

from jwcrypto.common import base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

ENC_SIZES = {
    "A128GCM": 16,
    "A192GCM": 24,
    "A256GCM": 32,
    "A128CBC-HS256": 32,
    "A192CBC-HS384": 48,
    "A256CBC-HS512": 64,
}


class Refused(Exception):
    """The token is not what was asked for."""


def compact(token, parts):
    # jwcrypto reads the JSON serializations too; here only the compact one is meant.
    if token.count(".") != parts - 1:
        raise Refused("not a compact token of %d parts" % parts)
    return token


def oct_key(raw):
    return JWK(kty="oct", k=base64url_encode(raw))


def secret_key(secret, alg, enc):
    """The key that a client derives from its secret (OpenID Connect Core 1.0
    section 10.2): the left-most bits of a SHA-2 hash."""
    size = ENC_SIZES[enc] if alg == "dir" else int(alg[1:4]) // 8
    digest = hashlib.sha256 if size <= 32 else hashlib.sha384 if size <= 48 else hashlib.sha512
    return oct_key(digest(secret.encode("utf-8")).digest()[:size])


def open_token(request):
    private, secret = request.get("private_jwk"), request.get("client_secret")
    jwe = JWE()
    jwe.allowed_algs = request["key_algorithms"] + request["content_encryptions"]
    jwe.deserialize(compact(request["token"], 5))
    outer = jwe.jose_header
    kid = private.get("kid") if private else None
    if outer.get("kid") != kid:
        raise Refused("token is encrypted to key %r, not %r" % (outer.get("kid"), kid))
    jwe.decrypt(JWK(**private) if private else secret_key(secret, outer["alg"], outer["enc"]))
    if outer.get("cty") != "JWT":
        raise Refused("cty is %r, not JWT" % outer.get("cty"))

    jws = JWS()
    jws.allowed_algs = request["signature_algorithms"]
    jws.deserialize(compact(jwe.payload.decode("ascii"), 3))
    inner = jws.jose_header
    if secret and inner.get("alg", "").startswith("HS"):
        jws.verify(oct_key(secret.encode("utf-8")))
    else:
        signers = [
            key
            for key in request["signers_jwks"]["keys"]
            if key.get("kid") == inner.get("kid") and key.get("alg") == inner.get("alg")
        ]
        if len(signers) != 1:
            raise Refused("%d signers have kid %r and alg %r" % (len(signers), inner.get("kid"), inner.get("alg")))
        jws.verify(JWK(**signers[0]))
    return {"claims": jws.payload.decode("utf-8"), "jwe_header": outer, "jws_header": inner}


def write(answer):
    print(json.dumps(answer), flush=True)


def main():
    write({
        "library": "jwcrypto " + version("jwcrypto"),
        "platform": "Python %s, cryptography %s" % (platform.python_version(), version("cryptography")),
    })
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = dict(open_token(request), id=request["id"], ok=True)
        except Exception as error:  # whatever jwcrypto raises is the answer
            answer = {"id": request["id"], "ok": False, "error": "%s: %s" % (type(error).__name__, error)}
        write(answer)


if __name__ == "__main__":
    main()
