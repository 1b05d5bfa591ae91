package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
)

// Two replicas, one real store, one real backend, and many rings that both are
// asked to rotate in the same moment: each time one key comes to be.
func TestReplicasOnOneStoreMakeOneKeyForEachRing(t *testing.T) {
	// SoftHSM fails now and then, and leaves a part of a key, when one session
	// looks for keys while another makes one; here every key is counted.
	p := inFile(t)
	store, backend, ref, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(backend.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	const rings = 24
	cfg := config(store, backend, ref, nil)
	cfg.RetryMin = 2 * time.Millisecond
	for n := 1; n < rings; n++ {
		another := cfg.Issuers[0]
		another.Name = fmt.Sprintf("issuer-%d", n)
		cfg.Issuers = append(cfg.Issuers, another)
	}
	replicas := []*keyring.Keyring{run(t, cfg), run(t, cfg)}
	for n, k := range replicas {
		for _, i := range cfg.Issuers {
			for range 2000 {
				if _, err = k.Key(i.Name, kms.ES256); err == nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			if err != nil {
				t.Fatalf("replica %d: %v", n, err)
			}
		}
	}

	var all sync.WaitGroup
	for n, i := range cfg.Issuers {
		emergency := n%4 == 3
		for _, k := range replicas {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := k.Rotate(ctx, i.Name, kms.ES256, emergency); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()

	made := 0
	for n, i := range cfg.Issuers {
		ring, err := store.Ring(t.Context(), i.Name, kms.ES256)
		if err != nil {
			t.Fatal(err)
		}
		// An emergency that comes after the other's is another emergency.
		most := 2
		if n%4 == 3 {
			most = 3
		}
		if len(ring.Entries) < 2 || len(ring.Entries) > most || ring.Intent != nil {
			t.Errorf("%s: the ring is %+v", i.Name, ring)
		}
		for _, e := range ring.Entries[1:] {
			made++
			refs, err := backend.(kms.Creator).FindKeys(t.Context(), e.Tag)
			if err != nil || len(refs) != 1 || len(e.Locations) != 1 || e.Locations[0].Ref != refs[0] {
				t.Errorf("%s: the backend has %q of tag %s, %v; want the one in the ring, %v", i.Name, refs, e.Tag, err, e.Locations)
			}
		}
	}
	p.wantKeys(t, 1+made)
}
