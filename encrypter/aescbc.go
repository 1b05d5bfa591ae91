package encrypter

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"hash"
	"slices"
)

// cbcHMAC is AES-CBC with PKCS #7 padding, then HMAC over what came of it (RFC
// 7518 section 5.2.2.1). The CEK's first half is the key of the HMAC, its
// second half that of AES; the tag is the HMAC's first half.
func cbcHMAC(newHash func() hash.Hash) contentSealer {
	return func(dst []byte, c content) ([]byte, error) {
		half := len(c.cek) / 2
		block, err := aes.NewCipher(c.cek[half:])
		if err != nil {
			return nil, err
		}
		start := len(dst)
		dst = appendCBC(dst, block, c.iv, c.plaintext)
		end := len(dst)

		aad := c.aad()
		dst = binary.BigEndian.AppendUint64(dst, uint64(len(aad))*8)
		mac := hmac.New(newHash, c.cek[:half])
		mac.Write(aad)
		mac.Write(c.iv)
		mac.Write(dst[start:]) // ciphertext ‖ u64be(length of aad in bits)
		return mac.Sum(dst[:end])[:end+half], nil
	}
}

// appendCBC appends the AES-CBC encryption of plaintext, padded with PKCS #7
// (RFC 5652 section 6.3), to dst. There is room to append another 72 bytes
// after it.
func appendCBC(dst []byte, block cipher.Block, iv, plaintext []byte) []byte {
	const size = aes.BlockSize
	start := len(dst)
	whole := len(plaintext) / size * size
	padding := size - (len(plaintext) - whole)

	dst = slices.Grow(dst, whole+size+8+64)[:start+whole+size]
	last := dst[start+whole:]
	n := copy(last, plaintext[whole:])
	for i := n; i < size; i++ {
		last[i] = byte(padding) //nolint:gosec // 1 to 16
	}
	// Encrypted straight from the plaintext, but for the last block.
	mode := cipher.NewCBCEncrypter(block, iv)
	mode.CryptBlocks(dst[start:start+whole], plaintext[:whole])
	mode.CryptBlocks(last, last)
	return dst
}
