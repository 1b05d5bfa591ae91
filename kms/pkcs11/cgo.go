//go:build cgo

package pkcs11

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	p11 "github.com/miekg/pkcs11"
)

const cgoEnabled = true

// binding is cryptoki on github.com/miekg/pkcs11, but for signatures.
type binding struct {
	c *p11.Ctx
	signCall
	reserved reserved // for initialize, of which there is one at a time
}

// loadModule loads the library at path.
func loadModule(path string) (cryptoki, error) {
	c := p11.New(path)
	if c == nil {
		return nil, errNotLoaded
	}
	one, err := newSignCall(path, c)
	if err != nil {
		return nil, err
	}
	return &binding{c: c, signCall: one}, nil
}

// call makes a *callError of the binding's error.
func call(function string, err error) error {
	if err == nil {
		return nil
	}
	var e p11.Error
	if errors.As(err, &e) {
		return &callError{function, ckr(e)}
	}
	return fmt.Errorf("%s: %w", function, err)
}

// initialize lets the module use the operating system's locks, without which
// it may not be called from several threads.
func (b *binding) initialize(text string) error {
	return call("C_Initialize", b.c.Initialize(p11.InitializeWithReserved(b.reserved.pointer(text))))
}

func (b *binding) finalize() error { return call("C_Finalize", b.c.Finalize()) }

func (b *binding) info() (moduleInfo, error) {
	i, err := b.c.GetInfo()
	return moduleInfo{
		manufacturer: text(i.ManufacturerID), description: text(i.LibraryDescription),
		version: fmt.Sprintf("%d.%d", i.LibraryVersion.Major, i.LibraryVersion.Minor),
	}, call("C_GetInfo", err)
}

func (b *binding) slots() ([]uint, error) {
	s, err := b.c.GetSlotList(true)
	return s, call("C_GetSlotList", err)
}

func (b *binding) tokenInfo(slot uint) (tokenInfo, error) {
	i, err := b.c.GetTokenInfo(slot)
	return tokenInfo{
		label: text(i.Label), serial: text(i.SerialNumber), manufacturer: text(i.ManufacturerID), model: text(i.Model),
		flags: i.Flags, maxSessions: i.MaxSessionCount,
	}, call("C_GetTokenInfo", err)
}

// text trims what fixed-size fields are padded with.
func text(s string) string { return strings.TrimRight(s, " \x00") }

func (b *binding) mechanismFlags(slot, mechanism uint) (uint, error) {
	i, err := b.c.GetMechanismInfo(slot, []*p11.Mechanism{p11.NewMechanism(mechanism, nil)})
	if errors.Is(err, p11.Error(p11.CKR_MECHANISM_INVALID)) {
		return 0, nil
	}
	return i.Flags, call("C_GetMechanismInfo", err)
}

func (b *binding) openSession(slot uint) (uint, error) {
	s, err := b.c.OpenSession(slot, p11.CKF_SERIAL_SESSION)
	return uint(s), call("C_OpenSession", err)
}

func (b *binding) openWritable(slot uint) (uint, error) {
	s, err := b.c.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	return uint(s), call("C_OpenSession", err)
}

func (b *binding) closeSession(session uint) error {
	return call("C_CloseSession", b.c.CloseSession(p11.SessionHandle(session)))
}

func (b *binding) loggedIn(session uint) (bool, error) {
	i, err := b.c.GetSessionInfo(p11.SessionHandle(session))
	return i.State == p11.CKS_RO_USER_FUNCTIONS || i.State == p11.CKS_RW_USER_FUNCTIONS, call("C_GetSessionInfo", err)
}

// login lends pin to the binding without a copy on the Go side; the binding
// copies it to C, and frees that.
func (b *binding) login(session uint, pin []byte) error {
	return call("C_Login", b.c.Login(p11.SessionHandle(session), p11.CKU_USER, unsafe.String(unsafe.SliceData(pin), len(pin)))) //nolint:gosec // not kept
}

func (b *binding) logout(session uint) error {
	return call("C_Logout", b.c.Logout(p11.SessionHandle(session)))
}

