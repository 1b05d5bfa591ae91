package audit

import (
	"encoding/hex"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// Outcome is how a call ended.
type Outcome string

// The outcomes.
const (
	Issued    Outcome = "issued"    // a token is about to be handed out
	Changed   Outcome = "changed"   // a registration or a signing key was changed
	Unchanged Outcome = "unchanged" // a registration was repeated, with the same secret
	Denied    Outcome = "denied"    // the caller may not do this
	Failed    Outcome = "failed"    // allowed, but it did not work

	// TookEffect is no call's: a change of a registration that waited is in force
	// on this replica from now on.
	TookEffect Outcome = "took_effect"
)

// Event is what one line of the log says. Fields that are empty are left out
// of the line. Texts are cut to 1 KiB; control characters, invisible ones and
// broken UTF-8 are written as escapes.
//
// The fields are all there is: nothing here may carry claims, a token, a
// secret or a private key. A token is known by its hash and its jti.
type Event struct {
	// Time is when it happened; zero means now. It is written in UTC to the
	// microsecond (RFC 3339).
	Time time.Time
	// Outcome is how the call ended, Reason the name of the error reason of
	// the API ("CALLER_NOT_ALLOWED") if it was denied or failed.
	Outcome Outcome
	Reason  string

	// Caller is the verified identity of the caller, RPC the full method name
	// ("/bulla.v1.TokenService/SignAndEncrypt").
	Caller string
	RPC    string
	// Permission is the permission that was asked for ("replace_client_key").
	Permission string

	// What was asked for: the issuer's name, the client_id and the token kind
	// ("ID_TOKEN").
	Issuer    string
	ClientID  string
	TokenKind string

	// How a token was made: the kid and alg of the JWS, and the kid, RFC 7638
	// thumbprint, alg and enc of the JWE.
	SigningKeyID            string
	SigningAlgorithm        string
	EncryptionKeyID         string
	EncryptionKeyThumbprint string
	EncryptionAlgorithm     string
	ContentEncryption       string

	// JTI is the token's jti claim, TokenSHA256 the hash of the token as it
	// was handed out; all zero if there is none. It is written in hex.
	JTI         string
	TokenSHA256 [32]byte

	// What a change did: the RFC 7638 thumbprints of the keys before and
	// after, for each token kind ("ID_TOKEN=…,USERINFO=none", none where it is
	// not encrypted), how tokens are made from now on ("ID_TOKEN=ES256/RSA-OAEP/
	// A256GCM,legacy"), where the keys come from ("jwks" or the URL), and the
	// revision of the registration after it.
	OldThumbprint string
	NewThumbprint string
	Settings      string
	KeySource     string
	Revision      uint64
	// GrantsSHA256 is the hash of the grants that are in force from now on, if the
	// configuration was read again and has others (config.Config.GrantsSHA256).
	// It is written in hex.
	GrantsSHA256 [32]byte

	// EffectiveAt is when a change takes effect that waits, or took effect that
	// waited; zero for one that is in force at once. DroppedThumbprint are the
	// keys of a change that waited and never takes effect, as this one takes its
	// place or takes it back.
	EffectiveAt       time.Time
	DroppedThumbprint string
}

// lineVersion is the "v" of every line. It changes when a field changes its
// meaning or goes; new fields do not change it, nor do lines of another kind,
// which have no outcome.
const lineVersion = 1

// maxText is the longest text of a field, in bytes before escaping.
const maxText = 1024

// appendLine appends e as one line of JSON with its line feed.
func (e *Event) appendLine(dst []byte) []byte {
	dst = appendTime(dst, e.Time)
	dst = appendText(dst, "outcome", string(e.Outcome))
	dst = appendText(dst, "reason", e.Reason)
	dst = appendText(dst, "caller", e.Caller)
	dst = appendText(dst, "rpc", e.RPC)
	dst = appendText(dst, "permission", e.Permission)
	dst = appendText(dst, "issuer", e.Issuer)
	dst = appendText(dst, "client_id", e.ClientID)
	dst = appendText(dst, "token_kind", e.TokenKind)
	dst = appendText(dst, "signing_key_id", e.SigningKeyID)
	dst = appendText(dst, "signing_algorithm", e.SigningAlgorithm)
	dst = appendText(dst, "encryption_key_id", e.EncryptionKeyID)
	dst = appendText(dst, "encryption_key_thumbprint", e.EncryptionKeyThumbprint)
	dst = appendText(dst, "encryption_algorithm", e.EncryptionAlgorithm)
	dst = appendText(dst, "content_encryption", e.ContentEncryption)
	dst = appendText(dst, "jti", e.JTI)
	if e.TokenSHA256 != [32]byte{} {
		dst = append(dst, `,"token_sha256":"`...)
		dst = hex.AppendEncode(dst, e.TokenSHA256[:])
		dst = append(dst, '"')
	}
	dst = appendText(dst, "old_thumbprint", e.OldThumbprint)
	dst = appendText(dst, "new_thumbprint", e.NewThumbprint)
	dst = appendText(dst, "settings", e.Settings)
	dst = appendText(dst, "key_source", e.KeySource)
	if e.GrantsSHA256 != [32]byte{} {
		dst = append(dst, `,"grants_sha256":"`...)
		dst = hex.AppendEncode(dst, e.GrantsSHA256[:])
		dst = append(dst, '"')
	}
	if e.Revision != 0 {
		dst = append(dst, `,"revision":`...)
		dst = strconv.AppendUint(dst, e.Revision, 10)
	}
	if !e.EffectiveAt.IsZero() {
		dst = append(dst, `,"effective_at":"`...)
		dst = e.EffectiveAt.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
		dst = append(dst, '"')
	}
	dst = appendText(dst, "dropped_thumbprint", e.DroppedThumbprint)
	return append(dst, '}', '\n')
}

// appendText appends a member, or nothing if text is empty. A text that was
// cut ends with an ellipsis.
func appendText(dst []byte, name, text string) []byte {
	if text == "" {
		return dst
	}
	cut := len(text) > maxText
	if cut {
		text = text[:maxText]
	}
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':', '"')
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				dst = append(dst, '\\', c)
			case c < ' ' || c == 0x7f:
				dst = appendEscape(dst, rune(c))
			default:
				dst = append(dst, c)
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1 && cut && !utf8.FullRuneInString(text[i:]):
			// the cut went through a character: leave its rest out
			size = len(text) - i
		case r == utf8.RuneError && size == 1:
			dst = append(dst, `\ufffd`...)
		case unicode.IsPrint(r):
			dst = append(dst, text[i:i+size]...)
		default: // C1 controls, direction marks, line separators and the like
			dst = appendEscape(dst, r)
		}
		i += size
	}
	if cut {
		dst = append(dst, "…"...)
	}
	return append(dst, '"')
}

// appendEscape appends r as JSON's \u escape (RFC 8259, section 7), beyond the
// basic plane as a surrogate pair.
func appendEscape(dst []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	unit := func(u rune) {
		dst = append(dst, '\\', 'u', digits[u>>12&15], digits[u>>8&15], digits[u>>4&15], digits[u&15])
	}
	if r > 0xffff {
		r -= 0x10000
		unit(0xd800 + r>>10)
		unit(0xdc00 + r&0x3ff)
		return dst
	}
	unit(r)
	return dst
}
