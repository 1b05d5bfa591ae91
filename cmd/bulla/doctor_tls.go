package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/server/certs"
)

// expiresSoon is how long before the end of a certificate the doctor warns.
const expiresSoon = 30 * 24 * time.Hour

// tls looks at the certificates of the two listeners that have some. Files
// that cannot be read at all are told of by the check of files.
func (d *doctor) tls(context.Context) []finding {
	var found []finding
	if t := d.cfg.GRPC.TLS; t != nil {
		found = append(found, serverCertificate("grpc.tls", t.CertFile, t.KeyFile)...)
		found = append(found, authorities("tls", "grpc.tls.client_ca_file", t.ClientCAFile)...)
		found = taken(found, "grpc.tls", certs.Config{Listener: "grpc", CertFile: t.CertFile, KeyFile: t.KeyFile, ClientCAFile: t.ClientCAFile})
	} else {
		found = append(found, finding{
			Check: "tls", Subject: "grpc", Outcome: warned,
			Detail: "no TLS: callers are not authenticated, and tokens and claims pass in the clear",
			Advice: "set grpc.tls, except on a developer's machine",
		})
	}
	if t := d.cfg.HTTP.TLS; t != nil {
		web := serverCertificate("http.tls", t.CertFile, t.KeyFile)
		found = append(found, taken(web, "http.tls", certs.Config{Listener: "http", CertFile: t.CertFile, KeyFile: t.KeyFile})...)
	}
	return found
}

// taken adds what the service itself would say against a listener's files, where
// nothing else has been found against them.
func taken(found []finding, field string, cfg certs.Config) []finding {
	if slices.ContainsFunc(found, func(f finding) bool { return f.Outcome == failed }) {
		return found
	}
	if _, err := certs.New(cfg); err != nil && !unreadable(err) {
		found = append(found, finding{Check: "tls", Subject: field, Outcome: failed, Detail: err.Error(), Advice: "write the file anew, as a whole"})
	}
	return found
}

// serverCertificate looks at a listener's certificate chain and key. field is
// the listener's in the configuration.
func serverCertificate(field, certFile, keyFile string) []finding {
	f := finding{Check: "tls", Subject: field + ".cert_file", Outcome: failed}
	data, chain, err := readCertificates(certFile)
	if err != nil {
		if unreadable(err) {
			return nil
		}
		f.Detail, f.Advice = err.Error(), "put the server's certificate in PEM there, and below it those of intermediate CAs"
		return []finding{f}
	}
	leaf := chain[0]
	names := certificateNames(leaf)
	f.Outcome, f.Detail, f.Advice = lifetime(leaf)
	switch {
	case f.Outcome == failed:
	case len(names) == 0:
		f.Outcome = failed
		f.Detail = "the certificate has no DNS name and no IP address as a subject alternative name, so that no client accepts it"
		f.Advice = "have one issued with the names by which callers reach this listener"
	case !forServers(leaf):
		f.Outcome = failed
		f.Detail = "the certificate is not meant for servers (extended key usage), so that no client accepts it"
		f.Advice = "have one issued with the extended key usage serverAuth"
	default:
		f.Detail += ", for " + strings.Join(names, ", ")
	}
	found := append([]finding{f}, chainFindings(f.Subject, chain)...)
	return append(found, keyFits(field, data, keyFile)...)
}

// chainFindings tells what is wrong with the certificates below the server's.
func chainFindings(subject string, chain []*x509.Certificate) []finding {
	for i, c := range chain[1:] {
		f := finding{Check: "tls", Subject: subject}
		var text string
		if f.Outcome, text, f.Advice = lifetime(c); f.Outcome != good {
			f.Detail = fmt.Sprintf("certificate %d of the chain: %s", i+2, text)
			return []finding{f}
		}
		if err := chain[i].CheckSignatureFrom(c); err != nil {
			f.Outcome = warned
			f.Detail = fmt.Sprintf("certificate %d of the chain did not issue the one above it", i+2)
			f.Advice = "put the server's certificate first, and below each the one that issued it"
			return []finding{f}
		}
	}
	return nil
}

