package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/kms"
)

// way is a way to wrap with an AES key.
type way struct {
	method    byte
	mechanism uint // CKM_…
	needs     uint // CKF_… that the token has to list for it
	crypts    bool // by C_Encrypt and C_Decrypt, else by C_WrapKey and C_UnwrapKey

	// canary was wrapped in this way when the key was opened, for no aad. As
	// long as the key opens it, what does not open is itself to blame.
	canary []byte
}

// aesWays are the ways in the order of preference. AES key wrap comes without
// padding first, because all vendors mean the same by it; CKM_AES_KEY_WRAP_PAD
// comes last, because some (NSS is one) mean PKCS#7 padding, which wrap refuses
// for its length.
var aesWays = []way{
	{method: methodGCM, mechanism: ckmAESGCM, needs: ckfEncrypt | ckfDecrypt, crypts: true},
	{method: methodKW, mechanism: ckmAESKeyWrap, needs: ckfWrap | ckfUnwrap},
	{method: methodKWP, mechanism: ckmAESKeyWrapKWP, needs: ckfWrap | ckfUnwrap},
	{method: methodKWP, mechanism: ckmAESKeyWrapPad, needs: ckfWrap | ckfUnwrap},
}

// aesWrapper is an AES key of the token.
type aesWrapper struct {
	b    *Backend
	name keyName
	ways []way // those that worked when it was opened, at least one
}

// bindAES tries the ways that the token lists and the key allows.
func (b *Backend) bindAES(ctx context.Context, sel selector, f foundWrapping) (*aesWrapper, error) {
	w := &aesWrapper{b: b, name: keyName{selector: sel, kind: kms.Oct, public: f.traits}}
	var first error
	forbidden := false
	for _, way := range aesWays {
		if slices.ContainsFunc(w.ways, way.same) {
			continue
		}
		flags, err := b.vault.offers(ctx, way.mechanism)
		if err != nil {
			return nil, fmt.Errorf("wrapping key %s: %w", sel, err)
		}
		if flags&way.needs != way.needs {
			continue
		}
		if way.crypts && !f.mayCrypt || !way.crypts && !f.mayWrap {
			forbidden = true
			continue
		}
		probe := make([]byte, kms.MinDataKey)
		_, _ = rand.Read(probe) // never fails
		way.canary, err = w.wrap(ctx, way, probe, nil)
		switch {
		case err == nil:
			w.ways = append(w.ways, way)
		case errors.Is(err, kms.ErrUnavailable), errors.Is(err, kms.ErrKeyDisabled), errors.Is(err, kms.ErrKeyMismatch):
			// Perhaps the token does not do what it lists. If it is gone, the
			// other ways say so too.
			if first == nil {
				first = fmt.Errorf("wrapping key %s: %s: %w", sel, mechanismName(way.mechanism), err)
			}
		default:
			return nil, fmt.Errorf("wrapping key %s: %w", sel, err)
		}
	}
	switch {
	case len(w.ways) > 0:
		return w, nil
	case first != nil:
		return nil, first
	case forbidden:
		return nil, fmt.Errorf("%w: the attributes of the AES key %s do not let it do what this token can (CKA_ENCRYPT and CKA_DECRYPT for %s, CKA_WRAP and CKA_UNWRAP for %s); make one that has all four",
			kms.ErrKeyDisabled, sel, mechanismNames[ckmAESGCM], mechanismNames[ckmAESKeyWrap])
	}
	return nil, fmt.Errorf("%w: the token lists neither %s nor AES key wrap, so the AES key %s cannot wrap; use an RSA private key that may sign",
		kms.ErrKeyMismatch, mechanismNames[ckmAESGCM], sel)
}

// same reports whether other makes the same form.
func (w way) same(other way) bool { return w.method == other.method }

// authenticated is what is bound to the data key: how it was wrapped, and for
// what.
func (w way) authenticated(aad []byte) []byte { return slices.Concat([]byte{w.method}, aad) }

// Lengths of the wrapped forms, in bytes.
const (
	gcmOverhead = gcmIVSize + 16
	keyWrapMore = 8 // RFC 3394, section 2.2.1; RFC 5649, section 4.1
)

// AES key wrap takes multiples of eight bytes, has neither aad nor nonce, and a
// check value of 64 bits only. So what it is given is, for a data key,
//
//	SHA-256(method ‖ aad) ‖ 16 random bytes ‖ length (1 byte) ‖ data key ‖ zeros
//
// Every byte of its output depends on every byte of this: the hash, which has to
// come out again, makes up for the check value and refuses what was wrapped for
// another purpose, and the random bytes hide that two data keys are the same.
const (
	packedNonce  = sha256.Size
	packedLength = packedNonce + 16
	packedKey    = packedLength + 1
)

func packedSize(plaintext int) int { return (packedKey + plaintext + 7) / 8 * 8 }

// pack is what the mechanism is given for plaintext, and its aad.
func (w way) pack(plaintext, aad []byte) (input, gcmAAD []byte) {
	if w.crypts {
		return bytes.Clone(plaintext), w.authenticated(aad)
	}
	sum := sha256.Sum256(w.authenticated(aad))
	input = make([]byte, packedSize(len(plaintext)))
	copy(input, sum[:])
	_, _ = rand.Read(input[packedNonce:packedLength]) // never fails
	input[packedLength] = byte(len(plaintext))        //nolint:gosec // MaxDataKey at most
	copy(input[packedKey:], plaintext)
	return input, nil
}

