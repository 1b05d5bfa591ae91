//go:build cgo

package pkcs11

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/nsstest"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// nssKeys makes a key for each type and curve that NSS has, and returns a
// reference for each algorithm.
func nssKeys(db *nsstest.Database) map[kms.Algorithm]string {
	db.GenerateKey("rsa", "01", kms.RS256)
	db.GenerateKey("p256", "02", kms.ES256)
	db.GenerateKey("p384", "03", kms.ES384)
	db.GenerateKey("p521", "04", kms.ES512)
	return map[kms.Algorithm]string{
		kms.RS256: "object=rsa", kms.RS384: "id=%01", kms.RS512: "object=rsa;id=%01",
		kms.PS256: "object=rsa", kms.PS384: "object=rsa", kms.PS512: "pkcs11:token=NSS%20Certificate%20DB;object=rsa;type=private",
		kms.ES256: "object=p256", kms.ES384: "object=p384", kms.ES512: "object=p521",
	}
}

// nssConfig is for a database, with a short retry time.
func nssConfig(db *nsstest.Database) Config {
	return Config{
		Module: db.Module, Token: nsstest.Token, PINFile: db.PINFile, InitReserved: db.InitReserved(),
		Sessions: 4, RetryAfter: 20 * time.Millisecond,
	}
}

// removed takes the token away, as a module says it that cannot reach its
// device: a database cannot be taken from NSS, which keeps its files open.
func removed(lib *meddler) func(testing.TB) func() {
	return func(testing.TB) func() {
		lib.set(func(string) error { return &callError{"C_Anything", 0x32} })
		return func() { lib.set(nil) }
	}
}

// stalled makes every call hang.
func stalled(lib *meddler) func(testing.TB) func() {
	return func(testing.TB) func() {
		release := make(chan struct{})
		lib.set(func(string) error { <-release; return nil })
		return func() { lib.set(nil); close(release) }
	}
}

