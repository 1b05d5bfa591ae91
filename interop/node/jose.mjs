// Opens nested JWTs with npm jose, for package interop.

import { webcrypto } from 'node:crypto'
import * as jose from 'jose'
import { mustFit, mustNest, secretKey, serve, utf8 } from './lines.mjs'

// Node.js has it as a global since version 20; Debian 12 has version 18.
globalThis.crypto ??= webcrypto

await serve('jose', async (request) => {
  const jwe = await jose.compactDecrypt(
    request.token,
    (header) => {
      mustFit(header, request)
      return request.private_jwk
        ? jose.importJWK(request.private_jwk, header.alg)
        : secretKey(request.client_secret, header.alg, header.enc)
    },
    {
      keyManagementAlgorithms: request.key_algorithms,
      contentEncryptionAlgorithms: request.content_encryptions,
    },
  )
  mustNest(jwe.protectedHeader)

  const signers = jose.createLocalJWKSet(request.signers_jwks)
  const jws = await jose.compactVerify(
    utf8.decode(jwe.plaintext),
    (header, token) =>
      request.client_secret && header.alg.startsWith('HS')
        ? new TextEncoder().encode(request.client_secret)
        : signers(header, token),
    { algorithms: request.signature_algorithms },
  )
  return {
    claims: utf8.decode(jws.payload),
    jwe_header: jwe.protectedHeader,
    jws_header: jws.protectedHeader,
  }
})
