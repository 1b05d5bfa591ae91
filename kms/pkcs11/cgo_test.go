//go:build cgo

package pkcs11

import (
	"testing"

	p11 "github.com/miekg/pkcs11"
)

// signInitOnly leaves a signature begun on a session.
func signInitOnly(b *binding, session, key uint) error {
	return b.c.SignInit(p11.SessionHandle(session), []*p11.Mechanism{p11.NewMechanism(ckmECDSA, nil)}, p11.ObjectHandle(key))
}

// forbidSigning sets CKA_SIGN of a private key to false.
func forbidSigning(t testing.TB, b *bench, label string) {
	t.Helper()
	set(t, b, label, ckoPrivateKey, ckaSign, false)
}

// set changes an attribute of a key, as the owner of the token may.
func set(t testing.TB, b *bench, label string, class, kind uint, value bool) {
	t.Helper()
	l := mustLink(t, b)
	c := l.lib.(*meddler).cryptoki.(*binding)
	s, err := c.c.OpenSession(l.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.c.CloseSession(s) }()
	objects, err := c.find(uint(s), selector{label: label, byLabel: true}.template(class))
	if err != nil || len(objects) != 1 {
		t.Fatalf("found %d objects, error %v", len(objects), err)
	}
	if err := c.c.SetAttributeValue(s, p11.ObjectHandle(objects[0]), []*p11.Attribute{p11.NewAttribute(kind, value)}); err != nil {
		t.Fatal(err)
	}
}
