package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"time"
)

// The callers of the demo, by the SPIFFE IDs in their certificates.
const (
	demoIDP       = "spiffe://demo.bulla/idp"
	demoRegistrar = "spiffe://demo.bulla/registrar"
	demoOperator  = "spiffe://demo.bulla/operator"
)

// certificateLife is how long the certificates last.
const certificateLife = 365 * 24 * time.Hour

// makeCertificates makes a CA, whose key is not kept, and the certificates of
// all who speak TLS here: the service's two listeners, the relying party, and
// the callers.
func (f *demoFolder) makeCertificates() error {
	ca, err := newDemoCA()
	if err != nil {
		return err
	}
	if err := f.write("ca.crt", pemBlock("CERTIFICATE", ca.cert.Raw)); err != nil {
		return err
	}
	for _, name := range []string{"server", "web", "rp"} {
		if err := ca.issue(f, name, &x509.Certificate{
			DNSNames:    []string{"localhost"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}); err != nil {
			return err
		}
	}
	for name, id := range map[string]string{"idp": demoIDP, "registrar": demoRegistrar, "operator": demoOperator} {
		uri, err := url.Parse(id)
		if err != nil {
			return err
		}
		if err := ca.issue(f, name, &x509.Certificate{
			URIs:        []*url.URL{uri},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			return err
		}
	}
	return nil
}

// demoCA issues certificates for as long as it is in memory.
type demoCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newDemoCA() (*demoCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Bulla demo CA"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &demoCA{cert, key}, nil
}

// issue writes NAME.crt and NAME.key.
func (ca *demoCA) issue(f *demoFolder, name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{CommonName: "Bulla demo " + name}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	cert, err := sign(template, ca.cert, key, ca.key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := f.write(name+".key", pemBlock("PRIVATE KEY", der)); err != nil {
		return err
	}
	return f.write(name+".crt", pemBlock("CERTIFICATE", cert))
}

func sign(template, parent *x509.Certificate, subject, issuer *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // clocks of containers differ
	template.NotAfter = time.Now().Add(certificateLife)
	return x509.CreateCertificate(rand.Reader, template, parent, &subject.PublicKey, issuer)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
