package secrets

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter/registry"
)

var (
	errChanged = errors.New("does not open")
	errAway    = errors.New("wrapping backend at 10.0.0.7 does not answer")
)

// gcm is a Sealer as package kms/datakey is one: AES-256-GCM under keys with ids.
type gcm struct {
	keys map[string]cipher.AEAD
	use  string
	fail error
}

func newGCM(t *testing.T, ids ...string) *gcm {
	t.Helper()
	g := &gcm{keys: make(map[string]cipher.AEAD)}
	for _, id := range ids {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		if g.keys[id], err = cipher.NewGCM(block); err != nil {
			t.Fatal(err)
		}
		g.use = id
	}
	return g
}

func (g *gcm) Seal(_ context.Context, plaintext, aad []byte) (string, []byte, error) {
	if g.fail != nil {
		return "", nil, g.fail
	}
	nonce := make([]byte, 12)
	_, _ = rand.Read(nonce)
	return g.use, g.keys[g.use].Seal(nonce, nonce, plaintext, aad), nil
}

func (g *gcm) Open(_ context.Context, keyID string, sealed, aad []byte) ([]byte, error) {
	if g.fail != nil {
		return nil, g.fail
	}
	aead, ok := g.keys[keyID]
	if !ok || len(sealed) < 12 {
		return nil, errChanged
	}
	plain, err := aead.Open(nil, sealed[:12], sealed[12:], aad)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errChanged, err)
	}
	return plain, nil
}

func derive(t *testing.T, secret string, settings ...registry.Setting) *Material {
	t.Helper()
	m, err := Derive(secret, settings)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var (
	bothKinds = []registry.Setting{encrypts("A128KW", "A128GCM"), signs("HS256")}
	later     = time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)
)

// registered is a registration that keeps what bothKinds need of a secret.
func registered(t *testing.T, k *Keeper, secret string, expiresAt time.Time) *registry.Registration {
	t.Helper()
	kept, err := k.Seal(t.Context(), "main", "app", derive(t, secret, bothKinds...), expiresAt)
	if err != nil {
		t.Fatal(err)
	}
	reg := &registry.Registration{Issuer: "main", ClientID: "app", Source: registry.Source{Secret: kept}, Settings: bothKinds}
	if err := reg.Validate(); err != nil {
		t.Fatalf("what is kept cannot be stored: %v", err)
	}
	return reg
}

func TestWhatIsSealedOpens(t *testing.T) {
	k := New(newGCM(t, "k1"), errChanged)
	for _, expiresAt := range []time.Time{{}, later, time.Unix(0, 0)} {
		for _, length := range []int{32, 400, MaxSecret} {
			secret := strings.Repeat("s", length)
			reg := registered(t, k, secret, expiresAt)
			// As it comes back from a store.
			text, err := json.Marshal(reg)
			if err != nil {
				t.Fatal(err)
			}
			var read registry.Registration
			if err := json.Unmarshal(text, &read); err != nil {
				t.Fatal(err)
			}
			got, err := k.Open(t.Context(), &read)
			if err != nil {
				t.Fatalf("%d bytes until %v: %v", length, expiresAt, err)
			}
			if want := derive(t, secret, bothKinds...); !got.Equal(want) || string(got.Secret) != secret || !bytes.Equal(got.Keys[16], want.Keys[16]) {
				t.Errorf("%d bytes until %v: got something else than was sealed", length, expiresAt)
			}
			if !reg.Source.Secret.ExpiresAt.Equal(expiresAt.Truncate(time.Second)) {
				t.Errorf("got expiry %v, want %v in whole seconds", reg.Source.Secret.ExpiresAt, expiresAt)
			}
		}
	}
}

func TestNothingIsKeptOfASecretThatNothingNeeds(t *testing.T) {
	g := newGCM(t, "k1")
	g.fail = errAway // nor is the sealer asked
	kept, err := New(g, errChanged).Seal(t.Context(), "main", "app", derive(t, "password", encrypts("RSA-OAEP", "A128GCM")), later)
	if kept != nil || err != nil {
		t.Errorf("got %+v, %v; want nothing", kept, err)
	}
}

