package issuer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
)

// Default bounds on clients' RSA keys, in bits.
const (
	defaultMinRSABits = encrypter.MinRSABits
	defaultMaxRSABits = 4096
)

// policy is what an issuer allows: the rows of the algorithm tables that are
// left when the profile and the configuration have had their say.
type policy struct {
	fapi                   bool
	signing                allowed[kms.Algorithm]
	encryption             allowed[encrypter.KeyAlgorithm]
	content                allowed[encrypter.ContentEncryption]
	minRSABits, maxRSABits int
}

// newPolicy compiles a policy. Its error joins all mistakes of cfg.
func newPolicy(cfg *Config) (policy, error) {
	p := policy{
		fapi:       cfg.Profile == FAPI,
		minRSABits: cmp.Or(cfg.MinRSABits, defaultMinRSABits),
		maxRSABits: cmp.Or(cfg.MaxRSABits, defaultMaxRSABits),
	}
	signable := slices.Concat(kms.Algorithms(), kms.SecretAlgorithms())
	p.signing = choose(signable, cfg.Signing, p.fapi, cfg.Legacy)
	p.signing = slices.DeleteFunc(p.signing, func(a kms.Algorithm) bool {
		return !a.Symmetric() && !slices.Contains(cfg.SigningKeys, a)
	})
	encryption := choose(encrypter.KeyAlgorithms(), cfg.Encryption, p.fapi, cfg.Legacy)
	content := choose(encrypter.ContentEncryptions(), cfg.ContentEncryption, p.fapi, cfg.Legacy)
	// What goes with nothing that is allowed beside it cannot be used.
	p.encryption = with(encryption, content, encrypter.CheckPair)
	p.content = with(content, encryption, func(enc encrypter.ContentEncryption, alg encrypter.KeyAlgorithm) error {
		return encrypter.CheckPair(alg, enc)
	})

	var wrong []error
	if cfg.Profile != "" && cfg.Profile != Default && cfg.Profile != FAPI {
		wrong = append(wrong, fmt.Errorf("profile: %q is unknown: write %s or %s", string(cfg.Profile), Default, FAPI))
	}
	if a := cfg.DefaultAlgorithm; a.Symmetric() {
		wrong = append(wrong, fmt.Errorf("default_signing_algorithm: %w: %s signs with the secret of a client that registered it: name an algorithm of the issuer's keys", ErrAlgorithm, a))
	} else if err := p.checkSigning(a); err != nil {
		wrong = append(wrong, fmt.Errorf("default_signing_algorithm: %w", err))
	}
	wrong = append(wrong, mistakes("signing", signable, cfg.Signing, cfg.Legacy, p.fapi)...)
	wrong = append(wrong, mistakes("encryption", encrypter.KeyAlgorithms(), cfg.Encryption, cfg.Legacy, p.fapi)...)
	wrong = append(wrong, mistakes("content_encryption", encrypter.ContentEncryptions(), cfg.ContentEncryption, cfg.Legacy, p.fapi)...)
	if len(wrong) == 0 {
		wrong = append(wrong, unpaired("encryption", cfg.Encryption, p.encryption, "content_encryption")...)
		wrong = append(wrong, unpaired("content_encryption", cfg.ContentEncryption, p.content, "encryption")...)
	}
	if lo, hi := p.minRSABits, p.maxRSABits; lo < encrypter.MinRSABits || hi > encrypter.MaxRSABits || lo > hi {
		wrong = append(wrong, fmt.Errorf("policy.min_rsa_bits, policy.max_rsa_bits: RSA keys of %d to %d bits cannot be: write bounds from %d to %d, the lower one first", lo, hi, encrypter.MinRSABits, encrypter.MaxRSABits))
	}
	return p, errors.Join(wrong...)
}

// name is an algorithm that its package's table knows.
type name interface {
	~string
	AllowedByDefault() bool
	AllowedInFAPI() bool
}

// isLegacy reports whether an algorithm is kept for old clients only. No
// signature algorithm is.
func isLegacy[T name](a T) bool {
	l, ok := any(a).(interface{ Legacy() bool })
	return ok && l.Legacy()
}

