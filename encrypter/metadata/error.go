package metadata

import (
	"errors"
	"fmt"
)

// ErrInvalid: the metadata cannot be registered as they are. The error is an
// *Error: correct the member that it names.
var ErrInvalid = errors.New("client metadata invalid")

// Error says which member is wrong, why, and what would be right. Its text
// repeats no value but the names of algorithms, and may be shown to whoever
// sent the metadata.
type Error struct {
	// Member is the name of the member, such as
	// "id_token_encrypted_response_enc"; empty if the fault is with the JSON
	// as a whole.
	Member string
	// Problem says what is wrong with it and what to do.
	Problem string
}

func (e *Error) Error() string {
	if e.Member == "" {
		return fmt.Sprintf("%s: %s", ErrInvalid, e.Problem)
	}
	return fmt.Sprintf("%s: %s: %s", ErrInvalid, e.Member, e.Problem)
}

// Unwrap returns ErrInvalid.
func (e *Error) Unwrap() error { return ErrInvalid }

func invalid(member, format string, args ...any) error {
	return &Error{Member: member, Problem: fmt.Sprintf(format, args...)}
}
