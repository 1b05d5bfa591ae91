package jwks

import (
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/encrypter"
)

// Want says which key is wanted.
type Want struct {
	// Algorithm is the JWE "alg" that the key will be used with.
	Algorithm encrypter.KeyAlgorithm

	// KeyID pins the choice to keys with this "kid": if none of them fits, no
	// other key is taken in their place. Empty means no pin.
	KeyID string

	// MinRSABits and MaxRSABits, if not zero, rule out shorter and longer RSA
	// keys: the policy of one issuer, where the Limits of the set are those of
	// all who share it. No less than 2048 bits ever passes.
	MinRSABits, MaxRSABits int

	// CertificateAt is the time at which a client registers; leave it zero at
	// refreshes and when a token is made. If it is set, it rules out keys whose
	// certificate is not valid then, where a lapsed one is only worth a warning
	// later (see Key.CertificateError), and RSA keys whose modulus is a prime,
	// which takes 4 ms to find out for 2048 bits and 30 ms for 4096.
	CertificateAt time.Time
}

// Outcome is what the choice made of a key.
type Outcome int

const (
	// Chosen: tokens are encrypted to this key. At most one key of a set is.
	Chosen Outcome = iota
	// Eligible: the key fits, but another one ranks before it.
	Eligible
	// Unfit: the key is sound but not for this use.
	Unfit
	// Unusable: the key would fit, but its State is not Usable, or it fails a
	// check that the Want asks for.
	Unusable
)

