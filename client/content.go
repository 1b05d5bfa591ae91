package client

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash"
)

// contentOpener decrypts the content of a token with a content key of the right size.
// The sizes of iv, tag and ciphertext are right. Its errors go nowhere, as those of
// an unwrapper.
type contentOpener func(cek []byte, e *encrypted) ([]byte, error)

// errContent is the one error of a contentOpener, or stands for it.
var errContent = errors.New("content does not decrypt")

// fits tells if the parts of a token have the sizes that the algorithm demands.
func (c contentEncryption) fits(e *encrypted) bool {
	return len(e.iv) == c.ivSize && len(e.tag) == c.tagSize &&
		(!c.wholeBlocks || len(e.ciphertext) > 0 && len(e.ciphertext)%aes.BlockSize == 0)
}

// openGCM is AES GCM (RFC 7518, section 5.3).
func openGCM(cek []byte, e *encrypted) ([]byte, error) {
	aead, err := newGCM(cek)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, e.iv, append(append([]byte(nil), e.ciphertext...), e.tag...), []byte(e.protected()))
}

// openCBC is AES CBC with HMAC (RFC 7518, section 5.2.2.2): the first half of the
// content key is the HMAC's, the second that of AES, and the tag is the first half of
//
//	HMAC(header ‖ iv ‖ ciphertext ‖ u64be(length of the header in bits))
func openCBC(newHash func() hash.Hash) contentOpener {
	return func(cek []byte, e *encrypted) ([]byte, error) {
		half := len(cek) / 2
		mac := hmac.New(newHash, cek[:half])
		aad := []byte(e.protected())
		mac.Write(aad)
		mac.Write(e.iv)
		mac.Write(e.ciphertext)
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(aad))*8))
		return decryptCBC(cek[half:], e, mac.Sum(nil)[:half])
	}
}

// openLegacyCBC is A128CBC+HS256 of the drafts older than RFC 7516: both keys are
// derived from the content master key, and the tag is the whole of
//
//	HMAC-SHA-256(header "." encrypted key "." iv "." ciphertext), each in base64url
func openLegacyCBC(cmk []byte, e *encrypted) ([]byte, error) {
	mac := hmac.New(sha256.New, legacyKey(cmk, 256, "Integrity"))
	mac.Write([]byte(e.beforeTag()))
	return decryptCBC(legacyKey(cmk, 128, "Encryption"), e, mac.Sum(nil))
}

// legacyKey derives a key of some bits, 256 at most, from a content master key: one
// round of the Concat KDF, with empty party information between two lengths.
func legacyKey(cmk []byte, bits int, label string) []byte {
	input := append([]byte{0, 0, 0, 1}, cmk...)
	input = appendUint32(input, bits)
	input = append(input, legacyCBC...)
	input = append(input, make([]byte, 8)...)
	sum := sha256.Sum256(append(input, label...))
	return sum[:bits/8]
}

// decryptCBC undoes AES CBC with PKCS #7 padding, after comparing the tag: what is not
// authentic is never decrypted, so its padding tells nothing.
func decryptCBC(key []byte, e *encrypted, tag []byte) ([]byte, error) {
	if subtle.ConstantTimeCompare(tag, e.tag) != 1 {
		return nil, errContent
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plaintext := make([]byte, len(e.ciphertext))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plaintext, e.ciphertext)

	// RFC 5652, section 6.3: n bytes of the value n, 1 to 16.
	n := int(plaintext[len(plaintext)-1])
	if n < 1 || n > aes.BlockSize {
		return nil, errContent
	}
	text, padding := plaintext[:len(plaintext)-n], plaintext[len(plaintext)-n:]
	for _, b := range padding {
		if int(b) != n {
			return nil, errContent
		}
	}
	return text, nil
}
