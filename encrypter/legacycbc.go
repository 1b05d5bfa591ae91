package encrypter

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// sealCBCPlusHMAC is A128CBC+HS256 of the drafts before RFC 7518 (number 08 is
// the last to have it): AES-128-CBC with PKCS #7 padding, and the whole of an
// HMAC with SHA-256 over the token as it is written, from the header to the
// ciphertext. The CEK, there the content master key, is the input of both keys.
//
//	tag = HMAC(integrity key, header "." encrypted key "." IV "." ciphertext), all of them in base64url
func sealCBCPlusHMAC(dst []byte, c content) ([]byte, error) {
	encryption, integrity := legacyKeys(c.cek)
	defer clear(encryption)
	defer clear(integrity)
	block, err := aes.NewCipher(encryption)
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = appendCBC(dst, block, c.iv, c.plaintext)
	end := len(dst)

	dst = slices.Grow(dst, 1+base64url.EncodedLen(end-start))
	mac := hmac.New(sha256.New, integrity)
	mac.Write(c.token)
	mac.Write(appendPart(dst, dst[start:end])[end:]) // written behind the ciphertext, which the tag overwrites
	return mac.Sum(dst[:end]), nil
}

// legacyKeys derives the two keys of A128CBC+HS256 from its content master key,
// with one round each of the Concat KDF with SHA-256. The two zeros are the
// lengths of the header parameters "epu" and "epv", which the drafts had then.
//
//	SHA-256(u32be(1) ‖ master ‖ u32be(bits) ‖ "A128CBC+HS256" ‖ u32be(0) ‖ u32be(0) ‖ label)
func legacyKeys(master []byte) (encryption, integrity []byte) {
	derive := func(bits uint32, label string) []byte {
		input := make([]byte, 0, 96)
		input = binary.BigEndian.AppendUint32(input, 1)
		input = append(input, master...)
		input = binary.BigEndian.AppendUint32(input, bits)
		input = append(input, A128CBCPlusHS256...)
		input = binary.BigEndian.AppendUint64(input, 0)
		input = append(input, label...)
		sum := sha256.Sum256(input)
		clear(input)
		return sum[:bits/8]
	}
	return derive(128, "Encryption"), derive(256, "Integrity")
}
