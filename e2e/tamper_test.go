package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// editStore changes a stopped service's file as somebody would who has it.
func editStore(t testing.TB, s *harness.Service, edit func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(s.Dir, "bulla.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(edit), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// rowsWith calls f for each row, of any bucket, whose key ends with a name.
func rowsWith(tx *bbolt.Tx, name string, f func(b *bbolt.Bucket, k, v []byte) error) error {
	return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
		type kv struct{ k, v []byte }
		var rows []kv
		if err := b.ForEach(func(k, v []byte) error {
			if bytes.HasSuffix(k, []byte(name)) {
				rows = append(rows, kv{bytes.Clone(k), bytes.Clone(v)})
			}
			return nil
		}); err != nil {
			return err
		}
		for _, row := range rows {
			if err := f(b, row.k, row.v); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestChangedStoreIsRefused: whoever can write the store's file cannot have a
// client's tokens encrypted to a key of his own.
func TestChangedStoreIsRefused(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	attacker := harness.NewClientKey(t, "P-256", anyKey().KeyID)
	for _, id := range []string{"victim-a", "victim-b", "victim-c"} {
		mustRegister(t, admin, withJWKS(id, harness.JWKS(anyKey())))
	}
	mustRegister(t, admin, withJWKS("attacker", harness.JWKS(attacker)))
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "victim-c"}); err != nil {
		t.Fatal(err)
	}
	s.Terminate(t)
	editStore(t, s, func(tx *bbolt.Tx) error {
		var own, foreign []byte
		err := rowsWith(tx, "\x00attacker", func(_ *bbolt.Bucket, _, v []byte) error { own = v; return nil })
		if err != nil || own == nil {
			return errors.Join(err, errors.New("the attacker's row was not found"))
		}
		foreign = own
		changed := 0
		put := func(value func(old []byte) []byte) func(*bbolt.Bucket, []byte, []byte) error {
			return func(b *bbolt.Bucket, k, v []byte) error { changed++; return b.Put(k, value(v)) }
		}
		err = errors.Join(
			// The attacker's own row, whole, in the place of a victim's, and in
			// that of one that was deleted.
			rowsWith(tx, "\x00victim-a", put(func([]byte) []byte { return foreign })),
			rowsWith(tx, "\x00victim-c", put(func([]byte) []byte { return foreign })),
			// A single letter.
			rowsWith(tx, "\x00victim-b", put(func(v []byte) []byte { return bytes.Replace(v, []byte("ECDH-ES"), []byte("ECDH-Es"), 1) })),
		)
		if changed != 3 {
			err = errors.Join(err, errorf("%d rows were changed, want 3", changed))
		}
		return err
	})
	s.Run(t)
	s.WaitReady(t)
	for _, id := range []string{"victim-a", "victim-b", "victim-c"} {
		_, err := admin.Tokens.SignAndEncrypt(t.Context(), idToken(id))
		mustFail(t, err, "CLIENT_KEY_UNUSABLE", "changed")
	}
	mustIssue(t, admin, idToken("attacker")) // its own row is as it was
	if log := s.Log(); !strings.Contains(log, "victim-a") {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
	list, err := admin.ClientKeys.ListClientKeys(t.Context(), &bullav1.ListClientKeysRequest{Issuer: harness.Issuer})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]bullav1.ClientKeyState{}
	for _, k := range list.GetClientKeys() {
		states[k.GetClientId()] = k.GetState()
	}
	if states["victim-a"] != stateUnfit || states["attacker"] != stateReady {
		t.Errorf("got the states %v", states)
	}

	// Those who may replace a client mend it.
	mustRegister(t, admin, withJWKS("victim-a", harness.JWKS(anyKey())))
	open(t, s, anyKey(), mustIssue(t, admin, idToken("victim-a")).GetToken())
	if _, err := admin.ClientKeys.DeleteClientKey(t.Context(), &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: "victim-b"}); err != nil {
		t.Errorf("delete what was changed: %v", err)
	}
}

// TestStolenStoreGivesNobodyAnything searches the file for what it keeps of
// secrets, in every form that somebody could read.
func TestStolenStoreGivesNobodyAnything(t *testing.T) {
	t.Parallel()
	const secret = "SECRET-of-a-client-that-somebody-steals-9f2c"
	s := harness.Start(t, harness.Config{Token: shared.token, CA: shared.ca})
	admin := s.Caller(t, harness.Admin)
	for i, alg := range []string{"A128KW", "A192KW", "A256KW", "A256GCMKW", "dir"} {
		one := setting(alg, "A256CBC-HS512")
		one.SigningAlgorithm = []string{"", "HS256"}[i%2]
		mustRegister(t, admin, withSecret("stolen-"+alg, secret, one))
		mustIssue(t, admin, idToken("stolen-"+alg))
	}
	s.Terminate(t)
	file, err := os.ReadFile(filepath.Join(s.Dir, "bulla.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte("stolen-dir")) {
		t.Fatal("the file does not name the client: what is searched here?")
	}
	for what, value := range map[string][]byte{
		"the secret": []byte(secret), "16 bytes of SHA-256": leftmost(secret, 16), "16 bytes of SHA-384": leftmost(secret, 48)[:16], "16 bytes of SHA-512": leftmost(secret, 64)[:16],
	} {
		forms := [][]byte{value, []byte(hex.EncodeToString(value)), []byte(strings.ToUpper(hex.EncodeToString(value)))}
		// Base64 of what a value is part of shows it in one of three ways.
		for shift := range 3 {
			padded := append(make([]byte, shift), value...)
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				text := encoding.EncodeToString(padded)
				forms = append(forms, []byte(text[(shift*4+2)/3:len(text)-1]))
			}
		}
		for _, form := range forms {
			if bytes.Contains(file, form) {
				t.Errorf("the file holds %s as %q", what, form)
			}
		}
	}
}
