//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"testing"

	jose "github.com/go-jose/go-jose/v4/cipher"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// wrapper opens a wrapping key or ends the test.
func (b *bench) wrapper(t testing.TB, ref string) kms.Wrapper {
	t.Helper()
	w, err := b.OpenWrapper(t.Context(), ref)
	if err != nil {
		t.Fatalf("OpenWrapper(%s): %v", ref, err)
	}
	return w
}

// What the tests wrap.
var (
	testDataKey = []byte("a data key of 32 bytes, exactly.")
	testAAD     = []byte("for a purpose")
)

func wrapped(t testing.TB, w kms.Wrapper) []byte {
	t.Helper()
	out, err := w.Wrap(t.Context(), testDataKey, testAAD)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func opens(t testing.TB, w kms.Wrapper, wrapped []byte) error {
	t.Helper()
	got, err := w.Unwrap(t.Context(), wrapped, testAAD)
	if err == nil && !bytes.Equal(got, testDataKey) {
		t.Errorf("unwrapped to %q", got)
	}
	return err
}

// oneOfEach makes an AES and an RSA key, and keyFor names the one for a way.
func oneOfEach(hsm *softhsmtest.Token) {
	hsm.GenerateWrappingKey("aes", "01")
	hsm.GenerateKey("rsa", "02", kms.RS256)
}

func keyFor(method byte) string {
	if method == methodRSA {
		return "object=rsa"
	}
	return "object=aes"
}

// foreign wraps and unwraps as the comments of this package say, with keys that
// were imported into the token, by the standard library and go-jose alone.
type foreign struct {
	aes cipher.Block
	rsa *rsa.PrivateKey
}

func (f foreign) gcm(t testing.TB, block cipher.Block) cipher.AEAD {
	t.Helper()
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm
}

// kek is AES-256-GCM under the key of a nonce.
func (f foreign) kek(t testing.TB, nonce []byte) cipher.AEAD {
	t.Helper()
	sum := sha256.Sum256([]byte("bulla-wrap:v1:" + hex.EncodeToString(nonce)))
	signature, err := rsa.SignPKCS1v15(nil, f.rsa, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	key, err := hkdf.Key(sha256.New, signature, nonce, "bulla-wrap:v1: AES-256-GCM", 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return f.gcm(t, block)
}

func (f foreign) wrap(t testing.TB, method byte) []byte {
	t.Helper()
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	header := []byte{method}
	sum := sha256.Sum256(append(header[:1:1], testAAD...))
	packed := slices.Concat(sum[:], random[:16], []byte{32}, testDataKey, make([]byte, 7))
	switch method {
	case 0x11:
		return f.gcm(t, f.aes).Seal(append(header, random[:12]...), random[:12], testDataKey, append(header[:1:1], testAAD...))
	case 0x12:
		out, err := jose.KeyWrap(f.aes, packed)
		if err != nil {
			t.Fatal(err)
		}
		return append(header, out...)
	case 0x13:
		return append(header, f.keyWrap(append([]byte{0xA6, 0x59, 0x59, 0xA6, 0, 0, 0, byte(len(packed))}, packed...))...)
	}
	header = append(header, random...)
	return f.kek(t, random).Seal(header, make([]byte, 12), testDataKey, slices.Concat(header, testAAD))
}

// keyWrap is the function W of NIST SP 800-38F, section 6.1, on more than two
// blocks, in place.
func (f foreign) keyWrap(s []byte) []byte {
	var b [16]byte
	n := len(s)/8 - 1
	for i := range 6 * n {
		r := s[8+8*(i%n):][:8]
		copy(b[:], s[:8])
		copy(b[8:], r)
		f.aes.Encrypt(b[:], b[:])
		binary.BigEndian.PutUint64(s, binary.BigEndian.Uint64(b[:])^uint64(i+1))
		copy(r, b[8:])
	}
	return s
}

// keyUnwrap undoes keyWrap.
func (f foreign) keyUnwrap(s []byte) []byte {
	var b [16]byte
	n := len(s)/8 - 1
	for i := 6*n - 1; i >= 0; i-- {
		r := s[8+8*(i%n):][:8]
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(s)^uint64(i+1))
		copy(b[8:], r)
		f.aes.Decrypt(b[:], b[:])
		copy(s, b[:8])
		copy(r, b[8:])
	}
	return s
}

func (f foreign) unwrap(t testing.TB, in []byte) []byte {
	t.Helper()
	header, body := in[:1:1], bytes.Clone(in[1:])
	var out []byte
	var err error
	switch header[0] {
	case 0x11:
		out, err = f.gcm(t, f.aes).Open(nil, body[:12], body[12:], append(header, testAAD...))
	case 0x12:
		out, err = jose.KeyUnwrap(f.aes, body)
	case 0x13:
		s := f.keyUnwrap(body)
		if got, want := s[:8], []byte{0xA6, 0x59, 0x59, 0xA6, 0, 0, 0, byte(len(s) - 8)}; !bytes.Equal(got, want) {
			t.Errorf("RFC 5649 begins with %x, want %x", got, want)
		}
		out = s[8:]
	default:
		out, err = f.kek(t, body[:32]).Open(nil, make([]byte, 12), body[32:], slices.Concat(in[:33], testAAD))
	}
	if err != nil {
		t.Fatalf("other code cannot open it: %v", err)
	}
	if header[0] == 0x12 || header[0] == 0x13 {
		sum := sha256.Sum256(append(header, testAAD...))
		if !bytes.Equal(out[:32], sum[:]) || out[48] != 32 {
			t.Errorf("inside are hash and length %x… and %d", out[:4], out[48])
		}
		out = out[49:81]
	}
	return out
}

func TestOtherCodeOpensWhatIsWrappedAndTheReverse(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	hsm.ImportSecret("aes", "01", secret, "--sensitive", "--usage-decrypt", "--usage-wrap")
	pair := softhsmtest.NewKey(t, kms.RS256)
	hsm.ImportKey("rsa", "02", pair)
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	other := foreign{block, pair.(*rsa.PrivateKey)}

	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			w := onlyWay(t, hsm, way.hide).wrapper(t, keyFor(way.method))
			ours := wrapped(t, w)
			if ours[0] != way.method {
				t.Fatalf("the first byte is %#x, want %#x", ours[0], way.method)
			}
			if got := other.unwrap(t, ours); !bytes.Equal(got, testDataKey) {
				t.Errorf("other code opens it to %q", got)
			}
			if err := opens(t, w, other.wrap(t, way.method)); err != nil {
				t.Errorf("what other code wrapped: %v", err)
			}
		})
	}

	// What was wrapped in one way opens while another is preferred.
	w := start(t, hsm).wrapper(t, "object=aes")
	for _, way := range ways[:3] {
		if err := opens(t, w, other.wrap(t, way.method)); err != nil {
			t.Errorf("%s, where GCM is preferred: %v", way.name, err)
		}
	}
}

