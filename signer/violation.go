package signer

import (
	"errors"
	"strings"
)

// ErrClaims: the request asks for a token that the rules forbid. Its errors
// are of type *ClaimsError, which says what to change; the same request will
// never do.
var ErrClaims = errors.New("claims not acceptable")

// Violation is one thing that is wrong with a Request.
type Violation struct {
	// Field is what it is about: "claims.NAME" for a claim, "claims" for the
	// object as a whole, or the request's "client_id", "lifetime",
	// "access_token", "code" or "state".
	Field string
	// Problem says what is wrong and what to do, and never holds a value that
	// the caller sent.
	Problem string
}

// ClaimsError holds everything that is wrong with a Request. It matches
// ErrClaims.
type ClaimsError struct {
	Violations []Violation // never empty
}

// Error lists the violations.
func (e *ClaimsError) Error() string {
	var b strings.Builder
	b.WriteString(ErrClaims.Error())
	sep := ": "
	for _, v := range e.Violations {
		b.WriteString(sep + v.Field + " " + v.Problem)
		sep = "; "
	}
	return b.String()
}

// Is reports whether target is ErrClaims.
func (e *ClaimsError) Is(target error) bool { return target == ErrClaims }

// violations collects what is wrong.
type violations []Violation

func (v *violations) add(field, problem string) {
	*v = append(*v, Violation{Field: field, Problem: problem})
}

// err is nil if nothing is wrong.
func (v violations) err() error {
	if len(v) == 0 {
		return nil
	}
	return &ClaimsError{Violations: v}
}
