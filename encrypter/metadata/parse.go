package metadata

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
)

// tokenMembers are the members for one kind of token: the prefix of
// "…_signed_response_alg", "…_encrypted_response_alg" and
// "…_encrypted_response_enc", which have the same meaning in all standards.
type tokenMembers struct {
	kind   registry.TokenKind
	prefix string
	// always: there are tokens of this kind without a member that asks for
	// them.
	always bool
	// signed: without the first member, tokens are signed with RS256. Else
	// they would be no JWT at all.
	signed bool
}

// allTokenMembers is the table of the kinds: OpenID Connect Dynamic Client
// Registration 1.0, section 2, JARM, section 3, and RFC 9701, section 6. A
// logout token has no members of its own: it is made like an ID token
// (OpenID Connect Back-Channel Logout 1.0, section 2.4).
func allTokenMembers() []tokenMembers {
	return []tokenMembers{
		{kind: "ID_TOKEN", prefix: "id_token", always: true, signed: true},
		{kind: "USERINFO", prefix: "userinfo"},
		{kind: "AUTHORIZATION_RESPONSE", prefix: "authorization", signed: true},
		{kind: "INTROSPECTION", prefix: "introspection", signed: true},
	}
}

const (
	suffixSigned    = "_signed_response_alg"
	suffixAlgorithm = "_encrypted_response_alg"
	suffixContent   = "_encrypted_response_enc"
)

func isTokenMember(name string) bool {
	return slices.ContainsFunc(allTokenMembers(), func(t tokenMembers) bool {
		suffix, ok := strings.CutPrefix(name, t.prefix)
		return ok && (suffix == suffixSigned || suffix == suffixAlgorithm || suffix == suffixContent)
	})
}

// Parse reads client metadata: a JSON object of at most MaxBytes. An error is
// an *Error, which wraps ErrInvalid. The document is not kept.
func Parse(document []byte) (*Client, error) {
	m, err := read(document)
	if err != nil {
		return nil, err
	}
	c := &builder{
		Client: &Client{ClientID: m.texts[memberClientID], JWKS: m.jwks, JWKSURI: m.texts[memberJWKSURI]},
		public: m.texts[memberAuthMethod] == "none",
	}
	if secret := m.texts[memberSecret]; c.public && secret != "" {
		c.warn(`client_secret is not taken over: a public client (token_endpoint_auth_method "none") has no secret (RFC 7591, section 2)`)
	} else if secret != "" {
		c.secret = func() string { return secret }
	}
	if c.JWKS != nil && c.JWKSURI != "" {
		return nil, invalid(memberJWKSURI, "it is given together with jwks: give one of them")
	}
	if err := c.setExpiry(m.expiresAt); err != nil {
		return nil, err
	}
	if m.statement {
		c.warn(memberStatement + " is not read: what it says about keys and tokens has to stand among the other members")
	}
	for _, t := range allTokenMembers() {
		if err := c.addSetting(t, m.texts); err != nil {
			return nil, err
		}
	}
	return c.Client, nil
}

// builder is a Client in the making.
type builder struct {
	*Client
	public bool // token_endpoint_auth_method is "none"
}

func (c *builder) warn(text string) { c.Warnings = append(c.Warnings, text) }

func (c *builder) setExpiry(text string) error {
	if text == "" {
		return nil
	}
	n, ok := seconds(text)
	if !ok {
		return invalid(memberExpiresAt, "it is not a whole number of seconds since 1970-01-01T00:00:00Z: give one, or 0 for never")
	}
	if n > 0 && c.Secret() != "" {
		c.SecretExpiresAt = time.Unix(n, 0).UTC()
	}
	return nil
}

// addSetting adds the setting for one kind of token, if there is one.
func (c *builder) addSetting(t tokenMembers, texts map[string]string) error {
	signed, hasSigned := texts[t.prefix+suffixSigned]
	alg, hasAlg := texts[t.prefix+suffixAlgorithm]
	enc, hasEnc := texts[t.prefix+suffixContent]
	switch {
	case hasEnc && !hasAlg:
		return invalid(t.prefix+suffixContent, "it is given without %s: give both, or neither", t.prefix+suffixAlgorithm)
	case !t.always && !hasSigned && !hasAlg:
		return nil
	}
	switch {
	case hasSigned:
		if err := c.checkSigning(t.prefix+suffixSigned, signed); err != nil {
			return err
		}
	case t.signed:
		c.RS256ByDefault = append(c.RS256ByDefault, t.kind)
	default:
		c.warn(t.prefix + suffixSigned + " is missing: what is encrypted is signed first, here with the issuer's default algorithm")
	}
	if hasAlg {
		if err := c.checkEncryption(t.prefix+suffixAlgorithm, alg); err != nil {
			return err
		}
		if !hasEnc {
			enc = registry.DefaultContentEncryption
		}
		if err := encrypter.CheckPair(encrypter.KeyAlgorithm(alg), encrypter.ContentEncryption(enc)); errors.Is(err, encrypter.ErrPair) {
			return invalid(t.prefix+suffixContent, "%s", err) // what is not known is for the caller to judge
		}
	}
	c.Settings = append(c.Settings, registry.Setting{
		Kind: t.kind, SigningAlgorithm: signed, EncryptionAlgorithm: alg, ContentEncryption: enc,
	})
	return nil
}

func (c *builder) checkSigning(member, alg string) error {
	switch {
	case alg == "none":
		return invalid(member, `"none" is not allowed, since every token is signed: name a signature algorithm, such as RS256, or leave the member out`)
	case kms.Algorithm(alg).Symmetric():
		return c.checkSecret(member, alg)
	}
	return nil
}

func (c *builder) checkEncryption(member, alg string) error {
	switch {
	case alg == "none":
		return invalid(member, `"none" is no encryption algorithm: leave the member out for tokens that are signed only`)
	case encrypter.KeyAlgorithm(alg).Symmetric():
		return c.checkSecret(member, alg)
	case encrypter.KeyAlgorithm(alg).Known() && c.JWKS == nil && c.JWKSURI == "":
		return invalid(member, "%s encrypts to a public key of the client, and there is neither jwks nor jwks_uri: give one of them", alg)
	}
	return nil
}

// checkSecret refuses an algorithm whose key is the client's secret where there
// is none, or where it is known to more than the client: OpenID Connect Core
// 1.0, sections 10.1 and 10.2.
func (c *builder) checkSecret(member, alg string) error {
	switch {
	case c.public:
		return invalid(member, `%s takes the client's secret, and a public client (token_endpoint_auth_method "none") has none: use an algorithm with a key pair`, alg)
	case c.Secret() == "":
		return invalid(member, "%s takes the client's secret, and there is no client_secret: give it, or use an algorithm with a key pair", alg)
	}
	return nil
}
