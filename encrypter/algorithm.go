package encrypter

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSA-OAEP is defined with it: see the table.
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"strings"
)

// KeyAlgorithm is a JWE key management algorithm, a value of the header
// parameter "alg": how the content encryption key (CEK) of a token gets to the
// recipient. Any string can be converted; [KeyAlgorithm.Known] tells whether
// this package implements it.
type KeyAlgorithm string

// The key management algorithms of this package.
const (
	RSAOAEP256   KeyAlgorithm = "RSA-OAEP-256"
	RSAOAEP384   KeyAlgorithm = "RSA-OAEP-384"
	RSAOAEP512   KeyAlgorithm = "RSA-OAEP-512"
	RSAOAEP      KeyAlgorithm = "RSA-OAEP"
	RSA15        KeyAlgorithm = "RSA1_5" // legacy
	ECDHES       KeyAlgorithm = "ECDH-ES"
	ECDHESA128KW KeyAlgorithm = "ECDH-ES+A128KW"
	ECDHESA192KW KeyAlgorithm = "ECDH-ES+A192KW"
	ECDHESA256KW KeyAlgorithm = "ECDH-ES+A256KW"
	A128KW       KeyAlgorithm = "A128KW"
	A192KW       KeyAlgorithm = "A192KW"
	A256KW       KeyAlgorithm = "A256KW"
	A128GCMKW    KeyAlgorithm = "A128GCMKW"
	A192GCMKW    KeyAlgorithm = "A192GCMKW"
	A256GCMKW    KeyAlgorithm = "A256GCMKW"
	Dir          KeyAlgorithm = "dir"
)

// ContentEncryption is a JWE content encryption algorithm, a value of the
// header parameter "enc": how the token itself is encrypted and authenticated.
// Any string can be converted; [ContentEncryption.Known] tells whether this
// package implements it.
type ContentEncryption string

// The content encryption algorithms of this package.
const (
	A128CBCHS256 ContentEncryption = "A128CBC-HS256"
	A192CBCHS384 ContentEncryption = "A192CBC-HS384"
	A256CBCHS512 ContentEncryption = "A256CBC-HS512"
	A128GCM      ContentEncryption = "A128GCM"
	A192GCM      ContentEncryption = "A192GCM"
	A256GCM      ContentEncryption = "A256GCM"

	// A128CBCPlusHS256 is legacy: drafts of RFC 7518 defined it, and only
	// programs older than that RFC ask for it.
	A128CBCPlusHS256 ContentEncryption = "A128CBC+HS256"
)

// Values of the JWK members "kty" (RFC 7518 section 6.1, RFC 8037 section 2)
// and "crv" (RFC 7518 section 6.2.1.1, RFC 8037 section 3.2).
const (
	typeRSA     = "RSA"
	typeEC      = "EC"
	typeOKP     = "OKP"
	typeOct     = "oct"
	curveP256   = "P-256"
	curveP384   = "P-384"
	curveP521   = "P-521"
	curveX25519 = "X25519"
	curveX448   = "X448"
)

// keyAlgorithmRow is all that is known of one key management algorithm.
type keyAlgorithmRow struct {
	name     KeyAlgorithm
	standard string // where it is defined
	keys     *keyFamily

	// secretSize is the size in bytes of the shared key; 0 if there is none,
	// or if it is direct.
	secretSize int
	// direct: the key that is shared, or agreed upon, is the CEK itself and has
	// its size.
	direct bool
	// gcm: the shared key encrypts with AES-GCM and random IVs.
	gcm bool

	allowedByDefault bool   // where an issuer's policy names no algorithms
	allowedInFAPI    bool   // in an issuer of the profile fapi
	legacy           bool   // see KeyAlgorithm.Legacy
	warning          string // see KeyAlgorithm.Warnings

	// compile prepares the algorithm for one recipient's key, of a type and
	// curve named above, and one content encryption.
	compile func(key crypto.PublicKey, enc *contentEncryptionRow) (keyManagement, error)
}