// opener opens backends behind lib.
func opener(cfg Config, lib *meddler) func(testing.TB) kms.Backend {
	cfg.Modules = meddledModules(lib)
	return func(t testing.TB) kms.Backend {
		t.Helper()
		b, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestConformsOnNSS(t *testing.T) {
	db := nsstest.New(t)
	keys := nssKeys(db)
	lib := &meddler{}
	kmstest.Run(t, kmstest.Harness{
		Open: opener(nssConfig(db), lib), Keys: keys,
		Missing:    "object=nobody",
		Nonsense:   []string{"object=", "id=%0", "pkcs11:", "token=other;object=rsa"},
		Signatures: 32, // that no leading zero is lost is seen on SoftHSM
		Patience:   10 * time.Second,
		Down:       removed(lib),
		Stall:      stalled(lib),
	})
}

func TestWrappingConformsOnNSS(t *testing.T) {
	db := nsstest.New(t)
	db.GenerateWrappingKey("aes", "11")
	db.GenerateSecret("aes128", "12", 16, true, false, true)
	db.GenerateKey("rsa", "13", kms.RS256)
	db.GenerateKey("rsa2", "14", kms.RS256)
	db.GenerateKey("ec", "21", kms.ES256)
	db.GenerateSecret("idle", "22", 32, true, false, false)

	for _, tt := range []struct {
		name       string
		method     byte
		key, other string
	}{
		{"KeyWrap", methodKW, "object=aes;type=secret-key", "object=aes128"},
		{"RSASignature", methodRSA, "object=rsa", "object=rsa2;type=private"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lib := &meddler{}
			open := opener(nssConfig(db), lib)
			kmstest.RunWrapper(t, kmstest.WrapperHarness{
				Open: open,
				Key:  tt.key, Other: tt.other, Signs: tt.method == methodRSA,
				Missing:  "object=nobody",
				Nonsense: []string{"object=", "id=%0", "object=aes;type=public"},
				Unfit: map[string]error{
					"object=ec": kms.ErrKeyMismatch, "object=idle": kms.ErrKeyDisabled,
					"object=rsa;type=secret-key": kms.ErrKeyNotFound, "object=aes;type=private": kms.ErrKeyNotFound,
				},
				Slow: true, Patience: 10 * time.Second,
				Down: removed(lib), Stall: stalled(lib),
			})

			b := open(t)
			defer b.Close()
			w, err := b.(kms.WrapperOpener).OpenWrapper(t.Context(), tt.key)
			if err != nil {
				t.Fatal(err)
			}
			wrapped, err := w.Wrap(t.Context(), make([]byte, 32), nil)
			if err != nil || wrapped[0] != tt.method {
				t.Errorf("it wraps by method %#x (error %v), want %#x", wrapped[:min(1, len(wrapped))], err, tt.method)
			}
		})
	}
}

// NSS's CKM_AES_KEY_WRAP_PAD is not RFC 5649 but RFC 3394 after PKCS#7 padding:
// what it makes opens nowhere else, and for long data keys is longer than
// anything that Unwrap looks at.
func TestPaddingOfAnotherKindIsNotTakenForRFC5649(t *testing.T) {
	db := nsstest.New(t)
	db.GenerateWrappingKey("aes", "11")
	b := opener(nssConfig(db), &meddler{hide: []uint{ckmAESGCM, ckmAESKeyWrap, ckmAESKeyWrapKWP}})(t)
	defer b.Close()
	w, err := b.(kms.WrapperOpener).OpenWrapper(t.Context(), "object=aes")
	if w != nil || !errors.Is(err, kms.ErrUnavailable) || !strings.Contains(err.Error(), "answered with 88 bytes, not 80, with CKM_AES_KEY_WRAP_PAD") {
		t.Errorf("got wrapper %v and error %v, want one about 88 bytes where there should be 80", w, err)
	}
}

// NSS forces what symkeyutil makes, and anything else that is private in its
// database, to be sensitive: it hands no key out in the clear. But one that is
// extractable it gives away wrapped, and that is warned of.
func TestExtractableKeyOfNSSIsWarnedOf(t *testing.T) {
	db := nsstest.New(t)
	db.GenerateSecret("loose", "11", 32, false, true, true)
	b := opener(nssConfig(db), &meddler{})(t)
	defer b.Close()
	steps := b.(*Backend).Diagnose(t.Context(), []KeyRef{{Ref: "object=loose", Wrapping: true}})
	for _, s := range steps {
		want := Passed
		if s.Name == StepKey {
			want = Warned
		}
		if s.Outcome != want {
			t.Errorf("%s: %s (%s, %v), want %s", s.Name, s.Outcome, s.Detail, s.Err, want)
		}
	}
}

// certutil works on the database while it is open here. Its keys have an id and
// no label.
func TestKeyOfCertutilIsFoundByItsID(t *testing.T) {
	db := nsstest.New(t)
	b := opener(nssConfig(db), &meddler{})(t)
	defer b.Close()
	if _, err := b.OpenKey(t.Context(), "object=nobody", kms.ES256); !errors.Is(err, kms.ErrKeyNotFound) ||
		!strings.Contains(err.Error(), "`certutil -K -d sql:FOLDER`") {
		t.Errorf("no key: got %v, want %v and the command that lists what there is", err, kms.ErrKeyNotFound)
	}
	noise := filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(noise, []byte(rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	db.Certutil("-G", "-z", noise, "-k", "ec", "-q", "nistp256", "--keyAttrFlags", "token,private,sensitive,unextractable", "--keyOpFlagsOn", "sign")
	id := regexp.MustCompile("[0-9a-f]{40}").FindString(db.Certutil("-K"))
	ref := "id=" + regexp.MustCompile("..").ReplaceAllString(id, "%$0")
	k, err := b.OpenKey(t.Context(), ref, kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	db.Certutil("-F", "-k", id)
	if err := signs(t.Context(), k); !errors.Is(err, kms.ErrKeyNotFound) {
		t.Errorf("after certutil deleted it: %v, want %v", err, kms.ErrKeyNotFound)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// Softokn lets who puts a key there say that it is local, but not the rest.
func TestKeyThatWasPutIntoNSSIsNotTakenForACreatedOne(t *testing.T) {
	db := nsstest.New(t)
	b, ok := opener(nssConfig(db), &meddler{})(t).(*Backend)
	if !ok {
		t.Fatal("another backend")
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	key, ok := softhsmtest.NewKey(t, kms.ES256).(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("another key")
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	value, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	const netscapeDB = 0xD5A0DB00 // wanted for private keys: the public half
	_, err = use(t.Context(), b.vault.(*token), true, func(l *link) (uint, error) {
		s, err := l.writable(t.Context())
		if err != nil {
			return 0, err
		}
		defer l.discardWritable(s)
		return l.lib.createObject(s.handle, []attribute{
			{kind: ckaClass, ulong: true, num: ckoPrivateKey}, {kind: ckaKeyType, ulong: true, num: ckkOf(kms.EC)},
			boolean(ckaToken, true), boolean(ckaPrivate, true), boolean(ckaSensitive, true), boolean(ckaExtractable, false), boolean(ckaSign, true),
			boolean(ckaLocal, true), boolean(ckaAlwaysSensitive, true), boolean(ckaNeverExtractable, true),
			{kind: ckaLabel, bytes: []byte("tag")}, {kind: ckaID, bytes: make([]byte, createdIDSize)},
			{kind: ckaECParams, bytes: paramsP256}, {kind: ckaValue, bytes: value}, {kind: netscapeDB, bytes: point},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if refs, err := b.FindKeys(t.Context(), "tag"); err != nil || len(refs) != 0 {
		t.Errorf("FindKeys = %q, %v; want none", refs, err)
	}
}
