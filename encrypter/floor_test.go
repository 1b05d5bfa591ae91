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
)

// primitives returns a function that does only what no JWE for the combination
// can do without: draw the random bytes, encrypt or agree upon the key, encrypt
// the content, and encode the ciphertext. It writes no token. What it costs is
// the floor to which the package is compared.
func primitives(t testing.TB, c combination, plaintext []byte) func() {
	t.Helper()
	keySize, ivSize := c.enc.KeySize(), 12
	newHash := map[ContentEncryption]func() hash.Hash{A128CBCHS256: sha256.New, A192CBCHS384: sha512.New384, A256CBCHS512: sha512.New}[c.enc]
	if newHash != nil {
		ivSize = aes.BlockSize
	}
	random := make([]byte, keySize+ivSize)
	aad := make([]byte, 160)
	padded := make([]byte, (len(plaintext)/16+1)*16)
	sealed := make([]byte, 0, len(padded)+64)
	encoded := make([]byte, base64.RawURLEncoding.EncodedLen(len(padded)+64))
	wrapped := make([]byte, 0, maxKeySize+8)
	kdfInput := make([]byte, 4+66+30)

	content := func(cek, iv []byte) {
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
	derive := func(key []byte, public *ecdh.PublicKey) {
		ephemeral := must(public.Curve().GenerateKey(rand.Reader))
		secret := must(ephemeral.ECDH(public))
		input := kdfInput[:30+copy(kdfInput, secret)]
		for len(key) > 0 {
			sum := sha256.Sum256(input)
			key = key[copy(key, sum[:]):]
		}
	}

	switch c.alg {
	case RSAOAEP, RSAOAEP256:
		public := c.private.Public().(*rsa.PublicKey)
		hash := sha1.New
		if c.alg == RSAOAEP256 {
			hash = sha256.New
		}
		return func() {
			_, _ = rand.Read(random)
			must(rsa.EncryptOAEP(hash(), rand.Reader, public, random[:keySize], nil))
			content(random[:keySize], random[keySize:])
		}
	case ECDHES:
		public := must(c.private.Public().(*ecdsa.PublicKey).ECDH())
		return func() {
			_, _ = rand.Read(random[keySize:])
			derive(random[:keySize], public)
			content(random[:keySize], random[keySize:])
		}
	case ECDHESA128KW, ECDHESA192KW, ECDHESA256KW:
		public := must(c.private.Public().(*ecdsa.PublicKey).ECDH())
		kek := make([]byte, map[KeyAlgorithm]int{ECDHESA128KW: 16, ECDHESA192KW: 24, ECDHESA256KW: 32}[c.alg])
		return func() {
			_, _ = rand.Read(random)
			derive(kek, public)
			must(wrapKey(wrapped, must(aes.NewCipher(kek)), random[:keySize]))
			content(random[:keySize], random[keySize:])
		}
	}
	t.Fatalf("no floor for %s", c)
	return nil
}

func TestFewAllocationsBeyondThePrimitives(t *testing.T) {
	const goal = 30
	jws := signedToken(943)
	for _, c := range combinations(t, "2048", "P-256") {
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
