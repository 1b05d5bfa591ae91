package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// TestFleet has three replicas under load while whatever they stand on goes
// away and comes back, and clients come, go and change their keys.
func TestFleet(t *testing.T) {
	d := newDrill(t)
	d.calm("nothing", d.span(time.Second, 10*time.Second))
	victims := []int{1}
	if full {
		victims = []int{1, 0, 2}
	}
	for _, i := range victims {
		d.killReplica(i)
		d.calm("", d.span(time.Second, 8*time.Second))
	}
	d.restartPostgres()
	d.calm("", d.span(time.Second, 10*time.Second))
	d.stopPostgres(d.span(8*time.Second, 20*time.Second))
	d.calm("", d.span(time.Second, 10*time.Second))
	d.stopHost(d.span(4*time.Second, 20*time.Second))
	d.calm("", max(d.span(3*time.Second, 10*time.Second), d.span(30*time.Second, 3*time.Minute)-time.Since(d.began)))
	d.finish()
}

// drill is a fleet under load, and what came of what is done to it.
type drill struct {
	t       *testing.T
	cluster *pgtest.Cluster
	fleet   *fleet
	outages *outages
	load    *load
	changes *changes
	stop    context.CancelFunc // of the changes
	began   time.Time
	steady  []*known // clients that nobody changes
	cold    []string // clients that no replica has in memory

	report report
}

func (d *drill) span(short, long time.Duration) time.Duration {
	if full {
		return long
	}
	return short
}

