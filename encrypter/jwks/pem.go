package jwks

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
)

// Labels of PEM blocks (RFC 7468; "RSA PUBLIC KEY" is PKCS#1's, RFC 8017,
// appendix A.1.1).
const (
	labelSPKI        = "PUBLIC KEY"
	labelPKCS1       = "RSA PUBLIC KEY"
	labelCertificate = "CERTIFICATE"
)

// ParsePEM reads and checks one public key in PEM: a SubjectPublicKeyInfo
// ("PUBLIC KEY"), a PKCS#1 key ("RSA PUBLIC KEY") or an X.509 certificate
// ("CERTIFICATE"), which those of its issuers may follow. The result is a set
// of that one key, with the checks and the States that [Parse] has for a JWK;
// a PEM key has no kid, use or alg.
//
// An error wraps ErrRejected and means that the text must not be used: it is
// not PEM, holds a private key, or more than one key. Nothing but white space
// may surround the blocks, so that no part of the text is passed over.
//
// Of limits, MaxBytes and MaxRSABits apply. The text is not kept.
func ParsePEM(text []byte, limits Limits) (*Set, error) {
	limits = limits.withDefaults()
	blocks, err := readPEM(text, limits)
	if err != nil {
		return nil, err
	}
	k := &Key{pem: true}
	switch block := blocks[0]; block.Type {
	case labelCertificate:
		err = k.setChain(blocks, limits.MaxRSABits)
	case labelPKCS1:
		public, pkcs1Err := x509.ParsePKCS1PublicKey(block.Bytes)
		if pkcs1Err != nil {
			err = fmt.Errorf("%w: its block %q is not a PKCS#1 public key in DER: export the key again", ErrRejected, block.Type)
			break
		}
		k.setPublic(public, limits.MaxRSABits)
	default:
		info, spkiErr := parseSPKI(block.Bytes)
		if spkiErr != nil {
			err = fmt.Errorf("%w: its block %q is not a SubjectPublicKeyInfo in DER: export the key again", ErrRejected, block.Type)
			break
		}
		k.setSPKI(info, limits.MaxRSABits)
	}
	if err != nil {
		return nil, err
	}
	if k.State != Usable {
		k.Public = nil
	}
	return &Set{keys: []*Key{k}}, nil
}

// setChain sets the key from a certificate, the first block. The next one, if
// there is one, must be its issuer's: a chain that is pasted in the wrong
// order would make the key of an authority the client's.
func (k *Key) setChain(blocks []*pem.Block, maxRSABits int) error {
	var chain []*x509.Certificate
	for i, block := range blocks {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%w: certificate %d is not an X.509 certificate in DER, or its key is of no kind known here: export it again, or register the public key alone",
				ErrRejected, i+1)
		}
		chain = append(chain, certificate)
	}
	leaf := chain[0]
	if len(chain) > 1 && !bytes.Equal(leaf.RawIssuer, chain[1].RawSubject) {
		return fmt.Errorf("%w: certificate 2 is not that of the issuer of certificate 1: put the client's own certificate first, or leave only that one",
			ErrRejected)
	}
	info, err := parseSPKI(leaf.RawSubjectPublicKeyInfo)
	if err != nil {
		return fmt.Errorf("%w: the public key of certificate 1 is malformed: export it again", ErrRejected)
	}
	k.setSPKI(info, maxRSABits)
	if k.State == Usable {
		k.setCertificate(leaf)
	}
	return nil
}

// readPEM splits text into its blocks: one, or several certificates.
func readPEM(text []byte, limits Limits) ([]*pem.Block, error) {
	if len(text) > limits.MaxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, more than the allowed %d: leave only the key or its certificate", ErrRejected, len(text), limits.MaxBytes)
	}
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return nil, fmt.Errorf("%w: it holds a private key: that key is no longer secret; replace it and register a public key only", ErrRejected)
	}
	var blocks []*pem.Block
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		block, after, err := nextPEM(rest, len(blocks)+1)
		if err != nil {
			return nil, err
		}
		blocks, rest = append(blocks, block), after
	}
	switch {
	case len(blocks) == 0:
		return nil, fmt.Errorf("%w: it is empty: register a public key or a certificate in PEM", ErrRejected)
	case len(blocks) > 1 && slices.ContainsFunc(blocks, func(b *pem.Block) bool { return b.Type != labelCertificate }):
		return nil, fmt.Errorf("%w: it holds %d keys or certificates: leave only one, or a certificate followed by those of its issuers", ErrRejected, len(blocks))
	}
	return blocks, nil
}

// nextPEM reads the block that text begins with and returns the text after it.
// The decoder of the standard library looks for the first block that it can
// read; here nothing may be passed over.
func nextPEM(text []byte, number int) (*pem.Block, []byte, error) {
	const begin = "-----BEGIN "
	if !bytes.HasPrefix(text, []byte(begin)) {
		switch {
		case number > 1:
			return nil, nil, fmt.Errorf("%w: there is more after block %d: leave only the lines from BEGIN to END", ErrRejected, number-1)
		case text[0] == '{':
			return nil, nil, fmt.Errorf("%w: it is JSON, not PEM: register it as a JWK Set", ErrRejected)
		}
		return nil, nil, fmt.Errorf(`%w: it does not begin with "-----BEGIN PUBLIC KEY-----" or the like: register a public key or a certificate in PEM, without text around it`, ErrRejected)
	}
	block, rest := pem.Decode(text)
	if consumed := text[:len(text)-len(rest)]; block == nil || bytes.Count(consumed, []byte(begin)) != 1 {
		return nil, nil, fmt.Errorf("%w: block %d is not valid PEM: copy it whole, from the line BEGIN to the line END", ErrRejected, number)
	}
	switch block.Type {
	case labelSPKI, labelPKCS1, labelCertificate:
	default:
		return nil, nil, fmt.Errorf("%w: its block %s is not one of PUBLIC KEY, RSA PUBLIC KEY and CERTIFICATE: register one of these", ErrRejected, quote(block.Type))
	}
	if len(block.Headers) > 0 {
		return nil, nil, fmt.Errorf("%w: block %d has header lines: export the key without encryption or attributes", ErrRejected, number)
	}
	return block, bytes.TrimSpace(rest), nil
}
