package client

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"github.com/go-json-experiment/json/jsontext"
)

// unwrapper returns the content key of a token that was made for a private key, which
// fits the algorithm. Its errors only say that there is none: they go nowhere, for
// a sender who could tell one failure from another would have an oracle (RFC 7516,
// section 11.5).
type unwrapper func(private any, e *encrypted, enc contentEncryption) ([]byte, error)

// errUnwrap is the one error of an unwrapper, or stands for it.
var errUnwrap = errors.New("no content key")

// rsaOAEP is RSAES-OAEP (RFC 7518, section 4.3; RFC 8017, section 7.1), with one hash
// for both of its uses and no label.
func rsaOAEP(hash crypto.Hash) unwrapper {
	return func(private any, e *encrypted, _ contentEncryption) ([]byte, error) {
		return rsa.DecryptOAEP(hash.New(), nil, private.(*rsa.PrivateKey), e.encryptedKey, nil)
	}
}

// rsaPKCS1v15 is RSAES-PKCS1-v1_5 (RFC 7518, section 4.2). Whoever sees if its padding
// was right can decrypt any token by asking often enough (Bleichenbacher). So a
// random key stands ready and is overwritten, in constant time, only by a content
// key of the right size (RFC 3218, section 2.3.2); with the random one the
// authentication tag fails, as it does for any other change.
func rsaPKCS1v15(private any, e *encrypted, enc contentEncryption) ([]byte, error) {
	cek, err := randomKey(enc.keySize)
	if err != nil {
		return nil, err
	}
	//nolint:staticcheck // deprecated for new protocols; clients that know only RSA1_5 are why it is here, and this is its safe form
	err = rsa.DecryptPKCS1v15SessionKey(nil, private.(*rsa.PrivateKey), e.encryptedKey, cek)
	return cek, err // the error is about the length of the encrypted key, which all can see
}

// sharedKey is dir: the key is the content key (RFC 7518, section 4.5).
func sharedKey(private any, _ *encrypted, _ contentEncryption) ([]byte, error) {
	return private.([]byte), nil
}

// aesKeyWrap is AES Key Wrap with a shared key (RFC 7518, section 4.4).
func aesKeyWrap(private any, e *encrypted, _ contentEncryption) ([]byte, error) {
	return unwrapAES(private.([]byte), e.encryptedKey)
}

// unwrapAES undoes AES Key Wrap (RFC 3394, section 2.2.2).
func unwrapAES(kek, wrapped []byte) ([]byte, error) {
	// A and at least two registers of 64 bits.
	if len(wrapped) < 24 || len(wrapped)%8 != 0 {
		return nil, errUnwrap
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	registers := append([]byte(nil), wrapped[8:]...)
	var b [aes.BlockSize]byte
	copy(b[:8], wrapped)
	for t := uint64(6 * len(registers) / 8); t > 0; {
		for i := len(registers) - 8; i >= 0; i -= 8 {
			binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^t)
			copy(b[8:], registers[i:])
			block.Decrypt(b[:], b[:])
			copy(registers[i:i+8], b[8:])
			t--
		}
	}
	want := [8]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6} // section 2.2.3.1
	if subtle.ConstantTimeCompare(b[:8], want[:]) != 1 {
		return nil, errUnwrap
	}
	return registers, nil
}

// gcmKeyWrap is AES GCM with a shared key, its iv and tag in the header and nothing
// else authenticated (RFC 7518, section 4.7).
func gcmKeyWrap(private any, e *encrypted, _ contentEncryption) ([]byte, error) {
	iv, err := e.header.bytes("iv")
	if err != nil {
		return nil, err
	}
	tag, err := e.header.bytes("tag")
	if err != nil {
		return nil, err
	}
	aead, err := newGCM(private.([]byte))
	if err != nil {
		return nil, err
	}
	if len(iv) != aead.NonceSize() || len(tag) != aead.Overhead() {
		return nil, errUnwrap
	}
	return aead.Open(nil, iv, append(append([]byte(nil), e.encryptedKey...), tag...), nil)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// bytes returns a header parameter that holds base64url.
func (h *header) bytes(name string) ([]byte, error) {
	return stringBytes(h.members[name])
}

func stringBytes(v jsontext.Value) ([]byte, error) {
	s, ok := stringValue(v)
	if !ok {
		return nil, errUnwrap
	}
	return decodeBase64(s)
}

func randomKey(size int) ([]byte, error) {
	key := make([]byte, size)
	_, err := rand.Read(key)
	return key, err
}
