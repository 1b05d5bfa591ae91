package datakey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"
)

// size is the length of a data key, of the keys derived from it, and of a MAC,
// in bytes.
const size = 32

// What HKDF derives keys for. A change makes everything stored unreadable.
const (
	infoSeal = "bulla data key v1: seal with AES-256-GCM"
	infoMAC  = "bulla data key v1: authenticate with HMAC-SHA-256"
)

// key is an opened data key: what was derived from it.
type key struct {
	id     string
	number uint64
	record Record // as it was when it was opened

	// aead draws a random nonce of 96 bits for each message. That is sound
	// for 2^32 messages under one key (NIST SP 800-38D, section 8.3). Only a
	// client's secret is sealed, once for each time it changes: a million
	// clients that all change theirs every day reach that number after eleven
	// years, and a key can be replaced at any time.
	aead cipher.AEAD
	macs *macs
}

// newKey derives the keys of use from a data key, and keeps no copy of it.
func newKey(r Record, number uint64, secret []byte) (*key, error) {
	sealing, err := hkdf.Key(sha256.New, secret, nil, infoSeal, size)
	if err != nil {
		return nil, fmt.Errorf("derive from data key %s: %w", r.ID, err)
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return nil, fmt.Errorf("derive from data key %s: %w", r.ID, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive from data key %s: %w", r.ID, err)
	}
	authenticating, err := hkdf.Key(sha256.New, secret, nil, infoMAC, size)
	if err != nil {
		return nil, fmt.Errorf("derive from data key %s: %w", r.ID, err)
	}
	return &key{id: r.ID, number: number, record: r, aead: aead, macs: newMACs(authenticating)}, nil
}

// macs makes MACs under one key without setting up the key for each.
type macs struct {
	pool sync.Pool // of *mac
}

func newMACs(secret []byte) *macs {
	m := &macs{}
	m.pool.New = func() any { return &mac{hash: hmac.New(sha256.New, secret)} }
	return m
}

func (m *macs) get() *mac  { return m.pool.Get().(*mac) }
func (m *macs) put(x *mac) { m.pool.Put(x) }

// mac is one HMAC and the room for its results.
type mac struct {
	hash   hash.Hash
	length [8]byte
	result [size]byte
}

// sum is the MAC of the number of parts, and of each its length and itself;
// numbers are 64 bits, big-endian. So no two lists of parts are the same
// input. The result is good until the next call.
func (m *mac) sum(parts [][]byte) []byte {
	m.hash.Reset()
	m.number(len(parts))
	for _, p := range parts {
		m.number(len(p))
		m.hash.Write(p)
	}
	return m.hash.Sum(m.result[:0])
}

func (m *mac) number(n int) {
	binary.BigEndian.PutUint64(m.length[:], uint64(n)) //nolint:gosec // a length is not negative
	m.hash.Write(m.length[:])
}
