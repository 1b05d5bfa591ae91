package encrypter

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// CheckPair returns nil if the two algorithms can be used together. All can,
// except that A128CBC+HS256 goes with RSA1_5 and RSA-OAEP only, the algorithms
// of its time: nothing that opens it knows it with another. Its error wraps
// [ErrUnknownAlgorithm] or [ErrPair].
func CheckPair(alg KeyAlgorithm, enc ContentEncryption) error {
	if !alg.Known() {
		return unknownKeyAlgorithm(alg)
	}
	e := enc.row()
	if e == nil {
		return unknownContentEncryption(enc)
	}
	if len(e.with) > 0 && !slices.Contains(e.with, alg) {
		return fmt.Errorf("%w: enc %s goes with alg %s only, not with %s; choose another enc, such as %s",
			ErrPair, enc, join(e.with), alg, A128CBCHS256)
	}
	return nil
}

// Warnings says what deserves a look when a client is registered with the two
// algorithms, though all of it works: a sentence each, without a full stop. It
// is empty for most pairs, and for algorithms that are not known.
func (a KeyAlgorithm) Warnings(enc ContentEncryption) []string {
	if CheckPair(a, enc) != nil {
		return nil
	}
	r, e := a.row(), enc.row()
	var warnings []string
	for _, text := range []string{r.warning, e.warning} {
		if text != "" {
			warnings = append(warnings, text)
		}
	}
	// Random 96-bit IVs under one key: NIST SP 800-38D section 8.3.
	if r.gcm || r.direct && r.symmetric() && e.gcm {
		warnings = append(warnings, fmt.Sprintf("%s with %s uses AES-GCM with random IVs under one key for all tokens, which is safe for 2^32 of them; "+
			"replace the client's secret before that, or use A256KW", a, enc))
	}
	if r.direct && !r.symmetric() && e.keySize > sha256.Size { // the KDF has to run twice
		warnings = append(warnings, fmt.Sprintf("%s with %s derives a key of %d bits, which several client libraries get wrong and so cannot open the tokens; "+
			"use ECDH-ES+A256KW if this client's cannot", a, enc, e.keySize*8))
	}
	return warnings
}
