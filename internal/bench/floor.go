//go:build linux && cgo

package main

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"

	"github.com/bulla-project/bulla/encrypter"
)

// jweFloor returns a function that does what no JWE of plaintext for a key can
// do without, and nothing else: it draws random bytes, encrypts or agrees upon
// the content encryption key, encrypts the content and encodes the ciphertext.
// It writes no token, and keeps all the memory that it can keep.
func jweFloor(alg encrypter.KeyAlgorithm, enc encrypter.ContentEncryption, public crypto.PublicKey, plaintext []byte) (func() error, error) {
	seal, ivSize, err := contentFloor(enc, plaintext)
	if err != nil {
		return nil, err
	}
	manage, err := keyFloor(alg, public)
	if err != nil {
		return nil, err
	}
	keySize := enc.KeySize()
	random := make([]byte, keySize+ivSize)
	return func() error {
		if _, err := rand.Read(random); err != nil {
			return err
		}
		if err := manage(random[:keySize]); err != nil {
			return err
		}
		return seal(random[:keySize], random[keySize:])
	}, nil
}

// keyFloor is the key management: it encrypts cek, or in direct agreement
// fills it. What depends on the recipient's key alone is made once.
func keyFloor(alg encrypter.KeyAlgorithm, key crypto.PublicKey) (func(cek []byte) error, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return rsaFloor(alg, k)
	case encrypter.SecretKey:
		return secretFloor(alg, k)
	}
	agree, err := agreementFloor(key)
	if err != nil {
		return nil, err
	}
	size, ok := map[encrypter.KeyAlgorithm]int{
		encrypter.ECDHES: 0, encrypter.ECDHESA128KW: 16, encrypter.ECDHESA192KW: 24, encrypter.ECDHESA256KW: 32,
	}[alg]
	switch {
	case !ok:
		return nil, noFloor(alg, key)
	case size == 0:
		return agree, nil
	}
	kek, wrapped := make([]byte, size), make([]byte, 0, 72)
	return func(cek []byte) error {
		if err := agree(kek); err != nil {
			return err
		}
		block, err := aes.NewCipher(kek)
		if err != nil {
			return err
		}
		keyWrap(wrapped, block, cek)
		return nil
	}, nil
}

func noFloor(alg encrypter.KeyAlgorithm, key crypto.PublicKey) error {
	return fmt.Errorf("no floor is known for %s with a %T", alg, key)
}

func rsaFloor(alg encrypter.KeyAlgorithm, key *rsa.PublicKey) (func(cek []byte) error, error) {
	if alg == encrypter.RSA15 {
		return func(cek []byte) error {
			_, err := rsa.EncryptPKCS1v15(rand.Reader, key, cek) //nolint:staticcheck // what RSA1_5 is
			return err
		}, nil
	}
	newHash := map[encrypter.KeyAlgorithm]func() hash.Hash{
		encrypter.RSAOAEP: sha1.New, encrypter.RSAOAEP256: sha256.New, encrypter.RSAOAEP384: sha512.New384, encrypter.RSAOAEP512: sha512.New,
	}[alg]
	if newHash == nil {
		return nil, noFloor(alg, key)
	}
	return func(cek []byte) error {
		_, err := rsa.EncryptOAEP(newHash(), rand.Reader, key, cek, nil)
		return err
	}, nil
}