// String returns the outcome as one lower-case word.
func (o Outcome) String() string {
	switch o {
	case Chosen:
		return "chosen"
	case Eligible:
		return "eligible"
	case Unfit:
		return "unfit"
	case Unusable:
		return "unusable"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Verdict is the outcome for one key, and in one line the reason.
type Verdict struct {
	Key     *Key
	Outcome Outcome
	Reason  string
}

// Choose returns the key to encrypt to. A key can be chosen if
//
//   - it passed all checks, and alg takes its kty and crv;
//   - its "use" is "enc", or it has none and its "key_ops" are absent, empty
//     or allow what alg does with a public key (encrypt or wrapKey for RSA,
//     deriveKey or deriveBits for EC and OKP);
//   - its "alg", if it has one, is the wanted one;
//   - its "kid" is the pinned one, if one is pinned.
//
// Among those, keys that name both use and alg come first, then those that
// name their use, then the rest; the order of the document breaks ties.
//
// If no key can be chosen, the error is a *NoKeyError.
func (s *Set) Choose(want Want) (*Key, error) {
	verdicts := s.Explain(want)
	for _, v := range verdicts {
		if v.Outcome == Chosen {
			return v.Key, nil
		}
	}
	return nil, &NoKeyError{Want: want, Verdicts: verdicts}
}

// Explain returns the verdict on every key of the set, in the document's
// order. It is the decision that Choose takes.
func (s *Set) Explain(want Want) []Verdict {
	verdicts := make([]Verdict, len(s.keys))
	for i, k := range s.keys {
		outcome, reason := k.judge(want)
		verdicts[i] = Verdict{Key: k, Outcome: outcome, Reason: reason}
	}
	best := bestOf(verdicts, !want.CertificateAt.IsZero())
	for i := range verdicts {
		switch v := &verdicts[i]; {
		case v.Key == best:
			v.Outcome, v.Reason = Chosen, "it "+best.rank().String()
			switch {
			case want.KeyID != "":
				v.Reason = "it has the pinned kid, " + best.rank().String()
			case best.pem:
				v.Reason = "it fits" // no PEM key could name its use
			}
		case v.Outcome == Eligible && v.Key.rank() == best.rank():
			v.Reason = fmt.Sprintf("it would do, but keys[%d] does as well and comes first", best.Index)
		case v.Outcome == Eligible:
			v.Reason = fmt.Sprintf("it would do, but keys[%d] %s", best.Index, best.rank())
		}
	}
	return verdicts
}

// maxPrimes is how many keys of a set may turn out to have a prime for their
// modulus before the rest of its RSA keys are not even asked: a bound on the
// work for a set that was made to cost some.
const maxPrimes = 3

// bestOf returns the eligible key of the best rank, nil if there is none. If
// primes are looked for, RSA keys with a prime modulus become Unusable on the
// way.
func bestOf(verdicts []Verdict, testPrimes bool) *Key {
	for primes := 0; ; primes++ {
		var best *Verdict
		for i := range verdicts {
			v := &verdicts[i]
			if primes == maxPrimes && v.Outcome == Eligible && v.Key.primeModulus != nil {
				v.Outcome, v.Reason = Unusable, fmt.Sprintf("the RSA modulus of %d other keys is a prime: replace the software that creates them", maxPrimes)
			}
			if v.Outcome == Eligible && (best == nil || v.Key.rank() < best.Key.rank()) {
				best = v
			}
		}
		switch {
		case best == nil:
			return nil
		case !testPrimes || best.Key.primeModulus == nil || !best.Key.primeModulus():
			return best.Key
		}
		best.Outcome, best.Reason = Unusable, "its RSA modulus is a prime, so anybody can break it: create a new key with other software"
	}
}

// judge looks at one key alone: Eligible, or Unfit or Unusable with a reason.
func (k *Key) judge(want Want) (Outcome, string) {
	unfit := k.unfit(want)
	switch {
	case k.State == Skipped:
		return Unfit, k.Reason
	case k.State == Rejected && unfit != "":
		return Unfit, unfit + "; besides, " + k.Reason
	case k.State == Rejected:
		return Unusable, k.Reason
	case unfit != "":
		return Unfit, unfit
	}
	if k, ok := k.Public.(*rsa.PublicKey); ok {
		switch bits := k.N.BitLen(); {
		case want.MinRSABits > 0 && bits < want.MinRSABits:
			return Unusable, fmt.Sprintf("its RSA modulus has %d bits, less than the %d that this issuer requires: use a longer key", bits, want.MinRSABits)
		case want.MaxRSABits > 0 && bits > want.MaxRSABits:
			return Unusable, fmt.Sprintf("its RSA modulus has %d bits, more than the %d that this issuer allows: use a shorter key", bits, want.MaxRSABits)
		}
	}
	if !want.CertificateAt.IsZero() {
		if err := k.CertificateError(want.CertificateAt); err != nil {
			return Unusable, err.Error()
		}
	}
	return Eligible, ""
}

// unfit says why the key is not meant for want, whatever its State; empty if
// it is. An empty "use" or "alg" says as little as none.
func (k *Key) unfit(want Want) string {
	if reason := unfitType(want.Algorithm, k.Type, k.Curve); reason != "" {
		return reason
	}
	switch {
	case k.Use != "" && k.Use != "enc":
		return fmt.Sprintf(`its use is %s, not "enc"`, quote(k.Use))
	case k.Use == "" && !k.opsFit(want.Algorithm):
		return fmt.Sprintf("it has no use, and its key_ops %s do not allow encryption with its public half", quoteAll(k.KeyOps))
	case k.Algorithm != "" && k.Algorithm != string(want.Algorithm):
		return fmt.Sprintf("its alg is %s, not %q", quote(k.Algorithm), string(want.Algorithm))
	case want.KeyID != "" && k.KeyID == "":
		return fmt.Sprintf("it has no kid, and %s is pinned", quote(want.KeyID))
	case want.KeyID != "" && k.KeyID != want.KeyID:
		return fmt.Sprintf("its kid is not the pinned %s", quote(want.KeyID))
	}
	return ""
}

// opsFit tells whether "key_ops" (RFC 7517, section 4.3) leave room for what
// the algorithm does with a public key. An empty list, as the Web Cryptography
// API exports for the public half of an ECDH pair, leaves all.
func (k *Key) opsFit(alg encrypter.KeyAlgorithm) bool {
	fitting := alg.KeyOps()
	return len(k.KeyOps) == 0 || slices.ContainsFunc(k.KeyOps, func(op string) bool {
		return slices.Contains(fitting, op)
	})
}

// rank orders the keys that fit: lower is better.
type rank int

const (
	namesUseAndAlgorithm rank = iota
	namesUse
	namesNoUse
)

func (r rank) String() string {
	switch r {
	case namesUseAndAlgorithm:
		return "fits and names its use and alg"
	case namesUse:
		return "fits and names its use"
	}
	return "fits, though it does not name its use"
}

// rank is the rank of a key that fits.
func (k *Key) rank() rank {
	switch {
	case k.Use == "":
		return namesNoUse
	case k.Algorithm == "":
		return namesUse
	}
	return namesUseAndAlgorithm
}

// NoKeyError says that no key could be chosen. It is ErrNoKey, and
// ErrKeyRejected too if the cause is a key that failed the checks.
type NoKeyError struct {
	Want     Want
	Verdicts []Verdict
}

// maxListed is how many keys the text of a NoKeyError goes into.
const maxListed = 8

// Error lists the first few keys and why each was not chosen, those that
// failed the checks before the others.
func (e *NoKeyError) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%v alg %s", ErrNoKey, quote(string(e.Want.Algorithm)))
	if e.Want.KeyID != "" {
		fmt.Fprintf(&text, " and the pinned kid %s", quote(e.Want.KeyID))
	}
	if len(e.Verdicts) == 0 {
		text.WriteString(": the set is empty; publish an encryption key")
		return text.String()
	}
	if !e.rejected() {
		text.WriteString("; publish one that does")
	}
	listed := slices.Clone(e.Verdicts)
	slices.SortStableFunc(listed, func(a, b Verdict) int { return int(b.Outcome) - int(a.Outcome) })
	separator := ": "
	for i, v := range listed {
		text.WriteString(separator)
		if i == maxListed {
			fmt.Fprintf(&text, "and %d more keys", len(listed)-maxListed)
			break
		}
		fmt.Fprintf(&text, "%v: %s", v.Key, v.Reason)
		separator = "; "
	}
	return text.String()
}

// Unwrap returns the sentinels that the error stands for.
func (e *NoKeyError) Unwrap() []error {
	if e.rejected() {
		return []error{ErrNoKey, ErrKeyRejected}
	}
	return []error{ErrNoKey}
}

func (e *NoKeyError) rejected() bool {
	return slices.ContainsFunc(e.Verdicts, func(v Verdict) bool { return v.Outcome == Unusable })
}