// unpack undoes pack.
func (w way) unpack(output, aad []byte) (plaintext []byte, ok bool) {
	if w.crypts {
		return output, kms.CheckDataKey(output) == nil
	}
	if len(output) < packedKey {
		return nil, false
	}
	n := int(output[packedLength])
	if n < kms.MinDataKey || n > kms.MaxDataKey || packedSize(n) != len(output) {
		return nil, false
	}
	sum := sha256.Sum256(w.authenticated(aad))
	if subtle.ConstantTimeCompare(sum[:], output[:packedNonce]) != 1 || !zero(output[packedKey+n:]) {
		return nil, false
	}
	return bytes.Clone(output[packedKey : packedKey+n]), true
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// sealedSize is the length of the sealed form of a data key of n bytes.
func (w way) sealedSize(n int) int {
	if w.crypts {
		return n + gcmOverhead
	}
	return packedSize(n) + keyWrapMore
}

// fits reports whether the sealed form of some data key has n bytes. Nothing
// else is shown to the module.
func (w way) fits(n int) bool {
	return n >= w.sealedSize(kms.MinDataKey) && n <= w.sealedSize(kms.MaxDataKey) && (w.crypts || n%8 == 0)
}

// Wrap is of kms.Wrapper. What was wrapped is unwrapped once before it is
// returned: a data key that does not come back would take with it all that was
// ever sealed under it.
func (w *aesWrapper) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := kms.CheckDataKey(plaintext); err != nil {
		return nil, err
	}
	if err := w.b.enter(ctx); err != nil {
		return nil, err
	}
	defer w.b.leave()
	return w.wrap(ctx, w.ways[0], plaintext, aad)
}

func (w *aesWrapper) wrap(ctx context.Context, way way, plaintext, aad []byte) ([]byte, error) {
	input, gcmAAD := way.pack(plaintext, aad)
	sealed, err := w.b.vault.seal(ctx, w.name, way.mechanism, gcmAAD, input)
	if err != nil {
		return nil, err
	}
	wrapped := append([]byte{way.method}, sealed...)
	if want := way.sealedSize(len(plaintext)); len(sealed) != want {
		return nil, w.faulty(way, fmt.Sprintf("answered with %d bytes, not %d", len(sealed), want))
	}
	back, err := w.open(ctx, way, wrapped, aad)
	switch {
	case errors.Is(err, kms.ErrUnwrap), err == nil && subtle.ConstantTimeCompare(back, plaintext) != 1:
		return nil, w.faulty(way, "wrapped what does not come back")
	case err != nil:
		return nil, err
	}
	return wrapped, nil
}

// faulty is the answer to a module that does not compute what it should.
func (w *aesWrapper) faulty(way way, what string) error {
	w.b.vault.distrust()
	return fmt.Errorf("%w: the module %s, with %s", kms.ErrUnavailable, what, mechanismName(way.mechanism))
}

// Unwrap is of kms.Wrapper.
func (w *aesWrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := w.b.enter(ctx); err != nil {
		return nil, err
	}
	defer w.b.leave()
	if len(wrapped) == 0 {
		return nil, notOpened("it is empty")
	}
	i := slices.IndexFunc(w.ways, func(way way) bool { return way.method == wrapped[0] })
	if i < 0 {
		return nil, notOpened(fmt.Sprintf("its first byte 0x%02X is for no way in which this token and this key wrap", wrapped[0]))
	}
	way := w.ways[i]
	if !way.fits(len(wrapped) - 1) {
		return nil, notOpened(fmt.Sprintf("it has %d bytes", len(wrapped)))
	}
	plaintext, err := w.open(ctx, way, wrapped, aad)
	if err == nil || !askAgain(err) {
		return plaintext, err
	}
	// The module failed: because of what it was given, or because all is not
	// well. What it opened before tells which.
	if _, sick := w.open(ctx, way, way.canary, nil); sick != nil {
		if errors.Is(sick, ctx.Err()) {
			return nil, sick
		}
		return nil, w.sick(ctx, way, err)
	}
	plaintext, again := w.open(ctx, way, wrapped, aad)
	if again == nil || !askAgain(again) {
		return plaintext, again
	}
	return nil, notOpened("the key works and does not open it")
}

// sick is the answer to a key that does not open what it wrapped when it was
// opened: it is another now, or it does not work, which err says.
func (w *aesWrapper) sick(ctx context.Context, way way, err error) error {
	if _, works := w.wrap(ctx, way, make([]byte, kms.MinDataKey), nil); works == nil {
		return anotherKey(w.name.selector)
	}
	if e := ctx.Err(); e != nil {
		return e
	}
	return err
}

// open has the token open what was wrapped, of a length that fits.
func (w *aesWrapper) open(ctx context.Context, way way, wrapped, aad []byte) ([]byte, error) {
	var gcmAAD []byte
	if way.crypts {
		gcmAAD = way.authenticated(aad)
	}
	output, err := w.b.vault.unseal(ctx, w.name, way.mechanism, gcmAAD, bytes.Clone(wrapped[1:]))
	if err != nil {
		return nil, err
	}
	plaintext, ok := way.unpack(output, aad)
	if !ok {
		return nil, notOpened("it is for another purpose, or for none")
	}
	return plaintext, nil
}
