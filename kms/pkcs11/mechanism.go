package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

// mechanism is a signature mechanism with its parameters, as plain numbers
// (PKCS#11 v2.40, sections 2.1.6, 2.1.10 and 2.3.6; v3.0, section 2.3.14).
type mechanism struct {
	kind uint // CKM_…

	// Of CKM_RSA_PKCS_PSS only: CKM_SHA…, CKG_MGF1_SHA… and the salt's length
	// in bytes.
	pssHash, pssMGF, pssSalt uint

	// inputSize is the exact length in bytes of what is signed, 0 for any.
	// Modules take input of any length for ECDSA and sign nonsense.
	inputSize int
}

const (
	ckmRSAPKCS    = 0x0001
	ckmRSAPKCSPSS = 0x000D
	ckmECDSA      = 0x1041
	ckmEdDSA      = 0x1057

	ckmRSAKeyPairGen       = 0x0000
	ckmECKeyPairGen        = 0x1040
	ckmECEdwardsKeyPairGen = 0x1055 // v3.0

	ckmAESGCM        = 0x1087
	ckmAESKeyWrap    = 0x2109 // RFC 3394
	ckmAESKeyWrapPad = 0x210A // RFC 5649 in SoftHSM and others, PKCS#7 padding in some
	ckmAESKeyWrapKWP = 0x210B // RFC 5649 (v3.0)
)

// mechanismNames are those that appear in messages.
var mechanismNames = map[uint]string{
	ckmRSAPKCS: "CKM_RSA_PKCS", ckmRSAPKCSPSS: "CKM_RSA_PKCS_PSS", ckmECDSA: "CKM_ECDSA", ckmEdDSA: "CKM_EDDSA",
	ckmRSAKeyPairGen: "CKM_RSA_PKCS_KEY_PAIR_GEN", ckmECKeyPairGen: "CKM_EC_KEY_PAIR_GEN", ckmECEdwardsKeyPairGen: "CKM_EC_EDWARDS_KEY_PAIR_GEN",
	ckmAESGCM: "CKM_AES_GCM", ckmAESKeyWrap: "CKM_AES_KEY_WRAP", ckmAESKeyWrapPad: "CKM_AES_KEY_WRAP_PAD", ckmAESKeyWrapKWP: "CKM_AES_KEY_WRAP_KWP",
}

func (m mechanism) String() string { return mechanismName(m.kind) }

// mechanismName is the name and number of CKM_….
func mechanismName(kind uint) string { return fmt.Sprintf("%s (0x%X)", mechanismNames[kind], kind) }

// pssNumbers are CKM_SHA… and CKG_MGF1_SHA… of a hash function.
var pssNumbers = map[crypto.Hash][2]uint{
	crypto.SHA256: {0x250, 2}, crypto.SHA384: {0x260, 3}, crypto.SHA512: {0x270, 4},
}

// digestInfo is the DER encoding of DigestInfo up to the digest itself (RFC
// 8017, section 9.2, note 1).
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// mechanismOf is the raw mechanism that makes signatures of alg, which is
// known. What it signs is made by input.
func mechanismOf(alg kms.Algorithm) mechanism {
	h := alg.Hash()
	switch {
	case alg.KeyType() == kms.EC:
		return mechanism{kind: ckmECDSA, inputSize: h.Size()}
	case alg.KeyType() == kms.OKP:
		return mechanism{kind: ckmEdDSA}
	case alg.PSS():
		n := pssNumbers[h]
		return mechanism{kind: ckmRSAPKCSPSS, pssHash: n[0], pssMGF: n[1], pssSalt: uint(h.Size()), inputSize: h.Size()}
	default:
		return mechanism{kind: ckmRSAPKCS, inputSize: len(digestInfo[h]) + h.Size()}
	}
}

// inputOf is what the mechanism of alg is given to sign message: the digest,
// the digest in its DigestInfo, or for Ed25519 the message. The result is a
// copy, because a call that is stuck in the module outlives its caller.
func inputOf(alg kms.Algorithm, message []byte) []byte {
	if alg.KeyType() == kms.OKP {
		return bytes.Clone(message)
	}
	var prefix []byte
	if alg.KeyType() == kms.RSA && !alg.PSS() {
		prefix = digestInfo[alg.Hash()]
	}
	input := make([]byte, 0, len(prefix)+alg.Hash().Size())
	input = append(input, prefix...)
	switch alg.Hash() {
	case crypto.SHA384:
		d := sha512.Sum384(message)
		return append(input, d[:]...)
	case crypto.SHA512:
		d := sha512.Sum512(message)
		return append(input, d[:]...)
	default:
		d := sha256.Sum256(message)
		return append(input, d[:]...)
	}
}

// The lengths in bytes of the longest signatures there are: that of the largest
// RSA key, and among the others that of P-521.
const (
	maxSignature   = kms.MaxRSABits / 8
	maxECSignature = 2 * 66
)

// signatureSize is the length in bytes of alg's signatures by a key whose
// modulus, if it has one, has modulusBytes.
func signatureSize(alg kms.Algorithm, modulusBytes int) int {
	switch alg.KeyType() {
	case kms.EC:
		return 2 * alg.CoordinateSize()
	case kms.OKP:
		return 64
	default:
		return modulusBytes
	}
}
