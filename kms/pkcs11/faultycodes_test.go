//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/bulla-project/bulla/kms/pkcs11/faultymodule"
)

// TestFaultyModuleKnowsTheTable: a code that is added to the table is also
// thrown at the whole service.
func TestFaultyModuleKnowsTheTable(t *testing.T) {
	names := map[class]string{
		fault: faultymodule.Fault, stale: faultymodule.Stale, gone: faultymodule.Gone, full: faultymodule.Full,
		refused: faultymodule.Refused, forbidden: faultymodule.Forbidden, unfit: faultymodule.Unfit,
	}
	listed := map[ckr]bool{}
	for _, c := range faultymodule.Codes() {
		listed[ckr(c.Value)] = true
		row, ok := codes[ckr(c.Value)]
		if !ok || row.name != c.Name || names[row.class] != c.Class {
			t.Errorf("faultymodule.Codes has %+v, the table %q of class %q", c, row.name, names[row.class])
		}
	}
	for c := range codes {
		if !listed[c] {
			t.Errorf("%v is missing in faultymodule.Codes", c)
		}
	}
}
