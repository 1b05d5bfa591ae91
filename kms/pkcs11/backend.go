package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/bulla-project/bulla/kms"
)

// Backend is a token as a place of signing and wrapping keys.
type Backend struct {
	vault  vault
	cfg    Config
	calls  gate // every call on the vault passes it; Close parks it
	closed atomic.Bool
}

var (
	_ kms.Backend    = (*Backend)(nil)
	_ kms.Key        = (*key)(nil)
	_ kms.Distruster = (*key)(nil)
)

// New returns the backend of the token that cfg names. It fails if cfg has to
// be edited, if this binary was built without cgo, or if ctx has ended; it
// does not fail because the token is not there (see the package comment). It
// waits some seconds at most for the first login.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	if !cgoEnabled {
		return nil, errNoCgo
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = defaultRetry
	}
	if cfg.Modules == nil {
		cfg.Modules = NewModules()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	v, start, err := cfg.Modules.vault(cfg)
	if err != nil {
		return nil, err
	}
	b := &Backend{vault: v, cfg: cfg}
	first, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	start(first) // the reason of a failure stays with the token
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// enter begins a call on the vault; leave ends it.
func (b *Backend) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !b.closed.Load() {
		if err := b.calls.enter(ctx); err != nil {
			return err
		}
		if !b.closed.Load() {
			return nil
		}
		b.calls.leave()
	}
	return down(errClosed)
}

func (b *Backend) leave() { b.calls.leave() }

// OpenKey finds the private key that ref names (see ParseReference), reads its
// public key from the token, and has it sign a probe to see that the two
// belong together.
func (b *Backend) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	defer b.leave()
	r, err := b.reference(ref, alg)
	if err != nil {
		return nil, err
	}
	f, err := b.vault.open(ctx, r.want, alg.KeyType())
	if err != nil {
		return nil, err
	}
	k, err := b.bind(ctx, r.want.selector, f, alg)
	if err != nil {
		return nil, err // not k: a nil *key is not a nil kms.Key
	}
	return k, nil
}

// reference reads a signing key's ref and holds it against the configuration.
func (b *Backend) reference(ref string, alg kms.Algorithm) (Reference, error) {
	if !slices.Contains(kms.Algorithms(), alg) {
		return Reference{}, fmt.Errorf("%w: %q is not an algorithm that a key of a token signs with", kms.ErrKeyMismatch, clip(string(alg)))
	}
	r, err := b.anyReference(ref)
	if err == nil && r.want.class == ckoSecretKey {
		err = fmt.Errorf("%w: a signing key is type=private, not type=secret-key", kms.ErrReference)
	}
	return r, err
}

// anyReference is reference for any key.
func (b *Backend) anyReference(ref string) (Reference, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Reference{}, err
	}
	for _, a := range []struct{ name, want, have string }{
		{"token", r.want.token, b.cfg.Token}, {"serial", r.want.serial, b.cfg.Serial},
	} {
		if a.want != "" && a.have != "" && a.want != a.have {
			return Reference{}, fmt.Errorf("%w: %s is %q in the reference and %q in the backend's configuration", kms.ErrReference, a.name, a.want, a.have)
		}
	}
	return r, nil
}

// bind makes a Key of what was found: of the public keys that fit alg, the one
// that verifies a signature of the private key.
func (b *Backend) bind(ctx context.Context, sel selector, f found, alg kms.Algorithm) (*key, error) {
	var fit []*key
	var misfit error
	for _, pkix := range f.publics {
		pub, err := x509.ParsePKIXPublicKey(pkix)
		if err == nil {
			err = alg.CheckPublic(pub)
		}
		if err != nil {
			misfit = err
			continue
		}
		fit = append(fit, newKey(b, alg, pub, keyName{selector: sel, kind: alg.KeyType(), public: fingerprintOf(pkix)}))
	}
	if len(fit) == 0 {
		if !errors.Is(misfit, kms.ErrKeyMismatch) {
			misfit = fmt.Errorf("%w: %w", kms.ErrKeyMismatch, misfit)
		}
		return nil, fmt.Errorf("key %s: %w", sel, misfit)
	}
	message := probe()
	signature, err := b.vault.sign(ctx, fit[0].name, fit[0].mechanism, inputOf(alg, message))
	if err != nil {
		return nil, fmt.Errorf("key %s: probe signature: %w", sel, err)
	}
	for _, k := range fit {
		if kms.Verify(alg, k.public, message, signature) == nil {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%w: the signature of private key %s does not verify with the public key that the token holds beside it; see that both objects are of one key pair", kms.ErrKeyMismatch, sel)
}

// probe is a message that can never be a token.
func probe() []byte {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	return hex.AppendEncode([]byte(kms.ProbePrefix), nonce[:])
}

// Check asks the token for its state and makes sure of the login. If the token
// is down it tries to bring it up, at most every Config.RetryAfter.
func (b *Backend) Check(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	defer b.leave()
	return b.vault.check(ctx)
}

// Stats tells the state of the token and its sessions. It is cheap.
func (b *Backend) Stats() Stats { return b.vault.stats() }

// Close waits for calls in flight, but no more than some seconds. The
// last backend of a token logs out and closes its sessions, the last one of a
// module finalizes it. If a call is stuck in the module, it and all after it
// is left undone, because it would crash the process, and Close says so.
func (b *Backend) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	if !b.calls.park(closeWait) {
		if r, ok := b.vault.(*remote); ok {
			return r.close() // calls that hang end with the worker
		}
		return fmt.Errorf("pkcs11: token %s was left as it is: %w", b.cfg.tokenName(), errStuck)
	}
	defer b.calls.reopen()
	return b.vault.close()
}

// key is a private key of the token.
type key struct {
	b         *Backend
	algorithm kms.Algorithm
	public    crypto.PublicKey
	name      keyName
	mechanism mechanism
	size      int // of a signature, in bytes
}

func newKey(b *Backend, alg kms.Algorithm, pub crypto.PublicKey, name keyName) *key {
	k := &key{b: b, algorithm: alg, public: pub, name: name, mechanism: mechanismOf(alg)}
	modulus := 0
	if r, ok := pub.(*rsa.PublicKey); ok {
		modulus = r.Size()
	}
	k.size = signatureSize(alg, modulus)
	return k
}

func (k *key) Algorithm() kms.Algorithm { return k.algorithm }

func (k *key) Public() crypto.PublicKey { return k.public }

// Sign is of kms.Key. While the token is down it fails at once. It waits for a
// session, and for the module, until ctx ends.
func (k *key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	if err := k.b.enter(ctx); err != nil {
		return nil, err
	}
	defer k.b.leave()
	return k.sign(ctx, message)
}

// sign is Sign for those who have entered the backend already.
func (k *key) sign(ctx context.Context, message []byte) ([]byte, error) {
	signature, err := k.b.vault.sign(ctx, k.name, k.mechanism, inputOf(k.algorithm, message))
	if err != nil {
		return nil, err
	}
	if len(signature) != k.size {
		k.b.vault.distrust()
		return nil, fmt.Errorf("%w: the module returned a signature of %d bytes, and %s with this key has %d", kms.ErrUnavailable, len(signature), k.algorithm, k.size)
	}
	return signature, nil
}

// Distrust throws away all sessions of the token: nothing tells which of them
// made the bad signature. Those in use go when their signature is done.
func (k *key) Distrust() { k.b.vault.distrust() }
