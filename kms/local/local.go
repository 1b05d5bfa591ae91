// Package local keeps signing and wrapping keys as software, in a file. It is
// FOR DEVELOPMENT ONLY: demos and tests on a machine that has no HSM.
//
// Whoever can read the file has the keys, and so has every backup of it, and
// every core dump and every swap file of the process. Nothing that package kms
// promises about keys that never leave their place holds here. For
// anything that a relying party will trust, use a PKCS#11 token (SoftHSM costs
// nothing and is a better rehearsal) or AWS KMS.
//
// The file is a private JWK Set (RFC 7517, section 5). It must belong to the
// one account that runs Bulla and be closed to all others (mode 0600); a file
// that is open wider is refused, not repaired, because keys that others could
// read are no secret any more.
//
// Signing keys are RSA, EC and Ed25519 JWKs with use "sig" or none. A wrapping
// key is a symmetric JWK of 32 bytes ("kty":"oct") that says what it is for:
// "use":"enc","alg":"A256GCM". Neither can be opened as the other. Create and
// CreateWrapping add generated keys.
//
// A key reference is "kid=NAME", where NAME is the "kid" member of a key in the
// file. It is a name for the configuration only: what tokens carry as kid is
// the key's thumbprint, as for every other backend.
//
// The file is read anew for each key that is opened, so that one that was added
// is found without a restart. Keys already open are not affected by what happens to the
// file; Check reports it.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/go-jose/go-jose/v4"

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

	mu     sync.RWMutex // held for reading by every use of a key; guards closed
	closed bool
}

var _ kms.Backend = (*Backend)(nil)

// New returns the backend of the file that cfg names. It fails if the file is
// missing, open to other accounts, or not a set of signing and wrapping keys:
// all of these are for the operator to put right.
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
		cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "keys are software keys in a file: for development only",
			slog.String("path", cfg.Path), slog.Int("keys", len(set.keys)))
	}
	return &Backend{path: cfg.Path}, nil
}

// OpenKey implements kms.Backend. A file that cannot be read, or is no longer
// what New accepts, is kms.ErrUnavailable; a wrapping key is
// kms.ErrKeyMismatch.
func (b *Backend) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	jwk, err := b.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	return newKey(b, jwk, alg)
}

// find reads the file and returns the key in it that ref names.
func (b *Backend) find(ctx context.Context, ref string) (jose.JSONWebKey, error) {
	leave, err := b.enter(ctx)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	defer leave()
	name, err := parseReference(ref)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	set, err := readSet(b.path)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("%w: %w", kms.ErrUnavailable, err)
	}
	jwk, ok := set.keys[name]
	if !ok {
		return jose.JSONWebKey{}, fmt.Errorf("%w: %s has no key with kid %q", kms.ErrKeyNotFound, b.path, name)
	}
	return jwk, nil
}

// Check implements kms.Backend: it reads the file as OpenKey would.
func (b *Backend) Check(ctx context.Context) error {
	leave, err := b.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
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

// enter begins a use of the backend, which leave ends; Close waits for it.
func (b *Backend) enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.RLock()
	if b.closed {
		b.mu.RUnlock()
		return nil, errClosed
	}
	return b.mu.RUnlock, nil
}