func TestSealedFormTellsNothing(t *testing.T) {
	k := New(newGCM(t, "k1"), errChanged)
	secret := "a secret that is thirty-two long"
	reg := registered(t, k, secret, later)
	key := derive(t, secret, bothKinds...).Keys[16]
	text, err := json.Marshal(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, stored := range [][]byte{text, reg.Source.Secret.Sealed} {
		for _, hidden := range [][]byte{[]byte(secret), key, []byte(hex.EncodeToString(key))} {
			if bytes.Contains(stored, hidden) {
				t.Errorf("%q shows in what is stored", hidden)
			}
		}
	}
	again := registered(t, k, secret, later)
	if bytes.Equal(again.Source.Secret.Sealed, reg.Source.Secret.Sealed) {
		t.Error("the same secret is sealed to the same bytes: clients that share one can be told")
	}
	longer := registered(t, k, strings.Repeat("s", 300), later)
	if got, want := len(longer.Source.Secret.Sealed), len(reg.Source.Secret.Sealed); got != want {
		t.Errorf("secrets of 32 and 300 bytes are sealed to %d and %d bytes: the length shows", want, got)
	}
}

func TestChangedOrMovedMaterialIsRefused(t *testing.T) {
	g := newGCM(t, "k1", "k2")
	k := New(g, errChanged)
	other := registered(t, k, strings.Repeat("o", 40), later)
	for name, edit := range map[string]func(r *registry.Registration, s *registry.Secret){
		"bit of the content":   func(_ *registry.Registration, s *registry.Secret) { s.Sealed[40] ^= 1 },
		"bit of the tag":       func(_ *registry.Registration, s *registry.Secret) { s.Sealed[len(s.Sealed)-1] ^= 1 },
		"cut":                  func(_ *registry.Registration, s *registry.Secret) { s.Sealed = s.Sealed[:100] },
		"under another key":    func(_ *registry.Registration, s *registry.Secret) { s.DataKey = "k1" },
		"under an unknown key": func(_ *registry.Registration, s *registry.Secret) { s.DataKey = "k3" },
		"another client":       func(r *registry.Registration, _ *registry.Secret) { r.ClientID = "app2" },
		"another issuer":       func(r *registry.Registration, _ *registry.Secret) { r.Issuer = "second" },
		"names shifted":        func(r *registry.Registration, _ *registry.Secret) { r.Issuer, r.ClientID = "mai", "napp" },
		"a later expiry":       func(_ *registry.Registration, s *registry.Secret) { s.ExpiresAt = s.ExpiresAt.Add(time.Hour) },
		"no expiry":            func(_ *registry.Registration, s *registry.Secret) { s.ExpiresAt = time.Time{} },
		"other settings": func(r *registry.Registration, _ *registry.Secret) {
			r.Settings = []registry.Setting{encrypts("A256KW", "A128GCM")}
		},
		"sealed for one client": func(r *registry.Registration, s *registry.Secret) { r.ClientID, *s = "app2", *other.Source.Secret },
	} {
		reg := registered(t, k, strings.Repeat("s", 40), later)
		edit(reg, reg.Source.Secret)
		if m, err := k.Open(t.Context(), reg); !errors.Is(err, registry.ErrTampered) || m != nil {
			t.Errorf("%s: got %v, want ErrTampered", name, err)
		}
	}
	// What was sealed by the right key for another purpose is none of ours.
	reg := registered(t, k, strings.Repeat("s", 40), later)
	var err error
	if _, reg.Source.Secret.Sealed, err = g.Seal(t.Context(), []byte("not material"), binding("main", "app", reg.Source.Secret.ExpiresAt)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(t.Context(), reg); !errors.Is(err, registry.ErrTampered) {
		t.Errorf("got %v for something that is no material, want ErrTampered", err)
	}
}

func TestResealTakesTheDataKeyOfTheDay(t *testing.T) {
	g := newGCM(t, "k1")
	k := New(g, errChanged)
	secret := strings.Repeat("s", 40)
	for _, expiresAt := range []time.Time{{}, later} {
		g.use = "k1"
		reg := registered(t, k, secret, expiresAt)
		second := newGCM(t, "k2")
		g.keys["k2"], g.use = second.keys["k2"], "k2"
		anew, err := k.Reseal(t.Context(), reg)
		if err != nil || anew.DataKey != "k2" || !anew.ExpiresAt.Equal(reg.Source.Secret.ExpiresAt) {
			t.Fatalf("got %+v, %v; want it under k2 with the same expiry", anew, err)
		}
		next := *reg
		next.Source.Secret = anew
		before, err := k.Open(t.Context(), reg)
		if err != nil {
			t.Fatal(err)
		}
		first := g.keys["k1"]
		delete(g.keys, "k1") // retired
		after, err := k.Open(t.Context(), &next)
		if err != nil || !after.Equal(before) || string(after.Secret) != secret {
			t.Errorf("got other material, %v", err)
		}
		if _, err := k.Reseal(t.Context(), reg); !errors.Is(err, registry.ErrTampered) {
			t.Errorf("got %v for a secret under a key that is gone, want ErrTampered", err)
		}
		g.keys["k1"] = first
	}
}

func TestLessIsOpenedForFewerSettings(t *testing.T) {
	k := New(newGCM(t, "k1"), errChanged)
	reg := registered(t, k, strings.Repeat("s", 40), later)
	reg.Settings = reg.Settings[:1]
	if _, err := k.Open(t.Context(), reg); err != nil {
		t.Error(err)
	}
	reg.Source.Secret = nil
	if _, err := k.Open(t.Context(), reg); err == nil || errors.Is(err, registry.ErrTampered) {
		t.Errorf("got %v for a registration without a secret", err)
	}
}

func TestSealerThatIsAwayIsUnavailable(t *testing.T) {
	g := newGCM(t, "k1")
	k := New(g, errChanged)
	reg := registered(t, k, strings.Repeat("s", 40), later)
	for _, cause := range []error{errAway, fmt.Errorf("unwrap: %w", context.DeadlineExceeded)} {
		g.fail = cause
		_, opened := k.Open(t.Context(), reg)
		_, sealed := k.Seal(t.Context(), "main", "app", derive(t, "password", bothKinds[0]), later)
		for _, err := range []error{opened, sealed} {
			if !errors.Is(err, registry.ErrUnavailable) || errors.Is(err, registry.ErrTampered) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: got %v, want ErrUnavailable alone", cause, err)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := k.Open(ended, reg); !errors.Is(err, context.Canceled) || errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("got %v after the caller has left, want Canceled", err)
		}
	}
}

func TestEqual(t *testing.T) {
	long := strings.Repeat("s", 40)
	all := []*Material{
		{},
		derive(t, long, encrypts("A128KW", "A128GCM")),
		derive(t, long, encrypts("A192KW", "A128GCM")),
		derive(t, long, encrypts("A128KW", "A128GCM"), encrypts("A256KW", "A128GCM")),
		derive(t, long, bothKinds...),
		derive(t, long, signs("HS256")),
		derive(t, long+"s", signs("HS256")),
		derive(t, long+"s", bothKinds...),
	}
	for i, a := range all {
		for j, b := range all {
			if got := a.Equal(b); got != (i == j) {
				t.Errorf("%d and %d: got %v", i, j, got)
			}
		}
	}
	if !all[4].Equal(derive(t, long, bothKinds...)) {
		t.Error("the same secret for the same settings is not equal")
	}
}

func TestMaterialNeverPrints(t *testing.T) {
	m := derive(t, strings.Repeat("topsecret", 5), bothKinds...)
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "pointer", m, "value", *m)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "pointer", m, "value", *m, "within", struct{ M *Material }{m})
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", m, *m, []any{m})
	}
	text, err := json.Marshal(struct{ A, B any }{m, *m})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + out.String() + string(text) + m.String()
	for _, hidden := range []string{"topsecret", hex.EncodeToString([]byte("topsecret")), "116 111 112", hex.EncodeToString(m.Keys[16]), fmt.Sprintf("%d", m.Keys[16])[1:20]} {
		if strings.Contains(strings.ToLower(all), hidden) {
			t.Errorf("%q shows in:\n%s", hidden, all)
		}
	}
	if !strings.Contains(all, redacted) {
		t.Error("nothing is said to be redacted")
	}
}

