package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Defaults of [OpenConfig].
const (
	DefaultMaxBytes = 1 << 20
	DefaultLeeway   = time.Minute
)

// OpenConfig says which tokens an [Opener] accepts.
type OpenConfig struct {
	// Keys are the client's private keys, as [ParseKeys] reads them; 100 at most.
	// Required, unless ClientSecrets or AllowUnencrypted is set.
	Keys []jose.JSONWebKey
	// ClientSecrets are the client's secrets (client_secret, as UTF-8), for a client
	// that shares nothing else with the provider: the newest, and those before it
	// whose tokens are still to be opened; 8 at most. From them come the keys of
	// A128KW, A192KW, A256KW, A128GCMKW, A192GCMKW, A256GCMKW and dir (OpenID Connect
	// Core 1.0, section 10.2), and they are the keys of HS256, HS384 and HS512.
	// KeyAlgorithms should then list the one algorithm that the client registered.
	// Default: none.
	ClientSecrets [][]byte
	// Signers are the issuer's public keys, as [ParseSigners] reads them; 100 at
	// most. Required, unless signatures are verified with ClientSecrets.
	Signers []jose.JSONWebKey

	// KeyAlgorithms are the accepted values of the JWE's alg. Empty means
	// RSA-OAEP-256, RSA-OAEP-384, RSA-OAEP-512, RSA-OAEP, ECDH-ES, ECDH-ES+A128KW,
	// ECDH-ES+A192KW, ECDH-ES+A256KW, A128KW, A192KW, A256KW, A128GCMKW, A192GCMKW,
	// A256GCMKW and dir, of which those count that one of the Keys or a secret fits.
	// RSA1_5 is accepted only if it is listed, or by AllowLegacy. A client that
	// registered one algorithm should list just that; with ClientSecrets, or an oct
	// key that has no alg of its own, it is more than tidiness. One secret, or one key
	// of 16 bytes, say, fits A128KW, A128GCMKW and dir alike; whatever a token names of
	// these it is used for, and a key that serves two algorithms is only as safe as
	// both together (RFC 7517, section 4.4, binds a key by its alg).
	KeyAlgorithms []string
	// ContentEncryptions are the accepted values of enc. Empty means A256GCM,
	// A192GCM, A128GCM, A256CBC-HS512, A192CBC-HS384 and A128CBC-HS256.
	// A128CBC+HS256, older than RFC 7516, is accepted only if it is listed, or by
	// AllowLegacy, and then only with RSA1_5 or RSA-OAEP.
	ContentEncryptions []string
	// AllowLegacy has RSA1_5 and A128CBC+HS256 among the defaults of the two lists
	// above. It changes nothing where they are given. Default: they are not.
	AllowLegacy bool
	// SignatureAlgorithms are the accepted values of the JWS's alg. Empty means
	// ES256, ES384, ES512, PS256, PS384, PS512, RS256, RS384, RS512, EdDSA and
	// Ed25519, verified with Signers; without Signers it means those of HS256, HS384
	// and HS512 for which all ClientSecrets are long enough. A client that has both
	// and expects an HS algorithm must list it, for whoever knows its secret can sign
	// so.
	SignatureAlgorithms []string

	// Kind is the kind of token that is expected. If it is set, a token of any other
	// kind is refused, and so is one that lacks what its kind must have, whose iat lies
	// in the future, or that has a claim by a name in other letters of the same, as
	// "Sub", which some readers of the claims would take for sub. Empty means
	// that any kind is opened and no such check made: the caller then has to see to
	// it that a logout token is not taken for an ID token.
	Kind TokenKind

	// AllowUnencrypted also accepts a token that is signed only. Default: refused.
	AllowUnencrypted bool

	// Issuer, if not empty, must equal the claim iss.
	Issuer string
	// Audience, if not empty, must be the claim aud or one of its values.
	Audience string
	// TrustedAudiences are the parties that aud may name beside Audience if Kind is
	// set, too: with others the token is refused, because whoever asked for it may
	// have meant it for them (OpenID Connect Core 1.0, section 3.1.3.7, number 3).
	// Access tokens may have any. Needs Kind and Audience. Default: none.
	TrustedAudiences []string
	// RequireExpiry refuses claims without exp, as fits ID tokens. Default: claims
	// without exp are accepted (UserInfo responses have none).
	RequireExpiry bool
	// AllowExpired accepts a token after its exp, to look at an old one. Default:
	// an exp that is there must lie in the future.
	AllowExpired bool

	// Clock tells the time for exp and nbf. Default: time.Now.
	Clock func() time.Time
	// Leeway is how far the issuer's clock may be off. Zero means DefaultLeeway,
	// one minute; a negative value means none.
	Leeway time.Duration

	// MaxBytes bounds the length of a token. Zero means DefaultMaxBytes, 1 MiB.
	MaxBytes int
}

