//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/nsstest"
	"github.com/bulla-project/bulla/kms/pkcs11/tpmtest"
)

func TestCreatingConformsOnNSS(t *testing.T) {
	db := nsstest.New(t)
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open:  opener(nssConfig(db), &meddler{}),
		Specs: []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.ES384}, {Algorithm: kms.ES512}, {Algorithm: kms.RS256, RSABits: 2048}},
		Unfit: []kms.KeySpec{{Algorithm: kms.EdDSA}},
	})
}

func TestSoakCreatingConformsOnTPM(t *testing.T) {
	soaks(t, "it needs a TPM")
	tpm := tpmtest.New(t, "create")
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open:  opener(tpmConfig(tpm), &meddler{}),
		Specs: []kms.KeySpec{{Algorithm: kms.ES256}, {Algorithm: kms.ES384}, {Algorithm: kms.PS256, RSABits: 2048}},
		Unfit: []kms.KeySpec{{Algorithm: kms.EdDSA}, {Algorithm: kms.ES512}},
	})
}
