package audit

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/signer"
)

// Keys are the public keys that checkpoints may be signed by, each under its
// RFC 7638 thumbprint.
type Keys map[string]crypto.PublicKey

// maxKeys bounds how many are read of one document.
const maxKeys = 1000

// ParseKeys reads public keys from a JWK, a JWK Set or PEM (PUBLIC KEY blocks).
func ParseKeys(document []byte) (Keys, error) {
	keys := Keys{}
	if block, rest := pem.Decode(document); block != nil {
		for ; block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "PUBLIC KEY" {
				return nil, fmt.Errorf("a PEM block is a %.40q: give the PUBLIC KEY of the audit log", block.Type)
			}
			public, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, errors.New("a PEM block holds no public key")
			}
			if err := keys.add(public); err != nil {
				return nil, err
			}
		}
		return keys, nil
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, errors.New("neither a JWK, nor a JWK Set, nor PEM")
	}
	if set.Keys == nil {
		set.Keys = []json.RawMessage{document}
	}
	for _, raw := range set.Keys {
		var jwk jose.JSONWebKey
		if err := json.Unmarshal(raw, &jwk); err != nil {
			return nil, errors.New("a JWK is of no known type")
		}
		if !jwk.IsPublic() {
			return nil, errors.New("a JWK is no public key: give the public half, as \"bulla audit key\" prints it")
		}
		if err := keys.add(jwk.Key); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return keys, nil
}

func (k Keys) add(public crypto.PublicKey) error {
	kid, err := signer.Thumbprint(public)
	if err != nil {
		return err
	}
	if k[kid] = public; len(k) > maxKeys {
		return errors.New("there are too many keys in it")
	}
	return nil
}
