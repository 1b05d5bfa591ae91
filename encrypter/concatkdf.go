package encrypter

import (
	"crypto/sha256"
	"encoding/binary"
)

// maxKDFInput is the longest input of one round of the Concat KDF, in bytes:
// the round's number, a P-521 shared secret, and the OtherInfo of the longest
// algorithm name with empty party information.
const maxKDFInput = 4 + 66 + (4 + len(ECDHESA128KW) + 4 + 4 + 4)

// concatKDF fills key with the Concat KDF of NIST SP 800-56A section 5.8.1 with
// SHA-256, as RFC 7518 section 4.6.2 uses it: one SHA-256 for each 32 bytes, so
// that a CEK above 256 bits takes two.
//
//	round i = SHA-256(u32be(i) ‖ secret ‖ otherInfo), i = 1, 2, …
func concatKDF(key, secret, otherInfo []byte, w *workspace) {
	input := append(w.shared[:0], 0, 0, 0, 0)
	input = append(input, secret...)
	input = append(input, otherInfo...)
	for round := uint32(1); len(key) > 0; round++ {
		binary.BigEndian.PutUint32(input, round)
		sum := sha256.Sum256(input)
		key = key[copy(key, sum[:]):]
	}
}

// kdfOtherInfo is the OtherInfo of RFC 7518 section 4.6.2 for a key of size
// bytes. AlgorithmID is the enc in direct key agreement, the alg with key
// wrapping; PartyUInfo and PartyVInfo are what "apu" and "apv" say, empty where
// the header lacks them; SuppPubInfo is the key's length in bits.
//
//	u32be(len) ‖ AlgorithmID ‖ u32be(len) ‖ PartyUInfo ‖ u32be(len) ‖ PartyVInfo ‖ u32be(bits)
func kdfOtherInfo(algorithm string, partyU, partyV []byte, size int) []byte {
	info := make([]byte, 0, 16+len(algorithm)+len(partyU)+len(partyV))
	for _, field := range [][]byte{[]byte(algorithm), partyU, partyV} {
		info = binary.BigEndian.AppendUint32(info, uint32(len(field))) //nolint:gosec // names and header values of some bytes
		info = append(info, field...)
	}
	return binary.BigEndian.AppendUint32(info, uint32(size)*8) //nolint:gosec // 16 to 64
}
