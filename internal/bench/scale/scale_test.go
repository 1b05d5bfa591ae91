//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/bolt"
	"github.com/bulla-project/bulla/store/records"
)

// fetcher counts what is fetched.
type fetcher func() (*fetch.Response, error)

func (f fetcher) Get(context.Context, fetch.Request) (*fetch.Response, error) { return f() }

func testPool(t *testing.T) *pool {
	t.Helper()
	s := harness.NewStandalone(t.Name())
	t.Cleanup(s.Close)
	return newPool(s, 1)
}

// Every client of an exported population is there after the import, with a key
// that works, and none of them has to be fetched.
func TestPopulationIsLoadedWhole(t *testing.T) {
	wrapping := dataKeys(harness.NewLocalKeys(t))
	clients := &population{size: 600, keys: testPool(t), freshUntil: time.Now().Add(24 * time.Hour)}
	path := filepath.Join(t.TempDir(), "population.jsonl")
	if err := clients.export(t.Context(), wrapping, path); err != nil {
		t.Fatal(err)
	}
	cfg := bolt.Config{Path: filepath.Join(t.TempDir(), "bulla.db"), DataKeys: wrapping}
	open := func(ctx context.Context) (store, error) { return bolt.Open(ctx, cfg) }
	if _, err := load(t.Context(), path, open); err != nil {
		t.Fatal(err)
	}
	s, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }() // only read
	cache, err := keycache.New(keycache.Config{
		Store: s, Secrets: secrets.New(s.Keys(), datakey.ErrTampered),
		Fetcher: fetcher(func() (*fetch.Response, error) {
			t.Error("a set was fetched that is in the store")
			return nil, errors.New("no host is there")
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	kinds := make(map[kind]int)
	uris := make(map[string]int)
	for rank := range clients.size {
		kinds[clients.kind(rank)]++
		if r, err := cache.Recipient(t.Context(), harness.Issuer, clientID(rank), registry.IDToken); err != nil || r.Recipient == nil || r.Stale {
			t.Errorf("client %d of kind %d: %+v, %v", rank, clients.kind(rank), r, err)
		}
		if k := clients.kind(rank); k == sharedURI || k == ownURI {
			uris[clients.uri(rank)]++
		}
	}
	for k, want := range map[kind]int{rsaKey: 45, ecKey: 35, sharedURI: 10, ownURI: 5, secret: 5} {
		if got := kinds[k] * 100 / clients.size; got < want/2 || got > want*3/2 {
			t.Errorf("%d%% of the clients are of kind %d, want about %d%%", got, k, want)
		}
	}
	shared := 0
	for _, n := range uris {
		if n > 1 {
			shared += n
		}
	}
	if shared < kinds[sharedURI]*3/4 {
		t.Errorf("%d of %d clients share their URL with another", shared, kinds[sharedURI])
	}
}

// Much used clients are drawn often, and the same ones in every run.
func TestDrawsFollowZipf(t *testing.T) {
	p := &population{size: 1000}
	one, same, other := p.zipf(1), p.zipf(1), p.zipf(2)
	counts := make([]int, p.size)
	different := false
	const draws = 20_000
	for range draws {
		rank := one()
		if rank != same() {
			t.Fatal("the same seed draws others")
		}
		different = different || rank != other()
		counts[rank]++
	}
	if !different {
		t.Error("another seed draws the same")
	}
	// With s = 1.1 and a thousand, 1/5.57 of the draws.
	if counts[0] < draws/7 || counts[0] > draws/4 || counts[1] > counts[0] || counts[500] > counts[1]/20 {
		t.Errorf("ranks 0, 1, 500 were drawn %d, %d, %d times of %d", counts[0], counts[1], counts[500], draws)
	}
}

// The work of refreshes follows use, and not registration: what nobody has
// used for a week is not fetched.
func TestFetchesFollowUse(t *testing.T) {
	const registered, usedOnce, inUse = 3000, 300, 30
	wrapping := dataKeys(harness.NewLocalKeys(t))
	keys := testPool(t)
	synctest.Test(t, func(t *testing.T) {
		own := func(rank int) string { return fmt.Sprintf("https://%s.example.com/jwks", clientID(rank)) }
		clients := &population{size: registered, keys: keys, own: own, freshUntil: time.Now()}
		s, err := records.New(t.Context(), records.Config{Engine: newMemory(), DataKeys: wrapping})
		if err != nil {
			t.Fatal(err)
		}
		if err := clients.register(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		var gets atomic.Int64
		cache, err := keycache.New(keycache.Config{
			Store: s,
			Fetcher: fetcher(func() (*fetch.Response, error) {
				gets.Add(1)
				return &fetch.Response{Document: keys.rsa[0], Freshness: fetch.Freshness{For: 24 * time.Hour, Stated: true}}, nil
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- cache.Run(ctx) }()
		use := func(n int) {
			for rank := range n {
				if _, err := cache.Recipient(ctx, harness.Issuer, clientID(rank), registry.IDToken); err != nil {
					t.Fatal(err)
				}
			}
		}
		var days []int
		use(usedOnce)
		for range 11 {
			gets.Store(0)
			for range 24 {
				use(inUse)
				time.Sleep(time.Hour)
				synctest.Wait()
			}
			days = append(days, int(gets.Load()))
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		cache.Close()
		t.Logf("GETs a day with %d registered, %d used once and %d all the time: %v", registered, usedOnce, inUse, days)
		for day, n := range days {
			least, most := usedOnce, 3*usedOnce
			if day >= 8 { // a week and the last refresh within it are over
				least, most = inUse, 3*inUse
			} else if day >= 6 {
				least = 0 // it is the end of the week for some
			}
			if n < least || n > most {
				t.Errorf("day %d had %d GETs, want %d to %d", day+1, n, least, most)
			}
		}
	})
}

func TestMemoryIsReadFromTheProcess(t *testing.T) {
	before, err := residentOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64*mebibyte)
	for i := range block {
		block[i] = 1
	}
	after, err := residentOf(os.Getpid())
	if err != nil || after-before < 32 {
		t.Errorf("%v MiB before and %v after 64 were used, %v", before, after, err)
	}
	if len(block) == 0 {
		t.Error("there is no block")
	}
	if _, err := residentOf(1<<22 + 1); err == nil { // above the largest process number
		t.Error("a process that does not exist has memory")
	}
	live, err := liveHeap(map[string]float64{"go_memstats_next_gc_bytes": 500, "go_gc_gogc_percent": 400})
	if err != nil || live != 100 {
		t.Errorf("got %v, %v; want 100", live, err)
	}
	if _, err := liveHeap(map[string]float64{"go_memstats_next_gc_bytes": 500}); err == nil {
		t.Error("a heap is known without GOGC")
	}
}

func TestGoalsAreHeldAgainstMedians(t *testing.T) {
	of := func(p99s, memory []float64) *subject {
		return &subject{samples: map[metric][]float64{p99: p99s, eachClient: memory, firstToken: {1, 1, 1}}}
	}
	few, many := of([]float64{1, 2, 10}, nil), of([]float64{1.1, 2.2, 50}, []float64{1.4})
	if r := newRow(p99, []*subject{few, many}); r.Ratio != 1.1 || r.High != 5 || r.Goal != goalRatio || !r.OK || *r.Values[0] != 2 {
		t.Errorf("got %+v, want a median ratio of 1.1, ok", r)
	}
	if r := newRow(p99, []*subject{many, of([]float64{2, 3, 4}, nil)}); r.OK {
		t.Errorf("got %+v, want it over", r)
	}
	if r := newRow(eachClient, []*subject{few, many}); !r.OK || r.Values[0] != nil || *r.Values[1] != 1.4 {
		t.Errorf("got %+v, want 1.4 for the second, ok", r)
	}
	if r := newRow(eachClient, []*subject{few, of(nil, []float64{1.6})}); r.OK {
		t.Errorf("got %+v, want it over", r)
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	for _, c := range []struct{ sizes, engines string }{{"", "bolt"}, {"ten", "bolt"}, {"99", "bolt"}, {"100", "mysql"}, {"100", ""}} {
		if err := new(bench).setSizes(c.sizes, c.engines); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	b := new(bench)
	if err := b.setSizes("5000,100", "postgres,bolt"); err != nil || b.sizes[0] != 100 || len(b.engines) != 2 {
		t.Errorf("got %+v, %v", b, err)
	}
}

// TestTheToolRuns runs the whole of it on both stores: the parts above say
// nothing of whether they still fit together.
func TestTheToolRuns(t *testing.T) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", "run", ".", "-quick", "-json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	var report Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Stores) != 2 || len(report.Loads) != 6 || len(report.Fetches) != 3 || len(report.Writes) != 9 {
		t.Fatalf("got %d stores, %d loads, %d rows of fetches and %d of writes, want 2, 6, 3, 9",
			len(report.Stores), len(report.Loads), len(report.Fetches), len(report.Writes))
	}
	for _, s := range report.Stores {
		for _, row := range s.Rows {
			if row.Name != string(eachClient) && (len(row.Values) != 3 || row.Values[2] == nil) {
				t.Errorf("%s: %s has no value for the largest size", s.Store, row.Name)
			}
		}
	}
	few := report.Fetches[1]
	if few.URLs > used || few.URLs < used/2 || few.Registered <= 2*used {
		t.Errorf("%d URLs were fetched by %d GETs, and %d clients of %d are used", few.URLs, few.GETs, used, few.Registered)
	}
	var text bytes.Buffer
	if err := report.writeText(&text); err != nil || !bytes.Contains(text.Bytes(), []byte("KiB a warm client")) {
		t.Errorf("the report is %q, %v", text.Bytes(), err)
	}
}
