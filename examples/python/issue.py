"""Asks Bulla for a token: claims as JSON on stdin, the token on stdout.

Shows what every caller should do: mutual TLS, a deadline for each call, retries
only where they help, and the reason of a refusal instead of its text.
"""

import argparse
import json
import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bulla.v1 import token_service_pb2, token_service_pb2_grpc

# gRPC repeats a call that got UNAVAILABLE, after the time that the server asks
# for (the trailer grpc-retry-pushback-ms). At worst a token is made that nobody
# gets. Calls that change something are not in the list: never repeat
# GenerateClientKey or RotateSigningKey without looking first.
SERVICE_CONFIG = json.dumps({
    "methodConfig": [{
        "name": [
            {"service": "bulla.v1.TokenService", "method": "SignAndEncrypt"},
            {"service": "bulla.v1.TokenService", "method": "Sign"},
        ],
        "retryPolicy": {
            "maxAttempts": 4,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 3,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }],
})


def reason_of(error: grpc.RpcError) -> str:
    """The reason of a refusal: one of those in error_reason.proto, or the gRPC code."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "bulla":
            return info.reason
    return error.code().name


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--addr", default="127.0.0.1:8443")
    flags.add_argument("--tls-ca", type=Path, required=True)
    flags.add_argument("--tls-cert", type=Path, required=True)
    flags.add_argument("--tls-key", type=Path, required=True)
    flags.add_argument("--issuer", default="")
    flags.add_argument("--client", required=True)
    args = flags.parse_args()

    credentials = grpc.ssl_channel_credentials(
        root_certificates=args.tls_ca.read_bytes(),
        private_key=args.tls_key.read_bytes(),
        certificate_chain=args.tls_cert.read_bytes(),
    )
    # One channel for the life of the process: it connects again by itself.
    options = [("grpc.service_config", SERVICE_CONFIG)]
    with grpc.secure_channel(args.addr, credentials, options) as channel:
        tokens = token_service_pb2_grpc.TokenServiceStub(channel)
        request = token_service_pb2.SignAndEncryptRequest(
            issuer=args.issuer,
            client_id=args.client,
            claims=sys.stdin.buffer.read(),
        )
        try:
            response = tokens.SignAndEncrypt(request, timeout=5)
        except grpc.RpcError as error:
            # Decide by the reason; the text is for people.
            print(f"{reason_of(error)}: {error.details()}", file=sys.stderr)
            return 1
    print(response.token)
    return 0


if __name__ == "__main__":
    sys.exit(main())
