package jwks

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter"
)

// unfitType says why a key of this kty and crv cannot be used with alg, by the
// table of algorithms; empty if it can. A missing kty or crv is not held against
// a key here: where one is needed, its absence rejects the key, and its owner
// should be told that.
func unfitType(alg encrypter.KeyAlgorithm, kty, crv string) string {
	switch types, curves := alg.KeyTypes(), alg.Curves(); {
	case !alg.Known():
		return fmt.Sprintf("alg %s is not known here", quote(string(alg)))
	case alg.Symmetric():
		return fmt.Sprintf("alg %s takes the client's secret, not a public key", alg)
	case kty != "" && !slices.Contains(types, kty):
		return fmt.Sprintf("its kty is %s, and alg %s needs %s", quote(kty), alg, strings.Join(types, " or "))
	case len(curves) > 0 && crv != "" && !slices.Contains(curves, crv):
		return fmt.Sprintf("its crv is %s, and alg %s needs %s", quote(crv), alg, strings.Join(curves, ", "))
	}
	return ""
}
