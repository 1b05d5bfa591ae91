package fetch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrURI: the URL itself is refused, judged by its text alone. The text of
	// the error says why and what to write instead, and may be shown to the
	// caller; trying again does not help.
	ErrURI = errors.New("jwks_uri rejected")

	// ErrFetch: no key set was had from the URL. The error is a *Failure. Its
	// text is for the log only: try again later, and tell the caller nothing
	// but that the keys could not be fetched.
	ErrFetch = errors.New("jwks_uri could not be fetched")
)

// Class is the kind of a failure, a short stable name fit for a metric's
// label. The set is closed: the constants here and "status_" with an HTTP
// status code of 100 to 599.
type Class string

// The classes of failure.
const (
	ClassBusy            Class = "busy"             // too many requests under way for all of the time allowed
	ClassCanceled        Class = "canceled"         // the caller gave up
	ClassTimeout         Class = "timeout"          // the time allowed has passed
	ClassDNS             Class = "dns"              // the name does not resolve
	ClassBlockedAddress  Class = "blocked_address"  // it resolves to an address that may not be dialed
	ClassConnect         Class = "connect"          // no TCP connection
	ClassTLS             Class = "tls"              // no TLS, or a certificate that does not hold
	ClassProtocol        Class = "protocol"         // the connection broke, or the answer is not HTTP
	ClassRedirect        Class = "redirect"         // an answer that points elsewhere
	ClassStatusOther     Class = "status_other"     // a status code outside 100 to 599
	ClassContentType     Class = "content_type"     // a 200 of a type that is no JWK Set, such as a web page
	ClassContentEncoding Class = "content_encoding" // a compressed body, though identity was asked for
	ClassTooLarge        Class = "too_large"        // a body longer than allowed
)

// Failure is what went wrong in a Get. It wraps ErrFetch and its cause.
type Failure struct {
	// Class is the kind of failure.
	Class Class
	// Cause is the whole truth. Error has what of it a log should take.
	Cause error
}

// maxCause is how much of a cause is told, in bytes: a host has a say in it, by
// its certificate and its first line, and a log has an end.
const maxCause = 1 << 10

// Error tells the class, and the cause up to a bound.
func (f *Failure) Error() string {
	cause := f.Cause.Error()
	if len(cause) > maxCause {
		cause = strings.ToValidUTF8(cause[:maxCause], "") + "…"
	}
	return fmt.Sprintf("%s: %s: %s", ErrFetch, f.Class, cause)
}

// Unwrap returns ErrFetch and the cause.
func (f *Failure) Unwrap() []error { return []error{ErrFetch, f.Cause} }

// failure gives err its class. An error that is due to the context's end is
// named after that: what was under way when time ran out says less.
func failure(ctx context.Context, class Class, err error) *Failure {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		class = ClassCanceled
		if !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w: %w", context.Canceled, err)
		}
	case ctx.Err() != nil, isTimeout(err), isOver(ctx):
		class = ClassTimeout
	}
	return &Failure{Class: class, Cause: err}
}

// isTimeout reports whether err is a deadline on the connection that fired a
// moment before the context's own.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// isOver reports whether the context's deadline has passed, though its own timer
// has not fired yet. What the connection's deadline cuts off may not look like a
// timeout: half a first line is read as a line that is no HTTP.
func isOver(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

func statusClass(code int) Class {
	if code < 100 || code > 599 {
		return ClassStatusOther
	}
	return Class(fmt.Sprintf("status_%d", code))
}
