package encrypter

import (
	"bytes"
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
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/go-jose/go-jose/v4"
	josecipher "github.com/go-jose/go-jose/v4/cipher"
)

// open decrypts a token, and fails the test if that is refused.
func open(t testing.TB, token string, private any, alg KeyAlgorithm, enc ContentEncryption) []byte {
	t.Helper()
	plaintext, err := tryOpen(token, private, alg, enc)
	if err != nil {
		t.Fatalf("the token does not open: %v", err)
	}
	return plaintext
}

// tryOpen decrypts a token with go-jose where that has the algorithms, and with
// openByHand where not. The reader is told exactly which algorithms to accept.
func tryOpen(token string, private any, alg KeyAlgorithm, enc ContentEncryption) ([]byte, error) {
	if !joseHas(alg, enc, private) {
		return openByHand(token, private, alg, enc)
	}
	parsed, err := jose.ParseEncryptedCompact(token, []jose.KeyAlgorithm{jose.KeyAlgorithm(alg)}, []jose.ContentEncryption{jose.ContentEncryption(enc)})
	if err != nil {
		return nil, fmt.Errorf("go-jose refuses to parse: %w", err)
	}
	if secret, ok := private.(SecretKey); ok {
		private = []byte(secret)
	}
	plaintext, err := parsed.Decrypt(private)
	if err != nil {
		return nil, fmt.Errorf("go-jose refuses to decrypt: %w", err)
	}
	return plaintext, nil
}

// joseHas reports whether go-jose has the algorithms.
func joseHas(alg KeyAlgorithm, enc ContentEncryption, private any) bool {
	switch private.(type) {
	case *ecdh.PrivateKey, x448Private:
		return false
	}
	return alg != RSAOAEP384 && alg != RSAOAEP512 && enc != A128CBCPlusHS256
}

// openByHand decrypts a token as RFC 7516 section 5.2 says, and shares nothing
// with this package: the primitives are those of the standard library, X448 that
// of circl, and Concat KDF, AES Key Wrap and AES-CBC with HMAC go-jose's.
func openByHand(token string, private any, alg KeyAlgorithm, enc ContentEncryption) ([]byte, error) {
	encoded := strings.Split(token, ".")
	if len(encoded) != 5 {
		return nil, fmt.Errorf("%d parts, want 5", len(encoded))
	}
	parts := make([][]byte, 5)
	for i, s := range encoded {
		var err error
		if parts[i], err = base64url.DecodeString(s); err != nil {
			return nil, err
		}
	}
	var header readerHeader
	if err := json.Unmarshal(parts[0], &header); err != nil {
		return nil, err
	}
	if header.Alg != alg || header.Enc != enc {
		return nil, fmt.Errorf("alg %q and enc %q, want %q and %q", header.Alg, header.Enc, alg, enc)
	}
	cek, err := contentKey(header, parts[1], private)
	if err != nil {
		return nil, err
	}
	if enc == A128CBCPlusHS256 {
		return openCBCPlusHMAC(encoded, parts, cek)
	}
	var aead cipher.AEAD
	if strings.HasSuffix(string(enc), "GCM") {
		aead = must(cipher.NewGCM(must(aes.NewCipher(cek))))
	} else {
		aead = must(josecipher.NewCBCHMAC(cek, aes.NewCipher))
	}
	return aead.Open(nil, parts[2], slices.Concat(parts[3], parts[4]), []byte(encoded[0]))
}

// readerHeader is what a reader needs of a protected header.
type readerHeader struct {
	Alg           KeyAlgorithm
	Enc           ContentEncryption
	EPK           jwk
	APU, APV      string
	IV, Tag       string
	Kid, Zip, Cty string
}

