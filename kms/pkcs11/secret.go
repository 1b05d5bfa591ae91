package pkcs11

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/kms"
)

// gcmIVSize is the length of an IV in bytes: the one that GCM takes as it is
// (NIST SP 800-38D, section 8.2).
const gcmIVSize = 12

// What a link does with wrapping keys.

// findWrapping is openWrapping of the vault.
func (l *link) findWrapping(ctx context.Context, want wanted) (foundWrapping, error) {
	return search(ctx, l, want, func(s *session) (foundWrapping, error) {
		secrets, err := l.named(s, want, ckoSecretKey)
		if err != nil {
			return foundWrapping{}, err
		}
		privates, err := l.named(s, want, ckoPrivateKey)
		if err != nil {
			return foundWrapping{}, err
		}
		switch {
		case len(secrets) > 0 && len(privates) > 0:
			return foundWrapping{}, fmt.Errorf("%w: %s fits a secret key and a private key; add type=secret-key or type=private", kms.ErrReference, want.selector)
		case len(secrets) > 1:
			return foundWrapping{}, fmt.Errorf("%w: %s fits %d secret keys; name the key by object and id together", kms.ErrReference, want.selector, len(secrets))
		case len(secrets) == 1:
			return l.readSecret(s, want.selector, secrets[0])
		case len(privates) > 0:
			f, err := l.read(s, want.selector, kms.RSA)
			if err != nil {
				return foundWrapping{}, fmt.Errorf("a wrapping key is an AES key, or an RSA private key that may sign: %w", err)
			}
			return foundWrapping{kind: kms.RSA, extractable: f.extractable, private: f}, nil
		}
		return foundWrapping{}, l.noSecret(s, want.selector)
	})
}

// named are the objects of a class that want names, none if it wants another
// class.
func (l *link) named(s *session, want wanted, class uint) ([]uint, error) {
	if want.class != 0 && want.class != class {
		return nil, nil
	}
	objects, err := l.lib.find(s.handle, want.template(class))
	return objects, l.spoil(s, err)
}

// noSecret is the answer to a search for a wrapping key that found nothing. A
// token that is gone finds nothing either.
func (l *link) noSecret(s *session, sel selector) error {
	if err := l.probe(s); err != nil {
		return err
	}
	return fmt.Errorf("%w: token %q has no AES key and no private key with %s; `%s` shows what it has, and `%s` makes a key that wraps",
		kms.ErrKeyNotFound, l.info.label, sel, toolCommand(l.t.cfg.Module, l.info.label, "--login --list-objects"),
		toolCommand(l.t.cfg.Module, l.info.label, "--login --keygen --key-type AES:32 --sensitive --usage-decrypt --usage-wrap --label LABEL --id 01"))
}

// readSecret reads what is to be known of a secret key.
//
// A key that the token would show in the clear is refused: whoever had the PIN
// for a moment would have had all data keys for good. One that it gives away
// wrapped by another key is taken, with a warning from above: that is how HSMs
// are backed up and made to share keys.
func (l *link) readSecret(s *session, sel selector, object uint) (foundWrapping, error) {
	fail := func(err error) (foundWrapping, error) { return foundWrapping{}, err }
	kind, err := l.lib.attribute(s.handle, object, ckaKeyType)
	if err != nil {
		return fail(l.spoil(s, err))
	}
	if ulong(kind) != ckkAES {
		return fail(fmt.Errorf("%w: %s is a secret key of another type than AES (CKK 0x%X); name an AES key or an RSA private key", kms.ErrKeyMismatch, sel, ulong(kind)))
	}
	size, err := l.optional(s, object, ckaValueLen)
	if err != nil {
		return fail(err)
	}
	f := foundWrapping{kind: kms.Oct, bits: 8 * int(min(ulong(size), 1024))}
	if f.bits != 128 && f.bits != 192 && f.bits != 256 {
		return fail(fmt.Errorf("%w: the token does not say that the AES key %s has 128, 192 or 256 bits (CKA_VALUE_LEN)", kms.ErrKeyMismatch, sel))
	}
	var sensitive, encrypt, decrypt, wrap, unwrap bool // false if the token does not say
	for _, a := range []struct {
		kind uint
		is   *bool
	}{
		{ckaSensitive, &sensitive}, {ckaExtractable, &f.extractable},
		{ckaEncrypt, &encrypt}, {ckaDecrypt, &decrypt}, {ckaWrap, &wrap}, {ckaUnwrap, &unwrap},
	} {
		v, err := l.optional(s, object, a.kind)
		if err != nil {
			return fail(err)
		}
		*a.is = len(v) == 1 && v[0] != 0
	}
	f.mayCrypt, f.mayWrap = encrypt && decrypt, wrap && unwrap
	switch {
	case f.extractable && !sensitive:
		return fail(fmt.Errorf("%w: the token would show the AES key %s in the clear (CKA_SENSITIVE is false and CKA_EXTRACTABLE true), so it protects nothing; make a key that is sensitive and not extractable", kms.ErrKeyDisabled, sel))
	case !f.mayCrypt && !f.mayWrap:
		return fail(fmt.Errorf("%w: the attributes of the AES key %s let it neither encrypt and decrypt nor wrap and unwrap; make one with CKA_ENCRYPT and CKA_DECRYPT (pkcs11-tool --usage-decrypt)", kms.ErrKeyDisabled, sel))
	}
	f.traits, err = l.traits(s, object)
	return f, err
}

