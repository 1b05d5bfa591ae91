// Opens nested JWTs with npm jose, for package interop. See its documentation
// for the protocol: one JSON object a line on stdin, one answer a line on stdout.

import { createInterface } from 'node:readline'
import * as jose from 'jose'

const utf8 = new TextDecoder('utf-8', { fatal: true })

async function open(request) {
  const privateJWK = request.private_jwk
  const jwe = await jose.compactDecrypt(
    request.token,
    (header) => {
      if (header.kid !== privateJWK.kid) {
        throw new Error(`token is encrypted to key ${header.kid}, not ${privateJWK.kid}`)
      }
      return jose.importJWK(privateJWK, header.alg)
    },
    {
      keyManagementAlgorithms: request.key_algorithms,
      contentEncryptionAlgorithms: request.content_encryptions,
    },
  )
  if (jwe.protectedHeader.cty !== 'JWT') {
    throw new Error(`cty is ${jwe.protectedHeader.cty}, not JWT`)
  }
  const inner = utf8.decode(jwe.plaintext)
  const jws = await jose.compactVerify(inner, jose.createLocalJWKSet(request.signers_jwks), {
    algorithms: request.signature_algorithms,
  })
  return {
    claims: utf8.decode(jws.payload),
    jwe_header: jwe.protectedHeader,
    jws_header: jws.protectedHeader,
  }
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const request = JSON.parse(line)
  let answer
  try {
    answer = { id: request.id, ok: true, ...(await open(request)) }
  } catch (error) {
    answer = { id: request.id, ok: false, error: `${error.code ?? error.name}: ${error.message}` }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
}
