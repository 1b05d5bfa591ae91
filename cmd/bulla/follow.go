package main

import (
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
)

// follower passes on what replicas have written: clients and key sets to those
// who hold them, rings to the keyring. It implements records.Watcher.
type follower struct {
	clients []registry.Follower // told in this order
	keys    *keyring.Keyring
}

// ClientChanged implements registry.Follower.
func (f follower) ClientChanged(issuer, clientID string) {
	for _, c := range f.clients {
		c.ClientChanged(issuer, clientID)
	}
}

// KeySetChanged implements registry.Follower.
func (f follower) KeySetChanged(uri string) {
	for _, c := range f.clients {
		c.KeySetChanged(uri)
	}
}

// RingChanged implements records.Watcher.
func (f follower) RingChanged(issuer string, _ kms.Algorithm) { f.keys.Look(issuer) }

// Reset implements registry.Follower.
func (f follower) Reset() {
	for _, c := range f.clients {
		c.Reset()
	}
	f.keys.Look()
}