// traits is what tells a secret key from another of its name, as far as the
// token shows any of it: its length and its check value. It is not enough to be
// sure, which is why those who unwrap are.
func (l *link) traits(s *session, object uint) (fingerprint, error) {
	h := sha256.New()
	for _, kind := range []uint{ckaValueLen, ckaCheckValue} {
		v, err := l.optional(s, object, kind)
		if err != nil {
			return fingerprint{}, err
		}
		_, _ = fmt.Fprintf(h, "%x;", v) // never fails
	}
	return fingerprint(h.Sum(nil)), nil
}

// locateSecret is locate for an AES key.
func (l *link) locateSecret(s *session, key keyName) (uint, error) {
	objects, err := l.lib.find(s.handle, append(key.template(ckoSecretKey), attribute{kind: ckaKeyType, ulong: true, num: ckkAES}))
	if err != nil {
		return 0, l.spoil(s, err)
	}
	for _, object := range objects {
		traits, err := l.traits(s, object)
		if err != nil {
			return 0, err
		}
		if traits == key.public {
			return object, nil
		}
	}
	if len(objects) > 0 {
		return 0, anotherKey(key.selector)
	}
	return 0, l.noSecret(s, key.selector)
}

// errAnswer: the module answered with something of the wrong form. What follows
// is what an unlisted error code has.
var errAnswer = errors.New("the module's answer has the wrong form")

// seal is of vault.
func (l *link) seal(ctx context.Context, key keyName, mechanism uint, aad, plaintext []byte) ([]byte, error) {
	if mechanism != ckmAESGCM {
		return l.with(ctx, key, func(s *session, object uint) ([]byte, error) { return l.wrapKey(s, object, mechanism, plaintext) })
	}
	return l.with(ctx, key, func(s *session, object uint) ([]byte, error) {
		iv := make([]byte, gcmIVSize)
		_, _ = rand.Read(iv) // never fails
		ciphertext, used, err := l.lib.encryptGCM(s.handle, object, iv, aad, plaintext)
		if err != nil {
			return nil, l.spoil(s, err)
		}
		if len(used) != gcmIVSize {
			s.spoiled = true
			return nil, fmt.Errorf("%w: %w: an IV of %d bytes", kms.ErrUnavailable, errAnswer, len(used))
		}
		return append(used, ciphertext...), nil
	})
}

// unseal is of vault.
func (l *link) unseal(ctx context.Context, key keyName, mechanism uint, aad, sealed []byte) ([]byte, error) {
	if mechanism != ckmAESGCM {
		return l.with(ctx, key, func(s *session, object uint) ([]byte, error) { return l.unwrapKey(s, object, mechanism, sealed) })
	}
	if len(sealed) < gcmIVSize {
		return nil, fmt.Errorf("%w: %d bytes", kms.ErrUnwrap, len(sealed))
	}
	return l.with(ctx, key, func(s *session, object uint) ([]byte, error) {
		plaintext, err := l.lib.decryptGCM(s.handle, object, sealed[:gcmIVSize], aad, sealed[gcmIVSize:])
		return plaintext, l.spoil(s, err)
	})
}

// wrapKey encrypts value as the module wraps keys: it is made a secret key
// object of the session, which is wrapped and destroyed. It has no label and no
// id, so that no search of a key finds it.
func (l *link) wrapKey(s *session, wrapping, mechanism uint, value []byte) ([]byte, error) {
	object, err := l.lib.createObject(s.handle, append(sessionSecret(true), attribute{kind: ckaValue, bytes: value}))
	if err != nil {
		return nil, l.spoil(s, err)
	}
	defer l.destroy(s, object)
	wrapped, err := l.lib.wrapKey(s.handle, mechanism, wrapping, object)
	return wrapped, l.spoil(s, err)
}

// unwrapKey undoes wrapKey.
func (l *link) unwrapKey(s *session, unwrapping, mechanism uint, wrapped []byte) ([]byte, error) {
	object, err := l.lib.unwrapKey(s.handle, mechanism, unwrapping, wrapped, sessionSecret(false))
	if err != nil {
		return nil, l.spoil(s, err)
	}
	defer l.destroy(s, object)
	value, err := l.lib.attribute(s.handle, object, ckaValue)
	return value, l.spoil(s, err)
}

// sessionSecret is the template of a secret that lives for two calls.
func sessionSecret(sensitive bool) []attribute {
	return []attribute{
		{kind: ckaClass, ulong: true, num: ckoSecretKey}, {kind: ckaKeyType, ulong: true, num: ckkGenericSecret},
		boolean(ckaToken, false), boolean(ckaPrivate, true), boolean(ckaSensitive, sensitive), boolean(ckaExtractable, true),
	}
}

// destroy takes an object of the session away. A session that met an error is
// closed, and that does it too.
func (l *link) destroy(s *session, object uint) {
	if !s.spoiled {
		_ = l.spoil(s, l.lib.destroyObject(s.handle, object))
	}
}
