package fleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// changes is those who change clients on changing replicas while callers use
// them, and what was acknowledged.
type changes struct {
	t       *testing.T
	f       *fleet
	load    *load
	outages *outages
	signers []jose.JSONWebKey
	work    sync.WaitGroup
	turn    atomic.Int64

	mu      sync.Mutex // guards what follows
	made    []*known   // all clients whose registration was acknowledged
	counts  map[string]int
	worst   map[string]time.Duration // from an acknowledgement until it was seen on every replica
	unclear int                      // changes of which nobody knows whether they were made
}

func newChanges(t *testing.T, f *fleet, o *outages, signers []jose.JSONWebKey) *changes {
	return &changes{t: t, f: f, outages: o, signers: signers, counts: map[string]int{}, worst: map[string]time.Duration{}}
}

// replica is the next one to ask.
func (c *changes) replica() int { return int(c.turn.Add(1)) % len(c.f.replicas) }

// do counts a change, if it was acknowledged.
func (c *changes) do(ctx context.Context, what string, change func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadline)
	defer cancel()
	err := change(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch reasonOf(err) {
	case "":
		c.counts[what]++
	case refreshLimited, "REVISION_MISMATCH", notRegistered, "CLIENT_KEYS_UNAVAILABLE": // not made, for sure
	default:
		c.unclear++
	}
	return err
}

// register registers a client on a replica.
func (c *changes) register(ctx context.Context, i int, k *known) error {
	key, revision := k.current()
	req := withJWKS(k.id, key)
	if k.path != "" {
		req = withURI(k.id, c.f.host.URL(k.path))
	}
	req.Settings, req.Revision = []*bullav1.ResponseSetting{k.setting}, revision
	what := "registrations"
	if revision != "" {
		what = "replacements"
	}
	return c.do(ctx, what, func(ctx context.Context) error {
		res, err := c.f.on(i).ClientKeys.RegisterClientKey(ctx, req)
		if err != nil {
			return err
		}
		k.took(key.KeyID, res.GetClientKey().GetRevision())
		if revision == "" {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.made = append(c.made, k)
		}
		return nil
	})
}

// newClient makes a client of the test; with a lifetime, its keys come from the
// host.
func (c *changes) newClient(id string, fresh time.Duration) *known {
	key := harness.NewClientKey(c.t, "P-256", id+"-0")
	k, err := newKnown(id, setting()[0], c.signers, key)
	if err != nil {
		c.t.Fatal(err)
	}
	if fresh > 0 {
		k.path = "/" + id
		c.f.host.Serve(k.path, harness.JWKS(key), fresh)
	}
	return k
}

// all is the clients that were registered so far.
func (c *changes) all() []*known {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.made)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// rotate has a client publish a new key at its host again and again, and one
// replica look at it.
func (c *changes) rotate(ctx context.Context, k *known) {
	for n := 1; ctx.Err() == nil; n++ {
		key := harness.NewClientKey(c.t, "P-256", fmt.Sprintf("%s-%d", k.id, n))
		if err := k.add(key); err != nil {
			c.t.Error(err)
			return
		}
		c.f.host.Serve(k.path, harness.JWKS(key), time.Hour)
		for ctx.Err() == nil {
			i := c.replica()
			err := c.do(ctx, "refreshes", func(ctx context.Context) error {
				_, err := c.f.on(i).ClientKeys.RefreshClientKey(ctx, refresh(k.id))
				if err == nil {
					k.took(key.KeyID, "")
				}
				return err
			})
			if err == nil {
				break
			}
			sleep(ctx, max(300*time.Millisecond, min(retryOf(err), deadline)))
		}
	}
}

// replace registers new keys for a client again and again.
func (c *changes) replace(ctx context.Context, k *known) {
	for n := 1; ctx.Err() == nil; n++ {
		key := harness.NewClientKey(c.t, "P-256", fmt.Sprintf("%s-%d", k.id, n))
		if err := k.add(key); err != nil {
			c.t.Error(err)
			return
		}
		for ctx.Err() == nil {
			i := c.replica()
			if err := c.register(ctx, i, k); err == nil {
				break
			}
			sleep(ctx, 200*time.Millisecond)
			// It may have been made all the same, and then its revision is another.
			c.learnRevision(ctx, c.replica(), k)
		}
		sleep(ctx, time.Second)
	}
}

func (c *changes) learnRevision(ctx context.Context, i int, k *known) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	res, err := c.f.on(i).ClientKeys.GetClientKey(ctx, &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: k.id})
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.revision = res.GetClientKey().GetRevision()
	}
}

