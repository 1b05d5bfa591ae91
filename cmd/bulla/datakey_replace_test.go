package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/bolt"
)

// aStore is a store with one data key and one client.
func aStore(t *testing.T) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(t.Context(), bolt.Config{Path: filepath.Join(t.TempDir(), "bulla.db"), DataKeys: datakeytest.Config(datakeytest.NewWrapper())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	putClient(t, s, "app", nil)
	return s
}

func putClient(t *testing.T, s *bolt.Store, clientID string, secret *registry.Secret) {
	t.Helper()
	reg := registry.Registration{
		Issuer: "main", ClientID: clientID, Source: registry.Source{JWKSURI: "https://client.example/" + clientID},
		Settings: []registry.Setting{{Kind: "ID_TOKEN", EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"}},
	}
	if secret != nil {
		reg.Source = registry.Source{Secret: secret}
	}
	if _, err := s.Put(t.Context(), reg, 0); err != nil {
		t.Fatal(err)
	}
}

func replaceKeys(ctx context.Context, s *bolt.Store) (string, error) {
	var out bytes.Buffer
	err := (&replacing{store: s, keys: s.Keys(), out: &out}).run(ctx)
	return out.String(), err
}

func wantKeys(t *testing.T, s *bolt.Store, want ...string) {
	t.Helper()
	list, err := s.Keys().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range list {
		got = append(got, k.ID)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got the data keys %v, want %v", got, want)
	}
}

func TestReplaceGoesOnWhereItWasBrokenOff(t *testing.T) {
	s := aStore(t)
	// As it is left by a run that made its key and no more.
	if _, err := s.Keys().Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := replaceKeys(t.Context(), s)
	if err != nil || !strings.HasPrefix(out, "dk-2 is the data key now: 1 record sealed anew under it, 1 old data key removed\nit was made at ") {
		t.Errorf("got %q, %v", out, err)
	}
	wantKeys(t, s, "dk-2")
}

func TestReplaceRemovesWhatNothingNeedsFirst(t *testing.T) {
	s := aStore(t)
	for range 40 { // more than the service makes
		if _, err := s.Keys().Replace(t.Context()); err != nil {
			break
		}
	}
	if err := s.AddDataKey(t.Context(), datakey.Record{ID: "dk-99", Wrapped: []byte("junk"), WrappedBy: "hsm:object=theirs"}); err != nil {
		t.Fatal(err)
	}
	if out, err := replaceKeys(t.Context(), s); err != nil || !strings.Contains(out, "32 old data keys removed") {
		t.Errorf("got %q, %v", out, err)
	}
	wantKeys(t, s, "dk-32")
	if out, err := replaceKeys(t.Context(), s); err != nil || out != "dk-33 is the data key now: 1 record sealed anew under it, 1 old data key removed\n" {
		t.Errorf("got %q, %v", out, err)
	}
	wantKeys(t, s, "dk-33")
}

func TestReplaceNamesTheClientWhoseSecretDoesNotOpen(t *testing.T) {
	s := aStore(t)
	id, sealed, err := s.Keys().Seal(t.Context(), []byte("of another client"), nil)
	if err != nil {
		t.Fatal(err)
	}
	putClient(t, s, "odd", &registry.Secret{DataKey: id, Sealed: sealed})
	for range 3 {
		out, err := replaceKeys(t.Context(), s)
		if !errors.Is(err, datakey.ErrInUse) || out != "" {
			t.Fatalf("got %q, %v; want ErrInUse", out, err)
		}
		for _, want := range []string{`client_id "odd"`, "register the client anew or delete it", "run the command again", "1 record failed the authentication"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want %q in it", err, want)
			}
		}
		wantKeys(t, s, "dk-1", "dk-2")
	}
	if _, err := s.Put(t.Context(), registry.Registration{Issuer: "main", ClientID: "odd", Deleted: true}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := replaceKeys(t.Context(), s); err != nil {
		t.Error(err)
	}
}
