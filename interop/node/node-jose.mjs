// Opens nested JWTs with npm node-jose, for package interop.

import nodeJose from 'node-jose'
import { mustFit, mustNest, secretKey, serve, utf8 } from './lines.mjs'

const { JWE, JWK, JWS } = nodeJose

// parts splits a compact token: node-jose ignores what follows the parts that
// it expects, and reads what is missing as empty.
function parts(token, count) {
  const split = token.split('.')
  if (split.length !== count) {
    throw new Error(`not a compact token of ${count} parts`)
  }
  return split
}

const headerOf = (part) => JSON.parse(Buffer.from(part, 'base64url').toString('utf8'))

const oct = (bytes) => JWK.asKey({ kty: 'oct', k: Buffer.from(bytes).toString('base64url') })

// mustKnow gives the reason: whatever goes wrong with a key, node-jose says
// "no key found".
function mustKnow(key, mode, alg) {
  if (!key.algorithms(mode).includes(alg)) {
    throw new Error(`node-jose has no ${alg} to ${mode} with a key of type ${key.kty}`)
  }
}

await serve('node-jose', async (request) => {
  const outer = headerOf(parts(request.token, 5)[0])
  mustFit(outer, request)
  const key = request.private_jwk
    ? await JWK.asKey(request.private_jwk)
    : await oct(secretKey(request.client_secret, outer.alg, outer.enc))
  const algorithms = [...request.key_algorithms, ...request.content_encryptions]
  if (algorithms.includes(outer.alg)) {
    mustKnow(key, 'unwrap', outer.alg)
  }
  const jwe = await JWE.createDecrypt(key, { algorithms }).decrypt(request.token)
  mustNest(jwe.header)

  const inner = utf8.decode(jwe.plaintext)
  const header = headerOf(parts(inner, 3)[0])
  let signer
  if (request.client_secret && /^HS/.test(header.alg)) {
    signer = await oct(Buffer.from(request.client_secret, 'utf8'))
  } else {
    const found = request.signers_jwks.keys.filter(({ kid, alg }) => kid === header.kid && alg === header.alg)
    if (found.length !== 1) {
      throw new Error(`${found.length} signers have kid ${header.kid} and alg ${header.alg}`)
    }
    signer = await JWK.asKey(found[0])
  }
  const jws = await JWS.createVerify(signer, { algorithms: request.signature_algorithms }).verify(inner)
  return { claims: utf8.decode(jws.payload), jwe_header: outer, jws_header: jws.header }
})