// keyFamily is the recipients' keys that an algorithm takes.
type keyFamily struct {
	types  []string // JWK kty
	curves []string // JWK crv; none if the kty has none
	// ops are the JWK key_ops of which a public key needs one (RFC 7517 section
	// 4.3); none for a secret.
	ops []string
}

// contentEncryptionRow is all that is known of one content encryption
// algorithm. Sizes are in bytes.
type contentEncryptionRow struct {
	name     ContentEncryption
	standard string
	keySize  int // of the CEK
	ivSize   int
	tagSize  int
	gcm      bool // AES-GCM with a random IV

	allowedByDefault bool
	allowedInFAPI    bool
	legacy           bool
	warning          string

	// with names the only key management algorithms that the enc goes with.
	// None: all of them.
	with []KeyAlgorithm

	seal contentSealer
}

// keyAlgorithms is the table of key management algorithms, in the order in
// which people are shown them. FAPI forbids RSA1_5 only (FAPI 1.0 Advanced
// section 8.6.1).
//
// RSA-OAEP stands for OAEP with SHA-1 and cannot be had with another hash
// (RFC 7518 section 4.3). That is no weakness: OAEP's proof asks its hash to
// behave as a random function on inputs that an attacker does not choose, not
// to resist collisions, which is what SHA-1 has lost. RSA1_5 is a weakness, of
// the clients that decrypt it (Bleichenbacher's attack).
var keyAlgorithms = []keyAlgorithmRow{
	{
		name: RSAOAEP256, standard: "RFC 7518 section 4.3", keys: rsaKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: rsaOAEP(sha256.New),
	},
	{
		name: RSAOAEP384, standard: webCrypto, keys: rsaKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: rsaOAEP(sha512.New384),
	},
	{
		name: RSAOAEP512, standard: webCrypto, keys: rsaKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: rsaOAEP(sha512.New),
	},
	{
		name: RSAOAEP, standard: "RFC 7518 section 4.3", keys: rsaKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: rsaOAEP(sha1.New),
	},
	{
		name: ECDHES, standard: agreementStandard, keys: agreementKeys, direct: true,
		allowedByDefault: true, allowedInFAPI: true, compile: ecdhDirect,
	},
	{
		name: ECDHESA128KW, standard: agreementStandard, keys: agreementKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: ecdhKeyWrap(ECDHESA128KW, 16),
	},
	{
		name: ECDHESA192KW, standard: agreementStandard, keys: agreementKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: ecdhKeyWrap(ECDHESA192KW, 24),
	},
	{
		name: ECDHESA256KW, standard: agreementStandard, keys: agreementKeys,
		allowedByDefault: true, allowedInFAPI: true, compile: ecdhKeyWrap(ECDHESA256KW, 32),
	},
	{
		name: A128KW, standard: "RFC 7518 section 4.4", keys: octKeys, secretSize: 16,
		allowedByDefault: true, allowedInFAPI: true, compile: aesKeyWrap,
	},
	{
		name: A192KW, standard: "RFC 7518 section 4.4", keys: octKeys, secretSize: 24,
		allowedByDefault: true, allowedInFAPI: true, compile: aesKeyWrap,
	},
	{
		name: A256KW, standard: "RFC 7518 section 4.4", keys: octKeys, secretSize: 32,
		allowedByDefault: true, allowedInFAPI: true, compile: aesKeyWrap,
	},
	{
		name: A128GCMKW, standard: "RFC 7518 section 4.7", keys: octKeys, secretSize: 16, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, compile: aesGCMKeyWrap,
	},
	{
		name: A192GCMKW, standard: "RFC 7518 section 4.7", keys: octKeys, secretSize: 24, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, compile: aesGCMKeyWrap,
	},
	{
		name: A256GCMKW, standard: "RFC 7518 section 4.7", keys: octKeys, secretSize: 32, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, compile: aesGCMKeyWrap,
	},
	{
		name: Dir, standard: "RFC 7518 section 4.5", keys: octKeys, direct: true,
		allowedByDefault: true, allowedInFAPI: true, compile: sharedKey,
	},
	{
		name: RSA15, standard: "RFC 7518 section 4.2", keys: rsaKeys,
		legacy: true, compile: rsaPKCS1,
		warning: "RSA1_5 has been abused to decrypt tokens without the key, through clients that tell bad padding from other errors; " +
			"move the client to RSA-OAEP-256",
	},
}

