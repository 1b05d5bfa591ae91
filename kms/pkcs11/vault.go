package pkcs11

import (
	"context"
	"fmt"
	"strings"

	"github.com/bulla-project/bulla/kms"
)

// vault is a token as the rest of this package sees it: plain data goes in,
// plain data comes out, and no handle ever leaves it, so that it can be served
// from another process. All methods may be called concurrently. Errors are
// those of the kms contract.
type vault interface {
	// open finds the one private key of the given type that want names, and
	// the public keys that may be its other half.
	open(ctx context.Context, want wanted, kind kms.KeyType) (found, error)

	// sign signs input with the key that open found, finding it again
	// whenever its handle has gone stale.
	sign(ctx context.Context, key keyName, m mechanism, input []byte) ([]byte, error)

	// canSign asks whether the token offers m for signing.
	canSign(ctx context.Context, m mechanism) (bool, error)

	// check asks the token something cheap.
	check(ctx context.Context) error

	// examine brings the token up if it is down, without waiting for the time
	// of the next attempt, and tells how far it came.
	examine(ctx context.Context) examination

	// distrust throws away all sessions, those in use when they come back.
	distrust()

	stats() Stats
	close() error
}

// selector names a key object by its label, its id, or both.
type selector struct {
	label, id     string // id is CKA_ID's raw bytes
	byLabel, byID bool
}

func (s selector) String() string {
	var parts []string
	if s.byLabel {
		parts = append(parts, "object="+escape(s.label))
	}
	if s.byID {
		parts = append(parts, "id="+escapeAll(s.id))
	}
	return strings.Join(parts, ";")
}

// template is the search for the private keys that s names.
func (s selector) template() []attribute {
	t := []attribute{{kind: ckaClass, ulong: true, num: ckoPrivateKey}}
	if s.byLabel {
		t = append(t, attribute{kind: ckaLabel, bytes: []byte(s.label)})
	}
	if s.byID {
		t = append(t, attribute{kind: ckaID, bytes: []byte(s.id)})
	}
	return t
}

// wanted is a selector with what a reference says about the token; empty
// members say nothing.
type wanted struct {
	selector
	token, serial, manufacturer, model string
}

// disagrees names the first attribute of the reference that is not true of
// the token, "" if there is none.
func (w wanted) disagrees(i tokenInfo) string {
	for _, a := range []struct{ name, want, have string }{
		{"token", w.token, i.label}, {"serial", w.serial, i.serial},
		{"manufacturer", w.manufacturer, i.manufacturer}, {"model", w.model, i.model},
	} {
		if a.want != "" && a.want != a.have {
			return fmt.Sprintf("%s is %q in the reference and %q on this backend's token", a.name, a.want, a.have)
		}
	}
	return ""
}

// keyName is what a key is known by from open on: how to find it, and which
// public key it has to have when it is found again.
type keyName struct {
	selector
	kind   kms.KeyType
	public fingerprint
}

// found is what open saw of a key.
type found struct {
	// publics are the PKIX encodings of the public keys that may belong to
	// the private one, most trusted first. Never empty.
	publics [][]byte
	// extractable is true if the token would give the private key away.
	extractable bool
}

// examination is how far a token could be brought up.
type examination struct {
	module  moduleInfo // if the module came up
	token   tokenInfo  // if the token was found
	problem *problem   // nil: all stages passed
	err     error      // the caller's context ended first
	warning string     // about the PIN file, "" for none
}
