package issuer

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

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

// base is a config without a policy.
func base() Config {
	return Config{Name: "a", DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.RS256, kms.ES256, kms.PS256, kms.Ed25519}}
}

func configured(change func(*Config)) Config {
	cfg := base()
	change(&cfg)
	return cfg
}

func TestAnEmptyPolicyAllowsTheDefaults(t *testing.T) {
	i := newIssuer(t, base())
	// Written out, so that a change of a default is seen here.
	if diff := cmp.Diff([]kms.Algorithm{"RS256", "PS256", "ES256", "Ed25519", "HS256", "HS384", "HS512"}, i.Signing()); diff != "" {
		t.Errorf("signing (-want +got):\n%s", diff)
	}
	sorted := cmpopts.SortSlices(func(a, b encrypter.KeyAlgorithm) bool { return a < b })
	if diff := cmp.Diff([]encrypter.KeyAlgorithm{
		"RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512", "ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW",
		"A128KW", "A192KW", "A256KW", "A128GCMKW", "A192GCMKW", "A256GCMKW", "dir",
	}, i.Encryption(), sorted); diff != "" {
		t.Errorf("encryption (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]encrypter.ContentEncryption{"A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512", "A128GCM", "A192GCM", "A256GCM"}, i.ContentEncryption()); diff != "" {
		t.Errorf("content encryption (-want +got):\n%s", diff)
	}
	if i.MinRSABits() != 2048 || i.MaxRSABits() != 4096 {
		t.Errorf("RSA keys of %d to %d bits, want 2048 to 4096", i.MinRSABits(), i.MaxRSABits())
	}
	if err := i.CheckSigning(kms.ES512); !errors.Is(err, ErrAlgorithm) || !strings.Contains(err.Error(), "RS256, PS256, ES256, Ed25519, HS256") {
		t.Errorf("an algorithm without a key: %v, want what is allowed", err)
	}
}

func TestAPolicyNarrows(t *testing.T) {
	i := newIssuer(t, configured(func(c *Config) {
		c.Signing = []kms.Algorithm{kms.ES256, kms.HS512}
		c.Encryption = []encrypter.KeyAlgorithm{encrypter.ECDHES}
		c.ContentEncryption = []encrypter.ContentEncryption{encrypter.A256GCM}
		c.MinRSABits, c.MaxRSABits = 3072, 8192
	}))
	for name, test := range map[string]struct {
		err error
		ok  bool
	}{
		"ES256":             {i.CheckSigning(kms.ES256), true},
		"HS512":             {i.CheckSigning(kms.HS512), true},
		"RS256":             {i.CheckSigning(kms.RS256), false},
		"HS256":             {i.CheckSigning(kms.HS256), false},
		"none":              {i.CheckSigning("none"), false},
		"no alg":            {i.CheckSigning(""), false},
		"ECDH-ES, A256GCM":  {i.CheckEncryption(encrypter.ECDHES, encrypter.A256GCM, true), true},
		"RSA-OAEP, A256GCM": {i.CheckEncryption(encrypter.RSAOAEP, encrypter.A256GCM, true), false},
		"ECDH-ES, A128GCM":  {i.CheckEncryption(encrypter.ECDHES, encrypter.A128GCM, true), false},
		"unknown":           {i.CheckEncryption("none", "", true), false},
		"RSA 2048":          {i.CheckRSABits(2048), false},
		"RSA 3072":          {i.CheckRSABits(3072), true},
		"RSA 8192":          {i.CheckRSABits(8192), true},
		"RSA 8200":          {i.CheckRSABits(8200), false},
	} {
		if (test.err == nil) != test.ok || test.err != nil && !errors.Is(test.err, ErrAlgorithm) {
			t.Errorf("%s: got %v, want ok=%v", name, test.err, test.ok)
		}
	}
}

// A legacy algorithm takes the policy's word, its name, and the client's mark.
func TestLegacyAlgorithmsTakeThreeYeses(t *testing.T) {
	named := configured(func(c *Config) {
		c.Legacy = true
		c.Encryption = []encrypter.KeyAlgorithm{encrypter.RSA15, encrypter.RSAOAEP, encrypter.RSAOAEP256}
		c.ContentEncryption = []encrypter.ContentEncryption{encrypter.A128CBCPlusHS256, encrypter.A128GCM}
	})
	half := configured(func(c *Config) { c.Legacy = true })
	const rsa15, plus = encrypter.RSA15, encrypter.A128CBCPlusHS256
	for _, test := range []struct {
		name         string
		cfg          Config
		alg          encrypter.KeyAlgorithm
		enc          encrypter.ContentEncryption
		legacyClient bool
		says         []string // empty for allowed
	}{
		{"all three", named, rsa15, plus, true, nil},
		{"all three, one legacy", named, rsa15, encrypter.A128GCM, true, nil},
		{"all three, the other legacy", named, encrypter.RSAOAEP, plus, true, nil},
		{"nothing legacy about it", named, encrypter.RSAOAEP256, encrypter.A128GCM, false, nil},
		{"a client that is not", named, rsa15, encrypter.A128GCM, false, []string{"the client has to be registered as legacy", "allowed here: RSA-OAEP-256, RSA-OAEP"}},
		{"a client that is not, enc", named, encrypter.RSAOAEP, plus, false, []string{"the client has to be registered as legacy", "allowed here: A128GCM"}},
		{"not named", half, rsa15, encrypter.A128GCM, true, []string{"legacy: true and name it in encryption", "allowed here: RSA-OAEP-256"}},
		{"not named, enc", half, encrypter.RSAOAEP, plus, true, []string{"name it in content_encryption", "allowed here: A128CBC-HS256"}},
		{"nothing", base(), rsa15, plus, false, []string{"legacy: true and name it in encryption, and the client has to be registered"}},
		{"fapi", configured(func(c *Config) { c.Profile = FAPI }), rsa15, plus, true, []string{"never allowed by the fapi profile"}},
		{"a pair that is none", named, encrypter.RSAOAEP256, plus, true, []string{"does not go with RSA-OAEP-256", "allowed with it here: A128GCM"}},
	} {
		err := newIssuer(t, test.cfg).CheckEncryption(test.alg, test.enc, test.legacyClient)
		if len(test.says) == 0 {
			if err != nil {
				t.Errorf("%s: %v, want it allowed", test.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrAlgorithm) {
			t.Errorf("%s: %v, want ErrAlgorithm", test.name, err)
			continue
		}
		for _, says := range test.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %q, want it to say %q", test.name, err, says)
			}
		}
		if list := err.Error()[strings.LastIndex(err.Error(), ":"):]; !test.legacyClient && (strings.Contains(list, "RSA1_5") || strings.Contains(list, "+HS256")) {
			t.Errorf("%s: %q offers what the client cannot have", test.name, err)
		}
	}
}

func TestListsHoldOnlyWhatCanBeUsed(t *testing.T) {
	i := newIssuer(t, configured(func(c *Config) {
		c.Legacy = true
		c.ContentEncryption = []encrypter.ContentEncryption{encrypter.A128CBCPlusHS256}
	}))
	if got := i.Encryption(); !slices.Equal(got, []encrypter.KeyAlgorithm{encrypter.RSAOAEP}) {
		t.Errorf("beside A128CBC+HS256 alone: %v, want RSA-OAEP: RSA1_5 is not named, and nothing else goes with it", got)
	}
	for _, alg := range i.Signing() {
		if err := i.CheckSigning(alg); err != nil {
			t.Errorf("listed and refused: %v", err)
		}
	}
	i.Encryption()[0] = "changed"
	i.Signing()[0] = "changed"
	if i.Encryption()[0] == "changed" || i.Signing()[0] == "changed" {
		t.Error("a caller changed the policy")
	}
}

func TestFAPIAllowsOnlyItsOwn(t *testing.T) {
	i := newIssuer(t, configured(func(c *Config) { c.Profile = FAPI }))
	if got := i.Signing(); !slices.Equal(got, []kms.Algorithm{kms.PS256, kms.ES256, kms.Ed25519}) {
		t.Errorf("signing %v", got)
	}
	for _, alg := range i.Encryption() {
		if alg == encrypter.RSA15 {
			t.Error("RSA1_5 is allowed")
		}
	}
	if len(i.Encryption()) == 0 || len(i.ContentEncryption()) == 0 {
		t.Errorf("nothing is left: %v, %v", i.Encryption(), i.ContentEncryption())
	}
}

func TestMistakesOfTheConfigurationAreToldAllAtOnce(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		says []string
	}{
		{"legacy without saying so", configured(func(c *Config) {
			c.Encryption = []encrypter.KeyAlgorithm{encrypter.RSA15, encrypter.RSAOAEP}
			c.ContentEncryption = []encrypter.ContentEncryption{encrypter.A128CBCPlusHS256}
		}), []string{`policy.encryption: "RSA1_5"`, `policy.content_encryption: "A128CBC+HS256"`, "legacy: true"}},
		{"fapi", configured(func(c *Config) {
			c.Profile, c.Legacy, c.DefaultAlgorithm = FAPI, true, kms.RS256
			c.Signing = []kms.Algorithm{kms.RS256, kms.HS256, kms.ES256}
			c.Encryption = []encrypter.KeyAlgorithm{encrypter.RSA15}
		}), []string{"default_signing_algorithm", `policy.signing: "RS256"`, `policy.signing: "HS256"`, `policy.encryption: "RSA1_5"`}},
		{"unknown names", configured(func(c *Config) {
			c.Profile, c.Signing = "fappy", []kms.Algorithm{"ES256", "none"}
			c.Encryption = []encrypter.KeyAlgorithm{"RSA-OAEP-1"}
		}), []string{`"fappy" is unknown`, `policy.signing: "none" is unknown`, `"RSA-OAEP-1" is unknown`}},
		{"a secret as default", configured(func(c *Config) { c.DefaultAlgorithm = kms.HS256 }), []string{"default_signing_algorithm", "the secret of a client"}},
		{"a default without a key", configured(func(c *Config) { c.DefaultAlgorithm = kms.ES384 }), []string{"default_signing_algorithm"}},
		{"an enc that goes with nothing", configured(func(c *Config) {
			c.Legacy = true
			c.Encryption = []encrypter.KeyAlgorithm{encrypter.ECDHES}
			c.ContentEncryption = []encrypter.ContentEncryption{encrypter.A128CBCPlusHS256, encrypter.A128GCM}
		}), []string{`policy.content_encryption: "A128CBC+HS256" goes with nothing`}},
		{"bounds the wrong way", configured(func(c *Config) { c.MinRSABits, c.MaxRSABits = 4096, 3072 }), []string{"policy.min_rsa_bits"}},
		{"bounds too low", configured(func(c *Config) { c.MinRSABits = 1024 }), []string{"policy.min_rsa_bits"}},
		{"bounds too high", configured(func(c *Config) { c.MaxRSABits = 16384 }), []string{"policy.max_rsa_bits"}},
	} {
		_, err := New(test.cfg)
		if err == nil {
			t.Errorf("%s: accepted", test.name)
			continue
		}
		for _, says := range test.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %q, want it to say %q", test.name, err, says)
			}
		}
	}
	_, err := New(configured(func(c *Config) { c.DefaultAlgorithm = kms.ES384 }))
	if !errors.Is(err, ErrAlgorithm) {
		t.Errorf("a default that is not allowed: %v, want ErrAlgorithm", err)
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
