// What the two Node.js clients share: the protocol of package interop and the
// key that a client with a secret derives from it.

import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { readFileSync } from 'node:fs'

export const utf8 = new TextDecoder('utf-8', { fatal: true })

// version is that of an installed package.
export function version(name) {
  const file = new URL(`node_modules/${name}/package.json`, import.meta.url)
  return JSON.parse(readFileSync(file, 'utf8')).version
}

// serve says who we are and answers each line by open.
export async function serve(name, open) {
  write({ library: `${name} ${version(name)}`, platform: `Node.js ${process.versions.node}` })
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    const request = JSON.parse(line)
    try {
      write({ id: request.id, ok: true, ...(await open(request)) })
    } catch (error) {
      write({ id: request.id, ok: false, error: `${error.code ?? error.name}: ${error.message}` })
    }
  }
}

function write(answer) {
  process.stdout.write(JSON.stringify(answer) + '\n')
}

// secretKey is the key of an alg that is derived from the client's secret
// (OpenID Connect Core 1.0 section 10.2): the left-most bits of a SHA-2 hash.
export function secretKey(secret, alg, enc) {
  const size = alg === 'dir' ? encSizes[enc] : Number(/^A(128|192|256)(GCM)?KW$/.exec(alg)?.[1]) / 8
  if (!size) {
    throw new Error(`no key is derived from the secret for ${alg} with ${enc}`)
  }
  const hash = size <= 32 ? 'sha256' : size <= 48 ? 'sha384' : 'sha512'
  return createHash(hash).update(secret, 'utf8').digest().subarray(0, size)
}

const encSizes = {
  A128GCM: 16,
  A192GCM: 24,
  A256GCM: 32,
  'A128CBC-HS256': 32,
  'A192CBC-HS384': 48,
  'A256CBC-HS512': 64,
}

// mustFit refuses a token that is for another key of this client.
export function mustFit(header, request) {
  const kid = request.private_jwk?.kid
  if (header.kid !== kid) {
    throw new Error(`token is encrypted to key ${header.kid}, not ${kid}`)
  }
}

// mustNest refuses what does not say that a JWT is inside (RFC 7519 section 5.2).
export function mustNest(header) {
  if (header.cty !== 'JWT') {
    throw new Error(`cty is ${header.cty}, not JWT`)
  }
}
