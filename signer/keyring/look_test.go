package keyring

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// What another replica has written is in force at once where somebody says so,
// and else when the rings are read the next time.
func TestLookReadsTheRingsAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name  string
		look  func(*Keyring)
		heard bool
	}{
		{"the issuer", func(k *Keyring) { k.Look("main") }, true},
		{"all issuers", func(k *Keyring) { k.Look() }, true},
		{"many times", func(k *Keyring) {
			for range 100 {
				k.Look("main")
			}
		}, true},
		{"another issuer", func(k *Keyring) { k.Look("other") }, false},
		{"nobody says so", func(*Keyring) {}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start(t, listed(kms.ES256, "a"), listed(kms.ES256, "b"))
				wait(time.Second)
				w.wantKey(t, kms.ES256, "a")
				w.store.edit(t, kms.ES256, func(r *Ring) {
					now := time.Now()
					r.Entries[0].RetireAt, r.Entries[0].RemoveAt = now, now.Add(time.Hour)
					r.Entries[1].ActivateAt = now
				})
				tc.look(w.Keyring)
				synctest.Wait()
				if tc.heard {
					w.wantKey(t, kms.ES256, "b")
					return
				}
				w.wantKey(t, kms.ES256, "a")
				wait(10 * time.Second) // the default of ReloadInterval
				w.wantKey(t, kms.ES256, "b")
			})
		})
	}
}

// Run is not there yet, or not any more.
func TestLookDoesNotWaitForRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		k, err := New(t.Context(), w.config(listed(kms.ES256, "a")))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			k.Look()
		}
	})
}
