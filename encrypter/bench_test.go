package encrypter

import (
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// BenchmarkJWE compares, for each combination of algorithms and a JWS of 943
// bytes (600 of claims), three ways of making the token:
//
//	impl=ours    this package, the recipient kept
//	impl=floor   only the cryptographic primitives, random bytes and the base64 of the ciphertext
//	impl=gojose  go-jose, its encrypter kept, where it has the algorithms
//
// The goal is ours at most 1.10 times the floor for RSA and ECDH, and 1.5 times
// for keys that are shared.
func BenchmarkJWE(b *testing.B) {
	jws := signedToken(943)
	for _, c := range combinations(b) {
		b.Run(c.String()+"/impl=ours", func(b *testing.B) {
			r := c.recipient(b)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Encrypt(jws); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.String()+"/impl=floor", func(b *testing.B) {
			f := primitives(b, c, jws)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
		if !joseHas(c.alg, c.enc, c.private) {
			continue
		}
		b.Run(c.String()+"/impl=gojose", func(b *testing.B) {
			options := (&jose.EncrypterOptions{}).WithContentType("JWT")
			encrypter, err := jose.NewEncrypter(jose.ContentEncryption(c.enc), jose.Recipient{
				Algorithm: jose.KeyAlgorithm(c.alg), Key: joseKey(c), KeyID: "key-1",
			}, options)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				object, err := encrypter.Encrypt(jws)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := object.CompactSerialize(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// joseKey is the recipient's key as go-jose takes it.
func joseKey(c combination) any {
	if secret, ok := c.private.(SecretKey); ok {
		return []byte(secret)
	}
	return public(c.private)
}

// BenchmarkNewRecipient is the cost of a client's first token, or of its first
// one after a change of keys.
func BenchmarkNewRecipient(b *testing.B) {
	for _, c := range combinations(b) {
		if c.enc != A128CBCHS256 {
			continue
		}
		b.Run(string(c.alg)+"/"+c.size, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.recipient(b)
			}
		})
	}
}