// Token is an opened token: decrypted, verified, and with claims that passed
// the checks of OpenConfig.
type Token struct {
	// Claims is the payload, byte for byte as the issuer signed it: a JSON object
	// without duplicate names.
	Claims []byte
	// EncryptionHeader is the JWE's protected header; nil if the token was only
	// signed.
	EncryptionHeader *Header
	// SignatureHeader is the JWS's protected header.
	SignatureHeader Header
	// InnerJWS is the signed JWT in compact form: what the JWE contained. It can be
	// passed on to those who know only the issuer's public keys.
	InnerJWS string
}

// Opener opens tokens of one issuer for one client. It does not change after
// NewOpener and may be used concurrently; for new keys make a new one.
type Opener struct {
	// keys and secrets return the private keys and the secrets. They are held by
	// functions, because whatever is held by a field gets printed by some verb of
	// package fmt.
	keys    func() []jose.JSONWebKey
	secrets func() [][]byte
	signers []jose.JSONWebKey

	keyAlgorithms       []keyAlgorithm
	contentEncryptions  []contentEncryption
	signatureAlgorithms []signatureAlgorithm

	allowUnencrypted bool
	kind             *kindRules
	checks           claimChecks
	maxBytes         int
}

// NewOpener checks the configuration and returns an Opener for it.
func NewOpener(config OpenConfig) (*Opener, error) {
	o := &Opener{
		allowUnencrypted: config.AllowUnencrypted,
		checks: claimChecks{
			issuer:        config.Issuer,
			audience:      config.Audience,
			trusted:       slices.Clone(config.TrustedAudiences),
			requireExpiry: config.RequireExpiry,
			allowExpired:  config.AllowExpired,
			clock:         config.Clock,
			leeway:        config.Leeway,
		},
		maxBytes: config.MaxBytes,
	}
	if o.checks.clock == nil {
		o.checks.clock = time.Now
	}
	switch {
	case config.Leeway == 0:
		o.checks.leeway = DefaultLeeway
	case config.Leeway < 0:
		o.checks.leeway = 0
	}
	switch {
	case config.MaxBytes == 0:
		o.maxBytes = DefaultMaxBytes
	case config.MaxBytes < 0:
		return nil, errors.New("OpenConfig.MaxBytes is negative; leave it at zero for 1 MiB")
	}

	var err error
	if o.kind, err = config.Kind.rules(); err != nil {
		return nil, err
	}
	if len(config.TrustedAudiences) > 0 && (config.Kind == AnyKind || config.Audience == "") {
		return nil, errors.New("OpenConfig.TrustedAudiences is given, but other audiences are only looked at if Kind and Audience are set: set both, or remove it")
	}
	if err := checkSecrets(config.ClientSecrets); err != nil {
		return nil, err
	}
	var secrets [][]byte
	for _, secret := range config.ClientSecrets {
		secrets = append(secrets, slices.Clone(secret))
	}
	o.secrets = func() [][]byte { return secrets }
	if err := o.setAlgorithms(config); err != nil {
		return nil, err
	}

	if n := max(len(config.Keys), len(config.Signers)); n > maxKeys {
		return nil, fmt.Errorf("OpenConfig: %d keys, more than %d", n, maxKeys)
	}
	// Keys may come from elsewhere than ParseKeys and ParseSigners, so they pass
	// the same checks again.
	for i, key := range config.Keys {
		if problem := privateKeyProblem(key, nil); problem != "" {
			return nil, fmt.Errorf("OpenConfig.Keys: key %d (kid %s): %s", i+1, quote(key.KeyID), problem)
		}
	}
	keys := slices.Clone(config.Keys)
	o.keys = func() []jose.JSONWebKey { return keys }
	for i, key := range config.Signers {
		if problem := signerProblem(key, nil); problem != "" {
			return nil, fmt.Errorf("OpenConfig.Signers: key %d (kid %s): %s", i+1, quote(key.KeyID), problem)
		}
		o.signers = append(o.signers, key)
	}
	if len(keys) == 0 && len(secrets) == 0 && !o.allowUnencrypted {
		return nil, errors.New("OpenConfig.Keys is empty: give the client's private key or its secret, or set AllowUnencrypted to accept only signed tokens")
	}
	if len(o.signers) == 0 && !slices.ContainsFunc(o.signatureAlgorithms, signatureAlgorithm.symmetric) {
		return nil, errors.New("OpenConfig.Signers is empty: give the issuer's public keys (its JWKS), or, for a client that registered HS256, HS384 or HS512, a secret of 32, 48 or 64 bytes")
	}
	return o, nil
}

