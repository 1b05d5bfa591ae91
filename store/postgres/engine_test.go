package postgres

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
	"github.com/bulla-project/bulla/store/storetest"
)

// cluster serves the tests that leave it as it is. Those that stop it have their
// own.
var cluster *pgtest.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if cluster, err = pgtest.New(pgtest.Config{}); err != nil {
		fmt.Println(err)
		return 1
	}
	code := m.Run()
	if err := cluster.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Println(err)
		return 1
	}
	return code
}

// engineOn opens an engine, which is closed at the end of the test.
func engineOn(t *testing.T, cfg Config) *engine {
	t.Helper()
	list, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	e, err := openEngine(t.Context(), cfg, list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestEngineConformance(t *testing.T) {
	storetest.Engine(t, func(t *testing.T) (records.Engine, func() records.Engine) {
		cfg := Config{DSN: cluster.NewDatabase(t).DSN(), Migrate: true}
		e := engineOn(t, cfg)
		return e, func() records.Engine {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			return engineOn(t, cfg)
		}
	})
}

func TestSharedConformance(t *testing.T) {
	storetest.Shared(t, func(t *testing.T) (a, b records.Shared) {
		cfg := Config{DSN: cluster.NewDatabase(t).DSN(), Migrate: true}
		return engineOn(t, cfg), engineOn(t, cfg)
	})
}
