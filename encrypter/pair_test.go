package encrypter

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestLegacyContentEncryptionGoesWithRSAOfItsTimeOnly(t *testing.T) {
	for _, alg := range KeyAlgorithms() {
		for _, enc := range ContentEncryptions() {
			fits := enc != "A128CBC+HS256" || alg == "RSA1_5" || alg == "RSA-OAEP"
			switch err := CheckPair(alg, enc); {
			case fits && err != nil:
				t.Errorf("CheckPair(%s, %s) = %v, want nil", alg, enc, err)
			case !fits && !errors.Is(err, ErrPair):
				t.Errorf("CheckPair(%s, %s) = %v, want ErrPair", alg, enc, err)
			case !fits && alg.Warnings(enc) != nil:
				t.Errorf("%s with %s is warned of, and refused", alg, enc)
			}
		}
	}
	for _, tc := range []struct {
		alg KeyAlgorithm
		enc ContentEncryption
	}{{"", A128GCM}, {RSAOAEP, ""}, {"PBES2-HS256+A128KW", A128GCM}, {RSAOAEP, "A256CBC+HS512"}} {
		if err := CheckPair(tc.alg, tc.enc); !errors.Is(err, ErrUnknownAlgorithm) {
			t.Errorf("CheckPair(%q, %q) = %v, want ErrUnknownAlgorithm", tc.alg, tc.enc, err)
		}
	}
}

func TestWarningsAreOfWhatDeservesALook(t *testing.T) {
	const messages, size, padding, old = "2^32", "several client libraries", "bad padding", "before it became a standard"
	gcm := []ContentEncryption{A128GCM, A192GCM, A256GCM}
	for _, alg := range KeyAlgorithms() {
		for _, enc := range ContentEncryptions() {
			if CheckPair(alg, enc) != nil {
				continue
			}
			var want []string
			if alg == RSA15 {
				want = append(want, padding)
			}
			if enc == A128CBCPlusHS256 {
				want = append(want, old)
			}
			if alg == Dir && slices.Contains(gcm, enc) || strings.HasSuffix(string(alg), "GCMKW") {
				want = append(want, messages)
			}
			if alg == ECDHES && (enc == A192CBCHS384 || enc == A256CBCHS512) {
				want = append(want, size)
			}
			got := alg.Warnings(enc)
			if len(got) != len(want) {
				t.Errorf("%s with %s: warnings %q, want one with each of %q", alg, enc, got, want)
				continue
			}
			for i := range want {
				if !strings.Contains(got[i], want[i]) || strings.HasSuffix(got[i], ".") {
					t.Errorf("%s with %s: %q, want %q in it", alg, enc, got[i], want[i])
				}
			}
		}
	}
}
