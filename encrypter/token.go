package encrypter

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

// Encrypt encloses jws, a signed token in the compact serialization, in a JWE
// for the recipient and returns that in the compact serialization.
//
// An error wraps [ErrNotSigned], or tells that a primitive refused to run, which
// no key that [NewRecipient] accepted is known to cause. jws is only read, and
// not kept.
func (r *Recipient) Encrypt(jws []byte) (string, error) {
	return r.EncryptStaged(jws, nil)
}

// EncryptStaged is [Recipient.Encrypt] for callers who measure its two halves: it
// calls wrapped, unless that is nil, when the key management is done and the
// content encryption has not begun; not at all if the key management fails. The
// key is not shown in between and nothing can be done over, so that a content
// encryption key serves one token whatever a caller does.
func (r *Recipient) EncryptStaged(jws []byte, wrapped func()) (string, error) {
	w := workspaces.Get().(*workspace)
	defer w.release()
	token, err := r.appendNested(w.token[:0], jws, w, wrapped)
	if err != nil {
		return "", err
	}
	w.token = token
	return string(token), nil
}

// AppendEncrypt is [Recipient.Encrypt] for callers with a buffer of their own:
// it appends the token to dst and returns the extended slice, or dst as it was
// and an error. jws and the spare capacity of dst must not overlap.
func (r *Recipient) AppendEncrypt(dst, jws []byte) ([]byte, error) {
	w := workspaces.Get().(*workspace)
	defer w.release()
	return r.appendNested(dst, jws, w, nil)
}

// appendNested sees to it that what is enclosed was signed.
func (r *Recipient) appendNested(dst, jws []byte, w *workspace, wrapped func()) ([]byte, error) {
	if !looksSigned(jws) {
		return dst, fmt.Errorf("%w: expected three non-empty parts joined by dots; sign the claims before they are encrypted", ErrNotSigned)
	}
	return r.appendToken(dst, jws, w, wrapped)
}

// appendToken follows RFC 7516 section 5.1. wrapped is as in EncryptStaged.
func (r *Recipient) appendToken(dst, plaintext []byte, w *workspace, wrapped func()) ([]byte, error) {
	enc := r.content

	// One draw serves the CEK and the IV.
	fresh := w.random[:enc.keySize+enc.ivSize]
	w.entropy.fill(fresh)
	w.cek, w.iv = fresh[:enc.keySize], fresh[enc.keySize:]

	w.header = append(w.header[:0], r.headerRest...)
	encryptedKey, err := r.manage(w)
	if err != nil {
		return dst, fmt.Errorf("encrypt with %s: %w", r.algorithm, err)
	}
	w.header = append(w.header, '}')
	if wrapped != nil {
		wrapped()
	}

	// The encoded header authenticates itself: it is the additional
	// authenticated data of the content encryption.
	start := len(dst)
	out := slices.Grow(dst, r.size(w, len(encryptedKey), len(plaintext)))
	out = append(out, r.headerEncoded...)
	out = appendBase64(out, w.header)
	headerSize := len(out) - start
	out = appendPart(out, encryptedKey)
	out = appendPart(out, w.iv)

	w.sealed, err = enc.seal(w.sealed[:0], content{
		cek:        w.cek,
		iv:         w.iv,
		plaintext:  plaintext,
		token:      out[start:],
		headerSize: headerSize,
	})
	if err != nil {
		return dst, fmt.Errorf("encrypt with %s: %w", enc.name, err)
	}
	ciphertext, tag := w.sealed[:len(w.sealed)-enc.tagSize], w.sealed[len(w.sealed)-enc.tagSize:]
	out = appendPart(out, ciphertext)
	out = appendPart(out, tag)
	return out, nil
}

// appendPart appends a dot and the base64url encoding of part.
func appendPart(dst, part []byte) []byte {
	return appendBase64(append(dst, '.'), part)
}

// size returns an upper bound, exact to a few bytes, of the token's length, so
// that it is written without moving it.
func (r *Recipient) size(w *workspace, encryptedKey, plaintext int) int {
	const dots, padding = 4, 16 // padding: at most one AES block
	return len(r.headerEncoded) + base64url.EncodedLen(len(w.header)) + dots +
		base64url.EncodedLen(encryptedKey) + base64url.EncodedLen(r.content.ivSize) +
		base64url.EncodedLen(plaintext+padding) + base64url.EncodedLen(r.content.tagSize)
}

// looksSigned reports whether b has the shape of a JWS in the compact
// serialization (RFC 7515 section 7.1): three parts joined by dots, none of
// them empty. Claims that nobody signed do not, nor does a token with the alg
// "none", whose signature is empty, nor one that is encrypted already.
func looksSigned(b []byte) bool {
	header, rest, ok := bytes.Cut(b, dot)
	if !ok || len(header) == 0 {
		return false
	}
	payload, signature, ok := bytes.Cut(rest, dot)
	return ok && len(payload) > 0 && len(signature) > 0 && !bytes.Contains(signature, dot)
}

var dot = []byte(".")

// workspace is the memory in which one token is made. It belongs to one call at
// a time, is reused for the next to spare the garbage collector, and holds no
// key and no plaintext between them.
type workspace struct {
	entropy entropy

	// random holds the fresh CEK and IV; private, an ephemeral key; shared, the
	// input of the Concat KDF; kek, a derived key encryption key; wrapped, a
	// CEK encrypted with it, and keyIV the IV of that encryption.
	random  [maxKeySize + maxIVSize]byte
	private [maxOKPSize]byte
	shared  [maxKDFInput]byte
	kek     [32]byte
	wrapped [maxKeySize + maxKeyTagSize]byte
	keyIV   [12]byte

	cek, iv []byte // of random, as long as the enc wants them

	header []byte // JSON: the part of the protected header that is not encoded ahead
	sealed []byte // ciphertext and tag
	token  []byte // what Encrypt returns a copy of
}

// Sizes in bytes that no algorithm exceeds.
const (
	maxKeySize = 64 // CEK of A256CBC-HS512
	maxIVSize  = 16 // one AES block

	maxKeyTagSize = 16 // A256GCMKW's tag; AES Key Wrap adds 8
)

// maxKeptBuffer is the size in bytes above which a buffer is left to the
// garbage collector, so that one large token does not hold memory for ever.
const maxKeptBuffer = 64 << 10

// workspaces holds the idle ones.
var workspaces = sync.Pool{New: func() any { return &workspace{entropy: systemEntropy{}} }}

// release forgets the keys and gives the workspace back.
func (w *workspace) release() {
	clear(w.random[:])
	clear(w.private[:])
	clear(w.shared[:])
	clear(w.kek[:])
	if cap(w.token) > maxKeptBuffer {
		w.token = nil
	}
	if cap(w.sealed) > maxKeptBuffer {
		w.sealed = nil
	}
	workspaces.Put(w)
}
