package server

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/signer"
)

// errInvalid: a field of the request is wrong. The error is an *invalidError.
var errInvalid = errors.New("invalid request")

// errUnimplemented: the request asks for something that this version of the
// service does not do. The text says what.
var errUnimplemented = errors.New("not available in this version")

// invalidError is everything that is wrong with a request's fields.
type invalidError struct{ violations []violation }

type violation struct{ field, problem string }

func (e *invalidError) Error() string {
	texts := make([]string, len(e.violations))
	for i, v := range e.violations {
		texts[i] = v.field + ": " + v.problem
	}
	return errInvalid.Error() + ": " + strings.Join(texts, "; ")
}

func (e *invalidError) Is(target error) bool { return target == errInvalid }

// checker collects what is wrong with a request.
type checker struct{ violations []violation }

func (c *checker) wrong(field, format string, args ...any) {
	c.violations = append(c.violations, violation{field, fmt.Sprintf(format, args...)})
}

func (c *checker) err() error {
	if len(c.violations) == 0 {
		return nil
	}
	return &invalidError{c.violations}
}

// maxNameBytes bounds the names in requests. They go into logs and keys.
const maxNameBytes = 255

// name checks the name of an issuer or client, which may be empty unless it is
// required.
func (c *checker) name(field, value string, required bool) {
	switch {
	case value == "" && required:
		c.wrong(field, "is required")
	case len(value) > maxNameBytes:
		c.wrong(field, "is longer than %d bytes", maxNameBytes)
	case strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r > 0x7e }):
		c.wrong(field, "may only hold printable ASCII (RFC 6749, appendix A.1)")
	}
}

const kindPrefix = "TOKEN_KIND_"

// kindName is a token kind's name, ID_TOKEN where none is given.
func kindName(kind bullav1.TokenKind) string {
	if kind == bullav1.TokenKind_TOKEN_KIND_UNSPECIFIED {
		return string(signer.IDToken)
	}
	return strings.TrimPrefix(kind.String(), kindPrefix)
}

func kindOf(name string) bullav1.TokenKind {
	return bullav1.TokenKind(bullav1.TokenKind_value[kindPrefix+name])
}

// kind checks a token kind and returns its name.
func (c *checker) kind(field string, kind bullav1.TokenKind) string {
	if _, ok := bullav1.TokenKind_name[int32(kind)]; !ok {
		c.wrong(field, "%d is no token kind", int32(kind))
	}
	return kindName(kind)
}

// maxInputBytes bounds the inputs of the hash claims.
const maxInputBytes = 64 << 10

func (c *checker) input(field, value string) {
	if len(value) > maxInputBytes {
		c.wrong(field, "is longer than %d bytes", maxInputBytes)
	}
}

// lifetime returns nil where none is given.
func (c *checker) lifetime(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	if err := d.CheckValid(); err != nil {
		c.wrong("lifetime", "is no valid duration")
		return nil
	}
	value := d.AsDuration()
	return &value
}
