package local_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// create adds a key and returns its reference.
func create(t testing.TB, path string, alg kms.Algorithm, name string) string {
	t.Helper()
	ref, err := local.Create(path, alg, name)
	if err != nil {
		t.Fatalf("Create(%s, %q): %v", alg, name, err)
	}
	return ref
}

func open(t testing.TB, path string) *local.Backend {
	t.Helper()
	b, err := local.New(context.Background(), local.Config{Path: path})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// write makes a key file with the given text and mode.
func write(t testing.TB, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return path
}

func jwk(t testing.TB, k jose.JSONWebKey) string {
	t.Helper()
	data, err := k.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func newEC(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	keys := map[kms.Algorithm]string{}
	for _, alg := range kms.Algorithms() {
		keys[alg] = create(t, path, alg, "test-"+string(alg))
	}
	kmstest.Run(t, kmstest.Harness{
		Open:     func(t testing.TB) kms.Backend { return open(t, path) },
		Keys:     keys,
		Missing:  "kid=nobody",
		Nonsense: []string{"kid=", "KID=x", "kid=a\nb", "kid=\xff"},
	})
}

func TestWrappingConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	kmstest.RunWrapper(t, kmstest.WrapperHarness{
		Open:     func(t testing.TB) kms.Backend { return open(t, path) },
		Key:      createWrapping(t, path, "wrap-1"),
		Other:    createWrapping(t, path, "wrap-2"),
		Missing:  "kid=nobody",
		Nonsense: []string{"kid=", "KID=x", "kid=a\nb", "kid=\xff"},
		Unfit: map[string]error{
			create(t, path, kms.ES256, "ec"):  kms.ErrKeyMismatch,
			create(t, path, kms.RS256, "rsa"): kms.ErrKeyMismatch,
			create(t, path, kms.EdDSA, "ed"):  kms.ErrKeyMismatch,
		},
	})
}

func createWrapping(t testing.TB, path, name string) string {
	t.Helper()
	ref, err := local.CreateWrapping(path, name)
	if err != nil {
		t.Fatalf("CreateWrapping(%q): %v", name, err)
	}
	return ref
}

func TestFileOpenToOthersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	ref := create(t, path, kms.ES256, "a")
	b := open(t, path)
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o604, 0o660, 0o622, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		advice := "chmod 600"
		if _, err := local.New(t.Context(), local.Config{Path: path}); err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("mode %04o: New: got error %v, want one that says %q", mode, err, advice)
		}
		if _, err := b.OpenKey(t.Context(), ref, kms.ES256); !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("mode %04o: OpenKey: got error %v, want %v", mode, err, kms.ErrUnavailable)
		}
		if err := b.Check(t.Context()); !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("mode %04o: Check: got error %v, want %v", mode, err, kms.ErrUnavailable)
		}
		if _, err := local.Create(path, kms.ES256, "b"); err == nil {
			t.Errorf("mode %04o: Create added a key", mode)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
}

func TestCreateWritesModeAndKeepsWhatWasThere(t *testing.T) {
	theirs := jwk(t, jose.JSONWebKey{Key: newEC(t), KeyID: "theirs"})
	theirs = strings.Replace(theirs, "{", `{"note":"kept",`, 1)
	path := write(t, `{"comment":"also kept","keys":[`+theirs+`]}`, 0o600)
	if err := os.WriteFile(path+".new", []byte("left by a process that was killed"), 0o666); err != nil {
		t.Fatal(err)
	}
	create(t, path, kms.PS256, "mine")

	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %04o, want 0600", got)
	}
	if _, err := os.Stat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Comment string
		Keys    []map[string]any
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if file.Comment != "also kept" || len(file.Keys) != 2 || file.Keys[0]["note"] != "kept" {
		t.Errorf("members were lost: comment %q, %d keys", file.Comment, len(file.Keys))
	}
	b := open(t, path)
	for ref, alg := range map[string]kms.Algorithm{"kid=theirs": kms.ES256, "kid=mine": kms.PS256} {
		if _, err := b.OpenKey(t.Context(), ref, alg); err != nil {
			t.Errorf("OpenKey(%q): %v", ref, err)
		}
	}
}

func TestCreateRefusesTakenAndUnfitNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	create(t, path, kms.ES256, "taken")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.Create(path, kms.ES384, "taken"); !errors.Is(err, local.ErrExists) {
		t.Errorf("taken name: got error %v, want %v", err, local.ErrExists)
	}
	for _, name := range []string{"", "a b", "a/b", "a\n", "ä", "a=b", strings.Repeat("x", 81)} {
		if _, err := local.Create(path, kms.ES256, name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if _, err := local.Create(path, "HS256", "x"); err == nil {
		t.Error("HS256 was accepted")
	}
	link := filepath.Join(t.TempDir(), "link.json")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Create(link, kms.ES256, "x"); err == nil {
		t.Error("a symbolic link was replaced")
	}
	if _, err := local.Create(filepath.Join(t.TempDir(), "missing", "keys.json"), kms.ES256, "x"); err == nil {
		t.Error("a file was created in a folder that is not there")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a refused Create changed the file (%v)", err)
	}
}

func TestSigningAndWrappingKeysLieSideBySide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	signs, wraps := create(t, path, kms.ES256, "sign"), createWrapping(t, path, "wrap")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %04o, want 0600", got)
	}
	for _, name := range []string{"sign", "wrap"} {
		if _, err := local.CreateWrapping(path, name); !errors.Is(err, local.ErrExists) {
			t.Errorf("taken name %q: got error %v, want %v", name, err, local.ErrExists)
		}
		if _, err := local.Create(path, kms.ES256, name); !errors.Is(err, local.ErrExists) {
			t.Errorf("taken name %q: got error %v, want %v", name, err, local.ErrExists)
		}
	}
	b := open(t, path)
	if _, err := b.OpenKey(t.Context(), signs, kms.ES256); err != nil {
		t.Error(err)
	}
	if _, err := b.OpenWrapper(t.Context(), wraps); err != nil {
		t.Error(err)
	}
	_, err = b.OpenWrapper(t.Context(), signs)
	if !errors.Is(err, kms.ErrKeyMismatch) || !strings.Contains(err.Error(), "is a signing key") {
		t.Errorf("a signing key that is to wrap: got error %v", err)
	}
	_, err = b.OpenKey(t.Context(), wraps, kms.ES256)
	if !errors.Is(err, kms.ErrKeyMismatch) || !strings.Contains(err.Error(), "is a wrapping key") {
		t.Errorf("a wrapping key that is to sign: got error %v", err)
	}
}

// The form is opened, and made, by the standard library with the key that
// go-jose reads from the file.
func TestOtherCodeOpensWhatIsWrappedAndTheReverse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	ref := createWrapping(t, path, "wrap")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		t.Fatal(err)
	}
	secret, ok := set.Key("wrap")[0].Key.([]byte)
	if !ok || len(secret) != 32 {
		t.Fatalf("the file has a key of type %T", set.Keys[0].Key)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	w, err := open(t, path).OpenWrapper(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, aad := []byte("a data key of 32 bytes, exactly."), []byte("aad")
	wrapped, err := w.Wrap(t.Context(), plaintext, aad)
	if err != nil {
		t.Fatal(err)
	}
	got, err := gcm.Open(nil, wrapped[1:13], wrapped[13:], append([]byte{0x31}, aad...))
	if err != nil || !bytes.Equal(got, plaintext) || wrapped[0] != 0x31 {
		t.Errorf("the standard library opens %#x… to %q, error %v", wrapped[0], got, err)
	}
	nonce := []byte("twelve bytes")
	theirs := gcm.Seal(append([]byte{0x31}, nonce...), nonce, plaintext, append([]byte{0x31}, aad...))
	if got, err := w.Unwrap(t.Context(), theirs, aad); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("what it wrapped opens to %q, error %v", got, err)
	}
}

func TestConcurrentCreatesLoseNoKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	const n = 12
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := local.Create(path, kms.EdDSA, fmt.Sprintf("key-%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b := open(t, path)
	for i := range n {
		if _, err := b.OpenKey(t.Context(), fmt.Sprintf("kid=key-%d", i), kms.EdDSA); err != nil {
			t.Error(err)
		}
	}
}

func TestKeyAddedLaterIsFoundWithoutRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	create(t, path, kms.ES256, "first")
	b := open(t, path)
	if _, err := b.OpenKey(t.Context(), "kid=second", kms.ES256); !errors.Is(err, kms.ErrKeyNotFound) {
		t.Fatalf("got error %v, want %v", err, kms.ErrKeyNotFound)
	}
	create(t, path, kms.ES256, "second")
	if _, err := b.OpenKey(t.Context(), "kid=second", kms.ES256); err != nil {
		t.Error(err)
	}
}

func TestLostFileIsReportedAndOpenKeysSignOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	ref := create(t, path, kms.ES256, "a")
	b := open(t, path)
	k, err := b.OpenKey(t.Context(), ref, kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, kms.ErrUnavailable) {
		t.Errorf("Check: got error %v, want %v", err, kms.ErrUnavailable)
	}
	if _, err := b.OpenKey(t.Context(), ref, kms.ES256); !errors.Is(err, kms.ErrUnavailable) {
		t.Errorf("OpenKey: got error %v, want %v", err, kms.ErrUnavailable)
	}
	message := []byte("header.payload")
	signature, err := k.Sign(t.Context(), message)
	if err != nil {
		t.Fatalf("Sign: %v", err)
	}
	if err := kms.Verify(kms.ES256, k.Public(), message, signature); err != nil {
		t.Error(err)
	}
}

func TestKeyIsHeldToItsAlg(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	b := open(t, func() string { create(t, path, kms.PS256, "ps"); return path }())
	if _, err := b.OpenKey(t.Context(), "kid=ps", kms.RS256); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("an RSA key with alg PS256 opened for RS256: got error %v, want %v", err, kms.ErrKeyMismatch)
	}
}

