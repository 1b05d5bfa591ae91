package main

import (
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The texts are as gRPC and Go wrote them for calls that went wrong.
func TestCallThatReachesNoServiceIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		code       codes.Code
		text, want string
	}{
		"nothing listens": {
			codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`,
			"nothing listens at that address: is the service running",
		},
		"unknown CA": {
			codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"`,
			"--tls-ca",
		},
		"the service's certificate has expired": {
			codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-11-22T02:46:53Z is after 2026-11-21T00:00:00Z"`,
			"the service's certificate is not valid now",
		},
		"another name": {
			codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate is valid for localhost, not bulla"`,
			"--tls-server-name",
		},
		"an address that the certificate does not have": {
			codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"`,
			"--tls-server-name",
		},
		"no certificate sent": {
			codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: certificate required"`,
			"the service does not accept your certificate",
		},
		"a certificate of another CA": {
			codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: unknown certificate authority"`,
			"the service does not accept your certificate",
		},
		"a bad certificate": {
			codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: bad certificate"`,
			"the service does not accept your certificate",
		},
		"an expired certificate": {
			codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: expired certificate"`,
			"your certificate has expired",
		},
		"a refusal that was not read": {
			codes.Unavailable, `write tcp 127.0.0.1:44996->127.0.0.1:8443: write: broken pipe`,
			"else it may not accept your certificate",
		},
		"TLS where none is spoken": {
			codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: first record does not look like a TLS handshake"`,
			"no TLS is spoken at that address",
		},
		"plaintext where TLS is spoken": {
			codes.Unavailable, `connection error: desc = "error reading server preface: http2: frame too large"`,
			"leave out --plaintext",
		},
		"a web server": {
			codes.Unavailable, `connection error: desc = "error reading server preface: http2: failed reading the frame payload: http2: frame too large, note that the frame header looked like an HTTP/1.1 header"`,
			"something else than gRPC",
		},
		"no such host": {
			codes.Unavailable, `name resolver error: produced zero addresses`,
			"correct --addr",
		},
		"silence": {codes.DeadlineExceeded, `context deadline exceeded`, "--timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			printError(&out, status.Error(c.code, c.text))
			first, rest, _ := strings.Cut(out.String(), "\n")
			if want := "bulla: " + c.code.String() + ": " + c.text; first != want {
				t.Errorf("got %q, want %q", first, want)
			}
			if !strings.HasPrefix(rest, "  ") || !strings.Contains(rest, c.want) || strings.Count(rest, "\n") != 1 {
				t.Errorf("got the advice %q, want one line with %q", rest, c.want)
			}
		})
	}
}

func TestServiceErrorGetsNoOtherAdvice(t *testing.T) {
	withReason, err := status.New(codes.Unavailable, "the HSM says connection refused; try again").
		WithDetails(&errdetails.ErrorInfo{Reason: "SIGNING_KEY_UNAVAILABLE", Domain: "bulla"})
	if err != nil {
		t.Fatal(err)
	}
	for st, want := range map[*status.Status]string{
		withReason: "bulla: Unavailable SIGNING_KEY_UNAVAILABLE: the HSM says connection refused; try again\n",
		status.New(codes.Unavailable, "something new"):        "bulla: Unavailable: something new\n",
		status.New(codes.InvalidArgument, "bad certificate"):  "bulla: InvalidArgument: bad certificate\n",
		status.New(codes.Unimplemented, "connection refused"): "bulla: Unimplemented: connection refused\n",
	} {
		var out strings.Builder
		printError(&out, st.Err())
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}
