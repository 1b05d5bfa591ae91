// Asks Bulla for a token: claims as JSON on stdin, the token on stdout.
//
// Shows what every caller should do: mutual TLS, a deadline for each call,
// retries only where they help, and the reason of a refusal instead of its text.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const { values: args } = parseArgs({
  options: {
    addr: { type: "string", default: "127.0.0.1:8443" },
    "tls-ca": { type: "string" },
    "tls-cert": { type: "string" },
    "tls-key": { type: "string" },
    issuer: { type: "string", default: "" },
    client: { type: "string" },
  },
});

const proto = fileURLToPath(new URL("../../proto", import.meta.url));
const { bulla } = grpc.loadPackageDefinition(
  protoLoader.loadSync("bulla/v1/token_service.proto", { includeDirs: [proto, `${proto}/third_party`], keepCase: true }),
);

// gRPC repeats a call that got UNAVAILABLE, after the time that the server asks
// for (the trailer grpc-retry-pushback-ms). At worst a token is made that nobody
// gets. Calls that change something are not in the list: never repeat
// GenerateClientKey or RotateSigningKey without looking first.
const serviceConfig = JSON.stringify({
  methodConfig: [
    {
      name: [
        { service: "bulla.v1.TokenService", method: "SignAndEncrypt" },
        { service: "bulla.v1.TokenService", method: "Sign" },
      ],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.05s",
        maxBackoff: "1s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
});

// One client for the life of the process: it connects again by itself.
const credentials = grpc.credentials.createSsl(
  readFileSync(args["tls-ca"]),
  readFileSync(args["tls-key"]),
  readFileSync(args["tls-cert"]),
);
const tokens = new bulla.v1.TokenService(args.addr, credentials, { "grpc.service_config": serviceConfig });

// What an error's details look like: google.rpc.Status and google.rpc.ErrorInfo, as
// far as they are needed here.
const rpc = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }
`).root;

// The reason of a refusal: one of those in error_reason.proto, or the gRPC code.
function reasonOf(error) {
  const [encoded] = error.metadata.get("grpc-status-details-bin");
  const details = encoded ? rpc.lookupType("Status").decode(encoded).details : [];
  const reasons = details
    .filter((any) => any.typeUrl.endsWith("/google.rpc.ErrorInfo"))
    .map((any) => rpc.lookupType("ErrorInfo").decode(any.value))
    .filter((info) => info.domain === "bulla")
    .map((info) => info.reason);
  return reasons[0] ?? grpc.status[error.code];
}

const request = { issuer: args.issuer, client_id: args.client, claims: readFileSync(0) };
tokens.signAndEncrypt(request, { deadline: Date.now() + 5000 }, (error, response) => {
  if (error) {
    // Decide by the reason; the text is for people.
    console.error(`${reasonOf(error)}: ${error.details}`);
    process.exitCode = 1;
  } else {
    console.log(response.token);
  }
  tokens.close();
});
