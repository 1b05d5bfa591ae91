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

	// openWrapping finds the one key that want names for wrapping.
	openWrapping(ctx context.Context, want wanted) (foundWrapping, error)

	// seal encrypts plaintext with the AES key that openWrapping found, by the
	// given mechanism; unseal undoes it. aad is for CKM_AES_GCM, whose sealed
	// form begins with the IV and ends with the tag; the AES key wrap
	// mechanisms have none.
	seal(ctx context.Context, key keyName, mechanism uint, aad, plaintext []byte) ([]byte, error)
	unseal(ctx context.Context, key keyName, mechanism uint, aad, sealed []byte) ([]byte, error)

	// offers asks what the token offers a mechanism for: CKF_…, 0 for nothing.
	offers(ctx context.Context, mechanism uint) (uint, error)

	// create has the token generate a key pair for spec, which was checked,
	// with tag as its label and a random id, by which the key is told from
	// others of its tag. An error does not say that no key came to be.
	create(ctx context.Context, spec kms.KeySpec, tag string) (selector, error)

	// tagged finds the private keys that create marked with tag, in any order.
	tagged(ctx context.Context, tag string) ([]selector, error)

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

// template is the search for the objects of a class that s names.
func (s selector) template(class uint) []attribute {
	t := []attribute{{kind: ckaClass, ulong: true, num: class}}
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
	class                              uint // CKO_…; 0 says nothing
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

// keyName is what a key is known by from open on: how to find it, and what it
// has to show when it is found again, so that another key of the same name is
// not taken for it.
type keyName struct {
	selector
	kind   kms.KeyType // kms.Oct for an AES key
	public fingerprint // of the public half, or of an AES key's traits
}

// found is what open saw of a key.
type found struct {
	// publics are the PKIX encodings of the public keys that may belong to
	// the private one, most trusted first. Never empty.
	publics [][]byte
	// extractable is true if the token would give the private key away.
	extractable bool
}

// foundWrapping is what openWrapping saw of a key.
type foundWrapping struct {
	kind        kms.KeyType // kms.Oct for an AES key, or kms.RSA
	extractable bool        // the token would give it away, wrapped by another key

	private found // of an RSA key

	// Of an AES key: its size in bits, what it is told by when it is found
	// again, and what its attributes let it do.
	bits              int
	traits            fingerprint
	mayCrypt, mayWrap bool // CKA_ENCRYPT and CKA_DECRYPT; CKA_WRAP and CKA_UNWRAP
}

// examination is how far a token could be brought up.
type examination struct {
	module  moduleInfo // if the module came up
	token   tokenInfo  // if the token was found
	problem *problem   // nil: all stages passed
	err     error      // the caller's context ended first
	warning string     // about the PIN file, "" for none
}
