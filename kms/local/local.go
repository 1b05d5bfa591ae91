// Package local keeps signing keys as software, in a file. It is FOR
// DEVELOPMENT ONLY: demos and tests on a machine that has no HSM.
//
// Whoever can read the file has the private keys, and so has every backup of
// it, and every core dump and every swap file of the process. Nothing that
// package kms promises about keys that never leave their place holds here. For
// anything that a relying party will trust, use a PKCS#11 token (SoftHSM costs
// nothing and is a better rehearsal) or AWS KMS.
//
// The file is a private JWK Set (RFC 7517, section 5). It must belong to the
// one account that runs Bulla and be closed to all others (mode 0600); a file
// that is open wider is refused, not repaired, because keys that others could
// read are no secret any more. Create adds generated keys to it.
//
// A key reference is "kid=NAME", where NAME is the "kid" member of a key in the
// file. It is a name for the configuration only: what tokens carry as kid is
// the key's thumbprint, as for every other backend.
//
// The file is read anew for each OpenKey, so that a key that was added is found
// without a restart. Keys already open are not affected by what happens to the
// file; Check reports it.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/bulla-project/bulla/kms"
)

// Config says where the keys are.
type Config struct {
	// Path of the JWK Set file. Required.
	Path string

	// Logger receives one warning at start, that keys are software keys.
	// Default: nothing is logged.
	Logger *slog.Logger
}

// Backend is a file of software keys.
type Backend struct {
	path string

	mu     sync.RWMutex // held for reading by every signature; guards closed
	closed bool
}

var _ kms.Backend = (*Backend)(nil)

// New returns the backend of the file that cfg names. It fails if the file is
// missing, open to other accounts, or not a set of private signing keys: all
// of these are for the operator to put right.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if cfg.Path == "" {
		return nil, errors.New("local keys: no path is configured: set it to a JWK Set file")
	}
	set, err := readSet(cfg.Path)
	if err != nil {
		return nil, err
	}
	if cfg.Logger != nil {
		cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "signing keys are software keys in a file: for development only",
			slog.String("path", cfg.Path), slog.Int("keys", len(set.keys)))
	}
	return &Backend{path: cfg.Path}, nil
}

// OpenKey implements kms.Backend. A file that cannot be read, or is no longer
// what New accepts, is kms.ErrUnavailable.
func (b *Backend) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b.isClosed() {
		return nil, errClosed
	}
	name, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	set, err := readSet(b.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	jwk, ok := set.keys[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s has no key with kid %q", kms.ErrKeyNotFound, b.path, name)
	}
	return newKey(b, jwk, alg)
}

// Check implements kms.Backend: it reads the file as OpenKey would.
func (b *Backend) Check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.isClosed() {
		return errClosed
	}
	if _, err := readSet(b.path); err != nil {
		return fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	return nil
}

// Close implements kms.Backend. It may be called more than once.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

var errClosed = fmt.Errorf("%w: the local key file was closed", kms.ErrUnavailable)

func (b *Backend) isClosed() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.closed
}
