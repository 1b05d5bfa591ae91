package postgres

import (
	"fmt"
	"testing"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// While a batch is written under a new data key, all others who write wait. Where
// a round trip takes ten milliseconds they give up if it takes many.
func TestResealHoldsTheLockForFewRoundTrips(t *testing.T) {
	d := cluster.NewDatabase(t)
	p := pgtest.NewProxy(t, cluster.Addr())
	s := open(t, Config{DSN: d.Via(p.Addr()), Migrate: true})
	const clients = records.BatchRows + 10 // two batches
	for i := range clients {
		if _, err := s.Put(t.Context(), storetest.Client(fmt.Sprint("app", i), fmt.Sprint("https://client.example/", i)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Keys().Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := p.Asked()
	done, err := s.Reseal(t.Context(), nil)
	if err != nil || done.Rows != clients {
		t.Fatalf("got %+v, %v; want %d rows", done, err, clients)
	}
	asked := p.Asked() - before
	// The data keys, the three kinds of rows, of which one is read in two pieces,
	// and each batch: with the lock, to read, and to write. A large message comes
	// through the proxy in several pieces.
	if asked > 60 {
		t.Errorf("it took %d round trips for %d rows", asked, clients)
	}
	t.Logf("%d pieces for %d rows", asked, clients)
}
