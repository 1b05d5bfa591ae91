package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"
)

// LoadTLS reads the gRPC listener's certificate and the CA that its callers'
// certificates must come from. TLS 1.3 is required, and so is a certificate of
// the caller.
func LoadTLS(certFile, keyFile, clientCAFile string) (*tls.Config, error) {
	cert, err := loadCertificate(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("client_ca_file: %w", err)
	}
	callers := x509.NewCertPool()
	if !callers.AppendCertsFromPEM(pem) {
		return nil, errors.New("client_ca_file: holds no PEM certificate")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientCAs:    callers,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// LoadWebTLS reads the certificate of the verifiers' listener.
func LoadWebTLS(certFile, keyFile string) (*tls.Config, error) {
	cert, err := loadCertificate(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

// loadCertificate reads a certificate that is valid now: with another one
// every caller would turn away.
func loadCertificate(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return cert, fmt.Errorf("cert_file, key_file: %w", err)
	}
	switch now := time.Now(); {
	case now.After(cert.Leaf.NotAfter):
		return cert, fmt.Errorf("cert_file: the certificate expired at %s: put a new one in its place", cert.Leaf.NotAfter.Format(time.RFC3339))
	case now.Before(cert.Leaf.NotBefore):
		return cert, fmt.Errorf("cert_file: the certificate is not valid before %s: wait, or look at this machine's clock", cert.Leaf.NotBefore.Format(time.RFC3339))
	}
	return cert, nil
}
