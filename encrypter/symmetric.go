package encrypter

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"errors"
)

// The algorithms below share one key with the recipient. Their AES key schedule
// is the same for every token, and made once.

// aesKeyWrap encrypts a fresh CEK with AES Key Wrap (RFC 7518 section 4.4).
func aesKeyWrap(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
	block, err := secretCipher(key)
	if err != nil {
		return nil, err
	}
	return func(w *workspace) ([]byte, error) {
		return wrapKey(w.wrapped[:0], block, w.cek)
	}, nil
}

// aesGCMKeyWrap encrypts a fresh CEK with AES-GCM, a fresh random IV of 96 bits
// and no additional data; IV and tag go into the header (RFC 7518 section 4.7).
// Random IVs under one key are safe for 2^32 tokens.
func aesGCMKeyWrap(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
	block, err := secretCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return func(w *workspace) ([]byte, error) {
		w.entropy.fill(w.keyIV[:])
		sealed := aead.Seal(w.wrapped[:0], w.keyIV[:], w.cek, nil)
		encryptedKey, tag := sealed[:len(w.cek)], sealed[len(w.cek):]
		w.header = append(w.header, `,"iv":"`...)
		w.header = appendBase64(w.header, w.keyIV[:])
		w.header = append(w.header, `","tag":"`...)
		w.header = appendBase64(w.header, tag)
		w.header = append(w.header, '"')
		return encryptedKey, nil
	}, nil
}

// sharedKey takes the shared key itself for the CEK: no encrypted key (RFC 7518
// section 4.5).
func sharedKey(key crypto.PublicKey, _ *contentEncryptionRow) (keyManagement, error) {
	secret, ok := key.(SecretKey)
	if !ok {
		return nil, errNotSecret
	}
	own := append(SecretKey(nil), secret...)
	return func(w *workspace) ([]byte, error) {
		copy(w.cek, own)
		return nil, nil
	}, nil
}

// secretCipher returns AES with key, a SecretKey.
func secretCipher(key crypto.PublicKey) (cipher.Block, error) {
	secret, ok := key.(SecretKey)
	if !ok {
		return nil, errNotSecret
	}
	return aes.NewCipher(secret) // which keeps no reference to it
}

// errNotSecret: the table and the function that checks keys against it
// disagree.
var errNotSecret = errors.New("the algorithm needs a SecretKey")
