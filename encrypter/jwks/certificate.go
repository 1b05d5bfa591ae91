package jwks

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
)

// checkCertificate checks "x5c" and "x5t#S256" (RFC 7517, sections 4.7 and
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
	public, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certificate.PublicKey) {
		k.reject("its x5c[0] is a certificate for another key: publish the certificate of this key, or leave x5c out")
		return
	}
	digest := sha256.Sum256(der)
	computed := encode(digest[:])
	if hasName && named != computed {
		k.reject(`its member "x5t#S256" is not the thumbprint of x5c[0]: correct it, or leave it out`)
		return
	}
	k.X5TS256 = computed
	k.NotBefore, k.NotAfter = certificate.NotBefore, certificate.NotAfter
}
