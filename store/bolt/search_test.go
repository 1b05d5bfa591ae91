package bolt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// forms are the ways in which bytes may be written down.
func forms(name string, b []byte) map[string][]byte {
	// In base64 within something else, whatever is before it.
	inner := func(skip int) []byte {
		text := base64.RawStdEncoding.EncodeToString(b[skip:])
		return []byte(text[:len(text)-2])
	}
	return map[string][]byte{
		name:                       b,
		name + " in hex":           []byte(hex.EncodeToString(b)),
		name + " in upper hex":     []byte(strings.ToUpper(hex.EncodeToString(b))),
		name + " in base64":        []byte(base64.RawStdEncoding.EncodeToString(b)),
		name + " in base64url":     []byte(base64.RawURLEncoding.EncodeToString(b)),
		name + " in base64, late":  inner(1),
		name + " in base64, later": inner(2),
	}
}

// A stolen store gives nobody anything: neither what lies in it now, nor what
// is left in its free pages.
func TestStolenFileHoldsNoSecretAndNoKey(t *testing.T) {
	s, reopen, w := wrapped(t)
	s.file.db.NoSync = true
	ctx := t.Context()
	secrets := map[string]string{}
	aad := func(id string) []byte { return []byte("main\x00" + id + "\x00secret") }
	sealed := func(id string) *registry.Secret {
		t.Helper()
		sum256, sum384, sum512 := sha256.Sum256([]byte(secrets[id])), sha512.Sum384([]byte(secrets[id])), sha512.Sum512([]byte(secrets[id]))
		material := bytes.Join([][]byte{[]byte(secrets[id]), sum256[:16], sum256[:], sum384[:], sum512[:]}, nil)
		key, box, err := s.Keys().Seal(ctx, material, aad(id))
		if err != nil {
			t.Fatal(err)
		}
		return &registry.Secret{DataKey: key, Sealed: box}
	}
	// The file as it was at many moments, one after the other.
	var file []byte
	freed := 0
	steal := func() []byte {
		t.Helper()
		now, err := os.ReadFile(s.file.path)
		if err != nil {
			t.Fatal(err)
		}
		file = append(file, now...)
		return now
	}
	const clients, rounds = 20, 6
	for round := range rounds {
		for i := range clients {
			reg := client(i)
			reg.Source.JWKSURI += fmt.Sprint("/", round) // moves rows about
			if round%2 == 1 {
				reg.Settings = append(reg.Settings, registry.Setting{Kind: "USERINFO", SigningAlgorithm: strings.Repeat("x", round)})
			}
			secrets[reg.ClientID] = fmt.Sprintf("the secret of client %d, which none may find", i)
			reg.Source.Secret = sealed(reg.ClientID)
			if _, err := s.Put(ctx, reg, uint64(round)); err != nil {
				t.Fatal(err)
			}
		}
		steal()
		if _, err := s.Keys().Replace(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Reseal(ctx, func(_ context.Context, r *registry.Registration) (*registry.Secret, error) {
			return sealed(r.ClientID), nil
		}); err != nil {
			t.Fatal(err)
		}
		// No row is under the old key now: what is, lies in free pages.
		freed += bytes.Count(steal(), fmt.Appendf(nil, `"data_key":"dk-%d"`, round+1))
		if round == 3 {
			s = reopen()
			s.file.db.NoSync = true
		}
	}
	for i := range clients / 2 {
		if _, err := s.Put(ctx, registry.Registration{Issuer: "main", ClientID: fmt.Sprintf("app-%d", i), Deleted: true}, rounds); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	steal()

	// The search finds what is there, and what is in free pages only.
	if !bytes.Contains(file, []byte("app-19")) || freed == 0 {
		t.Fatalf("the file has no client, or nothing in free pages (%d); the test has no force", freed)
	}
	search := func(name string, b []byte) {
		t.Helper()
		for form, needle := range forms(name, b) {
			if bytes.Contains(file, needle) {
				t.Errorf("the file has %s", form)
			}
		}
	}
	for id, secret := range secrets {
		search("the secret of "+id, []byte(secret))
		sum256, sum384, sum512 := sha256.Sum256([]byte(secret)), sha512.Sum384([]byte(secret)), sha512.Sum512([]byte(secret))
		search("SHA-256 of the secret of "+id, sum256[:])
		search("half of SHA-256 of the secret of "+id, sum256[:16])
		search("SHA-384 of the secret of "+id, sum384[:])
		search("SHA-512 of the secret of "+id, sum512[:])
	}
	if n := len(w.Wrapped()); n != rounds+1 {
		t.Fatalf("%d data keys were wrapped, want %d", n, rounds+1)
	}
	for i, key := range w.Wrapped() {
		search(fmt.Sprintf("data key %d", i+1), key)
		search(fmt.Sprintf("half of data key %d", i+1), key[:16])
	}
}

// BenchmarkGet measures a read, and what authentication costs of it.
func BenchmarkGet(b *testing.B) {
	s := benchmarkStore(b)
	reg := storetest.Client("app", "https://client.example/jwks")
	if _, err := s.Put(b.Context(), reg, 0); err != nil {
		b.Fatal(err)
	}
	row := envelope.Row{Kind: envelope.Registration, Key: envelope.Key("main", "app")}
	var value []byte
	if err := s.file.db.View(func(tx *bbolt.Tx) error {
		value = bytes.Clone(tx.Bucket([]byte(records.Registrations)).Get(row.Key))
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Get(b.Context(), "main", "app"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verification", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := envelope.Open(b.Context(), s.Keys(), row, value); err != nil {
				b.Fatal(err)
			}
		}
	})
}
