// Package issuer holds the configured issuers: who they are and which
// algorithms their policy allows. Registering a client and issuing a token ask
// the same tables, so that nothing can be registered that cannot be issued.
package issuer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// Errors of this package, matched with errors.Is. Their texts may be shown to
// callers.
var (
	// ErrUnknown: no issuer of that name is configured.
	ErrUnknown = errors.New("issuer unknown")

	// ErrAlgorithm: the issuer's policy does not allow the algorithm. The text
	// names those it allows.
	ErrAlgorithm = errors.New("algorithm not allowed")
)

// Profile is a set of rules that an issuer follows.
type Profile string

// The profiles.
const (
	// Default allows what the algorithm tables allow by default.
	Default Profile = "default"
	// FAPI allows what the FAPI 2.0 security profile allows.
	FAPI Profile = "fapi"
)

// Config is one issuer as configured.
type Config struct {
	// Name is how requests and grants call the issuer.
	Name string
	// Token is what the rules of tokens need to know.
	Token signer.Issuer
	// Profile limits the algorithms. Empty means Default.
	Profile Profile
	// DefaultAlgorithm signs where neither client nor request chooses. The
	// issuer has a key for it.
	DefaultAlgorithm kms.Algorithm
	// SigningKeys are the algorithms the issuer has a key for.
	SigningKeys []kms.Algorithm
	// Signing, Encryption and ContentEncryption narrow what is allowed. Empty
	// means all that the profile allows by default.
	Signing           []kms.Algorithm
	Encryption        []encrypter.KeyAlgorithm
	ContentEncryption []encrypter.ContentEncryption
	// Legacy allows the legacy algorithms that Encryption and
	// ContentEncryption name, for clients that are registered as legacy.
	// Default: false, and then none may be named.
	Legacy bool
	// MinRSABits and MaxRSABits bound the RSA keys of clients, 2048 to 8192.
	// Default: 2048 and 4096.
	MinRSABits, MaxRSABits int
	// KeyChangeDelay is how long a change of a client that is or was registered
	// waits. Default: 0, and it takes effect at once.
	KeyChangeDelay time.Duration
}

// Issuer is one issuer, ready to use. It is immutable.
type Issuer struct {
	name      string
	token     signer.Issuer
	algorithm kms.Algorithm
	policy    policy
	delay     time.Duration
}

// New compiles an issuer's policy. Its error joins everything that is wrong with
// the configuration, by the names that the settings have there.
func New(cfg Config) (*Issuer, error) {
	p, err := newPolicy(&cfg)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", cfg.Name, err)
	}
	return &Issuer{name: cfg.Name, token: cfg.Token, algorithm: cfg.DefaultAlgorithm, policy: p, delay: cfg.KeyChangeDelay}, nil
}

// Name is how requests and grants call the issuer.
func (i *Issuer) Name() string { return i.name }

// Token is what the rules of tokens need to know of the issuer.
func (i *Issuer) Token() signer.Issuer { return i.token }

// DefaultAlgorithm signs where neither client nor request chooses. It is
// asymmetric.
func (i *Issuer) DefaultAlgorithm() kms.Algorithm { return i.algorithm }

// Signing lists the JWS alg values that can be used: those of the issuer's keys
// and, for clients that have registered a secret and one of them, the symmetric
// ones, as far as the policy allows.
func (i *Issuer) Signing() []kms.Algorithm { return slices.Clone(i.policy.signing) }

// Encryption lists the JWE alg values that can be used with at least one of
// ContentEncryption. Legacy ones among them are for legacy clients.
func (i *Issuer) Encryption() []encrypter.KeyAlgorithm { return slices.Clone(i.policy.encryption) }

// ContentEncryption lists the JWE enc values that can be used with at least one
// of Encryption. Legacy ones among them are for legacy clients.
func (i *Issuer) ContentEncryption() []encrypter.ContentEncryption {
	return slices.Clone(i.policy.content)
}

// MinRSABits is the shortest RSA key of a client in bits.
func (i *Issuer) MinRSABits() int { return i.policy.minRSABits }

// MaxRSABits is the longest RSA key of a client in bits.
func (i *Issuer) MaxRSABits() int { return i.policy.maxRSABits }

// KeyChangeDelay is how long a change of a client that is or was registered waits
// before it takes effect; 0 for not at all.
func (i *Issuer) KeyChangeDelay() time.Duration { return i.delay }

// CheckSigning returns ErrAlgorithm if the policy does not allow the JWS alg. For
// a symmetric one the client must have registered it too.
func (i *Issuer) CheckSigning(alg kms.Algorithm) error {
	return i.policy.checkSigning(alg)
}

// CheckEncryption returns ErrAlgorithm if the policy does not allow the JWE alg
// and enc together for a client that is, or is not, registered as legacy. The
// text names what would be allowed, and for a legacy algorithm what is missing.
func (i *Issuer) CheckEncryption(alg encrypter.KeyAlgorithm, enc encrypter.ContentEncryption, legacyClient bool) error {
	return i.policy.checkEncryption(alg, enc, legacyClient)
}

// CheckRSABits returns ErrAlgorithm if a client's RSA key of that many bits is
// outside of the policy.
func (i *Issuer) CheckRSABits(bits int) error {
	if lo, hi := i.policy.minRSABits, i.policy.maxRSABits; bits < lo || bits > hi {
		return fmt.Errorf("%w: an RSA key of %d bits; allowed here: %d to %d bits", ErrAlgorithm, bits, lo, hi)
	}
	return nil
}

// Directory finds issuers by name.
type Directory struct {
	byName map[string]*Issuer
	list   []*Issuer
}

// NewDirectory makes a Directory of issuers with different names.
func NewDirectory(issuers ...*Issuer) *Directory {
	d := &Directory{byName: make(map[string]*Issuer, len(issuers)), list: issuers}
	for _, i := range issuers {
		d.byName[i.name] = i
	}
	return d
}

// Find returns the issuer of that name. An empty name means the only one there
// is. The error is ErrUnknown.
func (d *Directory) Find(name string) (*Issuer, error) {
	if name == "" {
		if len(d.list) == 1 {
			return d.list[0], nil
		}
		return nil, fmt.Errorf("%w: the request names none and %d are configured", ErrUnknown, len(d.list))
	}
	if i, ok := d.byName[name]; ok {
		return i, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// All returns the issuers in the order of the configuration.
func (d *Directory) All() []*Issuer { return slices.Clone(d.list) }