func newDrill(t *testing.T) *drill {
	t.Helper()
	building := time.Now()
	d := &drill{t: t, cluster: pgtest.StartWith(t, pgtest.Config{Durable: true}), outages: &outages{}}
	d.fleet = newFleet(t, setup{replicas: 3, cluster: d.cluster})
	signers, err := client.ParseSigners(d.fleet.signers(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	d.changes = newChanges(t, d.fleet, d.outages, signers)

	var clients []*known
	register := func(k *known) {
		t.Helper()
		if err := d.changes.register(t.Context(), len(clients)%3, k); err != nil {
			t.Fatalf("register %s: %v", k.id, err)
		}
		clients = append(clients, k)
	}
	for i, c := range []struct{ alg, enc, curve string }{
		{"RSA-OAEP-256", "A256GCM", ""}, {"RSA-OAEP", "A128CBC-HS256", ""}, {"ECDH-ES", "A128GCM", "P-256"},
		{"ECDH-ES+A256KW", "A256CBC-HS512", "P-256"}, {"ECDH-ES+A128KW", "A128GCM", "P-384"},
	} {
		key := harness.NewClientKey(t, c.curve, fmt.Sprintf("steady-%d-0", i))
		s := setting()[0]
		s.EncryptionAlgorithm, s.ContentEncryption = c.alg, c.enc
		for _, path := range []string{"", fmt.Sprintf("/steady-%d", i)} {
			k, err := newKnown(fmt.Sprintf("steady-%d%s", i, strings.ReplaceAll(path, "/", "-at-")), s, signers, key)
			if err != nil {
				t.Fatal(err)
			}
			if k.path = path; path != "" {
				// Fresh for two seconds: fetched again and again, by one for all.
				d.fleet.host.Serve(path, harness.JWKS(key), 2*time.Second)
			}
			register(k)
			d.steady = append(d.steady, k)
		}
	}
	var rotating, replaced []*known
	for i := range 4 {
		k := d.changes.newClient(fmt.Sprintf("rotating-%d", i), time.Hour)
		register(k)
		rotating = append(rotating, k)
		k = d.changes.newClient(fmt.Sprintf("replaced-%d", i), 0)
		register(k)
		replaced = append(replaced, k)
	}
	for _, k := range clients {
		for i := range d.fleet.replicas {
			if err := d.fleet.encryptedTo(i, ask(k.id), k.private[0].KeyID); err != nil {
				t.Fatalf("%s on replica %d: %v", k.id, i, err)
			}
		}
	}

	d.load = startLoad(t, d.fleet, d.outages, clients)
	d.changes.load = d.load
	var ctx context.Context
	ctx, d.stop = context.WithCancel(t.Context())
	for i := range 4 {
		d.changes.work.Go(func() { d.changes.rotate(ctx, rotating[i]) })
		d.changes.work.Go(func() { d.changes.replace(ctx, replaced[i]) })
	}
	for _, name := range []string{"guest", "visitor"} {
		d.changes.work.Go(func() { d.changes.comeAndGo(ctx, name) })
	}
	t.Cleanup(func() { d.stop(); d.changes.work.Wait() })
	d.began = time.Now()
	t.Logf("the fleet stood after %v", d.began.Sub(building).Round(time.Millisecond))
	return d
}

// watch does something, and makes a row of what became of requests meanwhile
// and until the callers had some time more.
func (d *drill) watch(r row, do func(*row)) {
	began := time.Now()
	do(&r)
	time.Sleep(500 * time.Millisecond) // for requests that are on their second attempt
	requests, attempts := d.load.between(began, time.Now())
	inFlight := 0
	for _, a := range attempts {
		switch {
		case r.killed != "" && a.replica == r.killed && a.reason == "Unavailable":
			inFlight++
		case a.excused && a.reason == registryUnavailable:
			r.excused++
		case !a.excused:
			r.attempts++
			r.miss("an attempt for %s on %q failed after %v: %v", a.call.client.id, a.replica, a.end.Sub(a.start).Round(time.Millisecond), a.err)
		}
	}
	r.inFlight = inFlight
	for _, q := range requests {
		r.requests++
		if q.stale {
			r.flagged++
		}
		switch {
		case q.wrong != nil:
			r.wrong++
			r.miss("a token of %s is wrong: %v", q.client.id, q.wrong)
		case q.late != nil && !q.excused:
			r.late++
			r.miss("a token of %s: %v (flagged with registry_stale: %t)", q.client.id, q.late, q.stale)
		case q.late != nil:
			r.unheard++
		case q.excused && q.reason == registryUnavailable:
			r.unserved++
		case q.reason != "" && !q.excused:
			r.failed++
			r.miss("a request for %s failed with %s after %v", q.client.id, q.reason, q.end.Sub(q.start).Round(time.Millisecond))
		}
	}
	if r.outOfTouch && r.flagged == 0 {
		r.miss("no token was flagged while PostgreSQL was down")
	}
	if inFlight > callers {
		r.miss("%d attempts failed on the replica that was killed, and only %d can have been in flight", inFlight, callers)
	}
	r.tell(d.t)
	d.report.rows = append(d.report.rows, r)
}

// calm lets the callers go on with nothing away.
func (d *drill) calm(name string, length time.Duration) {
	if name == "" {
		name = "nothing, in between"
	}
	d.watch(row{name: name, what: "callers ask, and clients change"}, func(r *row) {
		time.Sleep(length)
		r.lasted = length
	})
}

// addCold registers a client on a replica that is about to be killed, so that
// no replica has it in memory.
func (d *drill) addCold(i int) {
	k := d.changes.newClient(fmt.Sprintf("cold-%d-%d", i, len(d.cold)), 0)
	if err := d.changes.register(d.t.Context(), i, k); err != nil {
		d.t.Errorf("register %s: %v", k.id, err)
	}
	d.cold = append(d.cold, k.id)
}

// takeCold is a cold client, for one outage: afterwards it is warm.
func (d *drill) takeCold() string {
	id := d.cold[0]
	d.cold = d.cold[1:]
	return id
}

func (d *drill) killReplica(i int) {
	s := d.fleet.replicas[i]
	for range 2 { // there are two outages of PostgreSQL
		d.addCold(i)
	}
	d.watch(row{name: fmt.Sprintf("replica %d killed", i+1), what: "kill -9, and a new start after that time", killed: s.GRPC}, func(r *row) {
		over := d.outages.begin(s.GRPC)
		began := time.Now()
		s.Kill(d.t)
		time.Sleep(d.span(time.Second, 3*time.Second))
		r.lasted = time.Since(began)
		for _, k := range d.changes.all() {
			k.startedAnew(s.GRPC)
		}
		started := time.Now()
		s.Run(d.t)
		s.WaitReady(d.t)
		d.fleet.redial(d.t, i)
		until(d.t, started, harness.Patience, "a token of the replica that was started again", func() error {
			_, err := d.fleet.on(i).Tokens.SignAndEncrypt(d.t.Context(), ask(d.steady[0].id))
			return err
		})
		r.well = time.Since(started)
		over()
	})
}

// warm waits until callers were served by every replica for every client that
// nobody changes: these have to be served whatever happens.
func (d *drill) warm() {
	d.t.Helper()
	harness.Eventually(d.t, func() error {
		for _, k := range d.steady {
			for i, s := range d.fleet.replicas {
				if !k.warmOn(s.GRPC) {
					return fmt.Errorf("nobody was served for %s by replica %d", k.id, i)
				}
			}
		}
		return nil
	})
}

func (d *drill) restartPostgres() {
	d.warm()
	d.watch(row{name: "PostgreSQL restarted", what: "a fast shutdown, which throws everybody out, and a new start at once"}, func(r *row) {
		over := d.outages.begin("")
		began := time.Now()
		if err := d.cluster.Restart(); err != nil {
			d.t.Fatal(err)
		}
		r.lasted = time.Since(began)
		d.recover(r, time.Now(), d.takeCold())
		over()
	})
}

func (d *drill) stopPostgres(length time.Duration) {
	d.warm()
	d.watch(row{name: "PostgreSQL stopped", what: "an immediate shutdown, and a new start, with recovery, after that time", outOfTouch: true}, func(r *row) {
		cold := d.takeCold()
		over := d.outages.begin("")
		began := time.Now()
		if err := d.cluster.Kill(); err != nil {
			d.t.Fatal(err)
		}
		for i := range d.fleet.replicas {
			took := until(d.t, began, allowed(wellAgain), fmt.Sprintf("replica %d says that it is degraded", i), func() error { return d.readiness(i, true) })
			d.t.Logf("replica %d is degraded %v after PostgreSQL was stopped", i, took.Round(time.Millisecond))
		}
		var longest time.Duration
		for n := 0; n == 0 || time.Since(began) < length; n++ {
			for i := range d.fleet.replicas {
				longest = max(longest, d.mustRefuse(i, fmt.Sprintf("refused-%d-%d", i, n), cold))
				if err := d.readiness(i, true); err != nil {
					d.t.Errorf("replica %d while PostgreSQL is down: %v", i, err)
				}
			}
			time.Sleep(300 * time.Millisecond)
		}
		d.t.Logf("what cannot be done without PostgreSQL is refused within %v at most", longest.Round(time.Millisecond))
		starting := time.Now()
		if err := d.cluster.Start(); err != nil {
			d.t.Fatal(err)
		}
		r.lasted = time.Since(began)
		d.t.Logf("PostgreSQL itself took %v to start", time.Since(starting).Round(time.Millisecond))
		d.recover(r, time.Now(), cold)
		over()
	})
}

// readiness is nil if a replica is ready and says, or does not, that it is degraded.
func (d *drill) readiness(i int, degraded bool) error {
	code, body := d.fleet.readyz(d.t, i)
	if code != http.StatusOK {
		d.t.Errorf("replica %d is taken out of service: /readyz: %d %s", i, code, body)
		return nil
	}
	if strings.Contains(body, "degraded") != degraded {
		return fmt.Errorf("/readyz: %s", body)
	}
	return nil
}

// mustRefuse asks a replica for what cannot be done without PostgreSQL, and
// returns the longest that an answer took.
func (d *drill) mustRefuse(i int, fresh, cold string) (longest time.Duration) {
	c, ctx := d.fleet.on(i), d.t.Context()
	for _, call := range []struct {
		what string
		do   func() error
	}{
		{"a token for a cold client", func() error {
			_, err := c.Tokens.SignAndEncrypt(ctx, ask(cold))
			return err
		}},
		{"a look at a cold client", func() error {
			_, err := c.ClientKeys.GetClientKey(ctx, &bullav1.GetClientKeyRequest{Issuer: harness.Issuer, ClientId: cold})
			return err
		}},
		{"a list", func() error {
			_, err := c.ClientKeys.ListClientKeys(ctx, &bullav1.ListClientKeysRequest{Issuer: harness.Issuer})
			return err
		}},
		{"a registration", func() error {
			_, err := c.ClientKeys.RegisterClientKey(ctx, withJWKS(fresh, d.steady[0].private[0]))
			return err
		}},
		{"a deletion", func() error {
			_, err := c.ClientKeys.DeleteClientKey(ctx, deletion(d.steady[0].id))
			return err
		}},
		{"a refresh", func() error {
			_, err := c.ClientKeys.RefreshClientKey(ctx, refresh(d.steady[1].id))
			return err
		}},
	} {
		asked := time.Now()
		err := call.do()
		longest = max(longest, time.Since(asked))
		if call.what != "a refresh" || reasonOf(err) != refreshLimited {
			mustBeUnavailable(d.t, fmt.Sprintf("%s on replica %d", call.what, i), err)
		}
	}
	return longest
}

// recover waits until every replica does all that it did, of its own accord.
func (d *drill) recover(r *row, since time.Time, cold string) {
	for i := range d.fleet.replicas {
		r.well = max(r.well, until(d.t, since, allowed(wellAgain), fmt.Sprintf("replica %d serves a cold client", i), func() error {
			return d.fleet.encryptedTo(i, ask(cold), cold+"-0")
		}))
		r.well = max(r.well, until(d.t, since, allowed(wellAgain), fmt.Sprintf("replica %d takes registrations", i), func() error {
			k := d.changes.newClient(fmt.Sprintf("after-%s-%d-%d", cold, i, time.Since(d.began)), 0)
			return d.changes.register(d.t.Context(), i, k)
		}))
		r.well = max(r.well, until(d.t, since, allowed(wellAgain), fmt.Sprintf("replica %d is well", i), func() error { return d.readiness(i, false) }))
		r.well = max(r.well, until(d.t, since, allowed(wellAgain), fmt.Sprintf("replica %d is in touch", i), func() error {
			res, err := d.fleet.on(i).Tokens.SignAndEncrypt(d.t.Context(), ask(d.steady[0].id))
			if err == nil && res.GetRegistryStale() {
				err = fmt.Errorf("registry_stale")
			}
			return err
		}))
	}
}

func (d *drill) stopHost(length time.Duration) {
	d.watch(row{name: "clients' host down", what: "the host of all jwks_uri refuses connections, with five clients whose sets are fresh for 2 s"}, func(r *row) {
		began := time.Now()
		d.fleet.host.Down()
		time.Sleep(length)
		d.fleet.host.Up(d.t)
		r.lasted = time.Since(began)
		up := time.Now()
		// What failed is tried again after a pause that grows with its number.
		for i := range d.fleet.replicas {
			r.well = max(r.well, until(d.t, up, 2*length+allowed(10*time.Second), fmt.Sprintf("replica %d has fresh keys", i), func() error {
				res, err := d.fleet.on(i).Tokens.SignAndEncrypt(d.t.Context(), ask(d.steady[1].id))
				if err == nil && res.GetClientKeysStale() {
					err = fmt.Errorf("stale")
				}
				return err
			}))
		}
	})
}

// finish stops everybody, and looks at what is left.
func (d *drill) finish() {
	t := d.t
	d.stop()
	d.changes.work.Wait()
	d.load.end()
	r := &d.report
	r.length = time.Since(d.began)
	time.Sleep(inForce)
	looking := time.Now()
	r.lostRegistrations, r.lostDeletions = d.changes.lost(t)
	t.Logf("%d clients were asked for on every replica in %v", len(d.changes.made), time.Since(looking).Round(time.Millisecond))
	r.counts, r.worst, r.unclear = d.changes.counts, d.changes.worst, d.changes.unclear
	for i, s := range d.fleet.replicas {
		if n := s.Metric(t, "bulla_panics_total"); n != 0 {
			t.Errorf("replica %d: %v panics", i, n)
		}
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(d.fleet.signers(t, 0), &set); err != nil || len(set.Keys) != 1 {
		t.Errorf("the JWK Set has %d keys (%v), want 1", len(set.Keys), err)
	}
	requests, _ := d.load.between(d.began, time.Now())
	r.total(requests)
	if len(requests) < callers*int(r.length/time.Second)/4 {
		t.Errorf("only %d requests: nothing is shown", len(requests))
	}
	for _, what := range []string{"registrations", "replacements", "refreshes", "deletions"} {
		if r.counts[what] < 4 {
			t.Errorf("only %d %s were acknowledged: nothing is shown", r.counts[what], what)
		}
	}
	if r.late > 0 {
		t.Errorf("%d tokens were made with a key later than %v after it was replaced", r.late, allowed(inForce))
	}
	t.Log("\n" + r.text())
	if full || os.Getenv("BULLA_FAULTS_WRITE") != "" {
		harness.WritePart(t, page, "fleet", r.text())
	}
}
