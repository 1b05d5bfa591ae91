package records_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/signer/keyring"
	"github.com/bulla-project/bulla/store/envelope"
)

// Between the look at the rows and the deletion of the key, others write.
func TestNothingIsWrittenUnderADataKeyThatIsBeingRetired(t *testing.T) {
	s := open(t, datakeytest.NewWrapper())
	ctx := t.Context()
	register(t, s, 1)
	secret := func(i int) registry.Registration {
		t.Helper()
		r := client(i)
		id, sealed, err := s.Keys().Seal(ctx, []byte("hush"), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Source.Secret = &registry.Secret{DataKey: id, Sealed: sealed}
		return r
	}
	under1 := secret(2)
	if err := s.MarkRetiring(ctx, "dk-1"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Put(ctx, client(3), 0)
	wantUnavailable(t, "Put", err)
	wantUnavailable(t, "PutKeySet", s.PutKeySet(ctx, registry.KeySet{URI: "https://client.example/1"}))
	if _, err := s.PutRing(ctx, keyring.Ring{Issuer: "main", Algorithm: kms.ES256}, 0); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("PutRing: got %v, want ErrUnavailable", err)
	}
	if _, err := s.Keys().Replace(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(ctx, under1, 0)
	wantUnavailable(t, "Put of a secret", err)
	register(t, s, 3)
	if _, err := s.Put(ctx, secret(2), 0); err != nil {
		t.Error(err)
	}

	// One that is in use after all takes new rows again.
	if err := s.RetireDataKey(ctx, "dk-1"); !errors.Is(err, datakey.ErrInUse) {
		t.Errorf("RetireDataKey: got %v, want ErrInUse", err)
	}
	late := client(4)
	late.Source.Secret = under1.Source.Secret
	if _, err := s.Put(ctx, late, 0); err != nil {
		t.Errorf("Put of a secret under a key that stays: %v", err)
	}
}

func FuzzOpenOfAnyBytes(f *testing.F) {
	s := open(f, datakeytest.NewWrapper())
	row := envelope.Row{Kind: envelope.Registration, Key: envelope.Key("main", "app")}
	raw, err := json.Marshal(client(1))
	if err != nil {
		f.Fatal(err)
	}
	sound, err := envelope.Seal(f.Context(), s.Keys(), row, raw)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{sound, sound[:40], {2}, {2, 4, 'd', 'k', '-', '1'}, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if reg, err := s.Registration(t.Context(), row, value); err == nil && !bytes.Equal(value, sound) {
			t.Errorf("%q was opened as %+v", value, reg)
		}
	})
}