// keyFits looks whether the private key is that of the certificate.
func keyFits(field string, certificate []byte, keyFile string) []finding {
	f := finding{Check: "tls", Subject: field + ".key_file", Outcome: failed}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil // as the check of files has said
	}
	defer clear(key)
	block, _ := pem.Decode(key)
	_, err = tls.X509KeyPair(certificate, key)
	switch {
	case err == nil:
		f.Outcome, f.Detail = good, "fits the certificate"
	case block != nil && (block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != ""):
		f.Detail, f.Advice = "the private key is encrypted with a password", "decrypt it (openssl pkey) and run chmod 600 on it"
	default: // an error of crypto/tls, which quotes nothing of the key
		f.Detail, f.Advice = err.Error(), "put the private key of the certificate in "+field+".cert_file there, in PEM"
	}
	return []finding{f}
}

// authorities looks at a file of CA certificates.
func authorities(check, field, file string) []finding {
	f := finding{Check: check, Subject: field, Outcome: failed}
	_, certs, err := readCertificates(file)
	if err != nil {
		if unreadable(err) {
			return nil
		}
		f.Detail, f.Advice = err.Error(), "put CA certificates in PEM there"
		return []finding{f}
	}
	var found []finding
	usable := 0
	first := certs[0].NotAfter
	for _, c := range certs {
		one := f
		var text string
		if one.Outcome, text, one.Advice = lifetime(c); one.Outcome != failed {
			usable++
			if !c.IsCA {
				one.Outcome, text, one.Advice = warned, "is no CA certificate", "name the certificate of the CA, not one that it issued"
			}
		}
		if one.Outcome != good {
			one.Detail = fmt.Sprintf("%q: %s", certificateName(c), text)
			found = append(found, one)
		}
		if c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	for i := range found {
		if found[i].Outcome == failed && usable > 0 {
			found[i].Outcome = warned // the others still do
		}
	}
	if len(found) == 0 {
		f.Outcome, f.Detail = good, fmt.Sprintf("%s, valid to %s", plural(len(certs), "CA certificate"), day(first))
		found = []finding{f}
	}
	return found
}

// readCertificates reads a PEM file of certificates, at least one. Errors do
// not quote the file.
func readCertificates(file string) (data []byte, certs []*x509.Certificate, err error) {
	if data, err = os.ReadFile(file); err != nil {
		return nil, nil, err
	}
	for rest := bytes.TrimSpace(data); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d of %s cannot be read (%w)", len(certs)+1, file, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, nil, fmt.Errorf("%s holds no certificate in PEM (-----BEGIN CERTIFICATE-----)", file)
	}
	return data, certs, nil
}

func unreadable(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p)
}

// lifetime tells whether a certificate is valid now, and for long.
func lifetime(c *x509.Certificate) (o outcome, detail, advice string) {
	now := time.Now()
	switch left := c.NotAfter.Sub(now); {
	case now.Before(c.NotBefore):
		return failed, "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339), "see that the clock of this machine is right, or have another issued"
	case left < 0:
		return failed, "expired on " + day(c.NotAfter), "have a new one issued and put it in its place: a running service takes it up by itself"
	case left < expiresSoon:
		return warned, fmt.Sprintf("expires on %s, in %s", day(c.NotAfter), plural(int(left.Hours()/24), "day")), "have a new one issued and put it in its place: a running service takes it up by itself"
	}
	return good, "valid to " + day(c.NotAfter), ""
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// forServers reports whether a certificate's extended key usages, if it has
// any, let a server use it.
func forServers(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// certificateNames is what clients may call the server.
func certificateNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// certificateName is what people call the certificate.
func certificateName(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	return c.Subject.String()
}