// onlyWay opens a wrapper that wraps in one way.
func onlyWay(t *testing.T, hsm *softhsmtest.Token, hide []uint, change ...func(*meddler)) *bench {
	t.Helper()
	lib := &meddler{hide: hide}
	for _, c := range change {
		c(lib)
	}
	b := start(t, hsm, func(c *Config) { c.Modules = meddledModules(lib) })
	b.lib = lib
	return b
}

func TestReplacedWrappingKeyIsNeverUsed(t *testing.T) {
	for _, tt := range []struct {
		name string
		hide uint
	}{{"CheckValue", 0}, {"NoCheckValue", ckaCheckValue}} {
		t.Run(tt.name, func(t *testing.T) {
			hsm := softhsmtest.New(t, "wrap")
			hsm.GenerateWrappingKey("wrap", "01")
			b := onlyWay(t, hsm, nil, func(m *meddler) { m.hideAttribute = tt.hide })
			w := b.wrapper(t, "object=wrap")
			old := wrapped(t, w)
			hsm.DeleteObject("secrkey", "wrap")
			wantErr(t, opens(t, w, old), kms.ErrKeyNotFound, "object=wrap", "--keygen")
			hsm.GenerateWrappingKey("wrap", "01")
			eventually(t, "finding the other key", func() error {
				if err := opens(t, w, old); err != nil && !strings.Contains(err.Error(), "another key now") {
					return err
				}
				return nil
			})
			wantErr(t, opens(t, w, old), kms.ErrKeyMismatch, "another key now")
			if tt.hide == 0 {
				_, err := w.Wrap(t.Context(), testDataKey, testAAD)
				wantErr(t, err, kms.ErrKeyMismatch, "another key now")
			}
			// Opened anew it is a key like any other, and does not open the old.
			again := b.wrapper(t, "object=wrap")
			wantErr(t, opens(t, again, old), kms.ErrUnwrap)
			if err := opens(t, again, wrapped(t, again)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWrappingGoesOnWhenHandlesGoStale(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	oneOfEach(hsm)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			b := onlyWay(t, hsm, way.hide)
			w := b.wrapper(t, keyFor(way.method))
			old := wrapped(t, w)
			for name, harm := range map[string]func(*link){
				"all sessions closed": func(l *link) {
					if err := l.lib.(*meddler).cryptoki.(*binding).c.CloseAllSessions(l.slot); err != nil {
						t.Error(err)
					}
				},
				"logged out": func(l *link) {
					if err := l.lib.logout(l.login.handle); err != nil {
						t.Error(err)
					}
				},
			} {
				b.alone(t, harm)
				if err := opens(t, w, old); err != nil {
					t.Errorf("%s: Unwrap: %v", name, err)
				}
				b.alone(t, harm)
				if err := opens(t, w, wrapped(t, w)); err != nil {
					t.Errorf("%s: Wrap: %v", name, err)
				}
			}

			// One fault of each kind at each call of the module is got over. (Not
			// one that says that the session is gone: it is believed, and the
			// session not closed.)
			calls := map[byte][]string{
				methodGCM: {"encrypt", "decrypt"}, methodKW: {"createObject", "wrapKey", "unwrapKey", "destroyObject"},
				methodKWP: {"createObject", "wrapKey", "unwrapKey", "destroyObject"}, methodRSA: {"sign"},
			}[way.method]
			for _, call := range append(calls, "openSession") {
				for _, code := range []ckr{0x82, 0x05, 0x30, 0x90, 0x101} {
					b.lib.set(times(1, call, code))
					if err := opens(t, w, wrapped(t, w)); err != nil {
						t.Errorf("%v at %s: %v", code, call, err)
					}
				}
			}
			b.lib.set(nil)
			b.balanced(t)
			b.alone(t, func(l *link) {
				left, err := l.lib.find(l.login.handle, []attribute{{kind: ckaKeyType, ulong: true, num: ckkGenericSecret}})
				if err != nil || len(left) != 0 {
					t.Errorf("%d session objects were left behind (error %v)", len(left), err)
				}
			})
		})
	}
}

func TestFaultyTokenIsNotTakenForAChangedWrapping(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	oneOfEach(hsm)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			b := onlyWay(t, hsm, way.hide)
			w := b.wrapper(t, keyFor(way.method))
			old := wrapped(t, w)
			call := map[byte]string{methodGCM: "decrypt", methodKW: "unwrapKey", methodKWP: "unwrapKey", methodRSA: "sign"}[way.method]
			for code, want := range map[ckr]error{
				0x05: kms.ErrUnavailable, 0x54: kms.ErrUnavailable, 0x40: kms.ErrUnavailable, 0x112: kms.ErrUnavailable, 0x32: kms.ErrUnavailable,
				0x80000001: kms.ErrUnavailable, 0x70: kms.ErrKeyMismatch, 0x68: kms.ErrKeyDisabled,
			} {
				b.lib.set(func(c string) error {
					if c == call {
						return &callError{c, code}
					}
					return nil
				})
				wantErr(t, opens(t, w, old), want)
				b.lib.set(nil)
				eventually(t, "opening it", func() error { return opens(t, w, old) })
			}

			// A module that computes wrongly.
			b.lib.twist.Store(true)
			out, err := w.Wrap(t.Context(), testDataKey, testAAD)
			if out != nil {
				t.Error("what does not come back was returned")
			}
			wantErr(t, err, kms.ErrUnavailable)
			if way.method == methodRSA {
				wantErr(t, opens(t, w, old), kms.ErrUnavailable, "wrong signature")
			}
			b.lib.twist.Store(false)
			if err := opens(t, w, wrapped(t, w)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestAttributesDecideHowAKeyWraps(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	hsm.GenerateWrappingKey("wrap", "01")
	hsm.GenerateKey("rsa", "02", kms.RS256)
	hsm.GenerateSecret("AES:24", "given", "03", "--sensitive", "--extractable", "--usage-decrypt", "--usage-wrap")
	var log bytes.Buffer
	b := start(t, hsm, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })

	if got := wrapped(t, b.wrapper(t, "object=wrap"))[0]; got != methodGCM {
		t.Errorf("a key that may do all wraps by %#x", got)
	}
	set(t, b, "wrap", ckoSecretKey, ckaEncrypt, false)
	if got := wrapped(t, b.wrapper(t, "object=wrap"))[0]; got != methodKW {
		t.Errorf("a key that may not encrypt wraps by %#x", got)
	}
	set(t, b, "wrap", ckoSecretKey, ckaUnwrap, false)
	_, err := b.OpenWrapper(t.Context(), "object=wrap")
	wantErr(t, err, kms.ErrKeyDisabled, "CKA_ENCRYPT", "--usage-decrypt")
	set(t, b, "wrap", ckoSecretKey, ckaEncrypt, true)
	b.lib.hide = []uint{ckmAESGCM}
	_, err = b.OpenWrapper(t.Context(), "object=wrap")
	wantErr(t, err, kms.ErrKeyDisabled, "all four")
	b.lib.hide = []uint{ckmAESGCM, ckmAESKeyWrap, ckmAESKeyWrapKWP, ckmAESKeyWrapPad}
	_, err = b.OpenWrapper(t.Context(), "object=wrap")
	wantErr(t, err, kms.ErrKeyMismatch, "RSA private key")
	b.lib.hide = nil

	forbidSigning(t, b, "rsa")
	_, err = b.OpenWrapper(t.Context(), "object=rsa")
	wantErr(t, err, kms.ErrKeyDisabled, "CKA_SIGN", "may sign")

	if strings.Contains(log.String(), "CKA_EXTRACTABLE") {
		t.Errorf("a key that is not extractable is warned of: %s", log.String())
	}
	b.wrapper(t, "object=given")
	if !containsAll(log.String(), "level=WARN", "CKA_EXTRACTABLE", "object=given") {
		t.Errorf("an extractable key is not warned of: %s", log.String())
	}
}

func TestWayThatIsListedAndDoesNotWorkIsPassedOver(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	hsm.GenerateWrappingKey("wrap", "01")
	b := start(t, hsm)
	for _, code := range []ckr{0x150, 0x54, 0x70, 0x71} {
		b.lib.set(func(c string) error {
			if c == "encrypt" {
				return &callError{"C_Encrypt", code}
			}
			return nil
		})
		if got := wrapped(t, b.wrapper(t, "object=wrap"))[0]; got != methodKW {
			t.Errorf("%v: wraps by %#x, want %#x", code, got, methodKW)
		}
		b.lib.set(func(c string) error {
			if c == "encrypt" || c == "createObject" {
				return &callError{c, code}
			}
			return nil
		})
		_, err := b.OpenWrapper(t.Context(), "object=wrap")
		wantErr(t, err, sentinels[codes[code].class], "CKM_AES_GCM", code.Error())
	}
}

func TestTokenThatTakesItsOwnIVIsBelieved(t *testing.T) {
	hsm := softhsmtest.New(t, "wrap")
	hsm.GenerateWrappingKey("wrap", "01")
	b := start(t, hsm)
	w := b.wrapper(t, "object=wrap")
	own := []byte("its own iv..")
	b.lib.ownIV.Store(&own)
	out := wrapped(t, w)
	if !bytes.Equal(out[1:13], own) {
		t.Errorf("the IV in the result is %q, the token took %q", out[1:13], own)
	}
	if err := opens(t, w, out); err != nil {
		t.Error(err)
	}
	long := []byte("an IV of sixteen")
	b.lib.ownIV.Store(&long)
	_, err := w.Wrap(t.Context(), testDataKey, testAAD)
	wantErr(t, err, kms.ErrUnavailable, "16 bytes")
}