func TestOnlyOurOwnEncodingIsRead(t *testing.T) {
	m := derive(t, strings.Repeat("s", 40), bothKinds...)
	good, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode(good); err != nil || !got.Equal(m) {
		t.Fatalf("got %v, want what was encoded", err)
	}
	edit := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	for name, b := range map[string][]byte{
		"empty":                   {},
		"another version":         edit(func(b []byte) { b[0] = 2 }),
		"not padded":              good[:60],
		"padded twice":            append(slices.Clone(good), make([]byte, block)...),
		"something after it":      edit(func(b []byte) { b[len(b)-1] = 1 }),
		"more keys than said":     edit(func(b []byte) { b[1] = 0 }),
		"fewer keys than said":    edit(func(b []byte) { b[1] = 255 }),
		"a key of no size":        edit(func(b []byte) { b[2] = 0 }),
		"a key too large":         edit(func(b []byte) { b[2] = 65 }),
		"a secret beyond the end": edit(func(b []byte) { b[19], b[20] = 4, 0 }),
	} {
		if got, err := decode(b); err == nil {
			t.Errorf("%s: got %d keys and a secret of %d bytes, want an error", name, len(got.Keys), len(got.Secret))
		}
	}
	for name, m := range map[string]*Material{
		"secret too long": {Secret: make([]byte, MaxSecret+1)},
		"key of no size":  {Keys: map[int][]byte{0: {}}},
		"key too large":   {Keys: map[int][]byte{65: make([]byte, 65)}},
		"size that lies":  {Keys: map[int][]byte{16: make([]byte, 17)}},
	} {
		if _, err := m.encode(); err == nil {
			t.Errorf("%s: encoded, want an error", name)
		}
	}
}

// FuzzDecode: what decodes is what encode writes for it, so that nothing has
// two forms.
func FuzzDecode(f *testing.F) {
	for _, m := range []*Material{
		{}, {Secret: []byte("secret")}, {Keys: map[int][]byte{16: make([]byte, 16), 64: make([]byte, 64)}, Secret: []byte("secret")},
	} {
		b, err := m.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x decodes, and encodes to %x, %v", b, again, err)
		}
	})
}
