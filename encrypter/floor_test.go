package encrypter

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"testing"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
)

// primitives returns a function that does only what no JWE for the combination
// can do without: draw the random bytes, encrypt or agree upon the key, encrypt
// the content, and encode the ciphertext. It writes no token. What it costs is
// the floor to which the package is compared.
func primitives(t testing.TB, c combination, plaintext []byte) func() {
	t.Helper()
	keySize, ivSize := c.enc.KeySize(), 12
	newHash := map[ContentEncryption]func() hash.Hash{A128CBCHS256: sha256.New, A192CBCHS384: sha512.New384, A256CBCHS512: sha512.New}[c.enc]
	if newHash != nil || c.enc == A128CBCPlusHS256 {
		ivSize = aes.BlockSize
	}
	random := make([]byte, keySize+ivSize)
	aad := make([]byte, 160)
	padded := make([]byte, (len(plaintext)/16+1)*16)
	sealed := make([]byte, 0, len(padded)+64)
	encoded := make([]byte, base64.RawURLEncoding.EncodedLen(len(padded)+64))
	wrapped := make([]byte, 0, maxKeySize+maxKeyTagSize)
	kdfInput := make([]byte, 4+66+30)

	content := func(cek, iv []byte) {
		if c.enc == A128CBCPlusHS256 {
			encryption, integrity := sha256.Sum256(kdfInput[:90]), sha256.Sum256(kdfInput[:89])
			copy(padded, plaintext)
			cipher.NewCBCEncrypter(must(aes.NewCipher(encryption[:16])), iv).CryptBlocks(padded, padded)
			base64.RawURLEncoding.Encode(encoded, padded)
			mac := hmac.New(sha256.New, integrity[:])
			mac.Write(aad)
			mac.Write(encoded[:base64.RawURLEncoding.EncodedLen(len(padded))])
			sealed = mac.Sum(sealed[:0])
			return
		}
		if newHash == nil {
			aead := must(cipher.NewGCM(must(aes.NewCipher(cek))))
			sealed = aead.Seal(sealed[:0], iv, plaintext, aad)
		} else {
			copy(padded, plaintext)
			cipher.NewCBCEncrypter(must(aes.NewCipher(cek[keySize/2:])), iv).CryptBlocks(padded, padded)
			mac := hmac.New(newHash, cek[:keySize/2])
			mac.Write(aad)
			mac.Write(iv)
			mac.Write(padded)
			mac.Write(iv[:8]) // in the place of the length
			sealed = mac.Sum(sealed[:0])
			sealed = sealed[:len(padded)]
		}
		base64.RawURLEncoding.Encode(encoded, sealed)
	}
	concat := func(key, secret []byte) {
		input := kdfInput[:30+copy(kdfInput, secret)]
		for len(key) > 0 {
			sum := sha256.Sum256(input)
			key = key[copy(key, sum[:]):]
		}
	}
	agree := agreementPrimitive(t, public(c.private))

	switch c.alg {
	case RSA15:
		public := public(c.private).(*rsa.PublicKey)
		return func() {
			_, _ = rand.Read(random)
			must(rsa.EncryptPKCS1v15(rand.Reader, public, random[:keySize])) //nolint:staticcheck // it is what RSA1_5 is
			content(random[:keySize], random[keySize:])
		}
	case RSAOAEP, RSAOAEP256, RSAOAEP384, RSAOAEP512:
		public := public(c.private).(*rsa.PublicKey)
		hash := map[KeyAlgorithm]func() hash.Hash{RSAOAEP: sha1.New, RSAOAEP256: sha256.New, RSAOAEP384: sha512.New384, RSAOAEP512: sha512.New}[c.alg]
		return func() {
			_, _ = rand.Read(random)
			must(rsa.EncryptOAEP(hash(), rand.Reader, public, random[:keySize], nil))
			content(random[:keySize], random[keySize:])
		}
	case ECDHES:
		return func() {
			_, _ = rand.Read(random[keySize:])
			concat(random[:keySize], agree())
			content(random[:keySize], random[keySize:])
		}
	case ECDHESA128KW, ECDHESA192KW, ECDHESA256KW:
		kek := make([]byte, map[KeyAlgorithm]int{ECDHESA128KW: 16, ECDHESA192KW: 24, ECDHESA256KW: 32}[c.alg])
		return func() {
			_, _ = rand.Read(random)
			concat(kek, agree())
			must(wrapKey(wrapped, must(aes.NewCipher(kek)), random[:keySize]))
			content(random[:keySize], random[keySize:])
		}
	case A128KW, A192KW, A256KW:
		block := must(aes.NewCipher(c.private.(SecretKey)))
		return func() {
			_, _ = rand.Read(random)
			must(wrapKey(wrapped, block, random[:keySize]))
			content(random[:keySize], random[keySize:])
		}
	case A128GCMKW, A192GCMKW, A256GCMKW:
		aead := must(cipher.NewGCM(must(aes.NewCipher(c.private.(SecretKey)))))
		random := make([]byte, keySize+ivSize+12)
		return func() {
			_, _ = rand.Read(random)
			aead.Seal(wrapped, random[keySize+ivSize:], random[:keySize], nil)
			content(random[:keySize], random[keySize:keySize+ivSize])
		}
	case Dir:
		return func() {
			_, _ = rand.Read(random[keySize:])
			content(c.private.(SecretKey), random[keySize:])
		}
	}
	t.Fatalf("no floor for %s", c)
	return nil
}

// agreementPrimitive returns a function that makes an ephemeral key pair and
// agrees with key upon a secret; nil if key is for none.
func agreementPrimitive(t testing.TB, key any) func() []byte {
	t.Helper()
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		public := must(key.ECDH())
		return func() []byte {
			ephemeral := must(public.Curve().GenerateKey(rand.Reader))
			return must(ephemeral.ECDH(public))
		}
	case *ecdh.PublicKey:
		their := x25519.Key(key.Bytes())
		var private, public, secret x25519.Key
		return func() []byte {
			_, _ = rand.Read(private[:])
			x25519.KeyGen(&public, &private)
			x25519.Shared(&secret, &private, &their)
			return secret[:]
		}
	case X448PublicKey:
		their := x448.Key(key)
		var private, public, secret x448.Key
		return func() []byte {
			_, _ = rand.Read(private[:])
			x448.KeyGen(&public, &private)
			x448.Shared(&secret, &private, &their)
			return secret[:]
		}
	}
	return nil
}

func TestFewAllocationsBeyondThePrimitives(t *testing.T) {
	const goal = 30
	jws := signedToken(943)
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		ours := testing.AllocsPerRun(3, func() { must(r.Encrypt(jws)) })
		floor := testing.AllocsPerRun(3, primitives(t, c, jws))
		if ours-floor > goal {
			t.Errorf("%s: %v allocations, its primitives %v: want at most %d more", c, ours, floor, goal)
		}
		if testing.Verbose() {
			t.Logf("%s: %v allocations, its primitives %v", c, ours, floor)
		}
	}
}