// contentEncryptions is the table of content encryption algorithms, in the
// order in which people are shown them. Those with a hash in their name take a
// CEK of twice the AES key's size: its first half is the key of the HMAC. The
// CEK of A128CBC+HS256 is neither key: both are derived from it.
var contentEncryptions = []contentEncryptionRow{
	{
		name: A128CBCHS256, standard: "RFC 7518 section 5.2.3", keySize: 32, ivSize: 16, tagSize: 16,
		allowedByDefault: true, allowedInFAPI: true, seal: cbcHMAC(sha256.New),
	},
	{
		name: A192CBCHS384, standard: "RFC 7518 section 5.2.4", keySize: 48, ivSize: 16, tagSize: 24,
		allowedByDefault: true, allowedInFAPI: true, seal: cbcHMAC(sha512.New384),
	},
	{
		name: A256CBCHS512, standard: "RFC 7518 section 5.2.5", keySize: 64, ivSize: 16, tagSize: 32,
		allowedByDefault: true, allowedInFAPI: true, seal: cbcHMAC(sha512.New),
	},
	{
		name: A128GCM, standard: "RFC 7518 section 5.3", keySize: 16, ivSize: 12, tagSize: 16, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, seal: sealGCM,
	},
	{
		name: A192GCM, standard: "RFC 7518 section 5.3", keySize: 24, ivSize: 12, tagSize: 16, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, seal: sealGCM,
	},
	{
		name: A256GCM, standard: "RFC 7518 section 5.3", keySize: 32, ivSize: 12, tagSize: 16, gcm: true,
		allowedByDefault: true, allowedInFAPI: true, seal: sealGCM,
	},
	{
		name: A128CBCPlusHS256, standard: "draft-ietf-jose-json-web-algorithms-08", keySize: 32, ivSize: 16, tagSize: 32,
		legacy: true, with: []KeyAlgorithm{RSA15, RSAOAEP}, seal: sealCBCPlusHMAC,
		warning: "A128CBC+HS256 was replaced before it became a standard, and few libraries know it; move the client to A128CBC-HS256",
	},
}

// Texts and lists that rows share. RSA-OAEP with longer hashes came to the JOSE
// registry with the Web Cryptography API.
const (
	webCrypto         = "W3C Web Cryptography API (IANA JSON Web Signature and Encryption Algorithms)"
	agreementStandard = "RFC 7518 section 4.6, RFC 8037 section 3.2"
)

var (
	rsaKeys       = &keyFamily{types: []string{typeRSA}, ops: []string{"encrypt", "wrapKey"}}
	octKeys       = &keyFamily{types: []string{typeOct}}
	agreementKeys = &keyFamily{
		types:  []string{typeEC, typeOKP},
		curves: []string{curveP256, curveP384, curveP521, curveX25519, curveX448},
		ops:    []string{"deriveKey", "deriveBits"},
	}
)

// KeyAlgorithms returns every key management algorithm of this package, in
// the order in which to show them to people.
func KeyAlgorithms() []KeyAlgorithm {
	names := make([]KeyAlgorithm, len(keyAlgorithms))
	for i := range keyAlgorithms {
		names[i] = keyAlgorithms[i].name
	}
	return names
}

// ContentEncryptions returns every content encryption algorithm of this
// package, in the order in which to show them to people.
func ContentEncryptions() []ContentEncryption {
	names := make([]ContentEncryption, len(contentEncryptions))
	for i := range contentEncryptions {
		names[i] = contentEncryptions[i].name
	}
	return names
}

// row returns the algorithm's row of the table, or nil. The table is short
// and only read when a recipient is made.
func (a KeyAlgorithm) row() *keyAlgorithmRow {
	for i := range keyAlgorithms {
		if keyAlgorithms[i].name == a {
			return &keyAlgorithms[i]
		}
	}
	return nil
}

