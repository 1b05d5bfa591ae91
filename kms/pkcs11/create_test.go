//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/kmstest"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func TestCreatingConformsOnSoftHSM(t *testing.T) {
	hsm := softhsmtest.New(t, "create")
	lib := &meddler{}
	modules := meddledModules(lib)
	var specs []kms.KeySpec
	for _, alg := range kms.Algorithms() {
		spec := kms.KeySpec{Algorithm: alg}
		if alg.KeyType() == kms.RSA {
			spec.RSABits = 2048 // soon made
		}
		specs = append(specs, spec)
	}
	specs = append(specs, kms.KeySpec{Algorithm: kms.PS256})
	kmstest.RunCreator(t, kmstest.CreatorHarness{
		Open: func(t testing.TB) kms.Backend {
			cfg := config(hsm)
			cfg.Modules = modules
			b, err := New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
		Specs: specs,
		Inspect: func(t testing.TB, ref string, _ kms.KeySpec) {
			inspectCreated(t, lib.cryptoki.(*binding).c, hsm.Label, ref)
		},
	})
}

// inspectCreated looks at the objects of a created key by the binding itself.
func inspectCreated(t testing.TB, c *p11.Ctx, label, ref string) {
	t.Helper()
	r, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.want.id) != createdIDSize {
		t.Errorf("%s: the id has %d bytes", ref, len(r.want.id))
	}
	slots, err := c.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		info, err := c.GetTokenInfo(slot)
		if err != nil || text(info.Label) != label {
			continue
		}
		s, err := c.OpenSession(slot, p11.CKF_SERIAL_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseSession(s) }()
		for class, want := range map[uint]map[uint]bool{
			p11.CKO_PRIVATE_KEY: {
				p11.CKA_TOKEN: true, p11.CKA_PRIVATE: true, p11.CKA_SENSITIVE: true, p11.CKA_EXTRACTABLE: false,
				p11.CKA_ALWAYS_SENSITIVE: true, p11.CKA_NEVER_EXTRACTABLE: true, p11.CKA_LOCAL: true,
				p11.CKA_SIGN: true, p11.CKA_SIGN_RECOVER: false, p11.CKA_DECRYPT: false, p11.CKA_UNWRAP: false, p11.CKA_DERIVE: false,
			},
			p11.CKO_PUBLIC_KEY: {p11.CKA_TOKEN: true, p11.CKA_PRIVATE: false, p11.CKA_VERIFY: true},
		} {
			template := []*p11.Attribute{
				p11.NewAttribute(p11.CKA_CLASS, class), p11.NewAttribute(p11.CKA_LABEL, r.want.label), p11.NewAttribute(p11.CKA_ID, r.want.id),
			}
			if err := c.FindObjectsInit(s, template); err != nil {
				t.Fatal(err)
			}
			objects, _, err := c.FindObjects(s, 2)
			if err != nil || len(objects) != 1 {
				t.Fatalf("%s: %d objects of class %d, %v; want one", ref, len(objects), class, err)
			}
			if err := c.FindObjectsFinal(s); err != nil {
				t.Fatal(err)
			}
			for kind, want := range want {
				a, err := c.GetAttributeValue(s, objects[0], []*p11.Attribute{{Type: kind}})
				if err != nil || len(a[0].Value) != 1 || (a[0].Value[0] != 0) != want {
					t.Errorf("%s: attribute 0x%X of class %d is %v, %v; want %v", ref, kind, class, a, err, want)
				}
			}
		}
		return
	}
	t.Fatalf("no token %q", label)
}

// creating is a backend on a token of its own.
func creating(t *testing.T, lib *meddler) *bench {
	t.Helper()
	hsm := softhsmtest.New(t, "bulla")
	return start(t, hsm, func(c *Config) { c.Modules = meddledModules(lib) }).with(lib)
}

func (b *bench) with(lib *meddler) *bench { b.lib = lib; return b }

// left wants a number of keys with tag on the token.
func (b *bench) left(t *testing.T, tag string, want int) {
	t.Helper()
	refs, err := b.FindKeys(t.Context(), tag)
	if err != nil || len(refs) != want {
		t.Errorf("FindKeys = %q, %v; want %d", refs, err, want)
	}
}

