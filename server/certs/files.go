package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// files are what was read.
type files struct{ cert, key, clientCA []byte }

// clear forgets the private key.
func (f files) clear() { clear(f.key) }

// maxFile bounds a file. The CA bundles of whole systems are a quarter of it.
const maxFile = 1 << 20

func (c *Certs) read() (f files, err error) {
	for _, file := range []struct {
		field, path string
		into        *[]byte
	}{
		{"cert_file", c.cfg.CertFile, &f.cert}, {"key_file", c.cfg.KeyFile, &f.key}, {"client_ca_file", c.cfg.ClientCAFile, &f.clientCA},
	} {
		if file.path == "" {
			continue
		}
		if *file.into, err = readFile(file.path); err != nil {
			return f, fmt.Errorf("%s: %w", file.field, err)
		}
	}
	return f, nil
}

func readFile(path string) ([]byte, error) {
	h, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer h.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(h, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: name a file of certificates", path, maxFile)
	}
	return data, nil
}

// certificate makes a certificate of its files that is valid now: with another
// one every caller would turn away. It keeps nothing of f.
func certificate(f files) (*tls.Certificate, error) {
	// A chain that was cut off would be one to crypto/tls.
	if _, err := blocks(f.cert); err != nil {
		return nil, fmt.Errorf("cert_file: %w", err)
	}
	cert, err := tls.X509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("cert_file, key_file: %w", err)
	}
	switch now := time.Now(); {
	case now.After(cert.Leaf.NotAfter):
		return nil, fmt.Errorf("cert_file: the certificate expired at %s: put a new one in its place", cert.Leaf.NotAfter.Format(time.RFC3339))
	case now.Before(cert.Leaf.NotBefore):
		return nil, fmt.Errorf("cert_file: the certificate is not valid before %s: wait, or look at this machine's clock", cert.Leaf.NotBefore.Format(time.RFC3339))
	}
	return &cert, nil
}

// blocks are the PEM blocks of a file, all of which must be whole.
func blocks(data []byte) (list []*pem.Block, err error) {
	begun := 0
	for line := range bytes.Lines(data) {
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte("-----BEGIN ")) {
			begun++
		}
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		list = append(list, block)
	}
	if len(list) != begun {
		return nil, fmt.Errorf("%d of %d PEM blocks are not whole: it is half written, or was changed by hand", begun-len(list), begun)
	}
	return list, nil
}

// certificates are those of a PEM file, at least one.
func certificates(data []byte) (list []*x509.Certificate, err error) {
	all, err := blocks(data)
	if err != nil {
		return nil, err
	}
	for _, block := range all {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", len(list)+1, err)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return list, nil
}
