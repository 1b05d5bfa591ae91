package fleet

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// world is what the tests share. Those that stop PostgreSQL have their own.
type world struct {
	cluster *pgtest.Cluster
	token   *softhsmtest.Token
	ca, web *harness.CA
}

var shared *world

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	t := harness.NewStandalone("fleet")
	t.Cleanup(harness.RemoveBinary)
	defer t.Close()
	cluster, err := pgtest.New(pgtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	shared = &world{
		cluster: cluster, token: harness.NewToken(t, "bulla-fleet", kms.ES256),
		ca: harness.NewCA(t, "callers and services"), web: harness.NewCA(t, "the web"),
	}
	code := m.Run()
	t.Close()
	if t.Failed() {
		return 1
	}
	if err := errors.Join(harness.SearchEvidence(), goleak.Find()); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