// attributes is a template in the binding's form.
func attributes(template []attribute) []*p11.Attribute {
	out := make([]*p11.Attribute, len(template))
	for i, a := range template {
		if a.ulong {
			out[i] = p11.NewAttribute(a.kind, a.num)
		} else {
			out[i] = p11.NewAttribute(a.kind, a.bytes)
		}
	}
	return out
}

func (b *binding) find(session uint, template []attribute) ([]uint, error) {
	s := p11.SessionHandle(session)
	if err := b.c.FindObjectsInit(s, attributes(template)); err != nil {
		return nil, call("C_FindObjectsInit", err)
	}
	var out []uint
	for {
		batch, _, err := b.c.FindObjects(s, 16)
		if err != nil {
			return nil, call("C_FindObjects", err)
		}
		if len(batch) == 0 {
			break
		}
		for _, o := range batch {
			out = append(out, uint(o))
		}
	}
	return out, call("C_FindObjectsFinal", b.c.FindObjectsFinal(s))
}

func (b *binding) attribute(session, object, kind uint) ([]byte, error) {
	a, err := b.c.GetAttributeValue(p11.SessionHandle(session), p11.ObjectHandle(object), []*p11.Attribute{{Type: kind}})
	if err != nil {
		return nil, call("C_GetAttributeValue", err)
	}
	return a[0].Value, nil
}

// gcmTagBits is the length of a GCM tag.
const gcmTagBits = 128

func (b *binding) encryptGCM(session, key uint, iv, aad, plaintext []byte) (ciphertext, used []byte, err error) {
	params := p11.NewGCMParams(iv, aad, gcmTagBits)
	defer params.Free()
	s := p11.SessionHandle(session)
	if err := b.c.EncryptInit(s, []*p11.Mechanism{p11.NewMechanism(ckmAESGCM, params)}, p11.ObjectHandle(key)); err != nil {
		return nil, nil, call("C_EncryptInit", err)
	}
	ciphertext, err = b.c.Encrypt(s, plaintext)
	return ciphertext, params.IV(), call("C_Encrypt", err)
}

func (b *binding) decryptGCM(session, key uint, iv, aad, ciphertext []byte) ([]byte, error) {
	params := p11.NewGCMParams(iv, aad, gcmTagBits)
	defer params.Free()
	s := p11.SessionHandle(session)
	if err := b.c.DecryptInit(s, []*p11.Mechanism{p11.NewMechanism(ckmAESGCM, params)}, p11.ObjectHandle(key)); err != nil {
		return nil, call("C_DecryptInit", err)
	}
	plaintext, err := b.c.Decrypt(s, ciphertext)
	return plaintext, call("C_Decrypt", err)
}

func (b *binding) generateKeyPair(session, mechanism uint, public, private []attribute) (publicKey, privateKey uint, err error) {
	one, two, err := b.c.GenerateKeyPair(p11.SessionHandle(session), []*p11.Mechanism{p11.NewMechanism(mechanism, nil)}, attributes(public), attributes(private))
	return uint(one), uint(two), call("C_GenerateKeyPair", err)
}

func (b *binding) createObject(session uint, template []attribute) (uint, error) {
	o, err := b.c.CreateObject(p11.SessionHandle(session), attributes(template))
	return uint(o), call("C_CreateObject", err)
}

func (b *binding) destroyObject(session, object uint) error {
	return call("C_DestroyObject", b.c.DestroyObject(p11.SessionHandle(session), p11.ObjectHandle(object)))
}

func (b *binding) wrapKey(session, mechanism, wrapping, object uint) ([]byte, error) {
	wrapped, err := b.c.WrapKey(p11.SessionHandle(session), []*p11.Mechanism{p11.NewMechanism(mechanism, nil)},
		p11.ObjectHandle(wrapping), p11.ObjectHandle(object))
	return wrapped, call("C_WrapKey", err)
}

func (b *binding) unwrapKey(session, mechanism, unwrapping uint, wrapped []byte, template []attribute) (uint, error) {
	o, err := b.c.UnwrapKey(p11.SessionHandle(session), []*p11.Mechanism{p11.NewMechanism(mechanism, nil)},
		p11.ObjectHandle(unwrapping), wrapped, attributes(template))
	return uint(o), call("C_UnwrapKey", err)
}
