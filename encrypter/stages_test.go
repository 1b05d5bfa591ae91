//go:build !race

package encrypter

import (
	"testing"
	"time"
)

// TestTellingOfStagesAllocatesNothing, though the function that is told holds
// variables of its caller.
func TestTellingOfStagesAllocatesNothing(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		r, jws := c.recipient(t), signedToken(943)
		plain := testing.AllocsPerRun(20, func() { must(r.Encrypt(jws)) })
		staged := testing.AllocsPerRun(20, func() {
			began, wrapped := time.Now(), time.Time{}
			must(r.EncryptStaged(jws, func() { wrapped = time.Now() }))
			if wrapped.Before(began) {
				t.Errorf("%s: wrapped at %v, before %v", c, wrapped, began)
			}
		})
		if staged > plain {
			t.Errorf("%s: %v allocations, without being told of stages %v", c, staged, plain)
		}
	}
}
