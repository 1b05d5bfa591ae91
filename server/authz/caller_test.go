package authz

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// certificate returns a leaf with the given names as it comes out of the
// parser, which is what TLS hands over.
func certificate(t *testing.T, template x509.Certificate, uris ...string) *x509.Certificate {
	t.Helper()
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.NotAfter = time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCallerFrom(t *testing.T) {
	named := x509.Certificate{Subject: pkix.Name{CommonName: "idp.example.com"}}
	dns := func(names ...string) x509.Certificate { return x509.Certificate{DNSNames: names} }
	for _, tc := range []struct {
		name     string
		template x509.Certificate
		uris     []string
		want     string
		err      string
	}{
		{"SPIFFE ID", named, []string{"spiffe://example.com/ns/prod/sa/idp"}, "spiffe://example.com/ns/prod/sa/idp", ""},
		{"SPIFFE ID before DNS names", dns("a.example.com", "b.example.com"), []string{"spiffe://example.com/idp"}, "spiffe://example.com/idp", ""},
		{"other URI", named, []string{"https://example.com/services/idp"}, "https://example.com/services/idp", ""},
		{"URN", named, []string{"urn:example:idp"}, "urn:example:idp", ""},
		{"DNS name", dns("IDP.Example.com"), nil, "idp.example.com", ""},

		{"two SPIFFE IDs", named, []string{"spiffe://example.com/a", "spiffe://example.com/b"}, "", "2 URI SANs"},
		{"SPIFFE ID and another URI", named, []string{"https://example.com/", "spiffe://example.com/b"}, "", "2 URI SANs"},
		{"two DNS names", dns("a.example.com", "b.example.com"), nil, "", "2 DNS SANs"},
		{"wildcard", dns("*.example.com"), nil, "", "no name of one host"},
		{"common name only", named, nil, "", "neither a URI SAN nor a DNS SAN"},
		{"IP address and e-mail only", x509.Certificate{IPAddresses: []net.IP{{127, 0, 0, 1}}, EmailAddresses: []string{"a@example.com"}}, nil, "", "neither a URI SAN nor a DNS SAN"},
		{"CA certificate", x509.Certificate{IsCA: true, DNSNames: []string{"ca.example.com"}}, nil, "", "CA certificate"},

		{"SPIFFE ID of a trust domain", named, []string{"spiffe://example.com"}, "", "no path"},
		{"SPIFFE ID with an empty path", named, []string{"spiffe://example.com/"}, "", "segment"},
		{"SPIFFE ID with a trailing slash", named, []string{"spiffe://example.com/idp/"}, "", "segment"},
		{"SPIFFE ID with dots", named, []string{"spiffe://example.com/a/../idp"}, "", "segment"},
		{"SPIFFE ID with a query", named, []string{"spiffe://example.com/idp?x=1"}, "", "trust domain and a path"},
		{"SPIFFE ID with an escape", named, []string{"spiffe://example.com/id%70"}, "", "trust domain and a path"},
		{"SPIFFE ID with a user", named, []string{"spiffe://root@example.com/idp"}, "", "trust domain and a path"},
		{"SPIFFE ID with a port", named, []string{"spiffe://example.com:443/idp"}, "", "trust domain must"},
		{"SPIFFE ID in capitals", named, []string{"spiffe://Example.com/idp"}, "", "trust domain must"},
		{"SPIFFE ID too long", named, []string{"spiffe://example.com/" + strings.Repeat("x", maxSPIFFEID)}, "", "longer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := CallerFrom(certificate(t, tc.template, tc.uris...))
			if tc.err != "" {
				if !errors.Is(err, ErrNoIdentity) || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %q, %v; want an error with %q", got, err, tc.err)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
	if _, err := CallerFrom(nil); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("no certificate: got %v, want %v", err, ErrNoIdentity)
	}
}

// FuzzCallerURI: whatever a URI SAN holds, an accepted SPIFFE ID is exactly
// one trust domain and one plain path, and so has one spelling.
func FuzzCallerURI(f *testing.F) {
	for _, s := range []string{"spiffe://example.com/idp", "spiffe://example.com/a//b", "spiffe:example.com", "SPIFFE://EXAMPLE.com/x", "spiffe://e/%2e%2e", "urn:x:y", "https://a@b:1/?#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := callerURI(u)
		if err != nil {
			if !errors.Is(err, ErrNoIdentity) {
				t.Fatalf("%q: error %v does not wrap ErrNoIdentity", s, err)
			}
			return
		}
		rest, ok := strings.CutPrefix(id, "spiffe:")
		if !ok {
			return
		}
		rest, ok = strings.CutPrefix(rest, "//")
		domain, path, slash := strings.Cut(rest, "/")
		if !ok || !slash || domain == "" || path == "" || domain != strings.ToLower(domain) ||
			strings.ContainsAny(id, "%?#@ \x00") || strings.Contains(path, "//") || strings.Contains("/"+path+"/", "/../") {
			t.Fatalf("%q was accepted as SPIFFE ID %q", s, id)
		}
	})
}

// A CA may look less closely at DNS SANs than at URI SANs.
func TestADNSNameCannotPassForAURI(t *testing.T) {
	for _, name := range []string{"spiffe://example.com/idp", "https://a.example", "a b", "a\x00b", "a/b"} {
		if got, err := CallerFrom(&x509.Certificate{DNSNames: []string{name}}); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%q: got caller %q, %v, want ErrNoIdentity", name, got, err)
		}
	}
}

// Nor may it have looked more closely at URI SANs than at DNS SANs.
func TestARelativeURICannotPassForADNSName(t *testing.T) {
	for _, uri := range []string{"idp.example.com", "development", "/idp", "//idp.example.com"} {
		if got, err := CallerFrom(certificate(t, x509.Certificate{DNSNames: []string{"other.example.com"}}, uri)); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%q: got caller %q, %v, want ErrNoIdentity", uri, got, err)
		}
	}
}