func TestModuleThatRefusesAttributesIsAskedWithFewer(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refuses []uint
		code    ckr
		tries   int64
	}{
		{"OfOtherTypes", []uint{ckaDerive}, 0x12, 2},
		{"All", moreThanSign, 0xD1, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lib := &meddler{template: func(private []attribute) ([]attribute, error) {
				for _, a := range private {
					if slices.Contains(tt.refuses, a.kind) {
						return nil, &callError{"C_GenerateKeyPair", tt.code}
					}
				}
				// What the module leaves out, SoftHSM does not allow.
				return append(private, boolean(ckaDecrypt, false), boolean(ckaUnwrap, false), boolean(ckaSignRecover, false), boolean(ckaDerive, false)), nil
			}}
			b := creating(t, lib)
			ref, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.RS256}, "k")
			if err != nil {
				t.Fatal(err)
			}
			if n := lib.generated.Load(); n != tt.tries {
				t.Errorf("C_GenerateKeyPair was called %d times, want %d", n, tt.tries)
			}
			if err := signs(t.Context(), b.key(t, ref, kms.RS256)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKeyThatDoesMoreThanSignIsDestroyed(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  attribute
		text string
	}{
		{"Readable", boolean(ckaSensitive, false), "CKA_SENSITIVE"},
		{"Extractable", boolean(ckaExtractable, true), "CKA_EXTRACTABLE"},
		{"Decrypts", boolean(ckaDecrypt, true), "CKA_DECRYPT"},
		{"Unwraps", boolean(ckaUnwrap, true), "CKA_UNWRAP"},
		{"Derives", boolean(ckaDerive, true), "CKA_DERIVE"},
		{"SignsWithRecovery", boolean(ckaSignRecover, true), "CKA_SIGN_RECOVER"},
		{"WithoutLogin", boolean(ckaPrivate, false), "CKA_PRIVATE"},
		{"SignsNothing", boolean(ckaSign, false), "CKA_SIGN)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lib := &meddler{template: func(private []attribute) ([]attribute, error) {
				private = slices.DeleteFunc(private, func(a attribute) bool { return a.kind == tt.set.kind })
				return append(private, tt.set), nil
			}}
			b := creating(t, lib)
			_, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "k")
			wantErr(t, err, kms.ErrKeyMismatch, tt.text, "was not taken")
			b.left(t, "k", 0)
			if out := b.hsm.Tool("--list-objects"); strings.Contains(out, "label:") {
				t.Errorf("the token still has %s", out)
			}
		})
	}
}

func TestEachErrorOfTheGenerationIsTreatedAsItsClassSays(t *testing.T) {
	lib := &meddler{}
	b := creating(t, lib)
	spec := kms.KeySpec{Algorithm: kms.ES256}
	for code, row := range codes {
		want := sentinels[row.class]
		if refusedTemplate(code) || code == ckrNotSupported {
			want = kms.ErrKeyMismatch
		}
		t.Run(code.Error(), func(t *testing.T) {
			eventually(t, "being up", func() error { return b.Check(t.Context()) })
			lib.set(times(1<<30, "generateKeyPair", code))
			before := lib.generated.Load()
			_, err := b.CreateKey(t.Context(), spec, "k")
			lib.set(nil)
			wantErr(t, err, want, code.Error())
			if n := lib.generated.Load() - before; n != 1 && !refusedTemplate(code) {
				t.Errorf("C_GenerateKeyPair was called %d times", n)
			}
			if code == ckrWriteProtected || code == ckrReadOnly {
				wantErr(t, err, want, "create: never")
			}
		})
	}
	eventually(t, "creating", func() error { _, err := b.CreateKey(t.Context(), spec, "k"); return err })
	if opens, closes := lib.opens.Load(), lib.closes.Load(); opens-closes > 1+4 {
		t.Errorf("%d sessions were opened and %d closed", opens, closes)
	}
}

func TestTokenWithoutTheMechanismCannotMakeTheKey(t *testing.T) {
	lib := &meddler{hide: []uint{ckmECEdwardsKeyPairGen}}
	b := creating(t, lib)
	_, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.EdDSA}, "k")
	wantErr(t, err, kms.ErrKeyMismatch, "CKM_EC_EDWARDS_KEY_PAIR_GEN", "own tools")
}

