package client

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
)

// maxSecrets bounds how many secrets a client may have at a time: each is one more
// try, and one more that its provider must not have given away.
const maxSecrets = 8

// secretKey derives a key of size bytes, 64 at most, from a client's secret (OpenID
// Connect Core 1.0, section 10.2): the left-most bits of a SHA-2 of the secret's
// octets, of the smallest one of SHA-256, SHA-384 and SHA-512 that has enough.
func secretKey(secret []byte, size int) []byte {
	switch {
	case size <= sha256.Size:
		sum := sha256.Sum256(secret)
		return sum[:size]
	case size <= sha512.Size384:
		sum := sha512.Sum384(secret)
		return sum[:size]
	default:
		sum := sha512.Sum512(secret)
		return sum[:size]
	}
}

func checkSecrets(secrets [][]byte) error {
	if len(secrets) > maxSecrets {
		return fmt.Errorf("OpenConfig.ClientSecrets has %d secrets, more than %d: remove those that have expired", len(secrets), maxSecrets)
	}
	for _, secret := range secrets {
		if len(secret) == 0 {
			return errors.New("OpenConfig.ClientSecrets has an empty secret: anybody could make its keys")
		}
	}
	return nil
}

// checkMACs holds the secrets against the accepted signature algorithms.
func (o *Opener) checkMACs() error {
	for _, alg := range o.signatureAlgorithms {
		if !alg.symmetric() {
			continue
		}
		if len(o.secrets()) == 0 {
			return fmt.Errorf("OpenConfig.SignatureAlgorithms: %s is verified with the client's secret: give it in ClientSecrets, or remove %[1]s", alg.name)
		}
		for _, secret := range o.secrets() {
			if len(secret) < alg.minSecret {
				return fmt.Errorf("OpenConfig.SignatureAlgorithms: %s needs secrets of %d bytes or more, and one in ClientSecrets has less: remove it, or ask the provider for a longer one",
					alg.name, alg.minSecret)
			}
		}
	}
	return nil
}
