package main

import (
	"slices"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/records"
)

var _ records.Watcher = follower{}

// listener notes what it is told.
type listener struct{ heard []string }

func (l *listener) ClientChanged(issuer, clientID string) {
	l.heard = append(l.heard, "client "+issuer+" "+clientID)
}
func (l *listener) KeySetChanged(uri string) { l.heard = append(l.heard, "key set "+uri) }
func (l *listener) Reset()                   { l.heard = append(l.heard, "reset") }

func TestWhatReplicasWriteIsPassedOnToAllWhoHoldIt(t *testing.T) {
	one, two := new(listener), new(listener)
	f := follower{clients: []registry.Follower{one, two}, keys: new(keyring.Keyring)}
	f.ClientChanged("main", "app-1")
	f.KeySetChanged("https://client.example/jwks")
	f.RingChanged("main", kms.ES256) // of an issuer that this keyring does not have
	f.Reset()
	want := []string{"client main app-1", "key set https://client.example/jwks", "reset"}
	for _, l := range []*listener{one, two} {
		if !slices.Equal(l.heard, want) {
			t.Errorf("heard %v, want %v", l.heard, want)
		}
	}
}
