package jwks

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
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
	// problem says which member has a wrong JSON type; empty if none.
	problem string
}

// readSet reads the keys of a JWK Set, in order. Its errors wrap ErrRejected.
func readSet(document []byte, limits Limits) ([]members, error) {
	if len(document) > limits.MaxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, more than the allowed %d: remove keys or certificate chains that are not needed",
			ErrRejected, len(document), limits.MaxBytes)
	}
	r := reader{dec: jsontext.NewDecoder(bytes.NewBuffer(document)), limits: limits}
	keys, err := r.set()
	if err == nil {
		err = r.end()
	}
	if err == nil {
		return keys, nil
	}
	if errors.Is(err, ErrRejected) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrRejected, jsonError(err))
}

// jsonError puts a decoder's error into words that hold no more of the
// document than a position.
func jsonError(err error) error {
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return fmt.Errorf("an object names a member twice, at byte %d: name each once", syntax.ByteOffset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON ends too early: publish the whole document")
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not valid JSON in UTF-8, at byte %d: %w", syntax.ByteOffset, syntax.Err)
	}
	return err
}

// reader walks over the document once, token by token, so that no limit is
// checked after the work it should have prevented. The decoder refuses
// duplicate names and invalid UTF-8.
type reader struct {
	dec    *jsontext.Decoder
	limits Limits
}

func (r *reader) next() (jsontext.Token, error) {
	token, err := r.dec.ReadToken()
	if err != nil {
		return token, err
	}
	if r.dec.StackDepth() > r.limits.MaxDepth {
		return token, fmt.Errorf("%w: it nests deeper than %d levels: publish a plain JWK Set", ErrRejected, r.limits.MaxDepth)
	}
	return token, nil
}

// skip passes over one value.
func (r *reader) skip() error {
	depth := r.dec.StackDepth()
	for {
		if _, err := r.next(); err != nil {
			return err
		}
		if r.dec.StackDepth() <= depth {
			return nil
		}
	}
}

// end makes sure that nothing but white space is left.
func (r *reader) end() error {
	_, err := r.dec.ReadToken()
	if err == nil {
		return fmt.Errorf("%w: there is more after the JSON object: publish the object alone", ErrRejected)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// object calls member for each member of the object that comes next; member
// reads the value.
func (r *reader) object(member func(name string) error) error {
	if _, err := r.next(); err != nil { // {
		return err
	}
	for r.dec.PeekKind() != jsontext.KindEndObject {
		name, err := r.next()
		if err != nil {
			return err
		}
		if err := member(name.String()); err != nil {
			return err
		}
	}
	_, err := r.next()
	return err
}

// array calls element for each element of the array that comes next; element
// reads it.
func (r *reader) array(element func() error) error {
	if _, err := r.next(); err != nil { // [
		return err
	}
	for r.dec.PeekKind() != jsontext.KindEndArray {
		if err := element(); err != nil {
			return err
		}
	}
	_, err := r.next()
	return err
}

func (r *reader) set() ([]members, error) {
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginObject && kind != jsontext.KindInvalid {
		return nil, fmt.Errorf(`%w: it is not a JSON object: a JWK Set looks like {"keys": [...]}`, ErrRejected)
	}
	var keys []members
	var hasKeys, hasType bool
	err := r.object(func(name string) error {
		switch name {
		case "keys":
			hasKeys = true
			return r.keys(&keys)
		case "kty":
			hasType = true
		}
		return r.skip()
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
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginArray && kind != jsontext.KindInvalid {
		return fmt.Errorf(`%w: its member "keys" is not an array: a JWK Set looks like {"keys": [...]}`, ErrRejected)
	}
	return r.array(func() error {
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
	if kind := r.dec.PeekKind(); kind != jsontext.KindBeginObject && kind != jsontext.KindInvalid {
		return m, fmt.Errorf("%w: keys[%d] is not a JSON object: each key is one", ErrRejected, index)
	}
	secret := ""
	err := r.object(func(name string) error {
		switch kindOf(name) {
		case secretMember:
			secret = name
		case stringMember:
			return r.text(&m, name)
		case listMember:
			return r.list(&m, name)
		}
		return r.skip()
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
	if r.dec.PeekKind() != jsontext.KindString {
		m.complain("its member %q is not a string: make it one, or leave it out", name)
		return r.skip()
	}
	token, err := r.next()
	if err != nil {
		return err
	}
	m.texts[name] = token.String()
	return nil
}

func (r *reader) list(m *members, name string) error {
	if r.dec.PeekKind() != jsontext.KindBeginArray {
		m.complain("its member %q is not an array of strings: make it one, or leave it out", name)
		return r.skip()
	}
	list := []string{}
	err := r.array(func() error {
		if r.dec.PeekKind() != jsontext.KindString {
			m.complain("its member %q is not an array of strings: make it one, or leave it out", name)
			return r.skip()
		}
		token, err := r.next()
		if err != nil {
			return err
		}
		list = append(list, token.String())
		return nil
	})
	m.lists[name] = list
	return err
}

// complain keeps the first problem.
func (m *members) complain(format, name string) {
	if m.problem == "" {
		m.problem = fmt.Sprintf(format, name)
	}
}
