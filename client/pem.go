package client

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// isPEM tells PEM from JSON, of which neither can be the other.
func isPEM(document []byte) bool {
	return bytes.Contains(document, []byte("-----BEGIN ")) && !bytes.HasPrefix(bytes.TrimSpace(document), []byte("{"))
}

// parsePEM reads all private keys in a PEM document. Certificates and EC parameters,
// which tools write beside them, are passed over, and so is text before a block. A
// block that is not whole, which package pem skips, is an error, as is whatever stands
// behind the last one: a key may be lost there.
func parsePEM(document []byte) ([]jose.JSONWebKey, error) {
	if len(document) > maxKeyBytes {
		return nil, fmt.Errorf("private key document has %d bytes, more than %d: is it the right file?", len(document), maxKeyBytes)
	}
	var keys []jose.JSONWebKey
	blocks, begun := 0, bytes.Count(document, []byte("-----BEGIN "))
	for n := 1; ; n++ {
		block, rest := pem.Decode(document)
		if block == nil {
			break
		}
		document, blocks = rest, n
		if block.Type == "CERTIFICATE" || block.Type == "EC PARAMETERS" {
			continue
		}
		private, err := parsePEMBlock(block)
		if err != nil {
			return nil, fmt.Errorf("private key document, PEM block %d (%s): %w", n, quote(block.Type), err)
		}
		key := jose.JSONWebKey{Key: private}
		if problem := privateKeyProblem(key, nil); problem != "" {
			return nil, fmt.Errorf("private key document, PEM block %d (%s): %s", n, quote(block.Type), problem)
		}
		if keys = append(keys, key); len(keys) > maxKeys {
			return nil, fmt.Errorf("private key document has more than %d keys", maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("private key document has no PEM block that is whole and holds a private key: is it the right file?")
	}
	if blocks != begun {
		return nil, fmt.Errorf("private key document: %d PEM blocks begin in it and %d are whole: get the file again, or remove what is damaged", begun, blocks)
	}
	if len(bytes.TrimSpace(document)) > 0 {
		return nil, fmt.Errorf("private key document goes on after PEM block %d: remove what stands there, or get the file again if that was a key", blocks)
	}
	return keys, nil
}

func parsePEMBlock(block *pem.Block) (any, error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("it is encrypted with a password; decrypt it first: openssl pkey -in ENCRYPTED -out PLAIN")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		if inside, ok := x448Inside(block.Bytes); ok {
			key, err = parseX448(inside)
		} else {
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		}
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PUBLIC KEY", "RSA PUBLIC KEY":
		return nil, errors.New("it is a public key; the private one is needed to decrypt")
	default:
		return nil, errors.New("it is no private key; one begins with PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY")
	}
	if err != nil {
		// The standard library's error may describe the inside of the key.
		return nil, errors.New("it is damaged, or of a kind that is not supported (RSA, EC on P-256, P-384 or P-521, X25519 and X448 are)")
	}
	switch key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey, *ecdh.PrivateKey, *X448PrivateKey:
		return key, nil
	}
	return nil, errors.New("keys of its type cannot decrypt (RSA, EC on P-256, P-384 or P-521, X25519 and X448 can)")
}

// oidX448 is id-X448 of RFC 8410, section 3.
var oidX448 = asn1.ObjectIdentifier{1, 3, 101, 111}

// x448Inside returns the private key in PKCS #8 (RFC 5958, section 2; RFC 8410,
// section 7) if it is for X448, which the standard library does not know.
func x448Inside(der []byte) ([]byte, bool) {
	var info struct {
		Version    int
		Algorithm  pkix.AlgorithmIdentifier
		PrivateKey []byte
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
		PublicKey  asn1.RawValue `asn1:"optional,tag:1"`
	}
	rest, err := asn1.Unmarshal(der, &info)
	if err != nil || len(rest) > 0 || !info.Algorithm.Algorithm.Equal(oidX448) {
		return nil, false
	}
	return info.PrivateKey, true
}

// parseX448 reads the CurvePrivateKey of RFC 8410, section 7: an OCTET STRING.
func parseX448(der []byte) (*X448PrivateKey, error) {
	var d []byte
	if rest, err := asn1.Unmarshal(der, &d); err != nil || len(rest) > 0 {
		return nil, errors.New("damaged")
	}
	return NewX448PrivateKey(d)
}