// TestCheckCallerTakesWhatACertificateCanHold: a grant for a name that CallerFrom
// never returns would be nobody's.
func TestCheckCallerTakesWhatACertificateCanHold(t *testing.T) {
	for _, good := range []string{
		"spiffe://example.com/ns/prod/sa/idp", "https://example.com/services/idp", "urn:example:idp", "idp.example.com", "IDP.Example.com", "x", "https://example.com/?a=b",
	} {
		if err := CheckCaller(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
		if !strings.Contains(good, ":") {
			continue
		}
		if got, err := CallerFrom(certificate(t, x509.Certificate{}, good)); err != nil || !SameCaller(good, got) {
			t.Errorf("a certificate with %q is one of %q, %v", good, got, err)
		}
	}
	for bad, want := range map[string]string{
		"": "empty", "*": "wildcards", "spiffe://example.com/*": "wildcards", "my idp": "spaces", "a\tb": "spaces",
		"idp@example.com": "neither", "a/b": "neither", "http://[": "neither", ":x": "neither", "a:b:\x7f": "neither",
		"spiffe://example.com": "no path", "spiffe://example.com/idp/": "segment", "spiffe://Example.com/idp": "trust domain must", "spiffe://example.com/a?b": "trust domain and a path",
		"SPIFFE://example.com/idp": `written "spiffe://example.com/idp"`, "HTTPS://example.com/x": `written "https://example.com/x"`,
	} {
		if err := CheckCaller(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", bad, err, want)
		}
	}
	for pair, want := range map[[2]string]bool{
		{"IDP.example.com", "idp.Example.com"}: true, {"spiffe://a/B", "spiffe://a/b"}: false, {"spiffe://a/b", "spiffe://a/b"}: true,
	} {
		if got := SameCaller(pair[0], pair[1]); got != want {
			t.Errorf("%q: got %v, want %v", pair, got, want)
		}
	}
}