// comeAndGo registers clients, lets callers use them, and deletes two of three.
func (c *changes) comeAndGo(ctx context.Context, name string) {
	for n := 0; ctx.Err() == nil; n++ {
		var fresh time.Duration
		if n%3 == 0 {
			fresh = time.Hour
		}
		k := c.newClient(fmt.Sprintf("%s-%d", name, n), fresh)
		if c.register(ctx, c.replica(), k) != nil {
			sleep(ctx, 200*time.Millisecond)
			continue // nobody knows whether it is there
		}
		kid := k.private[0].KeyID
		c.seen(ctx, "registration", k, kid)
		c.load.add(k)
		sleep(ctx, time.Second)
		if n%3 == 2 {
			c.load.remove(k)
			continue // it stays to the end
		}
		k.deletionAsked()
		for ctx.Err() == nil {
			i := c.replica()
			err := c.do(ctx, "deletions", func(ctx context.Context) error {
				_, err := c.f.on(i).ClientKeys.DeleteClientKey(ctx, deletion(k.id))
				return err
			})
			if err == nil || reasonOf(err) == notRegistered {
				k.deletionAcknowledged()
				c.seen(ctx, "deletion", k, "")
				sleep(ctx, time.Second) // callers go on asking
				break
			}
			sleep(ctx, 200*time.Millisecond)
		}
		c.load.remove(k)
	}
}

// seen waits until every replica acts on what one has just acknowledged: each
// has to within inForce, while nothing is away.
func (c *changes) seen(ctx context.Context, what string, k *known, kid string) {
	acknowledged := time.Now()
	took := make([]time.Duration, len(c.f.replicas))
	var all sync.WaitGroup
	for i := range took {
		all.Go(func() { took[i] = c.seenBy(ctx, i, what, k, kid, acknowledged) })
	}
	all.Wait()
	if slices.Min(took) >= 0 && c.outages.calm(acknowledged, time.Now()) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.worst[what] = max(c.worst[what], slices.Max(took))
	}
}

// seenBy is how long it took one replica, negative if that is not known. What
// shows that it is late is an attempt that began late and failed: that of a
// busy machine may be the first.
func (c *changes) seenBy(ctx context.Context, i int, what string, k *known, kid string, since time.Time) time.Duration {
	for {
		began := time.Now()
		err := c.f.encryptedTo(i, ask(k.id), kid)
		at := began.Sub(since)
		switch {
		case err == nil:
			return at
		case ctx.Err() != nil || !c.outages.calm(since, time.Now()):
			return -1
		case at > allowed(inForce):
			c.t.Errorf("%s of %s is not in force on replica %d after %v: %v", what, k.id, i, at, err)
			return -1
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// lost counts acknowledged registrations that a replica does not have, or not
// as they were acknowledged, and acknowledged deletions that it does not know.
// Every client that is there gets a token from every replica, which go-jose
// reads.
func (c *changes) lost(t *testing.T) (registrations, deletions int) {
	t.Helper()
	for i := range c.f.replicas {
		listed := map[string]bool{}
		req := &bullav1.ListClientKeysRequest{Issuer: harness.Issuer, PageSize: 1000}
		for {
			res, err := c.f.on(i).ClientKeys.ListClientKeys(t.Context(), req)
			if err != nil {
				t.Fatalf("list on replica %d: %v", i, err)
			}
			for _, k := range res.GetClientKeys() {
				listed[k.GetClientId()] = true
			}
			if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		for _, k := range c.made {
			res, err := c.f.on(i).Tokens.SignAndEncrypt(t.Context(), ask(k.id))
			switch {
			case !k.deleted.IsZero():
				if reasonOf(err) != notRegistered || listed[k.id] {
					deletions++
					t.Errorf("%s was deleted, and replica %d has it (listed: %t, %v)", k.id, i, listed[k.id], err)
				}
			case !k.deleting.IsZero(): // asked for, and not acknowledged
			case err != nil || !listed[k.id]:
				registrations++
				t.Errorf("%s was registered, and replica %d does not have it (listed: %t, %v)", k.id, i, listed[k.id], err)
			default:
				if err := k.check(time.Now(), res); err != nil {
					registrations++
					t.Errorf("%s on replica %d: %v", k.id, i, err)
				} else if key, _ := k.current(); key.KeyID == res.GetEncryptionKeyId() { // else the last change was not acknowledged
					if err := k.readByOthers(t, res.GetToken()); err != nil {
						t.Errorf("%s on replica %d: go-jose: %v", k.id, i, err)
					}
				}
			}
		}
	}
	return registrations, deletions
}
