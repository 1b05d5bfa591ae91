package jwks

import (
	"crypto"
	"crypto/sha1" //nolint:gosec // the header parameter x5t is defined with it
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"

	"github.com/bulla-project/bulla/encrypter"
)

// checkCertificate checks "x5c" and its thumbprints (RFC 7517, sections 4.7 to
// 4.9) against the key and sets what is known of the certificate. Only x5c[0]
// is read, the certificate of the key itself. A thumbprint without its
// certificate is not passed on, since nobody could have checked it.
func (k *Key) checkCertificate(m members) {
	named, hasName := m.texts["x5t#S256"]
	if hasName {
		if raw, err := decodeStrict(strictBase64URL(), named); err != nil || len(raw) != sha256.Size {
			k.reject(`its member "x5t#S256" is not the base64url of a SHA-256 digest: correct it, or leave it out`)
			return
		}
	}
	chain, ok := m.lists["x5c"]
	if !ok {
		return
	}
	if len(chain) == 0 {
		k.reject(`its member "x5c" is empty: put the certificate in, or leave it out`)
		return
	}
	// RFC 7517 asks for base64 here, not base64url.
	der, err := decodeStrict(base64.StdEncoding.Strict(), chain[0])
	if err != nil {
		k.reject("its x5c[0] is not base64 (with padding, without line breaks): correct it, or leave x5c out")
		return
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		k.reject("its x5c[0] is not an X.509 certificate in DER: correct it, or leave x5c out")
		return
	}
	if !samePublicKey(k.Public, certifiedKey(certificate)) {
		k.reject("its x5c[0] is a certificate for another key: publish the certificate of this key, or leave x5c out")
		return
	}
	if digest := sha256.Sum256(der); hasName && named != encode(digest[:]) {
		k.reject(`its member "x5t#S256" is not the thumbprint of x5c[0]: correct it, or leave it out`)
		return
	}
	k.setCertificate(certificate)
	// Some products publish another thing under this name, such as the
	// base64url of a hexadecimal digest, and nobody relies on it.
	if short, ok := m.texts["x5t"]; ok && short != k.X5T {
		k.warn(`its member "x5t" is not the thumbprint of x5c[0]: correct it, or leave it out`)
	}
}

// setCertificate sets what is known of the key's own certificate.
func (k *Key) setCertificate(certificate *x509.Certificate) {
	long, short := sha256.Sum256(certificate.Raw), sha1.Sum(certificate.Raw) //nolint:gosec // see above
	k.X5TS256, k.X5T = encode(long[:]), encode(short[:])
	k.NotBefore, k.NotAfter = certificate.NotBefore, certificate.NotAfter

	// A certificate that was issued for signatures is not refused. What its key
	// usage restricts is what others may rely on the certificate for, and
	// nobody does: it only names a key that came by a trusted way. Clients
	// commonly have no other certificate than that, and no JOSE library looks
	// at it when it decrypts.
	fitting := x509.KeyUsageKeyAgreement
	if k.Type == "RSA" {
		fitting = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	}
	if certificate.KeyUsage != 0 && certificate.KeyUsage&fitting == 0 {
		k.warn("its certificate's key usage does not provide for encryption: use a key of its own for it")
	}
}

// certifiedKey is the public key of a certificate, nil if it is of a kind that
// is not known here. The standard library leaves it out of the certificate
// where no certificate could be signed with it.
func certifiedKey(certificate *x509.Certificate) crypto.PublicKey {
	if certificate.PublicKey != nil {
		return certificate.PublicKey
	}
	info, err := parseSPKI(certificate.RawSubjectPublicKeyInfo)
	if err != nil {
		return nil
	}
	if public, ok := info.x448(); ok {
		return public
	}
	public, err := x509.ParsePKIXPublicKey(info.DER)
	if err != nil {
		return nil
	}
	return public
}

func samePublicKey(a, b crypto.PublicKey) bool {
	if a, ok := a.(encrypter.X448PublicKey); ok {
		b, ok := b.(encrypter.X448PublicKey)
		return ok && a == b
	}
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
