"""Opens nested JWTs with jwcrypto, for package interop. See its documentation
for the protocol: one JSON object a line on stdin, one answer a line on stdout."""

import json
import sys

from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS


class Refused(Exception):
    """The token is not what was asked for."""


def compact(token, parts):
    # jwcrypto reads the JSON serializations too; here only the compact one is meant.
    if token.count(".") != parts - 1:
        raise Refused("not a compact token of %d parts" % parts)
    return token


def open_token(request):
    private = request["private_jwk"]
    jwe = JWE()
    jwe.allowed_algs = request["key_algorithms"] + request["content_encryptions"]
    jwe.deserialize(compact(request["token"], 5))
    outer = jwe.jose_header
    if outer.get("kid") != private.get("kid"):
        raise Refused("token is encrypted to key %r, not %r" % (outer.get("kid"), private.get("kid")))
    jwe.decrypt(JWK(**private))
    if outer.get("cty") != "JWT":
        raise Refused("cty is %r, not JWT" % outer.get("cty"))

    jws = JWS()
    jws.allowed_algs = request["signature_algorithms"]
    jws.deserialize(compact(jwe.payload.decode("ascii"), 3))
    inner = jws.jose_header
    signers = [
        key
        for key in request["signers_jwks"]["keys"]
        if key.get("kid") == inner.get("kid") and key.get("alg") == inner.get("alg")
    ]
    if len(signers) != 1:
        raise Refused("%d signers have kid %r and alg %r" % (len(signers), inner.get("kid"), inner.get("alg")))
    jws.verify(JWK(**signers[0]))
    return {"claims": jws.payload.decode("utf-8"), "jwe_header": outer, "jws_header": inner}


def main():
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = dict(open_token(request), id=request["id"], ok=True)
        except Exception as error:  # whatever jwcrypto raises is the answer
            answer = {"id": request["id"], "ok": False, "error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
