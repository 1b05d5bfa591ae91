"""Opens JWEs with jwcrypto: one JSON object {key, token, algs} a line on stdin,
one JSON object {plaintext} or {error} a line on stdout."""

import json
import sys

from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

for line in sys.stdin:
    request = json.loads(line)
    try:
        jwe = JWE(algs=request["algs"])
        jwe.deserialize(request["token"], JWK(**request["key"]))
        answer = {"plaintext": jwe.payload.decode("ascii")}
    except Exception as error:  # whatever it is, it is the answer
        answer = {"error": "%s: %s" % (type(error).__name__, error)}
    print(json.dumps(answer))
