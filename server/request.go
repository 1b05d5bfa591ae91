package server

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/signer"
)

// errInvalid: a field of the request is wrong. The error is an *invalidError.
var errInvalid = errors.New("invalid request")

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

// maxViolations bounds the list: more of them help nobody.
const maxViolations = 50

func (c *checker) wrong(field, format string, args ...any) {
	if len(c.violations) == maxViolations {
		return
	}
	c.violations = append(c.violations, violation{field, fmt.Sprintf(format, args...)})
}

func (c *checker) err() error {
	if len(c.violations) == 0 {
		return nil
	}
	return &invalidError{c.violations}
}

// name checks the name of an issuer or client, which may be empty unless it is
// required. Names go into logs and keys.
func (c *checker) name(field, value string, required bool) {
	if value == "" && !required {
		return
	}
	if problem := registry.NameProblem(value); problem != "" {
		c.wrong(field, "%s", problem)
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

// revision reads a revision as formatRevision writes it; 0 for none.
func (c *checker) revision(text string) uint64 {
	if text == "" {
		return 0
	}
	revision, err := strconv.ParseUint(text, 10, 64)
	if err != nil || revision == 0 {
		c.wrong("revision", "is none that this service gave: send it as you received it")
	}
	return revision
}

func formatRevision(revision uint64) string { return strconv.FormatUint(revision, 10) }
