package issuer

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
)

func newIssuer(t *testing.T, cfg Config) *Issuer {
	t.Helper()
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestAnEmptyPolicyAllowsTheDefaults(t *testing.T) {
	i := newIssuer(t, Config{Name: "a", DefaultAlgorithm: kms.RS256, SigningKeys: []kms.Algorithm{kms.RS256, kms.ES256}})
	if got := i.Signing(); !slices.Equal(got, []kms.Algorithm{kms.RS256, kms.ES256}) {
		t.Errorf("signing %v", got)
	}
	if got := i.Encryption(); !slices.Equal(got, encrypter.KeyAlgorithms()) {
		t.Errorf("encryption %v", got)
	}
	if err := i.CheckSigning(kms.PS256); !errors.Is(err, ErrAlgorithm) || !strings.Contains(err.Error(), "RS256, ES256") {
		t.Errorf("an algorithm without a key: %v, want what is allowed", err)
	}
}

func TestAPolicyNarrows(t *testing.T) {
	i := newIssuer(t, Config{
		Name: "a", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.RS256, kms.ES256}, Signing: []kms.Algorithm{kms.ES256},
		Encryption: []encrypter.KeyAlgorithm{encrypter.ECDHES}, ContentEncryption: []encrypter.ContentEncryption{encrypter.A256GCM},
	})
	for _, test := range []struct {
		err error
		ok  bool
	}{
		{i.CheckSigning(kms.ES256), true},
		{i.CheckSigning(kms.RS256), false},
		{i.CheckEncryption(encrypter.ECDHES, encrypter.A256GCM), true},
		{i.CheckEncryption(encrypter.RSAOAEP, encrypter.A256GCM), false},
		{i.CheckEncryption(encrypter.ECDHES, encrypter.A128GCM), false},
		{i.CheckEncryption("none", ""), false},
	} {
		if (test.err == nil) != test.ok || test.err != nil && !errors.Is(test.err, ErrAlgorithm) {
			t.Errorf("got %v, want ok=%v", test.err, test.ok)
		}
	}
}

func TestFAPIAllowsOnlyItsOwn(t *testing.T) {
	i := newIssuer(t, Config{Name: "a", Profile: FAPI, DefaultAlgorithm: kms.PS256, SigningKeys: []kms.Algorithm{kms.RS256, kms.PS256, kms.ES256}})
	if got := i.Signing(); !slices.Equal(got, []kms.Algorithm{kms.PS256, kms.ES256}) {
		t.Errorf("signing %v", got)
	}
	if _, err := New(Config{Name: "a", Profile: FAPI, DefaultAlgorithm: kms.RS256, SigningKeys: []kms.Algorithm{kms.RS256}}); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("RS256 as default: %v, want ErrAlgorithm", err)
	}
}

func TestIssuersAreFoundByName(t *testing.T) {
	a := newIssuer(t, Config{Name: "a", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256}})
	b := newIssuer(t, Config{Name: "b", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256}})
	one, two := NewDirectory(a), NewDirectory(a, b)
	if got, err := one.Find(""); err != nil || got != a {
		t.Errorf("the only one: %v, %v", got, err)
	}
	if _, err := two.Find(""); !errors.Is(err, ErrUnknown) {
		t.Errorf("no name among two: %v, want ErrUnknown", err)
	}
	if got, err := two.Find("b"); err != nil || got != b {
		t.Errorf("b: %v, %v", got, err)
	}
	if _, err := two.Find("c"); !errors.Is(err, ErrUnknown) {
		t.Errorf("c: %v, want ErrUnknown", err)
	}
}
