package main

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// transportAdvice says what to do where a call did not reach a service. Such
// errors are written by Go's net, crypto/tls and crypto/x509 and by gRPC, for
// programmers; each row is a part of their text. The first row that fits wins.
var transportAdvice = []struct{ text, advice string }{
	// What the service says of the caller's certificate comes as a TLS alert,
	// "remote error: tls: …" (RFC 8446, section 6.2).
	{"remote error: tls: expired certificate", "your certificate has expired, as the service sees it: renew the one in --tls-cert"},
	{"remote error: tls: certificate required", refusedCertificate},
	{"remote error: tls: bad certificate", refusedCertificate},
	{"remote error: tls: unknown certificate", refusedCertificate}, // and "unknown certificate authority"
	{"remote error: tls: unsupported certificate", refusedCertificate},
	{"remote error: tls: protocol version", "the service wants another version of TLS: does --addr name Bulla's gRPC listener?"},

	// What we say of the service's.
	{"certificate signed by unknown authority", "name the CA of the service's certificate with --tls-ca"},
	{"certificate is not trusted", "name the CA of the service's certificate with --tls-ca"}, // the system's verifier on macOS
	{"certificate has expired or is not yet valid", "the service's certificate is not valid now: renew it there, or set this machine's clock"},
	{"x509: certificate is valid for", wrongName},
	{"because it doesn't contain any IP SANs", wrongName},
	{"x509: certificate is not valid for any names", wrongName},

	// No TLS on one of the two ends. "server preface" is gRPC's word for the
	// first bytes of the answer.
	{"first record does not look like a TLS handshake", "no TLS is spoken at that address: does --addr name the gRPC listener? A service in development is called with --plaintext"},
	{"looked like an HTTP/1.1 header", notGRPC},
	{"unexpected HTTP status code", notGRPC},
	{"server preface", closedConnection},
	// A service that refuses a certificate closes; with TLS 1.3 the client may
	// be writing then and not get to read the alert.
	{"broken pipe", closedConnection},
	{"connection reset by peer", closedConnection},

	{"connection refused", "nothing listens at that address: is the service running, and is --addr its gRPC listener (grpc.listen in its configuration)?"},
	{"no such host", "that host is unknown: correct --addr"},
	{"server misbehaving", "that host is unknown: correct --addr"},
	{"missing port in address", "give --addr as HOST:PORT"},
	{"too many colons in address", "give --addr as HOST:PORT, with an IPv6 address in brackets"},
	{"produced zero addresses", "that host is unknown: correct --addr"},
	{"no route to host", "that host cannot be reached from here: correct --addr, or see to the network"},
	{"network is unreachable", "that host cannot be reached from here: correct --addr, or see to the network"},
	{"i/o timeout", "nothing answers at that address: correct --addr, or see to the network and its firewalls"},
}

const (
	refusedCertificate = "the service does not accept your certificate: it must come from the CA in its grpc.tls.client_ca_file and be valid now"
	wrongName          = "the service's certificate is for another name: call it by that name with --addr, or give the name with --tls-server-name"
	notGRPC            = "something else than gRPC answers at that address: --addr must name the service's gRPC listener (grpc.listen in its configuration)"
	closedConnection   = "the service closed the connection: leave out --plaintext if it speaks TLS; else it may not accept your certificate, which must come from the CA in its grpc.tls.client_ca_file and be valid now"
)

// adviceFor returns what to do about a call that got no answer of a service, or
// "" if there is nothing to add: a service's own errors carry their advice.
func adviceFor(st *status.Status) string {
	if st.Code() == codes.DeadlineExceeded {
		return "no answer in time: is --addr right, and the service well? --timeout waits longer"
	}
	if st.Code() != codes.Unavailable {
		return ""
	}
	for _, row := range transportAdvice {
		if strings.Contains(st.Message(), row.text) {
			return row.advice
		}
	}
	return ""
}
