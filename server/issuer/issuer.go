// Package issuer holds the configured issuers: who they are and which
// algorithms their policy allows. Registering a client and issuing a token ask
// the same tables, so that nothing can be registered that cannot be issued.
package issuer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	// DefaultAlgorithm signs where neither client nor request chooses.
	DefaultAlgorithm kms.Algorithm
	// SigningKeys are the algorithms the issuer has a key for.
	SigningKeys []kms.Algorithm
	// Signing, Encryption and ContentEncryption narrow what is allowed. Empty
	// means all that the profile allows by default.
	Signing           []kms.Algorithm
	Encryption        []encrypter.KeyAlgorithm
	ContentEncryption []encrypter.ContentEncryption
}

// Issuer is one issuer, ready to use. It is immutable.
type Issuer struct {
	name       string
	token      signer.Issuer
	algorithm  kms.Algorithm
	signing    allowed[kms.Algorithm]
	encryption allowed[encrypter.KeyAlgorithm]
	content    allowed[encrypter.ContentEncryption]
}

// allowed is a short list of names; a linear look is fastest.
type allowed[T ~string] []T

func (a allowed[T]) check(what string, name T) error {
	if slices.Contains(a, name) {
		return nil
	}
	return fmt.Errorf("%w: %s %q; allowed here: %s", ErrAlgorithm, what, string(name), a)
}

func (a allowed[T]) String() string {
	names := make([]string, len(a))
	for i, n := range a {
		names[i] = string(n)
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

// New compiles an issuer's policy.
func New(cfg Config) (*Issuer, error) {
	fapi := cfg.Profile == FAPI
	i := &Issuer{
		name: cfg.Name, token: cfg.Token, algorithm: cfg.DefaultAlgorithm,
		signing: choose(kms.Algorithms(), cfg.Signing, func(a kms.Algorithm) bool {
			return slices.Contains(cfg.SigningKeys, a) && (!fapi || a.AllowedInFAPI())
		}),
		encryption: choose(encrypter.KeyAlgorithms(), cfg.Encryption, func(a encrypter.KeyAlgorithm) bool {
			return (a.AllowedByDefault() || slices.Contains(cfg.Encryption, a)) && (!fapi || a.AllowedInFAPI())
		}),
		content: choose(encrypter.ContentEncryptions(), cfg.ContentEncryption, func(e encrypter.ContentEncryption) bool {
			return (e.AllowedByDefault() || slices.Contains(cfg.ContentEncryption, e)) && (!fapi || e.AllowedInFAPI())
		}),
	}
	if err := i.CheckSigning(i.algorithm); err != nil {
		return nil, fmt.Errorf("issuer %s: default_signing_algorithm: %w", cfg.Name, err)
	}
	return i, nil
}

// choose returns the members of table, in its order, that the policy names (an
// empty policy names all) and ok lets pass.
func choose[T ~string](table, policy []T, ok func(T) bool) allowed[T] {
	var chosen allowed[T]
	for _, name := range table {
		if (len(policy) == 0 || slices.Contains(policy, name)) && ok(name) {
			chosen = append(chosen, name)
		}
	}
	return chosen
}

// Name is how requests and grants call the issuer.
func (i *Issuer) Name() string { return i.name }

// Token is what the rules of tokens need to know of the issuer.
func (i *Issuer) Token() signer.Issuer { return i.token }

// DefaultAlgorithm signs where neither client nor request chooses.
func (i *Issuer) DefaultAlgorithm() kms.Algorithm { return i.algorithm }

// Signing, Encryption and ContentEncryption list what the policy allows.
func (i *Issuer) Signing() []kms.Algorithm { return slices.Clone(i.signing) }

// Encryption lists the JWE alg values that the policy allows.
func (i *Issuer) Encryption() []encrypter.KeyAlgorithm { return slices.Clone(i.encryption) }

// ContentEncryption lists the JWE enc values that the policy allows.
func (i *Issuer) ContentEncryption() []encrypter.ContentEncryption { return slices.Clone(i.content) }

// CheckSigning returns ErrAlgorithm if the policy does not allow the JWS alg.
func (i *Issuer) CheckSigning(alg kms.Algorithm) error {
	return i.signing.check("signing algorithm", alg)
}

// CheckEncryption returns ErrAlgorithm if the policy does not allow the JWE alg
// or enc.
func (i *Issuer) CheckEncryption(alg encrypter.KeyAlgorithm, enc encrypter.ContentEncryption) error {
	if err := i.encryption.check("encryption algorithm", alg); err != nil {
		return err
	}
	return i.content.check("content encryption", enc)
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