func TestHalvesThatDoNotBelongTogetherAreRefused(t *testing.T) {
	a, other := newEC(t), newEC(t)
	a.PublicKey = other.PublicKey
	path := write(t, `{"keys":[`+jwk(t, jose.JSONWebKey{Key: a, KeyID: "mixed"})+`]}`, 0o600)
	b, err := local.New(t.Context(), local.Config{Path: path})
	if err != nil {
		return // refused even earlier
	}
	defer b.Close()
	if _, err := b.OpenKey(t.Context(), "kid=mixed", kms.ES256); !errors.Is(err, kms.ErrKeyMismatch) {
		t.Errorf("got error %v, want %v", err, kms.ErrKeyMismatch)
	}
}

func TestBadFilesAreRefusedWithoutQuotingThem(t *testing.T) {
	k := newEC(t)
	private := jwk(t, jose.JSONWebKey{Key: k, KeyID: "a"})
	secret := "c2VjcmV0LXNlY3JldC1zZWNyZXQ"
	secret32 := secret + "tc2VjcmV0LXNlY3I"
	oct := func(k, use, alg string) string {
		return fmt.Sprintf(`{"keys":[{"kty":"oct","kid":"a","use":%q,"alg":%q,"k":%q}]}`, use, alg, k)
	}
	if _, err := local.New(t.Context(), local.Config{Path: write(t, oct(secret32, "enc", "A256GCM"), 0o600)}); err != nil {
		t.Fatalf("a good wrapping key: %v", err) // else the bad ones show nothing
	}
	for name, text := range map[string]string{
		"empty":         "",
		"null":          "null",
		"an array":      "[]",
		"no keys":       "{}",
		"keys no array": `{"keys":{}}`,
		"one bare key":  private,
		"cut short":     `{"keys":[` + private[:len(private)/2],
		"trailing text": `{"keys":[]} x`,
		"two keys":      `{"keys":[],"keys":[]}`,
		"public key":    `{"keys":[` + jwk(t, jose.JSONWebKey{Key: k.Public(), KeyID: "a"}) + `]}`,
		"short secret":  oct(secret, "enc", "A256GCM"),
		"long secret":   oct(secret+secret, "enc", "A256GCM"),
		"secret sig":    oct(secret32, "sig", "A256GCM"),
		"no use":        oct(secret32, "", "A256GCM"),
		"secret alg":    oct(secret32, "enc", "HS256"),
		"no secret alg": oct(secret32, "enc", ""),
		"HS256 key":     `{"keys":[{"kty":"oct","kid":"a","alg":"HS256","k":"` + secret32 + `"}]}`,
		"secret no kid": `{"keys":[{"kty":"oct","use":"enc","alg":"A256GCM","k":"` + secret32 + `"}]}`,
		"EC for HS256":  `{"keys":[` + jwk(t, jose.JSONWebKey{Key: k, KeyID: "a", Algorithm: "HS256"}) + `]}`,
		"garbage in d":  `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"AAAA","d":"` + secret + `!"}]}`,
		"no kid":        `{"keys":[` + jwk(t, jose.JSONWebKey{Key: k}) + `]}`,
		"same kid":      `{"keys":[` + private + `,` + private + `]}`,
		"for enc":       `{"keys":[` + jwk(t, jose.JSONWebKey{Key: k, KeyID: "a", Use: "enc"}) + `]}`,
		"unknown alg":   `{"keys":[` + jwk(t, jose.JSONWebKey{Key: k, KeyID: "a", Algorithm: "ES256K"}) + `]}`,
		"too large":     `{"keys":[` + strings.Repeat(" ", 1<<20) + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := local.New(t.Context(), local.Config{Path: write(t, text, 0o600)})
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error quotes the file: %v", err)
			}
		})
	}
}

func TestMissingFileSaysWhatToDo(t *testing.T) {
	_, err := local.New(t.Context(), local.Config{Path: filepath.Join(t.TempDir(), "nowhere.json")})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "create the file") {
		t.Errorf("got %v, want advice", err)
	}
	if _, err := local.New(t.Context(), local.Config{}); err == nil {
		t.Error("no path: accepted")
	}
	if _, err := local.New(t.Context(), local.Config{Path: t.TempDir()}); err == nil {
		t.Error("a folder: accepted")
	}
}

func TestStartWarnsThatKeysAreSoftware(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	create(t, path, kms.ES256, "a")
	var log bytes.Buffer
	b, err := local.New(t.Context(), local.Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "development only") {
		t.Errorf("log: %q", got)
	}
}

func TestCreatorConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	create(t, path, kms.ES256, "first")
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open: func(t testing.TB) kms.Backend {
			b, err := local.New(t.Context(), local.Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		Specs: []kms.KeySpec{
			{Algorithm: kms.ES256}, {Algorithm: kms.ES384}, {Algorithm: kms.ES512}, {Algorithm: kms.EdDSA}, {Algorithm: kms.Ed25519},
			{Algorithm: kms.RS256}, {Algorithm: kms.PS256, RSABits: 3072},
		},
	})
}
