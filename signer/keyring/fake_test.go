package keyring

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// memStore is a Store in memory. It hands out and keeps copies, as a real one
// does, and can be made to fail.
type memStore struct {
	mu    sync.Mutex // guards all below
	rings map[string][]byte
	down  bool
	puts  int
	// beforePut, if set, runs once before the next PutRing looks.
	beforePut func()
}

func newMemStore() *memStore { return &memStore{rings: map[string][]byte{}} }

func (s *memStore) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// take makes the store's rings those of another.
func (s *memStore) take(from *memStore) {
	from.mu.Lock()
	rings := maps.Clone(from.rings)
	from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rings = rings
}

// written is how often a ring was written.
func (s *memStore) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puts
}

func (s *memStore) Ring(_ context.Context, issuer string, alg kms.Algorithm) (*Ring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(issuer + "/" + string(alg))
}

func (s *memStore) get(key string) (*Ring, error) {
	if s.down {
		return nil, fmt.Errorf("%w: it is down", ErrUnavailable)
	}
	raw, ok := s.rings[key]
	if !ok {
		return nil, ErrNotFound
	}
	var r Ring
	return &r, json.Unmarshal(raw, &r)
}

func (s *memStore) PutRing(_ context.Context, ring Ring, expect uint64) (*Ring, error) {
	s.mu.Lock()
	before := s.beforePut
	s.beforePut = nil
	s.mu.Unlock()
	if before != nil {
		before()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, fmt.Errorf("%w: it is down", ErrUnavailable)
	}
	key, revision := ring.Issuer+"/"+string(ring.Algorithm), uint64(0)
	if old, err := s.get(key); err == nil {
		revision = old.Revision
	}
	if revision != expect {
		return nil, fmt.Errorf("%w: it is at %d", ErrRevision, revision)
	}
	ring.Revision = revision + 1
	raw, err := json.Marshal(ring)
	if err != nil {
		return nil, err
	}
	s.rings[key] = raw
	s.puts++
	return s.get(key)
}

func (s *memStore) Rings(_ context.Context, issuer string) ([]*Ring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, fmt.Errorf("%w: it is down", ErrUnavailable)
	}
	var all []*Ring
	for key := range s.rings {
		if strings.HasPrefix(key, issuer+"/") {
			r, err := s.get(key)
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Ring) int { return strings.Compare(string(a.Algorithm), string(b.Algorithm)) })
	return all, nil
}

// edit changes a stored ring as another replica would.
func (s *memStore) edit(t *testing.T, alg kms.Algorithm, change func(*Ring)) {
	t.Helper()
	r, err := s.Ring(t.Context(), "main", alg)
	if err != nil {
		t.Fatalf("edit %s: %v", alg, err)
	}
	change(r)
	if _, err := s.PutRing(t.Context(), *r, r.Revision); err != nil {
		t.Fatalf("edit %s: %v", alg, err)
	}
}

// hsm is a backend whose keys really sign, and that can fail as real ones do.
type hsm struct {
	mu   sync.Mutex // guards all below
	keys map[string]crypto.Signer
	// fail is the error of every call; failRef of those about one key.
	fail    error
	failRef map[string]error
	// hang lets calls wait for the end of their context.
	hang bool
	// asleep fails every signature until Check has brought the backend up.
	asleep bool
	// spoil turns every signature into a wrong one.
	spoil      bool
	opened     int
	distrusted int
	messages   [][]byte
}

// newHSM is a backend with a fresh key for each ref, of the type alg needs.
func newHSM(t testing.TB, keys map[string]kms.Algorithm) *hsm {
	h := &hsm{keys: map[string]crypto.Signer{}, failRef: map[string]error{}}
	for ref, alg := range keys {
		h.keys[ref] = newPrivate(t, alg)
	}
	return h
}

func newPrivate(t testing.TB, alg kms.Algorithm) (k crypto.Signer) {
	t.Helper()
	var err error
	switch alg.KeyType() {
	case kms.RSA:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case kms.EC:
		k, err = ecdsa.GenerateKey(alg.Curve(), rand.Reader)
	default:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// set changes the backend's behavior.
func (h *hsm) set(change func(*hsm)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

// tally reads one of the backend's counters.
func (h *hsm) tally(of func(*hsm) *int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return *of(h)
}

func (h *hsm) call(ctx context.Context, ref string) (crypto.Signer, bool, error) {
	h.mu.Lock()
	fail, hang, spoil, key := h.fail, h.hang, h.spoil, h.keys[ref]
	if h.failRef[ref] != nil {
		fail = h.failRef[ref]
	}
	h.mu.Unlock()
	switch {
	case hang:
		<-ctx.Done()
		return nil, false, ctx.Err()
	case fail != nil:
		return nil, false, fail
	case key == nil:
		return nil, false, kms.ErrKeyNotFound
	}
	return key, spoil, nil
}

func (h *hsm) OpenKey(ctx context.Context, ref string, alg kms.Algorithm) (kms.Key, error) {
	key, _, err := h.call(ctx, ref)
	if err != nil {
		return nil, err
	}
	h.set(func(h *hsm) { h.opened++ })
	return &hsmKey{h, ref, alg, key.Public()}, alg.CheckPublic(key.Public())
}

func (h *hsm) Check(ctx context.Context) error {
	_, _, err := h.call(ctx, "")
	h.set(func(h *hsm) { h.asleep = h.asleep && err != nil && !errors.Is(err, kms.ErrKeyNotFound) })
	return err
}

func (h *hsm) Close() error { return nil }

type hsmKey struct {
	h   *hsm
	ref string
	alg kms.Algorithm
	pub crypto.PublicKey
}

func (k *hsmKey) Algorithm() kms.Algorithm { return k.alg }
func (k *hsmKey) Public() crypto.PublicKey { return k.pub }
func (k *hsmKey) Distrust()                { k.h.set(func(h *hsm) { h.distrusted++ }) }

func (k *hsmKey) Sign(ctx context.Context, message []byte) ([]byte, error) {
	private, spoil, err := k.h.call(ctx, k.ref)
	k.h.set(func(h *hsm) {
		if h.asleep {
			err = kms.ErrUnavailable
		}
	})
	if err != nil {
		return nil, err
	}
	k.h.set(func(h *hsm) { h.messages = append(h.messages, bytes.Clone(message)) })
	var sig []byte
	switch p := private.(type) {
	case *rsa.PrivateKey:
		if k.alg.PSS() {
			sig, err = rsa.SignPSS(rand.Reader, p, k.alg.Hash(), k.alg.Digest(message), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(nil, p, k.alg.Hash(), k.alg.Digest(message))
		}
	case *ecdsa.PrivateKey:
		r, s, signErr := ecdsa.Sign(rand.Reader, p, k.alg.Digest(message))
		if signErr != nil {
			return nil, signErr
		}
		n := k.alg.CoordinateSize()
		sig = make([]byte, 2*n)
		r.FillBytes(sig[:n])
		s.FillBytes(sig[n:])
	default:
		sig, err = p.Sign(nil, message, crypto.Hash(0))
	}
	if spoil {
		sig[0] ^= 1
	}
	return sig, err
}

// kid is the kid of a key of the backend.
func (h *hsm) kid(t testing.TB, ref string) string {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	kid, err := signer.Thumbprint(h.keys[ref].Public())
	if err != nil {
		t.Fatal(err)
	}
	return kid
}

// logBook keeps what is logged.
type logBook struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// count is how many lines hold all the words.
func (l *logBook) count(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

func (l *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
