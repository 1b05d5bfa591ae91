package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulla-project/bulla/e2e/harness"
)

// TestCommands runs the scripts in testdata: what the commands print, and how they
// fail, against the shared service. In them
//
//	as NAME ARGS…  runs bulla with the flags that connect NAME (admin, reader or
//	               stranger) to the service
//
// $CONFIG is the service's configuration, $URL a jwks_uri with the key that
// client.jwk is the private half of.
func TestCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulla")
	if err := os.Symlink(harness.Binary(t), path); err != nil {
		t.Fatal(err)
	}
	callers := map[string]*harness.Leaf{
		"admin": shared.Leaf(t, harness.Admin), "reader": shared.Leaf(t, registrar), "stranger": shared.Leaf(t, stranger),
	}
	url := shared.host.Serve("/cli", harness.JWKS(anyKey()), time.Hour)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(path)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Setenv("CONFIG", shared.ConfigFile)
			env.Setenv("URL", url)
			env.Setenv("SOFTHSM2_CONF", shared.token.Conf)
			env.Setenv("ADDR", shared.GRPC)
			env.Setenv("SERVERCA", shared.CA.File)
			for name, content := range map[string][]byte{
				"client.jwk": anyKey().PrivateJWK(), "other.jwk": otherKey().PrivateJWK(), "client.jwks": harness.JWKS(anyKey()), "both.jwks": harness.JWKS(anyKey(), rsaKey()),
				"private.jwks": []byte(fmt.Sprintf(`{"keys":[%s]}`, anyKey().PrivateJWK())),
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"as": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) < 2 || callers[args[0]] == nil {
					ts.Fatalf("usage: as admin|reader|stranger args...")
				}
				err := ts.Exec("bulla", slices.Concat(args[1:], shared.ConnectFlags(callers[args[0]]))...)
				if failed := err != nil; failed != neg {
					ts.Fatalf("bulla: %v", err)
				}
			},
		},
	})
}
