package awsfault

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// The states of a key that tests put it in.
const (
	Enabled         = "Enabled"
	Disabled        = "Disabled"
	PendingDeletion = "PendingDeletion"
	Creating        = "Creating"
)

// key is one KMS key. Once it is in Endpoint.keys only its state changes.
type key struct {
	id, spec, usage, description string
	tags                         []tag
	made                         time.Time
	managed                      bool          // by AWS
	state                        string        // guarded by Endpoint.mu
	signer                       crypto.Signer // of an asymmetric key
	secret                       cipher.AEAD   // of a symmetric one
}

// tag is one of a key's, as the API writes it.
type tag struct{ TagKey, TagValue string }

// newMaterial makes a key of a key spec of KMS.
var newMaterial = map[string]func(*key) error{
	"RSA_2048":              rsaOf(2048),
	"RSA_3072":              rsaOf(3072),
	"RSA_4096":              rsaOf(4096),
	"ECC_NIST_P256":         ecOf(elliptic.P256()),
	"ECC_NIST_P384":         ecOf(elliptic.P384()),
	"ECC_NIST_P521":         ecOf(elliptic.P521()),
	"ECC_NIST_EDWARDS25519": newEd25519,
	symmetric:               newSymmetric,
}

func rsaOf(bits int) func(*key) error {
	return func(k *key) (err error) {
		k.signer, err = rsa.GenerateKey(rand.Reader, bits)
		return err
	}
}

func ecOf(curve elliptic.Curve) func(*key) error {
	return func(k *key) (err error) {
		k.signer, err = ecdsa.GenerateKey(curve, rand.Reader)
		return err
	}
}

func newEd25519(k *key) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	k.signer = private
	return err
}

func newSymmetric(k *key) error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	block, err := aes.NewCipher(secret)
	if err != nil {
		return err
	}
	k.secret, err = cipher.NewGCM(block)
	return err
}

// scheme is a signing algorithm of KMS.
type scheme struct {
	specs []string // the key specs that have it
	hash  crypto.Hash
	pss   bool
	raw   bool // takes messages only, and no digests
}

var rsaSpecs = []string{"RSA_2048", "RSA_3072", "RSA_4096"}

var schemes = map[string]scheme{
	"RSASSA_PKCS1_V1_5_SHA_256": {specs: rsaSpecs, hash: crypto.SHA256},
	"RSASSA_PKCS1_V1_5_SHA_384": {specs: rsaSpecs, hash: crypto.SHA384},
	"RSASSA_PKCS1_V1_5_SHA_512": {specs: rsaSpecs, hash: crypto.SHA512},
	"RSASSA_PSS_SHA_256":        {specs: rsaSpecs, hash: crypto.SHA256, pss: true},
	"RSASSA_PSS_SHA_384":        {specs: rsaSpecs, hash: crypto.SHA384, pss: true},
	"RSASSA_PSS_SHA_512":        {specs: rsaSpecs, hash: crypto.SHA512, pss: true},
	"ECDSA_SHA_256":             {specs: []string{"ECC_NIST_P256"}, hash: crypto.SHA256},
	"ECDSA_SHA_384":             {specs: []string{"ECC_NIST_P384"}, hash: crypto.SHA384},
	"ECDSA_SHA_512":             {specs: []string{"ECC_NIST_P521"}, hash: crypto.SHA512},
	"ED25519_SHA_512":           {specs: []string{"ECC_NIST_EDWARDS25519"}, raw: true},
}

// signingAlgorithms are the names of the schemes that a key spec has.
func signingAlgorithms(spec string) []string {
	var names []string
	for name, s := range schemes {
		if slices.Contains(s.specs, spec) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// digestOf hashes a message.
func digestOf(h crypto.Hash, message []byte) []byte {
	switch h {
	case crypto.SHA256:
		sum := sha256.Sum256(message)
		return sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(message)
		return sum[:]
	default:
		sum := sha512.Sum512(message)
		return sum[:]
	}
}

// sign returns a signature in the form of KMS: DER for ECDSA.
func (k *key) sign(s scheme, input []byte) ([]byte, error) {
	var opts crypto.SignerOpts = s.hash
	if s.pss {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
	}
	return k.signer.Sign(rand.Reader, input, opts)
}

// public is the key's public half as a DER SubjectPublicKeyInfo.
func (k *key) public() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.signer.Public()) }