func TestSignaturesGoOnWhileAKeyIsMade(t *testing.T) {
	lib := &meddler{}
	b := creating(t, lib)
	b.hsm.GenerateKey("k", "01", kms.ES256)
	b.hsm.GenerateKey("other", "02", kms.ES256)
	k := b.key(t, "object=k", kms.ES256)
	begun, release := make(chan struct{}), make(chan struct{})
	lib.set(func(call string) error {
		if call == "generateKeyPair" {
			close(begun)
			<-release
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := b.CreateKey(ctx, kms.KeySpec{Algorithm: kms.ES256}, "made")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("CreateKey: %v, want %v", err, context.Canceled)
		}
	})
	<-begun
	for range 8 {
		if err := signs(t.Context(), k); err != nil {
			t.Error(err)
		}
	}
	b.key(t, "object=other", kms.ES256) // a search
	if s := b.Stats(); s.InUse != 0 || s.Stuck != 0 {
		t.Errorf("while a key is made: %+v", s)
	}

	// A second one waits, and no longer than its caller.
	short, end := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer end()
	_, err := b.CreateKey(short, kms.KeySpec{Algorithm: kms.ES256}, "second")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a second key: %v", err)
	}

	// The caller goes; the key comes to be and is found by its tag.
	cancel()
	wg.Wait()
	lib.set(nil)
	close(release)
	eventually(t, "the key", func() error {
		refs, err := b.FindKeys(t.Context(), "made")
		if err != nil || len(refs) != 1 {
			return fmt.Errorf("%q, %w", refs, err)
		}
		return nil
	})
	b.left(t, "second", 0)
}

func TestKeyOfAnotherMakerIsNotFoundByItsTag(t *testing.T) {
	b := creating(t, &meddler{})
	b.hsm.GenerateKey("tag", "01", kms.ES256)
	b.left(t, "tag", 0)
	ref, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "tag")
	if err != nil {
		t.Fatal(err)
	}
	refs, err := b.FindKeys(t.Context(), "tag")
	if err != nil || !slices.Equal(refs, []string{ref}) {
		t.Errorf("FindKeys = %q, %v; want %q", refs, err, ref)
	}
}

func TestKeyThatWasPutOnTheTokenIsNotTakenForACreatedOne(t *testing.T) {
	var log logged
	hsm := softhsmtest.New(t, "create")
	hsm.ImportKey("tag", "000102030405060708090a0b0c0d0e0f", softhsmtest.NewKey(t, kms.ES256))
	b := start(t, hsm, log.into)
	ref, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "tag")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		refs, err := b.FindKeys(t.Context(), "tag")
		if err != nil || !slices.Equal(refs, []string{ref}) {
			t.Errorf("FindKeys = %q, %v; want %q", refs, err, ref)
		}
	}
	if n := log.count("object=tag;id=%00%01"); n != 1 || log.count("CKA_NEVER_EXTRACTABLE") != 1 {
		t.Errorf("it was named %d times in the log, want once:\n%s", n, log.String())
	}

	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// What a module does not know is not held against a key.
	for _, kind := range []uint{ckaLocal, ckaNeverExtractable, ckaAlwaysSensitive} {
		b := start(t, hsm, func(c *Config) { c.Modules = meddledModules(&meddler{hideAttribute: kind}) })
		if refs, err := b.FindKeys(t.Context(), "tag"); err != nil || !slices.Equal(refs, []string{ref}) {
			t.Errorf("without attribute 0x%X: %q, %v", kind, refs, err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCreatingOnALostTokenIsNotRepeated(t *testing.T) {
	lib := &meddler{}
	b := creating(t, lib)
	lib.set(times(1, "generateKeyPair", 0x32))
	_, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "k")
	wantErr(t, err, kms.ErrUnavailable, "CKR_DEVICE_REMOVED")
	if n := lib.generated.Load(); n != 1 {
		t.Errorf("C_GenerateKeyPair was called %d times", n)
	}
	eventually(t, "creating", func() error {
		_, err := b.CreateKey(t.Context(), kms.KeySpec{Algorithm: kms.ES256}, "k")
		return err
	})
	b.left(t, "k", 1)
}