// Known reports whether this package implements the algorithm. Names are
// compared as they are: "rsa-oaep" is not known. Of an algorithm that is not
// known, the other methods return the zero value.
func (a KeyAlgorithm) Known() bool { return a.row() != nil }

// KeyTypes returns the types of key that the algorithm takes, as JWK "kty"
// values: "RSA", "EC", "OKP" or "oct". The caller owns the slice.
func (a KeyAlgorithm) KeyTypes() []string {
	if r := a.row(); r != nil {
		return slices.Clone(r.keys.types)
	}
	return nil
}

// Curves returns the curves that the algorithm takes, as JWK "crv" values such
// as "P-256"; empty if its keys have no curve. The caller owns the slice.
func (a KeyAlgorithm) Curves() []string {
	if r := a.row(); r != nil {
		return slices.Clone(r.keys.curves)
	}
	return nil
}

// KeyOps returns what the algorithm does with a recipient's public key, as JWK
// "key_ops" values such as "wrapKey": one of them does. It is empty for the
// symmetric algorithms. The caller owns the slice.
func (a KeyAlgorithm) KeyOps() []string {
	if r := a.row(); r != nil {
		return slices.Clone(r.keys.ops)
	}
	return nil
}

// Standard returns where the algorithm is defined, such as
// "RFC 7518 section 4.3".
func (a KeyAlgorithm) Standard() string {
	if r := a.row(); r != nil {
		return r.standard
	}
	return ""
}

// AllowedByDefault reports whether the algorithm may be used where the
// issuer's policy does not say which may.
func (a KeyAlgorithm) AllowedByDefault() bool {
	r := a.row()
	return r != nil && r.allowedByDefault
}

// AllowedInFAPI reports whether the FAPI security profiles permit the
// algorithm.
func (a KeyAlgorithm) AllowedInFAPI() bool {
	r := a.row()
	return r != nil && r.allowedInFAPI
}

// Symmetric reports whether the algorithm needs a secret that the client and
// the issuer share, a [SecretKey], where the others need the client's public
// key.
func (a KeyAlgorithm) Symmetric() bool {
	r := a.row()
	return r != nil && r.symmetric()
}

// SecretSize returns the size in bytes of the [SecretKey] that a symmetric
// algorithm needs: 16 for A128KW, and that of the CEK for dir. It is 0 for the
// other algorithms.
func (a KeyAlgorithm) SecretSize(enc ContentEncryption) int {
	switch r := a.row(); {
	case r == nil || !r.symmetric():
		return 0
	case r.direct:
		return enc.KeySize()
	default:
		return r.secretSize
	}
}

// Legacy reports whether the algorithm is here only for clients that know no
// better one: it is to be used where the issuer's policy names it and the
// client is registered as such a client, and nowhere else.
func (a KeyAlgorithm) Legacy() bool {
	r := a.row()
	return r != nil && r.legacy
}

// Fits returns nil if a key of the type and curve of key can be used with the
// algorithm: an *rsa.PublicKey, *ecdsa.PublicKey, *ecdh.PublicKey,
// [X448PublicKey] or [SecretKey]. Otherwise its error wraps
// [ErrUnknownAlgorithm] or [ErrKeyUnsuitable] and names the algorithms that
// such a key would suit. It does not look at the key's value: [NewRecipient]
// does.
func (a KeyAlgorithm) Fits(key crypto.PublicKey) error {
	r := a.row()
	if r == nil {
		return unknownKeyAlgorithm(a)
	}
	kty, crv, err := keyKind(key)
	if err != nil {
		return err
	}
	if r.keys.has(kty, crv) {
		return nil
	}
	return fmt.Errorf("%w: %s needs a key of type %s, and this one is %s; %s",
		ErrKeyUnsuitable, a, r.keys, strings.TrimSpace(kty+" "+crv), adviseAlgorithms(kty, crv))
}

