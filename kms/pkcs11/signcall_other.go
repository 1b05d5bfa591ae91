//go:build cgo && !unix

package pkcs11

import p11 "github.com/miekg/pkcs11"

// signCall makes signatures with one module, by the calls of the binding.
type signCall struct{ c *p11.Ctx }

func newSignCall(_ string, c *p11.Ctx) (signCall, error) { return signCall{c}, nil }

// sign is cryptoki's.
func (c signCall) sign(session, key uint, m mechanism, input []byte) ([]byte, error) {
	mech := p11.NewMechanism(m.kind, nil)
	if m.pssHash != 0 {
		mech.Parameter = p11.NewPSSParams(m.pssHash, m.pssMGF, m.pssSalt)
	}
	s := p11.SessionHandle(session)
	if err := c.c.SignInit(s, []*p11.Mechanism{mech}, p11.ObjectHandle(key)); err != nil {
		return nil, call("C_SignInit", err)
	}
	signature, err := c.c.Sign(s, input)
	return signature, call("C_Sign", err)
}
