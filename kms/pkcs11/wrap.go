package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

var (
	_ kms.WrapperOpener = (*Backend)(nil)
	_ kms.Wrapper       = (*aesWrapper)(nil)
	_ kms.Wrapper       = (*rsaWrapper)(nil)
)

// The first byte of what this package wraps says how. The numbers are for good:
// what they began stays readable.
const (
	methodGCM = 0x11 // AES-GCM by the token
	methodKW  = 0x12 // AES key wrap by the token (RFC 3394)
	methodKWP = 0x13 // the same with padding (RFC 5649)
	methodRSA = 0x14 // AES-256-GCM here, under a key from the token's signature
)

// OpenWrapper finds the wrapping key that ref names (see ParseReference) and
// has it wrap and unwrap something random in each way that the token lists and
// the key's attributes allow. Wrap takes the first that works, of these:
//
//   - With an AES key (128, 192 or 256 bits), CKM_AES_GCM by C_Encrypt and
//     C_Decrypt, with a fresh IV of 96 bits and the caller's aad as GCM's.
//   - With an AES key, AES key wrap by C_WrapKey and C_UnwrapKey of a session
//     object: CKM_AES_KEY_WRAP, else CKM_AES_KEY_WRAP_KWP (or its older number
//     CKM_AES_KEY_WRAP_PAD, where that is RFC 5649). It knows no aad, so SHA-256
//     of it is put before the data key, inside.
//   - With an RSA private key that may sign, AES-256-GCM in this process under a
//     key that comes from a signature (see rsaWrapper). It is tried with a probe
//     signature.
//
// Unwrap takes what any of them made that works with this key. The wrapping key
// should be used for nothing else: whoever may decrypt, unwrap or sign with it
// on the token can open every data key.
//
// A key that the token would show in the clear is refused with
// kms.ErrKeyDisabled; one that is extractable by another wrapping key is
// warned of in the log.
func (b *Backend) OpenWrapper(ctx context.Context, ref string) (kms.Wrapper, error) {
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	defer b.leave()
	r, err := b.anyReference(ref)
	if err != nil {
		return nil, err
	}
	f, err := b.vault.openWrapping(ctx, r.want)
	if err != nil {
		return nil, err
	}
	if f.extractable {
		b.cfg.Logger.Warn("the token gives this wrapping key away to be wrapped by another key (CKA_EXTRACTABLE is true); unless that is how it is backed up, make one that is not extractable", "key", r.String())
	}
	w, mechanism, err := b.bindWrapper(ctx, r.want.selector, f)
	if err != nil {
		return nil, err
	}
	b.cfg.Logger.Info("PKCS#11 wrapping key opened", "key", r.String(), "mechanism", mechanismName(mechanism))
	return w, nil
}

// bindWrapper makes a wrapper of what was found, has it show that it works, and
// tells by which mechanism it does.
func (b *Backend) bindWrapper(ctx context.Context, sel selector, f foundWrapping) (w kms.Wrapper, mechanism uint, err error) {
	if f.kind == kms.RSA {
		// Its probe signature is what it wraps by.
		k, err := b.bind(ctx, sel, f.private, kms.RS256)
		if err != nil {
			return nil, 0, err
		}
		return &rsaWrapper{k}, k.mechanism.kind, nil
	}
	aes, err := b.bindAES(ctx, sel, f)
	if err != nil {
		return nil, 0, err
	}
	return aes, aes.ways[0].mechanism, nil
}

// notOpened is the one answer to what Unwrap cannot open.
func notOpened(why string) error {
	return fmt.Errorf("%w: %s; it was not wrapped by this key for this purpose, or was changed", kms.ErrUnwrap, why)
}

// askAgain reports whether err, of a call that had something from outside to
// open, may be that something's fault: modules have no one code for that, and
// SoftHSM calls it a general error.
func askAgain(err error) bool {
	return errors.Is(err, kms.ErrUnavailable) || errors.Is(err, kms.ErrKeyMismatch)
}