// choose returns the members of table, in its order, that the policy names and
// the profile permits. An empty policy names all that are allowed by default.
func choose[T name](table, named []T, fapi, legacy bool) allowed[T] {
	var chosen allowed[T]
	for _, a := range table {
		switch {
		case len(named) == 0 && !a.AllowedByDefault(), len(named) > 0 && !slices.Contains(named, a):
		case fapi && !a.AllowedInFAPI():
		case isLegacy(a) && (!legacy || !slices.Contains(named, a)):
		default:
			chosen = append(chosen, a)
		}
	}
	return chosen
}

// with returns the members of list that go with at least one of others.
func with[T, U ~string](list allowed[T], others allowed[U], check func(T, U) error) allowed[T] {
	return slices.DeleteFunc(slices.Clone(list), func(a T) bool {
		return !slices.ContainsFunc(others, func(b U) bool { return check(a, b) == nil })
	})
}

// mistakes are the names of a list that can never be used.
func mistakes[T name](list string, table, named []T, legacy, fapi bool) []error {
	var wrong []error
	for _, a := range named {
		var problem string
		switch {
		case !slices.Contains(table, a):
			problem = "is unknown: use some of " + allowed[T](table).String()
		case fapi && !a.AllowedInFAPI():
			problem = "is not allowed by the fapi profile: remove it, or write profile: default"
		case isLegacy(a) && !legacy:
			problem = "is only kept for old clients: write legacy: true in the policy if you need it, or remove it"
		default:
			continue
		}
		wrong = append(wrong, fmt.Errorf("policy.%s: %q %s", list, string(a), problem))
	}
	return wrong
}

// unpaired are the names of a list that go with nothing that is allowed beside
// them.
func unpaired[T ~string](list string, named []T, usable allowed[T], other string) []error {
	var wrong []error
	for _, a := range named {
		if !slices.Contains(usable, a) {
			wrong = append(wrong, fmt.Errorf("policy.%s: %q goes with nothing that is allowed by policy.%s: add what goes with it, or remove it", list, string(a), other))
		}
	}
	return wrong
}

// checkSigning is Issuer.CheckSigning.
func (p *policy) checkSigning(alg kms.Algorithm) error {
	return checkFor(p, "signing algorithm", "signing", p.signing, alg, true)
}

// checkEncryption is Issuer.CheckEncryption.
func (p *policy) checkEncryption(alg encrypter.KeyAlgorithm, enc encrypter.ContentEncryption, legacyClient bool) error {
	if err := checkFor(p, "encryption algorithm", "encryption", p.encryption, alg, legacyClient); err != nil {
		return err
	}
	if err := checkFor(p, "content encryption", "content_encryption", p.content, enc, legacyClient); err != nil {
		return err
	}
	if encrypter.CheckPair(alg, enc) == nil {
		return nil
	}
	fitting := slices.DeleteFunc(forClient(p.content, legacyClient), func(e encrypter.ContentEncryption) bool {
		return encrypter.CheckPair(alg, e) != nil
	})
	return fmt.Errorf("%w: content encryption %q does not go with %s; allowed with it here: %s", ErrAlgorithm, string(enc), alg, fitting)
}

// checkFor returns ErrAlgorithm if a is not in the list, or is legacy and the
// client is not.
func checkFor[T name](p *policy, what, setting string, list allowed[T], a T, legacyClient bool) error {
	inList := slices.Contains(list, a)
	if inList && (legacyClient || !isLegacy(a)) {
		return nil
	}
	missing := ""
	switch {
	case !isLegacy(a):
	case p.fapi:
		missing = ", which is only kept for old clients and never allowed by the fapi profile"
	case inList:
		missing = ", which is only kept for old clients: the client has to be registered as legacy"
	case legacyClient:
		missing = ", which is only kept for old clients: the issuer's policy has to say legacy: true and name it in " + setting
	default:
		missing = ", which is only kept for old clients: the issuer's policy has to say legacy: true and name it in " + setting + ", and the client has to be registered as legacy"
	}
	return fmt.Errorf("%w: %s %q%s; allowed here: %s", ErrAlgorithm, what, string(a), missing, forClient(list, legacyClient))
}

// forClient is the part of a list that a client can have.
func forClient[T name](list allowed[T], legacyClient bool) allowed[T] {
	return slices.DeleteFunc(slices.Clone(list), func(a T) bool { return isLegacy(a) && !legacyClient })
}

// allowed is a short list of names; a linear look is fastest.
type allowed[T ~string] []T

func (a allowed[T]) String() string {
	names := make([]string, len(a))
	for i, n := range a {
		names[i] = string(n)
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}