func (k *key) arn() string {
	return fmt.Sprintf("arn:aws:kms:%s:%s:key/%s", Region, account, k.id)
}

// blobHeader precedes nonce and ciphertext in a CiphertextBlob: a version, and
// the id of the key.
func (k *key) blobHeader() []byte { return append([]byte{1}, k.id...) }

// seal encrypts a plaintext under an encryption context.
func (k *key) seal(plaintext []byte, encryptionContext map[string]string) []byte {
	nonce := make([]byte, k.secret.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	blob := append(k.blobHeader(), nonce...)
	return k.secret.Seal(blob, nonce, plaintext, k.additional(encryptionContext))
}

// open decrypts what seal made.
func (k *key) open(blob []byte, encryptionContext map[string]string) ([]byte, error) {
	rest, n := blob[len(k.blobHeader()):], k.secret.NonceSize()
	if len(rest) < n {
		return nil, fmt.Errorf("%d bytes are no ciphertext", len(blob))
	}
	return k.secret.Open(nil, rest[:n], rest[n:], k.additional(encryptionContext))
}

// additional is the encryption context in one form: encoding/json sorts names.
func (k *key) additional(encryptionContext map[string]string) []byte {
	if len(encryptionContext) == 0 {
		return k.blobHeader()
	}
	encoded, _ := json.Marshal(encryptionContext) // strings always marshal
	return append(k.blobHeader(), encoded...)
}

// NewKey makes a key of a key spec of KMS, such as "ECC_NIST_P256", and returns
// its ARN. A SYMMETRIC_DEFAULT key encrypts, all others sign.
func (e *Endpoint) NewKey(spec string) (arn string, err error) {
	usage := "SIGN_VERIFY"
	if spec == symmetric {
		usage = "ENCRYPT_DECRYPT"
	}
	k, err := e.add(&key{spec: spec, usage: usage})
	if err != nil {
		return "", err
	}
	return k.arn(), nil
}

// NewAWSManagedKeys makes n keys such as AWS services make for themselves: they
// are in the list of keys, and nobody may read their tags.
func (e *Endpoint) NewAWSManagedKeys(n int) error {
	for range n {
		if _, err := e.add(&key{spec: symmetric, usage: "ENCRYPT_DECRYPT", managed: true}); err != nil {
			return err
		}
	}
	return nil
}

// SetState puts a key into one of the states above. Out of PendingDeletion it
// comes back as AWS's CancelKeyDeletion and EnableKey together bring it back.
func (e *Endpoint) SetState(arn, state string) error {
	k := e.find(arn)
	if k == nil {
		return errNoKey
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	k.state = state
	return nil
}

// DeleteKey deletes a key at once, which KMS never does in less than a week.
func (e *Endpoint) DeleteKey(arn string) error {
	k := e.find(arn)
	if k == nil {
		return errNoKey
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.keys, k.id)
	return nil
}

// add generates k's key and gives it an id.
func (e *Endpoint) add(k *key) (*key, error) {
	generate, known := newMaterial[k.spec]
	if !known {
		return nil, fmt.Errorf("awsfault: no key spec %q", k.spec)
	}
	if err := generate(k); err != nil {
		return nil, err
	}
	k.id, k.made, k.state = newID(), time.Now(), Enabled
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys[k.id] = k
	return k, nil
}

// newID is a random UUID (RFC 9562, version 4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// find returns the key of an id or an ARN, nil if there is none.
func (e *Endpoint) find(idOrARN string) *key {
	prefix := fmt.Sprintf("arn:aws:kms:%s:%s:key/", Region, account)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(idOrARN) > len(prefix) && idOrARN[:len(prefix)] == prefix {
		idOrARN = idOrARN[len(prefix):]
	}
	return e.keys[idOrARN]
}
