"""Opens a token as its client does: the token on stdin, its claims on stdout.

Decrypts with the client's private key, then verifies the signature inside with
the issuer's public keys. Both steps name the algorithms that the client
registered and take no others: a header is what an attacker writes.
"""

import argparse
import json
import sys
from pathlib import Path

from joserfc import jwe, jwk, jwt
from joserfc.jwe import JWERegistry
from joserfc.jws import JWSRegistry


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--key", type=Path, required=True, help="the client's private JWK")
    flags.add_argument("--jwks", type=Path, required=True, help="the issuer's public keys, from /jwks/{issuer}")
    flags.add_argument("--iss", required=True)
    flags.add_argument("--client", required=True)
    flags.add_argument("--alg", default="RSA-OAEP-256")
    flags.add_argument("--enc", default="A256GCM")
    flags.add_argument("--signing-alg", default="ES256")
    args = flags.parse_args()

    key = jwk.import_key(json.loads(args.key.read_text()))
    outer = jwe.decrypt_compact(
        sys.stdin.read().strip(), key, registry=JWERegistry(algorithms=[args.alg, args.enc])
    )
    if str(outer.headers().get("cty", "")).upper() != "JWT":
        print("the token holds no JWT", file=sys.stderr)
        return 1

    signers = jwk.KeySet.import_key_set(json.loads(args.jwks.read_text()))
    token = jwt.decode(outer.plaintext.decode(), signers, registry=JWSRegistry(algorithms=[args.signing_alg]))
    jwt.JWTClaimsRegistry(
        leeway=60,
        iss={"essential": True, "value": args.iss},
        aud={"essential": True, "value": args.client},
        exp={"essential": True},
    ).validate(token.claims)
    json.dump(token.claims, sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
