package fleet

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
)

// TestFetchesDoNotGrowWithReplicas has a fleet of one and one of four use the
// same number of clients for the same time, and counts what their hosts are
// asked.
func TestFetchesDoNotGrowWithReplicas(t *testing.T) {
	const (
		uris  = 4
		fresh = 2 * time.Second
	)
	inParallel(t)
	length := 12 * time.Second
	if full {
		length = 40 * time.Second
	}
	sizes := []int{1, 4}
	var fleets []*fleet
	key := harness.NewClientKey(t, "P-256", "fetches")
	for _, n := range sizes {
		f := newFleet(t, setup{replicas: n})
		for i := range uris {
			uri := f.host.Serve(fmt.Sprintf("/%d", i), harness.JWKS(key), fresh)
			mustRegister(t, f.on(i%n), withURI(fmt.Sprintf("client-%d", i), uri))
		}
		fleets = append(fleets, f)
	}
	hits := func(f *fleet) (n int) {
		for i := range uris {
			n += f.host.Hits(fmt.Sprintf("/%d", i))
		}
		return n
	}
	// Every replica uses every client, all the time.
	over := time.Now().Add(length)
	before := []int{hits(fleets[0]), hits(fleets[1])}
	var load sync.WaitGroup
	var oldest [2]time.Duration // of the sets that were used
	for n, f := range fleets {
		var mu sync.Mutex // guards oldest[n]
		for i := range f.replicas {
			load.Go(func() {
				for time.Now().Before(over) {
					for u := range uris {
						res, err := f.on(i).Tokens.SignAndEncrypt(t.Context(), ask(fmt.Sprintf("client-%d", u)))
						if err != nil {
							t.Errorf("%d replicas: %v", len(f.replicas), err)
							return
						}
						mu.Lock()
						oldest[n] = max(oldest[n], time.Since(res.GetClientKeysFetchedAt().AsTime()))
						mu.Unlock()
					}
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
	}
	load.Wait()
	one, four := hits(fleets[0])-before[0], hits(fleets[1])-before[1]
	t.Logf("in %v, %d URLs that are fresh for %v were fetched %d times by 1 replica and %d times by 4; the oldest set in use was %v and %v old",
		length, uris, fresh, one, four, oldest[0].Round(10*time.Millisecond), oldest[1].Round(10*time.Millisecond))
	// A set is fetched again after 80 to 95 % of its life.
	if most := uris * (int(length/(fresh*8/10)) + 1); four > most {
		t.Errorf("4 replicas made %d fetches, which is more than one an interval: %d", four, most)
	}
	if four > one*5/4 {
		t.Errorf("4 replicas made %d fetches, one made %d", four, one)
	}
	if least := uris * int(length/fresh) / 2; one < least || four < least {
		t.Errorf("%d and %d fetches, want %d at least: the sets are not kept fresh", one, four, least)
	}
	for n, age := range oldest {
		if age > fresh+2*time.Second+allowed(inForce) { // who finds the lease taken looks again within two seconds
			t.Errorf("%d replicas: a set of %v was in use, which is fresh for %v", sizes[n], age, fresh)
		}
	}
}

// TestAnotherReplicaFetchesWhenTheHolderOfALeaseDies kills a replica that waits
// for a host's answer.
func TestAnotherReplicaFetchesWhenTheHolderOfALeaseDies(t *testing.T) {
	// A lease lasts for 15 s, and its end is looked for within a second or two.
	const takenOver = 18 * time.Second
	inParallel(t)
	f := newFleet(t, setup{})
	names := keys{t: t}
	before, after := names.next(), names.next()
	// Both know the client; the one that is to die fetches while the other is
	// stopped.
	const holder, heir = 0, 1
	uri := f.host.Serve("/lease", harness.JWKS(before), 2*time.Second)
	mustRegister(t, f.on(holder), withURI("lease", uri))
	mustIssue(t, f.on(holder), "lease", before.KeyID)
	mustIssue(t, f.on(heir), "lease", before.KeyID)
	f.replicas[heir].Signal(t, syscall.SIGSTOP)
	hits := f.host.Hits("/lease")
	f.host.Set("/lease", harness.Answer{Hang: true})
	harness.Eventually(t, func() error {
		if f.host.Hits("/lease") == hits {
			return errors.New("the replica does not fetch")
		}
		return nil
	})
	hits = f.host.Hits("/lease")
	f.replicas[heir].Signal(t, syscall.SIGCONT)
	// The other finds the set due, and the lease taken.
	time.Sleep(500 * time.Millisecond)
	if n := f.host.Hits("/lease"); n != hits {
		t.Fatalf("%d fetches at once of one URL: there is no lease", 1+n-hits)
	}
	f.host.Serve("/lease", harness.JWKS(after), time.Hour)
	f.replicas[holder].Kill(t)
	killed := time.Now()
	took := until(t, killed, takenOver, "the other replica fetches", func() error {
		return f.encryptedTo(heir, ask("lease"), after.KeyID)
	})
	t.Logf("the other replica had fetched %v after the holder of the lease was killed", took.Round(time.Millisecond))
}

// TestFreshReplicaIsWarmAfterOneReadWithTheHostDown starts a replica when the
// host of a client that the others know is down.
func TestFreshReplicaIsWarmAfterOneReadWithTheHostDown(t *testing.T) {
	inParallel(t)
	f := newFleet(t, setup{replicas: 1})
	key := harness.NewClientKey(t, "P-256", "kept")
	mustRegister(t, f.on(0), withURI("kept", f.host.Serve("/kept", harness.JWKS(key), time.Hour)))
	hits := f.host.Hits("/kept")
	f.host.Down()
	// Nothing may even try to connect.
	var dialed sync.WaitGroup
	knocks := knocksAt(t, f.host, &dialed)
	s := f.add(t, 1)
	s.Run(t)
	s.WaitReady(t)
	s.WaitKeys(t, 1)
	began := time.Now()
	res := mustIssue(t, f.on(1), "kept", key.KeyID)
	first := time.Since(began)
	began = time.Now()
	mustIssue(t, f.on(1), "kept", key.KeyID)
	if res.GetClientKeysStale() {
		t.Error("a set that is fresh for an hour is flagged as stale")
	}
	if n := knocks(); n != 0 || f.host.Hits("/kept") != hits {
		t.Errorf("%d connections to the host", n)
	}
	t.Logf("a fresh replica had its first token for the client after %v, the next after %v", first.Round(10*time.Microsecond), time.Since(began).Round(10*time.Microsecond))
}

// knocksAt takes the connections that are made to a host that is down, and
// counts them, until its result is called.
func knocksAt(t *testing.T, h *harness.Host, work *sync.WaitGroup) func() int {
	t.Helper()
	address := strings.TrimSuffix(strings.TrimPrefix(h.URL("/"), "https://"), "/")
	lis, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var seen []net.Conn
	work.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			seen = append(seen, c)
			_ = c.Close()
		}
	})
	once := sync.OnceFunc(func() { _ = lis.Close(); work.Wait() })
	t.Cleanup(once)
	return func() int { once(); return len(slices.Clip(seen)) }
}