// secretFloor is the key management with a key that is shared.
func secretFloor(alg encrypter.KeyAlgorithm, key encrypter.SecretKey) (func(cek []byte) error, error) {
	if alg == encrypter.Dir {
		return func(cek []byte) error { copy(cek, key); return nil }, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	wrapped := make([]byte, 0, 80)
	switch alg {
	case encrypter.A128KW, encrypter.A192KW, encrypter.A256KW:
		return func(cek []byte) error { keyWrap(wrapped, block, cek); return nil }, nil
	case encrypter.A128GCMKW, encrypter.A192GCMKW, encrypter.A256GCMKW:
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		iv := make([]byte, aead.NonceSize())
		return func(cek []byte) error {
			if _, err := rand.Read(iv); err != nil {
				return err
			}
			aead.Seal(wrapped, iv, cek, nil)
			return nil
		}, nil
	}
	return nil, noFloor(alg, key)
}

// agreementFloor is the key agreement with a fresh key pair, and the Concat KDF
// of RFC 7518 section 4.6.2.
func agreementFloor(their crypto.PublicKey) (func(key []byte) error, error) {
	exchange, err := exchangeFloor(their)
	if err != nil {
		return nil, err
	}
	const round, otherInfo = 4, 30 // sizes in bytes
	input := make([]byte, round+66+otherInfo)
	return func(key []byte) error {
		secret, err := exchange()
		if err != nil {
			return err
		}
		n := copy(input[round:], secret)
		for i := uint32(1); len(key) > 0; i++ {
			binary.BigEndian.PutUint32(input, i)
			sum := sha256.Sum256(input[:round+n+otherInfo])
			key = key[copy(key, sum[:]):]
		}
		return nil
	}, nil
}

// exchangeFloor makes a key pair and agrees with their key upon a secret, each
// time anew.
func exchangeFloor(their crypto.PublicKey) (func() (secret []byte, err error), error) {
	switch k := their.(type) {
	case *ecdsa.PublicKey:
		public, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		return stdlibExchange(public), nil
	case *ecdh.PublicKey: // X25519
		their := x25519.Key(k.Bytes())
		var private, public, secret x25519.Key
		return func() ([]byte, error) {
			if _, err := rand.Read(private[:]); err != nil {
				return nil, err
			}
			x25519.KeyGen(&public, &private)
			if !x25519.Shared(&secret, &private, &their) {
				return nil, errLowOrder
			}
			return secret[:], nil
		}, nil
	case encrypter.X448PublicKey:
		their := x448.Key(k)
		var private, public, secret x448.Key
		return func() ([]byte, error) {
			if _, err := rand.Read(private[:]); err != nil {
				return nil, err
			}
			x448.KeyGen(&public, &private)
			if !x448.Shared(&secret, &private, &their) {
				return nil, errLowOrder
			}
			return secret[:], nil
		}, nil
	}
	return nil, fmt.Errorf("no key agreement is known with a %T", their)
}

var errLowOrder = errors.New("the key is of low order")

// stdlibExchange does it with the standard library.
func stdlibExchange(their *ecdh.PublicKey) func() ([]byte, error) {
	return func() ([]byte, error) {
		own, err := their.Curve().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return own.ECDH(their)
	}
}

// keyWrap appends to dst the AES Key Wrap (RFC 3394) of key, without a check.
func keyWrap(dst []byte, kek cipher.Block, key []byte) []byte {
	dst = append(append(dst, make([]byte, 8)...), key...)
	registers := dst[len(dst)-len(key):]
	var block [16]byte
	for i := range 8 {
		block[i] = 0xa6
	}
	for t, n := 0, len(registers)/8; t < 6*n; t++ {
		r := registers[t%n*8:][:8]
		copy(block[8:], r)
		kek.Encrypt(block[:], block[:])
		copy(r, block[8:])
		block[7] ^= byte(t + 1)
	}
	copy(dst[len(dst)-len(key)-8:], block[:8])
	return dst
}

// contentFloor is the content encryption and the encoding of what comes of it.
func contentFloor(enc encrypter.ContentEncryption, plaintext []byte) (seal func(cek, iv []byte) error, ivSize int, err error) {
	const aadSize = 160
	aad := make([]byte, aadSize)
	sealed := make([]byte, 0, len(plaintext)+aes.BlockSize+sha512.Size)
	encoded := make([]byte, base64.RawURLEncoding.EncodedLen(cap(sealed)))

	newHash := map[encrypter.ContentEncryption]func() hash.Hash{
		encrypter.A128CBCHS256: sha256.New, encrypter.A192CBCHS384: sha512.New384, encrypter.A256CBCHS512: sha512.New,
	}[enc]
	switch {
	case !enc.Known():
		return nil, 0, fmt.Errorf("no floor is known for %s", enc)
	case enc == encrypter.A128CBCPlusHS256:
		return legacyFloor(plaintext), aes.BlockSize, nil
	case newHash == nil:
		return func(cek, iv []byte) error {
			block, err := aes.NewCipher(cek)
			if err != nil {
				return err
			}
			aead, err := cipher.NewGCM(block)
			if err != nil {
				return err
			}
			base64.RawURLEncoding.Encode(encoded, aead.Seal(sealed, iv, plaintext, aad))
			return nil
		}, 12, nil
	}
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	padded := append(append(make([]byte, 0, len(plaintext)+padding), plaintext...), make([]byte, padding)...)
	var aadBits [8]byte
	binary.BigEndian.PutUint64(aadBits[:], aadSize*8)
	return func(cek, iv []byte) error {
		half := len(cek) / 2
		block, err := aes.NewCipher(cek[half:])
		if err != nil {
			return err
		}
		out := sealed[:len(padded)]
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, padded)
		mac := hmac.New(newHash, cek[:half])
		mac.Write(aad)
		mac.Write(iv)
		mac.Write(out)
		mac.Write(aadBits[:])
		base64.RawURLEncoding.Encode(encoded, mac.Sum(out)[:len(padded)+half])
		return nil
	}, aes.BlockSize, nil
}

// legacyFloor is the content encryption of A128CBC+HS256, which encodes the
// ciphertext before it is authenticated.
func legacyFloor(plaintext []byte) func(cek, iv []byte) error {
	const before = 160 + 342 + 22 + 3 // header, encrypted key, IV and dots, in base64url
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	padded := append(append(make([]byte, 0, len(plaintext)+padding), plaintext...), make([]byte, padding)...)
	sealed := make([]byte, len(padded))
	token := make([]byte, before+base64.RawURLEncoding.EncodedLen(len(padded)))
	tag := make([]byte, 0, sha256.Size)
	info := make([]byte, 80) // about as long as the input of the key derivation
	return func(cek, iv []byte) error {
		copy(info, cek)
		encryption, integrity := sha256.Sum256(info), sha256.Sum256(info)
		block, err := aes.NewCipher(encryption[:16])
		if err != nil {
			return err
		}
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(sealed, padded)
		base64.RawURLEncoding.Encode(token[before:], sealed)
		mac := hmac.New(sha256.New, integrity[:])
		mac.Write(token)
		mac.Sum(tag)
		return nil
	}
}
