package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Authorities are the CA certificates that callers' certificates must come from,
// as their file said at one time. They never change.
type Authorities struct{ pool *x509.CertPool }

// readAuthorities reads a bundle. One of which nothing is valid any more is
// refused: it would turn everybody away.
func readAuthorities(data []byte) (*Authorities, error) {
	list, err := certificates(data)
	if err != nil {
		return nil, fmt.Errorf("client_ca_file: %w", err)
	}
	a := &Authorities{pool: x509.NewCertPool()}
	valid := false
	for _, cert := range list {
		a.pool.AddCert(cert)
		valid = valid || !time.Now().After(cert.NotAfter)
	}
	if !valid {
		return nil, errors.New("client_ca_file: all its certificates have expired")
	}
	return a, nil
}

func (a *Authorities) equal(b *Authorities) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.pool.Equal(b.pool)
}

// Verify returns nil if the certificates that a caller has shown lead to one of
// the authorities now, as TLS asks of them at a handshake. The first is the
// caller's own.
func (a *Authorities) Verify(shown []*x509.Certificate) error {
	if len(shown) == 0 {
		return errors.New("certs: no certificate was shown")
	}
	options := x509.VerifyOptions{
		Roots: a.pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, cert := range shown[1:] {
		options.Intermediates.AddCert(cert)
	}
	_, err := shown[0].Verify(options)
	return err
}
