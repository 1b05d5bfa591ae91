// Opens a token as its client does: the token on stdin, its claims on stdout.
//
// Decrypts with the client's private key, then verifies the signature inside with
// the issuer's public keys. Both steps name the algorithms that the client
// registered and take no others: a header is what an attacker writes.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { compactDecrypt, createLocalJWKSet, importJWK, jwtVerify } from "jose";

const { values: args } = parseArgs({
  options: {
    key: { type: "string" }, // the client's private JWK
    jwks: { type: "string" }, // the issuer's public keys, from /jwks/{issuer}
    iss: { type: "string" },
    client: { type: "string" },
    alg: { type: "string", default: "RSA-OAEP-256" },
    enc: { type: "string", default: "A256GCM" },
    "signing-alg": { type: "string", default: "ES256" },
  },
});
const json = (path) => JSON.parse(readFileSync(path, "utf8"));

const key = await importJWK(json(args.key), args.alg);
const outer = await compactDecrypt(readFileSync(0, "utf8").trim(), key, {
  keyManagementAlgorithms: [args.alg],
  contentEncryptionAlgorithms: [args.enc],
});
if (outer.protectedHeader.cty?.toUpperCase() !== "JWT") throw new Error("the token holds no JWT");

// A client that runs for long takes createRemoteJWKSet(new URL(jwks_uri)) here.
const { payload } = await jwtVerify(outer.plaintext, createLocalJWKSet(json(args.jwks)), {
  algorithms: [args["signing-alg"]],
  issuer: args.iss,
  audience: args.client,
  requiredClaims: ["exp"],
  clockTolerance: 60,
});
console.log(JSON.stringify(payload));
