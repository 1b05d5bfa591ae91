package authz

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrClaimsNotAllowed: the caller may have such a token, but not with these
// claims. Its errors are of type *ClaimsError, which says what to change; the
// same request will not do until a grant is changed.
var ErrClaimsNotAllowed = errors.New("claims not allowed")

// Violation is one thing that a claim policy has against a request.
type Violation struct {
	// Field is what it is about: "claims.NAME" for a claim, or the request's
	// "lifetime" or "token_kind".
	Field string
	// Problem says what is wrong and what to do. It holds no value of a claim.
	Problem string
}

// ClaimsError holds what is wrong by the claim policy that the request comes
// nearest to. It matches ErrClaimsNotAllowed.
type ClaimsError struct {
	Violations []Violation // never empty
}

// Error lists the violations.
func (e *ClaimsError) Error() string {
	var b strings.Builder
	b.WriteString(ErrClaimsNotAllowed.Error())
	sep := ": "
	for _, v := range e.Violations {
		b.WriteString(sep + v.Field + " " + v.Problem)
		sep = "; "
	}
	return b.String()
}

// Is reports whether target is ErrClaimsNotAllowed.
func (e *ClaimsError) Is(target error) bool { return target == ErrClaimsNotAllowed }

// maxViolations is how many are told: names of claims come from the caller, and
// there can be thousands.
const maxViolations = 8

// violations collects what is wrong: the first of it, and how much it is.
type violations struct {
	list  []Violation
	count int
}

func (v *violations) add(field, problem string) {
	if v.count++; v.count <= maxViolations {
		v.list = append(v.list, Violation{Field: field, Problem: problem})
	}
}

func (v *violations) err() error {
	if more := v.count - len(v.list); more > 0 {
		v.list = append(v.list, Violation{"claims", fmt.Sprintf("are wrong in %d more ways", more)})
	}
	return &ClaimsError{Violations: v.list}
}

// claimField is the place of a claim. A name that is long or unusual, which the
// caller may have made up of anything, is shortened and quoted.
func claimField(name string) string {
	const longest = 64
	plain := len(name) <= longest
	for i := 0; i < len(name) && plain; i++ {
		plain = name[i] > ' ' && name[i] < 0x7f && name[i] != '"' && name[i] != '\\'
	}
	if plain {
		return "claims." + name
	}
	if r := []rune(name); len(r) > longest {
		name = string(r[:longest]) + "…"
	}
	return "claims[" + strconv.QuoteToASCII(name) + "]"
}