func (r *keyAlgorithmRow) symmetric() bool { return slices.Contains(r.keys.types, typeOct) }

// has reports whether keys of this kty and crv belong to the family.
func (f *keyFamily) has(kty, crv string) bool {
	if !slices.Contains(f.types, kty) {
		return false
	}
	if len(f.curves) == 0 {
		return crv == ""
	}
	return slices.Contains(f.curves, crv)
}

// String puts types and curves into words: "EC (P-256, P-384)".
func (f *keyFamily) String() string {
	s := strings.Join(f.types, " or ")
	if len(f.curves) > 0 {
		s += " (" + strings.Join(f.curves, ", ") + ")"
	}
	return s
}

// keyKind returns the JWK kty and crv of a recipient's key.
func keyKind(key crypto.PublicKey) (kty, crv string, err error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if key != nil {
			return typeRSA, "", nil
		}
	case *ecdsa.PublicKey:
		// Without coordinates the standard library's own checks of a key panic.
		if key != nil && key.Curve != nil && key.Curve.Params() != nil && key.X != nil && key.Y != nil { //nolint:staticcheck // only compared with nil
			return typeEC, key.Curve.Params().Name, nil
		}
	case *ecdh.PublicKey:
		if key != nil && key.Curve() != nil {
			if key.Curve() == ecdh.X25519() {
				return typeOKP, curveX25519, nil
			}
			return typeEC, fmt.Sprint(key.Curve()), nil
		}
	case X448PublicKey:
		return typeOKP, curveX448, nil
	case SecretKey:
		if len(key) > 0 {
			return typeOct, "", nil
		}
	}
	return "", "", fmt.Errorf("%w: a %T is not a key that can be encrypted to, or it is empty; give an RSA or an elliptic curve public key, or a SecretKey", ErrKeyUnsuitable, key)
}

// adviseAlgorithms says which algorithms a key of this kind could be used
// with. Legacy ones are nothing to advise.
func adviseAlgorithms(kty, crv string) string {
	var fitting []string
	for i := range keyAlgorithms {
		if keyAlgorithms[i].keys.has(kty, crv) && !keyAlgorithms[i].legacy {
			fitting = append(fitting, string(keyAlgorithms[i].name))
		}
	}
	if len(fitting) == 0 {
		return "no algorithm known here takes it: use a key of another type"
	}
	return "use a fitting key, or for this one " + strings.Join(fitting, ", ")
}

// row returns the algorithm's row of the table, or nil.
func (e ContentEncryption) row() *contentEncryptionRow {
	for i := range contentEncryptions {
		if contentEncryptions[i].name == e {
			return &contentEncryptions[i]
		}
	}
	return nil
}

// Known reports whether this package implements the algorithm. Names are
// compared as they are. Of an algorithm that is not known, the other methods
// return the zero value.
func (e ContentEncryption) Known() bool { return e.row() != nil }

// KeySize returns the size in bytes of the content encryption key (CEK). For
// the algorithms made of AES-CBC and HMAC it counts both their keys.
func (e ContentEncryption) KeySize() int {
	if r := e.row(); r != nil {
		return r.keySize
	}
	return 0
}

// Standard returns where the algorithm is defined, such as
// "RFC 7518 section 5.3".
func (e ContentEncryption) Standard() string {
	if r := e.row(); r != nil {
		return r.standard
	}
	return ""
}

// AllowedByDefault reports whether the algorithm may be used where the
// issuer's policy does not say which may.
func (e ContentEncryption) AllowedByDefault() bool {
	r := e.row()
	return r != nil && r.allowedByDefault
}

// AllowedInFAPI reports whether the FAPI security profiles permit the
// algorithm.
func (e ContentEncryption) AllowedInFAPI() bool {
	r := e.row()
	return r != nil && r.allowedInFAPI
}

// Legacy reports whether the algorithm is here only for clients that know no
// better one; see [KeyAlgorithm.Legacy].
func (e ContentEncryption) Legacy() bool {
	r := e.row()
	return r != nil && r.legacy
}