// setAlgorithms takes the lists of the configuration, or the defaults.
func (o *Opener) setAlgorithms(config OpenConfig) (err error) {
	if o.keyAlgorithms, err = pick("KeyAlgorithms", config.KeyAlgorithms, keyAlgorithms,
		func(a keyAlgorithm) bool { return config.AllowLegacy || !a.legacy }); err != nil {
		return err
	}
	if o.contentEncryptions, err = pick("ContentEncryptions", config.ContentEncryptions, contentEncryptions,
		func(c contentEncryption) bool { return config.AllowLegacy || !c.legacy }); err != nil {
		return err
	}
	shortest := 0
	for i, secret := range o.secrets() {
		if i == 0 || len(secret) < shortest {
			shortest = len(secret)
		}
	}
	if o.signatureAlgorithms, err = pick("SignatureAlgorithms", config.SignatureAlgorithms, signatureAlgorithms,
		func(s signatureAlgorithm) bool {
			return !s.symmetric() || len(config.Signers) == 0 && s.minSecret <= shortest
		}); err != nil {
		return err
	}
	return o.checkMACs()
}

// Open decrypts a token in compact serialization, verifies the signed JWT inside and
// checks its claims. It returns a Token only if all of that succeeded; otherwise
// the error wraps one of this package's sentinels. Spaces and line breaks around
// the token are not removed.
func (o *Opener) Open(token string) (*Token, error) {
	if len(token) > o.maxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrMalformed, len(token), o.maxBytes)
	}
	var outer *header
	inner := token
	switch dots := strings.Count(token, "."); {
	case dots == 4:
		e, err := parseEncrypted(token)
		if err != nil {
			return nil, err
		}
		if err := e.mustContainJWT(); err != nil {
			return nil, err
		}
		plaintext, err := o.decrypt(e)
		if err != nil {
			return nil, err
		}
		outer, inner = e.header, string(plaintext)
		if strings.Count(inner, ".") == 4 {
			return nil, fmt.Errorf("%w: it contains another encrypted token, not a signed one", ErrNotAllowed)
		}
	case dots == 2 && o.allowUnencrypted:
	case dots == 2:
		return nil, fmt.Errorf("%w: it is signed but not encrypted, and OpenConfig.AllowUnencrypted is not set", ErrNotAllowed)
	default:
		return nil, fmt.Errorf("%w: a compact JWE has five parts separated by dots, this has %d", ErrMalformed, dots+1)
	}

	s, err := parseSigned(inner)
	if err != nil {
		return nil, err
	}
	payload, err := o.verify(s)
	if err != nil {
		return nil, err
	}
	claims, err := parseClaims(payload)
	if err != nil {
		return nil, err
	}
	if outer != nil {
		if err := claims.agreeWith(outer); err != nil {
			return nil, err
		}
	}
	if err := o.checks.check(claims); err != nil {
		return nil, err
	}
	if err := o.kind.check(s.header, claims, o.checks); err != nil {
		return nil, err
	}

	opened := &Token{Claims: payload, SignatureHeader: s.header.Header, InnerJWS: inner}
	if outer != nil {
		opened.EncryptionHeader = &outer.Header
	}
	return opened, nil
}
