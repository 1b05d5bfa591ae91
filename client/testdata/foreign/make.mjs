// Makes tokens with npm jose and npm node-jose, for the tests of package client: what
// go-jose cannot make. It prints one JSON object a line. Keys come from keys.json.
//
//   ln -s ../../../interop/node/node_modules   # after: npm ci --prefix interop/node
//   (node make.mjs && /usr/bin/python3 make.py) > tokens.jsonl
import { readFileSync } from 'node:fs'
import { CompactEncrypt, CompactSign, importJWK } from 'jose'
import nodeJose from 'node-jose'

const { rsa, x25519, signer, secret, claims } = JSON.parse(readFileSync('keys.json'))
const version = (name) => `npm ${name} ${JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version}`
const encs = ['A128GCM', 'A192GCM', 'A256GCM', 'A128CBC-HS256', 'A192CBC-HS384', 'A256CBC-HS512']

async function sign(alg) {
  const key = alg.startsWith('HS') ? new TextEncoder().encode(secret) : await importJWK(signer, alg)
  const header = alg.startsWith('HS') ? { alg } : { alg, kid: signer.kid }
  return new CompactSign(new TextEncoder().encode(claims)).setProtectedHeader(header).sign(key)
}

function print(by, alg, enc, key, sig, token) {
  console.log(JSON.stringify({ by, alg, enc, key, sig, token }))
}

async function encrypt(alg, enc, name, jwk, sig) {
  const { d, p, q, dp, dq, qi, ...pub } = jwk
  const token = await new CompactEncrypt(new TextEncoder().encode(await sign(sig)))
    .setProtectedHeader({ alg, enc, kid: jwk.kid, cty: 'JWT' })
    .encrypt(await importJWK(pub, alg))
  print(version('jose'), alg, enc, name, sig, token)
}

for (const [i, enc] of encs.entries()) {
  await encrypt('ECDH-ES', enc, 'x25519', x25519, 'ES256')
  await encrypt(['ECDH-ES+A128KW', 'ECDH-ES+A192KW', 'ECDH-ES+A256KW'][i % 3], enc, 'x25519', x25519, 'ES256')
  await encrypt(['RSA-OAEP-384', 'RSA-OAEP-512'][i % 2], enc, 'rsa', rsa, ['HS256', 'HS384', 'HS512'][i % 3])
}

const { d, p, q, dp, dq, qi, ...pub } = rsa
for (const alg of ['RSA-OAEP', 'RSA1_5']) {
  const key = await nodeJose.JWK.asKey({ ...pub, alg })
  const token = await nodeJose.JWE.createEncrypt(
    { format: 'compact', contentAlg: 'A128CBC+HS256', fields: { cty: 'JWT', alg } }, key)
    .update(await sign('ES256')).final()
  print(version('node-jose'), alg, 'A128CBC+HS256', 'rsa', 'ES256', token)
}
