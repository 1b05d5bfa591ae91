package encrypter

import (
	"crypto/ecdh"
	"crypto/rand"
)

// entropy is where the secrets of one token come from. It is systemEntropy,
// always; the tests put the values there that the standards' examples were made
// with.
type entropy interface {
	// fill overwrites b with random bytes.
	fill(b []byte)

	// ephemeral returns a key pair on a NIST curve that nothing else uses.
	// Those for X25519 and X448 are made of what fill gives.
	ephemeral(curve ecdh.Curve) (*ecdh.PrivateKey, error)
}

// systemEntropy is crypto/rand, which never returns an error: without a working
// source of random numbers the process ends.
type systemEntropy struct{}

func (systemEntropy) fill(b []byte) { _, _ = rand.Read(b) }

func (systemEntropy) ephemeral(curve ecdh.Curve) (*ecdh.PrivateKey, error) {
	return curve.GenerateKey(rand.Reader)
}
