package secrets

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
)

// MaxSecret is the longest client secret, in bytes of UTF-8.
const MaxSecret = 1024

// Errors of Derive. Their texts say what is wrong and tell nothing of the
// secret.
var (
	// ErrSecret: the client secret cannot be used. The client needs another.
	ErrSecret = errors.New("client secret refused")

	// ErrTooShort is an ErrSecret: it is shorter than the hash of an algorithm
	// that is to sign with it (RFC 7518, section 3.2). The client needs a
	// longer one, or another algorithm.
	ErrTooShort = fmt.Errorf("%w: too short to sign with", ErrSecret)
)

// Signs reports whether a JWS algorithm signs with the client's secret.
func Signs(algorithm string) bool { return kms.Algorithm(algorithm).Symmetric() }

// needs is what settings take of a client's secret.
type needs struct {
	sizes  map[int]bool // of derived keys, in bytes
	signed []string     // algorithms that sign with the secret itself
}

func needsOf(settings []registry.Setting) needs {
	n := needs{sizes: make(map[int]bool)}
	for _, s := range settings {
		s = s.Normalize()
		size := encrypter.KeyAlgorithm(s.EncryptionAlgorithm).SecretSize(encrypter.ContentEncryption(s.ContentEncryption))
		if size > 0 {
			n.sizes[size] = true
		}
		if Signs(s.SigningAlgorithm) {
			n.signed = append(n.signed, s.SigningAlgorithm)
		}
	}
	return n
}

func (n needs) nothing() bool { return len(n.sizes) == 0 && len(n.signed) == 0 }

// Derive returns what settings need of a client's secret: the keys of those
// that encrypt with a symmetric algorithm ([encrypter.DeriveSecretKey]), and
// the secret itself only if one signs with it. It is empty, and the secret may
// be anything, where no setting needs it.
//
// A secret is UTF-8 text of 1 to MaxSecret bytes without NUL. RFC 6749
// (appendix A.2) allows printable ASCII only, and providers do not keep to it:
// the keys are hashes of the UTF-8 bytes in any case. Errors: ErrSecret,
// ErrTooShort.
func Derive(secret string, settings []registry.Setting) (*Material, error) {
	n, m := needsOf(settings), &Material{}
	if n.nothing() {
		return m, nil
	}
	if problem := textProblem(secret); problem != "" {
		return nil, fmt.Errorf("%w: %s", ErrSecret, problem)
	}
	for size := range n.sizes {
		key, err := encrypter.DeriveSecretKey(secret, size)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSecret, err)
		}
		if m.Keys == nil {
			m.Keys = make(map[int][]byte)
		}
		m.Keys[size] = key
	}
	for _, algorithm := range n.signed {
		if least := kms.Algorithm(algorithm).MinSecret(); len(secret) < least {
			return nil, fmt.Errorf("%w: %s needs one of at least %d bytes (RFC 7518, section 3.2); give the client a longer secret, or have its tokens signed with another algorithm",
				ErrTooShort, algorithm, least)
		}
		m.Secret = []byte(secret)
	}
	return m, nil
}

func textProblem(secret string) string {
	switch {
	case secret == "":
		return "it is empty; send the secret that the client has"
	case len(secret) > MaxSecret:
		return fmt.Sprintf("it has more than %d bytes; give the client a shorter one", MaxSecret)
	case !utf8.ValidString(secret):
		return "it is not UTF-8 text; keys are derived from the UTF-8 form of a secret"
	case strings.ContainsRune(secret, 0):
		return "a NUL character occurs in it; send the secret alone"
	}
	return ""
}

// Warnings is what whoever registers a secret should know of it, where settings
// need it. Such warnings are for the reply to a registration only: kept, they
// would tell every reader which client's secret is worth guessing.
func Warnings(secret string, settings []registry.Setting) []string {
	if needsOf(settings).nothing() || !guessable(secret) {
		return nil
	}
	return []string{"the client's secret looks as if it could be guessed, and whoever guesses it can open the client's tokens: give the client 32 random bytes or more, in base64url"}
}

// guessable reports whether a secret has surely less than 128 bits of entropy:
// if each of its characters had been drawn at random from the smallest common
// alphabet that has them all, or if it is made of few different ones. It cannot
// tell that a long secret is a known one.
func guessable(secret string) bool {
	const wanted, fewest = 128, 8
	var digit, lower, upper, other bool
	different := make(map[rune]bool)
	length := 0
	hex := true
	for _, c := range secret {
		length++
		different[c] = true
		hex = hex && strings.ContainsRune("0123456789abcdefABCDEF", c)
		switch {
		case '0' <= c && c <= '9':
			digit = true
		case 'a' <= c && c <= 'z':
			lower = true
		case 'A' <= c && c <= 'Z':
			upper = true
		default:
			other = true
		}
	}
	if len(different) < fewest {
		return true
	}
	alphabet := 0
	for _, class := range []struct {
		has  bool
		size int
	}{{digit, 10}, {lower, 26}, {upper, 26}, {other, unicode.MaxASCII - 0x20 - 62}} {
		if class.has {
			alphabet += class.size
		}
	}
	if hex && (!lower || !upper) {
		alphabet = min(alphabet, 16)
	}
	return float64(length)*math.Log2(float64(alphabet)) < wanted
}
