package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// known is an OAuth client as the test knows it: its private keys, and what
// was acknowledged of it and when.
type known struct {
	id      string
	setting *bullav1.ResponseSetting
	path    string // at the host; empty without a jwks_uri
	signers []jose.JSONWebKey

	mu         sync.Mutex // guards what follows
	opener     *client.Opener
	private    []harness.ClientKey  // the newest last
	replaced   map[string]time.Time // by kid: when it was acknowledged that another key took its place; zero if it was not
	registered time.Time            // when that was acknowledged; zero if it was not
	revision   string
	deleting   time.Time // when that was asked for; zero if it was not
	deleted    time.Time // when that was acknowledged
	changed    time.Time // the last time somebody asked for a change
	// served is when the last token was asked for that a replica has made, by its
	// address.
	served map[string]time.Time
}

// kept is how many of its keys a client keeps to open tokens with.
const kept = 20

// newKnown is a client with a first key.
func newKnown(id string, setting *bullav1.ResponseSetting, signers []jose.JSONWebKey, key harness.ClientKey) (*known, error) {
	k := &known{id: id, setting: setting, signers: signers, replaced: map[string]time.Time{}, served: map[string]time.Time{}}
	return k, k.add(key)
}

// add gives the client one more key.
func (k *known) add(key harness.ClientKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.private = append(k.private, key)
	k.private = k.private[max(0, len(k.private)-kept):]
	k.replaced[key.KeyID] = time.Time{}
	k.changed = time.Now()
	cfg := client.OpenConfig{
		Signers: k.signers, Issuer: harness.IssuerURL, Audience: k.id, Kind: client.IDToken,
		KeyAlgorithms: []string{k.setting.GetEncryptionAlgorithm()}, ContentEncryptions: []string{k.setting.GetContentEncryption()}, SignatureAlgorithms: []string{"ES256"},
	}
	for _, own := range k.private {
		cfg.Keys = append(cfg.Keys, own.JSONWebKey)
	}
	var err error
	k.opener, err = client.NewOpener(cfg)
	return err
}

// took notes that a replica has acknowledged the key with that kid as the only
// one.
func (k *known) took(kid, revision string) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed, k.revision = now, revision
	if k.registered.IsZero() {
		k.registered = now
	}
	for old, at := range k.replaced {
		if old != kid && at.IsZero() {
			k.replaced[old] = now
		}
	}
}

func (k *known) deletionAsked() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deleting = time.Now()
	k.changed = k.deleting
}

func (k *known) deletionAcknowledged() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deleted = time.Now()
}

// servedBy notes that a replica has made a token that was asked for at a moment.
func (k *known) servedBy(replica string, asked time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if asked.After(k.served[replica]) {
		k.served[replica] = asked
	}
}

// startedAnew notes that a replica has nothing in memory.
func (k *known) startedAnew(replica string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.served, replica)
}

// current is the client's newest key, and the revision that was acknowledged.
func (k *known) current() (key harness.ClientKey, revision string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.private[len(k.private)-1], k.revision
}

// lateError is a token that should not have been made any more.
type lateError struct {
	gone time.Time // when it was acknowledged that the key or the client is
	by   time.Duration
}

func (e *lateError) Error() string {
	return fmt.Sprintf("asked for %v after its key, or its client, was gone", e.by)
}

// check opens a token that was asked for at a moment, as the client does. A
// *lateError says that its key, or its client, was gone for longer than inForce.
func (k *known) check(asked time.Time, res *bullav1.SignAndEncryptResponse) error {
	k.mu.Lock()
	opener := k.opener
	k.mu.Unlock()
	opened, err := opener.Open(res.GetToken())
	kid := res.GetEncryptionKeyId()

	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.opener != opener {
		opened, err = k.opener.Open(res.GetToken()) // it has a new key meanwhile
	}
	replaced, ours := k.replaced[kid]
	switch {
	case !ours:
		return fmt.Errorf("encrypted to %q, which is no key of the client", kid)
	case !replaced.IsZero() && asked.Sub(replaced) > allowed(inForce):
		return &lateError{replaced, asked.Sub(replaced)}
	case !k.deleted.IsZero() && asked.Sub(k.deleted) > allowed(inForce):
		return &lateError{k.deleted, asked.Sub(k.deleted)}
	case err != nil:
		return err
	case opened.EncryptionHeader.KeyID != kid:
		return fmt.Errorf("the answer says %q and the token %q", kid, opened.EncryptionHeader.KeyID)
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if err := json.Unmarshal(opened.Claims, &claims); err != nil {
		return err
	}
	if claims.Subject != subject {
		return errors.New("another token than the one that was asked for")
	}
	return nil
}

// mayBeUnknown reports whether a replica may say at this moment that it does not
// know the client.
func (k *known) mayBeUnknown(asked time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.registered.IsZero() || asked.Sub(k.registered) < allowed(inForce) || !k.deleting.IsZero()
}

// warmOn reports whether a replica has the client in memory as it is now: it has
// made a token since it must have heard of the last change.
func (k *known) warmOn(replica string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.served[replica].After(k.changed.Add(allowed(inForce)))
}

// readByOthers checks a token with go-jose.
func (k *known) readByOthers(t testing.TB, token string) error {
	t.Helper()
	key, _ := k.current()
	jwe, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.KeyAlgorithm(k.setting.GetEncryptionAlgorithm())}, []jose.ContentEncryption{jose.ContentEncryption(k.setting.GetContentEncryption())})
	if err != nil {
		return err
	}
	inner, err := jwe.Decrypt(key.Key)
	if err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(string(inner), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	set := jose.JSONWebKeySet{Keys: k.signers}
	keys := set.Key(jws.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		return fmt.Errorf("the issuer's JWK Set has %d keys %q", len(keys), jws.Signatures[0].Header.KeyID)
	}
	_, err = jws.Verify(keys[0])
	return err
}
