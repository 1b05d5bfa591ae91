package encrypter

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// wrapIV is the default initial value of AES Key Wrap (RFC 3394 section
// 2.2.3.1), by which the recipient sees that the key arrived unchanged.
const wrapIV = 0xa6a6a6a6a6a6a6a6

// errWrapSize: AES Key Wrap takes keys of two or more whole 64-bit blocks.
var errWrapSize = errors.New("AES Key Wrap: the key to wrap must be 16 bytes or more, and a multiple of 8")

// wrapKey appends to dst the AES Key Wrap (RFC 3394 section 2.2.1) of key under
// the AES cipher kek: eight bytes more than key.
func wrapKey(dst []byte, kek cipher.Block, key []byte) ([]byte, error) {
	if len(key) < 16 || len(key)%8 != 0 {
		return nil, errWrapSize
	}
	// The RFC's registers R[1] to R[n] are the output itself; A is the first
	// half of block.
	start := len(dst)
	dst = append(dst, make([]byte, 8)...)
	dst = append(dst, key...)
	registers := dst[start+8:]

	block := make([]byte, 16)
	a := block[:8]
	binary.BigEndian.PutUint64(a, wrapIV)
	t := uint64(1)
	for range 6 {
		for i := 0; i < len(registers); i += 8 {
			copy(block[8:], registers[i:i+8])
			kek.Encrypt(block, block)
			copy(registers[i:i+8], block[8:])
			binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(a)^t)
			t++
		}
	}
	copy(dst[start:], a)
	return dst, nil
}
