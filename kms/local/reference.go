package local

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bulla-project/bulla/kms"
)

const refPrefix = "kid="

// parseReference returns NAME of "kid=NAME". Errors wrap kms.ErrReference.
func parseReference(ref string) (string, error) {
	name, ok := strings.CutPrefix(ref, refPrefix)
	if !ok || name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", fmt.Errorf("%w: %q: a local key is referred to as kid=NAME, NAME being its \"kid\" in the file", kms.ErrReference, ref)
	}
	return name, nil
}

// maxName bounds the names that Create and CreateKey give.
const maxName = 80

// checkName allows for new keys only what needs no quoting anywhere: in YAML,
// in a shell, in a URL.
func checkName(name string) error {
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("local keys: %q cannot name a key: use letters, digits, '.', '_' and '-'", name)
		}
	}
	if name == "" || len(name) > maxName {
		return fmt.Errorf("local keys: %q cannot name a key: use 1 to %d characters", name, maxName)
	}
	return nil
}
