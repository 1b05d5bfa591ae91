"""Makes tokens with Debian's python3-jwcrypto, for the tests of package client: X448,
and keys that are made of a client's secret. See make.mjs."""

import hashlib
import json
import subprocess

from jwcrypto.common import base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

given = json.load(open("keys.json"))
version = subprocess.check_output(["dpkg-query", "-W", "-f", "${Version}", "python3-jwcrypto"], text=True)
ENCS = {"A128GCM": 16, "A192GCM": 24, "A256GCM": 32, "A128CBC-HS256": 32, "A192CBC-HS384": 48, "A256CBC-HS512": 64}


def sign(alg):
    symmetric = alg.startswith("HS")
    key = JWK(kty="oct", k=base64url_encode(given["secret"])) if symmetric else JWK(**given["signer"])
    jws = JWS(given["claims"].encode())
    jws.add_signature(key, alg, json.dumps({"alg": alg} if symmetric else {"alg": alg, "kid": given["signer"]["kid"]}))
    return jws.serialize(compact=True)


def encrypt(alg, enc, name, jwk, sig):
    header = {"alg": alg, "enc": enc, "cty": "JWT"}
    if "kid" in jwk:
        header["kid"] = jwk["kid"]
    jwe = JWE(sign(sig).encode(), json.dumps(header), algs=[alg, enc])
    jwe.add_recipient(JWK(**{k: v for k, v in jwk.items() if k != "d"}))
    token = jwe.serialize(compact=True)
    print(json.dumps({"by": "python3-jwcrypto " + version, "alg": alg, "enc": enc, "key": name, "sig": sig, "token": token}))


def derived(size):
    digest = hashlib.sha256 if size <= 32 else hashlib.sha384 if size <= 48 else hashlib.sha512
    return {"kty": "oct", "k": base64url_encode(digest(given["secret"].encode()).digest()[:size])}


for i, (enc, size) in enumerate(ENCS.items()):
    encrypt("ECDH-ES", enc, "x448", given["x448"], "ES256")
    encrypt(["ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"][i % 3], enc, "x448", given["x448"], "ES256")
    encrypt("dir", enc, "secret", derived(size), ["HS256", "HS384", "HS512"][i % 3])
    bits = [128, 192, 256][i % 3]
    encrypt("A%dKW" % bits, enc, "secret", derived(bits // 8), "HS256")
    encrypt("A%dGCMKW" % bits, enc, "secret", derived(bits // 8), "ES256")
