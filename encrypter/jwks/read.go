package jwks

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/bulla-project/bulla/encrypter/internal/strictjson"
)

// memberKind is how a member of a JWK is treated.
type memberKind int

const (
	otherMember  memberKind = iota // passed over, as RFC 7517, section 4 asks
	stringMember                   // understood; a string
	listMember                     // understood; an array of strings
	secretMember                   // must not be there
)

// kindOf tells how the member of that name is treated. The secret ones are
// those that only a private or symmetric key has (RFC 7518, sections 6.2.2,
// 6.3.2 and 6.4.1; "priv" is that of kty AKP). One of them in a client's
// published set means that a secret has leaked, whatever the key is for.
func kindOf(name string) memberKind {
	switch name {
	case "d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv":
		return secretMember
	case "kty", "kid", "use", "alg", "crv", "x", "y", "n", "e", "x5u", "x5t", "x5t#S256":
		return stringMember
	case "key_ops", "x5c":
		return listMember
	}
	return otherMember
}

// members are the understood members of one JWK, by name: absent ones are not
// in the maps.
type members struct {
	texts map[string]string
	lists map[string][]string
	// problem says which member has a wrong JSON type, or is too long; empty if
	// none. Such a member is not in the maps.
	problem string
}

// Bounds of members that are kept with a key. A kid is repeated in the header
// of every token for the client; the other strings are names, the longest of
// which that is registered has 18 bytes. RFC 7517, section 4.3 has 8 key_ops.
const (
	maxKeyIDBytes = 256
	maxNameBytes  = 64
	maxKeyOps     = 16
)

// longest is the bound of a string member in bytes, 0 if it is not kept.
func longest(name string) int {
	switch name {
	case "kid":
		return maxKeyIDBytes
	case "kty", "crv", "use", "alg":
		return maxNameBytes
	}
	return 0
}

// readSet reads the keys of a JWK Set, in order. Its errors wrap ErrRejected.
func readSet(document []byte, limits Limits) ([]members, error) {
	if len(document) > limits.MaxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, more than the allowed %d: remove keys or certificate chains that are not needed",
			ErrRejected, len(document), limits.MaxBytes)
	}
	r := reader{Reader: strictjson.NewReader(document, limits.MaxDepth), limits: limits}
	keys, err := r.set()
	if err == nil {
		err = r.End()
	}
	if err == nil {
		return keys, nil
	}
	if errors.Is(err, ErrRejected) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrRejected, err)
}

// reader walks over the document once.
type reader struct {
	*strictjson.Reader
	limits Limits
}

func (r *reader) set() ([]members, error) {
	if !r.Is(jsontext.KindBeginObject) {
		return nil, fmt.Errorf(`%w: it is not a JSON object: a JWK Set looks like {"keys": [...]}`, ErrRejected)
	}
	var keys []members
	var hasKeys, hasType bool
	err := r.Object(func(name string) error {
		switch name {
		case "keys":
			hasKeys = true
			return r.keys(&keys)
		case "kty":
			hasType = true
		}
		return r.Skip()
	})
	switch {
	case err != nil:
		return nil, err
	case !hasKeys && hasType:
		return nil, fmt.Errorf(`%w: it is a single JWK: put it into {"keys": [...]}`, ErrRejected)
	case !hasKeys:
		return nil, fmt.Errorf(`%w: it has no member "keys": a JWK Set looks like {"keys": [...]}`, ErrRejected)
	}
	return keys, nil
}

func (r *reader) keys(keys *[]members) error {
	if !r.Is(jsontext.KindBeginArray) {
		return fmt.Errorf(`%w: its member "keys" is not an array: a JWK Set looks like {"keys": [...]}`, ErrRejected)
	}
	return r.Array(func() error {
		if len(*keys) == r.limits.MaxKeys {
			return fmt.Errorf("%w: it has more than the allowed %d keys: remove those that are not needed", ErrRejected, r.limits.MaxKeys)
		}
		key, err := r.key(len(*keys))
		if err != nil {
			return err
		}
		*keys = append(*keys, key)
		return nil
	})
}

func (r *reader) key(index int) (members, error) {
	m := members{texts: map[string]string{}, lists: map[string][]string{}}
	if !r.Is(jsontext.KindBeginObject) {
		return m, fmt.Errorf("%w: keys[%d] is not a JSON object: each key is one", ErrRejected, index)
	}
	secret := ""
	err := r.Object(func(name string) error {
		switch kindOf(name) {
		case secretMember:
			secret = name
		case stringMember:
			return r.text(&m, name)
		case listMember:
			return r.list(&m, name)
		}
		return r.Skip()
	})
	switch {
	case err != nil:
		return m, err
	case secret != "":
		return m, fmt.Errorf("%w: %s has the private or symmetric member %q: that key is no longer secret; replace it and publish public keys only",
			ErrRejected, keyName(index, m.texts["kid"]), secret)
	case m.texts["kty"] == "oct":
		return m, fmt.Errorf(`%w: %s is a symmetric key (kty "oct"): publish public keys only`,
			ErrRejected, keyName(index, m.texts["kid"]))
	}
	return m, nil
}

func (r *reader) text(m *members, name string) error {
	if !r.Is(jsontext.KindString) {
		m.complain("its member %q is not a string: make it one, or leave it out", name)
		return r.Skip()
	}
	text, err := r.Text()
	if err != nil {
		return err
	}
	if most := longest(name); most > 0 && len(text) > most {
		m.complain("its member %q has %d bytes, more than the allowed %d: shorten it, or leave it out", name, len(text), most)
		return nil
	}
	m.texts[name] = text
	return nil
}

func (r *reader) list(m *members, name string) error {
	if !r.Is(jsontext.KindBeginArray) {
		m.complain("its member %q is not an array of strings: make it one, or leave it out", name)
		return r.Skip()
	}
	list, problem := []string{}, ""
	err := r.Array(func() error {
		if !r.Is(jsontext.KindString) {
			problem = "its member %q is not an array of strings: make it one, or leave it out"
			return r.Skip()
		}
		text, err := r.Text()
		switch {
		case err != nil:
			return err
		case name == "key_ops" && len(text) > maxNameBytes, name == "key_ops" && len(list) == maxKeyOps:
			problem = fmt.Sprintf("its member %%q has more than %d values, or one longer than %d bytes: leave it out", maxKeyOps, maxNameBytes)
		default:
			list = append(list, text)
		}
		return nil
	})
	if problem != "" {
		m.complain(problem, name)
		return err
	}
	m.lists[name] = list
	return err
}

// complain keeps the first problem.
func (m *members) complain(format string, args ...any) {
	if m.problem == "" {
		m.problem = fmt.Sprintf(format, args...)
	}
}