// contentKey returns the CEK of a token.
func contentKey(h readerHeader, encryptedKey []byte, private any) ([]byte, error) {
	switch h.Alg {
	case RSA15:
		return rsa.DecryptPKCS1v15(rand.Reader, private.(*rsa.PrivateKey), encryptedKey) //nolint:staticcheck // it is what RSA1_5 is
	case RSAOAEP, RSAOAEP256, RSAOAEP384, RSAOAEP512:
		newHash := map[KeyAlgorithm]func() hash.Hash{RSAOAEP: sha1.New, RSAOAEP256: sha256.New, RSAOAEP384: sha512.New384, RSAOAEP512: sha512.New}[h.Alg]
		return rsa.DecryptOAEP(newHash(), nil, private.(*rsa.PrivateKey), encryptedKey, nil)
	case Dir:
		return private.(SecretKey), nil
	case A128KW, A192KW, A256KW:
		return josecipher.KeyUnwrap(must(aes.NewCipher(private.(SecretKey))), encryptedKey)
	case A128GCMKW, A192GCMKW, A256GCMKW:
		aead := must(cipher.NewGCM(must(aes.NewCipher(private.(SecretKey)))))
		return aead.Open(nil, must(base64url.DecodeString(h.IV)), append(encryptedKey, must(base64url.DecodeString(h.Tag))...), nil)
	case ECDHES:
		shared, err := sharedSecret(private, h.EPK)
		return joseConcatKDF(shared, string(h.Enc), h.APU, h.APV, h.Enc.KeySize()), err
	case ECDHESA128KW, ECDHESA192KW, ECDHESA256KW:
		shared, err := sharedSecret(private, h.EPK)
		if err != nil {
			return nil, err
		}
		size := map[KeyAlgorithm]int{ECDHESA128KW: 16, ECDHESA192KW: 24, ECDHESA256KW: 32}[h.Alg]
		return josecipher.KeyUnwrap(must(aes.NewCipher(joseConcatKDF(shared, string(h.Alg), h.APU, h.APV, size))), encryptedKey)
	}
	return nil, fmt.Errorf("alg %q is not read by hand", h.Alg)
}

// sharedSecret is the result of the key agreement with an ephemeral key.
func sharedSecret(private any, epk jwk) ([]byte, error) {
	x := must(base64url.DecodeString(epk.X))
	switch private := private.(type) {
	case x448Private:
		var shared x448.Key
		if epk.Crv != "X448" || len(x) != len(shared) || !x448.Shared(&shared, (*x448.Key)(&private), (*x448.Key)(x)) {
			return nil, errors.New("no agreement with that key")
		}
		return shared[:], nil
	case *ecdsa.PrivateKey:
		own, err := private.ECDH()
		if err != nil {
			return nil, err
		}
		their, err := own.Curve().NewPublicKey(slices.Concat([]byte{4}, x, must(base64url.DecodeString(epk.Y))))
		if err != nil {
			return nil, err
		}
		return own.ECDH(their)
	default:
		own := private.(*ecdh.PrivateKey)
		their, err := own.Curve().NewPublicKey(x)
		if err != nil || epk.Crv != "X25519" {
			return nil, fmt.Errorf("no agreement with a key on %q: %w", epk.Crv, err)
		}
		return own.ECDH(their)
	}
}

// joseConcatKDF derives a key with go-jose's Concat KDF; apu and apv are the
// header parameters.
func joseConcatKDF(shared []byte, algorithm, apu, apv string, size int) []byte {
	lengthPrefixed := func(b []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	key := make([]byte, size)
	kdf := josecipher.NewConcatKDF(crypto.SHA256, shared, lengthPrefixed([]byte(algorithm)),
		lengthPrefixed(must(base64url.DecodeString(apu))), lengthPrefixed(must(base64url.DecodeString(apv))),
		binary.BigEndian.AppendUint32(nil, uint32(size*8)), nil)
	must(kdf.Read(key))
	return key
}

// openCBCPlusHMAC opens the content of A128CBC+HS256.
func openCBCPlusHMAC(encoded []string, parts [][]byte, master []byte) ([]byte, error) {
	derive := func(bits int, label string) []byte {
		key := make([]byte, bits/8)
		info := append(binary.BigEndian.AppendUint32(nil, uint32(bits)), "A128CBC+HS256\x00\x00\x00\x00\x00\x00\x00\x00"+label...)
		must(josecipher.NewConcatKDF(crypto.SHA256, master, info, nil, nil, nil, nil).Read(key))
		return key
	}
	mac := hmac.New(sha256.New, derive(256, "Integrity"))
	mac.Write([]byte(strings.Join(encoded[:4], ".")))
	if !hmac.Equal(mac.Sum(nil), parts[4]) {
		return nil, errors.New("the tag is not that of the token")
	}
	ciphertext := parts[3]
	if len(ciphertext) == 0 || len(ciphertext)%aes.BlockSize != 0 {
		return nil, errors.New("the ciphertext is not made of whole blocks")
	}
	plaintext := make([]byte, len(ciphertext))
	cipher.NewCBCDecrypter(must(aes.NewCipher(derive(128, "Encryption"))), parts[2]).CryptBlocks(plaintext, ciphertext)
	padding := int(plaintext[len(plaintext)-1])
	if padding == 0 || padding > aes.BlockSize || !bytes.HasSuffix(plaintext, bytes.Repeat([]byte{byte(padding)}, padding)) {
		return nil, errors.New("the padding is wrong")
	}
	return plaintext[:len(plaintext)-padding], nil
}
