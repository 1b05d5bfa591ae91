package encrypter

import (
	"crypto/aes"
	"crypto/cipher"
)

// sealGCM is AES-GCM with a 96-bit IV and a 128-bit tag (RFC 7518 section 5.3).
// A random IV is safe here because its key encrypts one token only.
func sealGCM(dst []byte, c content) ([]byte, error) {
	block, err := aes.NewCipher(c.cek)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return aead.Seal(dst, c.iv, c.plaintext, c.aad()), nil
}
