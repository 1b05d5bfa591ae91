package signer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of the claims.
const (
	// MaxClaimsBytes is the largest claims object, as it was sent.
	MaxClaimsBytes = 64 << 10
	// MaxClaimsDepth is how deep objects and arrays may nest; the claims
	// object itself is the first level.
	MaxClaimsDepth = 32
)

// maxDate is the last second of the year 9999. A larger number is a mistake,
// most often milliseconds.
const maxDate = 253402300799

// claimsObject is a claims object that has been read strictly.
type claimsObject struct {
	// object is the caller's bytes from brace to brace.
	object []byte
	// count is how many members it has.
	count int
	// raw has the JSON value of each known claim, nil if absent. The values
	// are parts of object.
	raw [claimCount][]byte
	// folded marks the known claims that are there by a name which differs in
	// upper and lower case only.
	folded [claimCount]bool
}

// read checks that claims is one JSON object as RFC 7493 wants it (UTF-8, no
// lone surrogates, no name twice at any depth), within the bounds, and finds
// the known claims. Errors tell the place and not the content.
func (c *claimsObject) read(claims []byte) error {
	if len(claims) == 0 {
		return errors.New("are missing: send a JSON object")
	}
	if len(claims) > MaxClaimsBytes {
		return fmt.Errorf("are %d bytes long: at most %d are allowed", len(claims), MaxClaimsBytes)
	}
	// jsontext judges; what follows may rely on valid JSON.
	if !jsontext.Value(claims).IsValid() {
		return syntaxProblem(claims)
	}
	object := bytes.Trim(claims, jsonSpace)
	if object[0] != '{' {
		return errors.New("are not a JSON object: put the claims between { and }")
	}
	if !depthWithin(object, MaxClaimsDepth) {
		return fmt.Errorf("nest deeper than %d levels: flatten them", MaxClaimsDepth)
	}
	c.object = object
	for name, value := range members(object) {
		c.count++
		if err := c.note(name, value); err != nil {
			return err
		}
	}
	return nil
}

// note keeps a member if it is a known claim, or one by another spelling.
func (c *claimsObject) note(quoted, value []byte) error {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		// Escapes make no difference to those who will read the token.
		text, err := textOf(quoted)
		if err != nil {
			return errors.New("have a member whose name cannot be read")
		}
		name = []byte(text)
	}
	if known, ok := claimsByName[string(name)]; ok {
		c.raw[known] = value
		return nil
	}
	if known, ok := foldedClaim(name); ok {
		c.folded[known] = true
	}
	return nil
}

// foldedClaim finds the claim that a name means to a reader that makes no
// difference between upper and lower case, as encoding/json of Go does.
func foldedClaim(name []byte) (claim, bool) {
	if !slices.ContainsFunc(name, func(b byte) bool { return b >= 0x80 || 'A' <= b && b <= 'Z' }) {
		return 0, false
	}
	for c, row := range claimTable {
		if strings.EqualFold(string(name), row.name) {
			return claim(c), true
		}
	}
	return 0, false
}

// syntaxProblem tells what is wrong with claims that are not valid, without
// quoting any of them, which the decoder's own text would do.
func syntaxProblem(claims []byte) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(claims))
	_, err := dec.ReadValue()
	if err == nil {
		return fmt.Errorf("go on after their end at byte %d: send one JSON object", dec.InputOffset())
	}
	at := ""
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		at = " (at byte " + strconv.FormatInt(s.ByteOffset, 10) + ")"
	}
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errors.New("have an object with the same member name twice" + at + ": which one counts would depend on the reader")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("end in the middle of a JSON value")
	default:
		return errors.New("are not valid JSON in UTF-8 (RFC 8259, RFC 7493)" + at + ": mind bad UTF-8 and lone surrogates")
	}
}

// has reports whether the claim is present.
func (c *claimsObject) has(which claim) bool { return c.raw[which] != nil }

// text is the unescaped string of a claim that is present.
func (c *claimsObject) text(which claim) (string, error) {
	return textOf(c.raw[which])
}

// texts are the strings of a claim that is a string or an array of strings.
func (c *claimsObject) texts(which claim) (list []string, isArray bool, err error) {
	return textsOf(c.raw[which])
}

func textsOf(raw []byte) (list []string, isArray bool, err error) {
	if raw[0] != '[' {
		s, err := textOf(raw)
		return []string{s}, false, err
	}
	for i := skipSpace(raw, 1); raw[i] != ']'; {
		end := skipValue(raw, i)
		s, err := textOf(raw[i:end])
		if err != nil {
			return nil, true, err
		}
		list = append(list, s)
		if i = skipSpace(raw, end); raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return list, true, nil
}

// errForm is the answer of textOf to a value that is no string.
var errForm = errors.New("not a JSON string")

// textOf is the unescaped string of a JSON value.
func textOf(raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errForm
	}
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), nil
	}
	s, err := jsontext.AppendUnquote(nil, raw)
	return string(s), err
}

// date is the seconds of a NumericDate (RFC 7519, section 2). The RFC lets it
// be any JSON number; only digits are taken, because readers differ on
// fractions and exponents, and because nothing else means the same to all.
func (c *claimsObject) date(which claim) (seconds int64, problem string) {
	raw := c.raw[which]
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, "must be a JSON number of seconds since 1970"
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		n = math.MaxUint64
	case err != nil:
		return 0, "must be whole seconds since 1970, written in digits only: no sign, fraction or exponent"
	}
	switch {
	case n == 0:
		return 0, "must be later than 1970"
	case n > maxDate:
		return 0, "lies beyond the year 9999: it counts seconds, not milliseconds"
	}
	return int64(n), ""
}
