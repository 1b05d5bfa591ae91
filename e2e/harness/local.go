package harness

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/local"
)

// LocalKeys is a file of software keys, for services in development mode: a
// signing key for each of some algorithms, and a wrapping key. Services that
// have the same file can read each other's stores.
type LocalKeys struct {
	path    string
	backend *local.Backend
}

// localBackend is the name of the backend with a LocalKeys.
const localBackend = "dev"

// NewLocalKeys makes the file, in a folder of the test.
func NewLocalKeys(t testing.TB, algorithms ...kms.Algorithm) *LocalKeys {
	t.Helper()
	k := &LocalKeys{path: filepath.Join(t.TempDir(), "keys.json")}
	for _, alg := range algorithms {
		if _, err := local.Create(k.path, alg, KeyLabel(alg)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := local.CreateWrapping(k.path, WrappingLabel); err != nil {
		t.Fatal(err)
	}
	var err error
	if k.backend, err = local.New(t.Context(), local.Config{Path: k.path}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.backend.Close() }) // a file that was read
	return k
}

// Backends is the backends of a service that has the keys.
func (k *LocalKeys) Backends() M {
	return M{localBackend: M{"local": M{"path": k.path}}}
}

// Wrapping is the wrapping of a service that has the keys.
func (k *LocalKeys) Wrapping() M {
	return M{"backend": localBackend, "key": "kid=" + WrappingLabel}
}

// WrappingLocation is the wrapping key as the data keys of its services name it.
func (k *LocalKeys) WrappingLocation() string { return localBackend + ":kid=" + WrappingLabel }

// OpenWrapping opens the wrapping key, to read the store of a service from
// outside.
func (k *LocalKeys) OpenWrapping(ctx context.Context) (kms.Wrapper, error) {
	return k.backend.OpenWrapper(ctx, "kid="+WrappingLabel)
}

// SigningKeys is the signing_keys of an issuer with the key for each algorithm.
func (k *LocalKeys) SigningKeys(algorithms ...kms.Algorithm) []M {
	var keys []M
	for _, alg := range algorithms {
		keys = append(keys, M{"algorithm": string(alg), "keys": []string{localBackend + ":kid=" + KeyLabel(alg)}})
	}
	return keys
}
