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
	"fmt"
	"hash"

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
// fills it.
func keyFloor(alg encrypter.KeyAlgorithm, public crypto.PublicKey) (func(cek []byte) error, error) {
	kekSizes := map[encrypter.KeyAlgorithm]int{encrypter.ECDHES: 0, encrypter.ECDHESA128KW: 16, encrypter.ECDHESA192KW: 24, encrypter.ECDHESA256KW: 32}
	switch k := public.(type) {
	case *rsa.PublicKey:
		newHash := map[encrypter.KeyAlgorithm]func() hash.Hash{encrypter.RSAOAEP: sha1.New, encrypter.RSAOAEP256: sha256.New}[alg]
		if newHash == nil {
			break
		}
		return func(cek []byte) error {
			_, err := rsa.EncryptOAEP(newHash(), rand.Reader, k, cek, nil)
			return err
		}, nil
	case *ecdsa.PublicKey:
		kekSize, ok := kekSizes[alg]
		if !ok {
			break
		}
		their, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		kek, wrapped := make([]byte, kekSize), make([]byte, 0, 72)
		agree := agreementFloor(their)
		return func(cek []byte) error {
			if kekSize == 0 {
				return agree(cek)
			}
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
	return nil, fmt.Errorf("no floor is known for %s with a %T", alg, public)
}

// agreementFloor is the key agreement with a fresh key pair, and the Concat KDF
// of RFC 7518 section 4.6.2.
func agreementFloor(their *ecdh.PublicKey) func(key []byte) error {
	const round, otherInfo = 4, 30 // sizes in bytes
	input := make([]byte, round+66+otherInfo)
	return func(key []byte) error {
		own, err := their.Curve().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		secret, err := own.ECDH(their)
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
