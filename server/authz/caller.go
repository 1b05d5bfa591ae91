package authz

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
)

// ErrNoIdentity: the certificate, though verified, does not say who its holder
// is in a way that can be granted anything. The certificate has to be issued
// again; the text says how.
var ErrNoIdentity = errors.New("client certificate has no usable identity")

// CallerFrom returns the identity of the holder of cert, the leaf certificate
// of a connection whose chain TLS has already verified for client
// authentication:
//
//   - the URI SAN, if there is one. A SPIFFE ID must be well formed, and a
//     certificate with a SPIFFE ID must have no other URI SAN (X509-SVID,
//     section 2). DNS SANs beside a URI do not matter.
//   - else the DNS SAN, in lower case.
//
// A certificate with several URI SANs, or with no URI SAN and several DNS
// SANs, could be meant as either of several callers. Rather than pick one, or
// let its holder use the grants of all, CallerFrom refuses it. The subject's
// common name, e-mail and IP addresses are never an identity. Errors wrap
// ErrNoIdentity.
func CallerFrom(cert *x509.Certificate) (string, error) {
	if cert == nil {
		return "", fmt.Errorf("%w: there is none; connect with a client certificate", ErrNoIdentity)
	}
	if cert.IsCA {
		return "", fmt.Errorf("%w: it is a CA certificate; connect with a leaf certificate", ErrNoIdentity)
	}
	switch {
	case len(cert.URIs) > 1:
		return "", fmt.Errorf("%w: it has %d URI SANs; issue one with a single URI SAN", ErrNoIdentity, len(cert.URIs))
	case len(cert.URIs) == 1:
		return callerURI(cert.URIs[0])
	case len(cert.DNSNames) > 1:
		return "", fmt.Errorf("%w: it has %d DNS SANs and no URI SAN; issue one with a URI SAN or a single DNS SAN", ErrNoIdentity, len(cert.DNSNames))
	case len(cert.DNSNames) == 1:
		name := strings.ToLower(cert.DNSNames[0])
		// Whoever issued the certificate may have looked less closely at a
		// DNS SAN than at a URI: it must not pass for one.
		if name == "" || strings.ContainsFunc(name, notHostName) {
			return "", fmt.Errorf("%w: its DNS SAN %q is no name of one host; issue one for one host or with a URI SAN", ErrNoIdentity, name)
		}
		return name, nil
	}
	return "", fmt.Errorf("%w: it has neither a URI SAN nor a DNS SAN; issue one with either", ErrNoIdentity)
}

func callerURI(u *url.URL) (string, error) {
	id := u.String()
	switch {
	case id == "":
		return "", fmt.Errorf("%w: its URI SAN is empty", ErrNoIdentity)
	case u.Scheme == "":
		// RFC 5280, section 4.2.1.6, forbids it, and it would pass for the DNS name
		// that it looks like.
		return "", fmt.Errorf("%w: its URI SAN %q has no scheme; issue one such as spiffe://example.com/idp", ErrNoIdentity, id)
	}
	if u.Scheme == "spiffe" {
		if err := checkSPIFFE(u); err != nil {
			return "", fmt.Errorf("%w: %q is no SPIFFE ID of a workload: %w", ErrNoIdentity, id, err)
		}
	}
	return id, nil
}

// maxSPIFFEID is the longest SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
const maxSPIFFEID = 2048

// checkSPIFFE holds u to SPIFFE-ID, section 2, and X509-SVID, section 4.1: a
// leaf names a workload and so has a path.
func checkSPIFFE(u *url.URL) error {
	switch id := u.String(); {
	case len(id) > maxSPIFFEID:
		return fmt.Errorf("it is longer than %d bytes", maxSPIFFEID)
	case u.User != nil, u.Opaque != "", u.RawQuery != "", u.ForceQuery, u.Fragment != "", strings.ContainsAny(id, "?#%"):
		return errors.New("it may only have a trust domain and a path")
	case u.Host == "" || strings.ContainsFunc(u.Host, notTrustDomain):
		return errors.New("its trust domain must consist of lower-case letters, digits, dots, dashes and underscores")
	case len(u.Host) > 255:
		return errors.New("its trust domain is longer than 255 bytes")
	}
	path, ok := strings.CutPrefix(u.Path, "/")
	if !ok {
		return errors.New("it has no path")
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, notSPIFFEPath) {
			return errors.New("its path has a segment that is empty, \".\", \"..\" or has other characters than letters, digits, dots, dashes and underscores")
		}
	}
	return nil
}

// notHostName reports whether r cannot stand in a host's name in lower case.
func notHostName(r rune) bool { return notTrustDomain(r) }

func notTrustDomain(r rune) bool { return notSPIFFEPath(r) || (r >= 'A' && r <= 'Z') }

func notSPIFFEPath(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		return false
	}
	return true
}

// Canonical is the form in which CallerFrom returns the caller of a grant: a DNS
// name in lower case, a URI as it is.
func Canonical(caller string) string {
	if strings.Contains(caller, ":") {
		return caller
	}
	return strings.ToLower(caller)
}

// SameCaller reports whether the caller of a grant is the identity: it brings
// both into the form CallerFrom returns.
func SameCaller(granted, caller string) bool {
	return Canonical(granted) == Canonical(caller)
}

// CheckCaller reports what is wrong with the caller of a grant: a name that
// CallerFrom never returns, so that the grant would be nobody's.
func CheckCaller(caller string) error {
	switch {
	case caller == "":
		return errors.New("it is empty")
	case strings.Contains(caller, "*"):
		return errors.New("callers are matched as a whole, without wildcards")
	case strings.ContainsFunc(caller, unicode.IsSpace):
		return errors.New("it has spaces")
	case !strings.Contains(caller, ":"):
		if strings.ContainsFunc(Canonical(caller), notHostName) {
			return errors.New("it is neither a URI nor a DNS name")
		}
		return nil
	}
	u, err := url.Parse(caller)
	if err != nil || u.Scheme == "" {
		return errors.New("it is neither a URI nor a DNS name")
	}
	id, err := callerURI(u)
	switch {
	case err != nil && u.Scheme == "spiffe":
		return fmt.Errorf("it is no SPIFFE ID of a workload: %w", checkSPIFFE(u))
	case err != nil:
		return err
	case id != caller:
		return fmt.Errorf("as a URI it is written %q", id)
	}
	return nil
}
