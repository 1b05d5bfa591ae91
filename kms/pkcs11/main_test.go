//go:build cgo

package pkcs11

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

func TestMain(m *testing.M) {
	otherRoles()
	goleak.VerifyTestMain(m)
}

// meddler is a real module with a hook before each call: the hook may count,
// block, or return an error that the call then ends with.
type meddler struct {
	cryptoki
	mu   sync.Mutex
	hook func(call string) error // guarded by mu
	live map[uint]bool           // guarded by mu: open sessions, if room is limited

	// hide are mechanisms that the token does not list, and hideAttribute one
	// that it does not show. Set before use.
	hide          []uint
	hideAttribute uint
	room          int64 // sessions that the token has room for; 0 for any number

	twist atomic.Bool            // signatures, ciphertexts and wrapped keys have a wrong bit
	ownIV atomic.Pointer[[]byte] // taken instead of the IV that is given

	// template, if set, refuses or changes the private template of a new key.
	template func([]attribute) ([]attribute, error)

	logins, inits, opens, closes, signs, generated atomic.Int64
}

func (m *meddler) set(hook func(call string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

func (m *meddler) before(call string) error {
	m.mu.Lock()
	hook := m.hook
	m.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(call)
}

func (m *meddler) initialize(reserved string) error {
	m.inits.Add(1)
	if err := m.before("initialize"); err != nil {
		return err
	}
	return m.cryptoki.initialize(reserved)
}

func (m *meddler) finalize() error {
	if err := m.before("finalize"); err != nil {
		return err
	}
	err := m.cryptoki.finalize()
	if err == nil {
		m.closes.Store(m.opens.Load()) // no session outlives it
	}
	return err
}

func (m *meddler) slots() ([]uint, error) {
	if err := m.before("slots"); err != nil {
		return nil, err
	}
	return m.cryptoki.slots()
}

func (m *meddler) tokenInfo(slot uint) (tokenInfo, error) {
	if err := m.before("tokenInfo"); err != nil {
		return tokenInfo{}, err
	}
	return m.cryptoki.tokenInfo(slot)
}

func (m *meddler) openSession(slot uint) (uint, error) {
	m.opens.Add(1)
	if err := m.before("openSession"); err != nil {
		return 0, err
	}
	return m.within(slot, m.cryptoki.openSession)
}

func (m *meddler) openWritable(slot uint) (uint, error) {
	m.opens.Add(1)
	if err := m.before("openWritable"); err != nil {
		return 0, err
	}
	return m.within(slot, m.cryptoki.openWritable)
}

// within opens a session if the token has room for it.
func (m *meddler) within(slot uint, open func(uint) (uint, error)) (uint, error) {
	if m.room == 0 {
		return open(slot)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(len(m.live)) >= m.room {
		return 0, &callError{"C_OpenSession", 0xB1}
	}
	h, err := open(slot)
	if err == nil {
		m.live[h] = true
	}
	return h, err
}

// closeAll closes all sessions behind everybody's back. Nobody is inside.
func (m *meddler) closeAll(slot uint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.live)
	return m.cryptoki.(*binding).c.CloseAllSessions(slot)
}

// generateKeyPair may be denied before it is made, and lied about after.
func (m *meddler) generateKeyPair(session, mechanism uint, public, private []attribute) (publicKey, privateKey uint, err error) {
	m.generated.Add(1)
	if err := m.before("generateKeyPair"); err != nil {
		return 0, 0, err
	}
	if m.template != nil {
		if private, err = m.template(private); err != nil {
			return 0, 0, err
		}
	}
	return m.cryptoki.generateKeyPair(session, mechanism, public, private)
}

func (m *meddler) closeSession(session uint) error {
	m.mu.Lock()
	delete(m.live, session)
	m.mu.Unlock()
	err := m.cryptoki.closeSession(session)
	if err == nil {
		m.closes.Add(1)
	}
	return err
}

func (m *meddler) login(session uint, pin []byte) error {
	m.logins.Add(1)
	if err := m.before("login"); err != nil {
		return err
	}
	return m.cryptoki.login(session, pin)
}

func (m *meddler) find(session uint, template []attribute) ([]uint, error) {
	if err := m.before("find"); err != nil {
		return nil, err
	}
	return m.cryptoki.find(session, template)
}

func (m *meddler) sign(session, key uint, mech mechanism, input []byte) ([]byte, error) {
	m.signs.Add(1)
	if err := m.before("sign"); err != nil {
		return nil, err
	}
	signature, err := m.cryptoki.sign(session, key, mech, input)
	return m.twisted(signature), err
}

func (m *meddler) mechanismFlags(slot, mechanism uint) (uint, error) {
	if slices.Contains(m.hide, mechanism) {
		return 0, nil
	}
	return m.cryptoki.mechanismFlags(slot, mechanism)
}

func (m *meddler) encryptGCM(session, key uint, iv, aad, plaintext []byte) (ciphertext, used []byte, err error) {
	if err := m.before("encrypt"); err != nil {
		return nil, nil, err
	}
	if own := m.ownIV.Load(); own != nil {
		iv = *own
	}
	ciphertext, used, err = m.cryptoki.encryptGCM(session, key, iv, aad, plaintext)
	return m.twisted(ciphertext), used, err
}

func (m *meddler) twisted(b []byte) []byte {
	if m.twist.Load() && len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	return b
}

func (m *meddler) attribute(session, object, kind uint) ([]byte, error) {
	if kind == m.hideAttribute && kind != 0 {
		return nil, &callError{"C_GetAttributeValue", 0x12}
	}
	return m.cryptoki.attribute(session, object, kind)
}

func (m *meddler) decryptGCM(session, key uint, iv, aad, ciphertext []byte) ([]byte, error) {
	if err := m.before("decrypt"); err != nil {
		return nil, err
	}
	return m.cryptoki.decryptGCM(session, key, iv, aad, ciphertext)
}

func (m *meddler) createObject(session uint, template []attribute) (uint, error) {
	if err := m.before("createObject"); err != nil {
		return 0, err
	}
	return m.cryptoki.createObject(session, template)
}

func (m *meddler) destroyObject(session, object uint) error {
	if err := m.before("destroyObject"); err != nil {
		return err
	}
	return m.cryptoki.destroyObject(session, object)
}

func (m *meddler) wrapKey(session, mechanism, wrapping, object uint) ([]byte, error) {
	if err := m.before("wrapKey"); err != nil {
		return nil, err
	}
	wrapped, err := m.cryptoki.wrapKey(session, mechanism, wrapping, object)
	return m.twisted(wrapped), err
}

func (m *meddler) unwrapKey(session, mechanism, unwrapping uint, wrapped []byte, template []attribute) (uint, error) {
	if err := m.before("unwrapKey"); err != nil {
		return 0, err
	}
	return m.cryptoki.unwrapKey(session, mechanism, unwrapping, wrapped, template)
}

// bench is a backend on a real token behind a meddler.
type bench struct {
	*Backend
	hsm *softhsmtest.Token
	lib *meddler
	cfg Config
}

// meddledModules is a registry whose modules are behind lib.
func meddledModules(lib *meddler) *Modules {
	return newModules(func(path string) (cryptoki, error) {
		module, err := loadModule(path)
		if err != nil {
			return nil, err
		}
		lib.cryptoki = module
		return lib, nil
	})
}

// config is for a token, with a short retry time.
func config(hsm *softhsmtest.Token) Config {
	return Config{Module: hsm.Module, Token: hsm.Label, PINFile: hsm.PINFile, Sessions: 4, RetryAfter: 20 * time.Millisecond}
}

// start opens a backend on hsm; change, if given, edits its configuration.
func start(t testing.TB, hsm *softhsmtest.Token, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{hsm: hsm, lib: &meddler{}, cfg: config(hsm)}
	b.cfg.Modules = meddledModules(b.lib)
	if testing.Verbose() {
		b.cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	for _, c := range change {
		c(&b.cfg)
	}
	var err error
	if b.Backend, err = New(t.Context(), b.cfg); err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p))
	return len(p), nil
}

// key opens a key or ends the test.
func (b *bench) key(t testing.TB, ref string, alg kms.Algorithm) kms.Key {
	t.Helper()
	k, err := b.OpenKey(t.Context(), ref, alg)
	if err != nil {
		t.Fatalf("OpenKey(%s): %v", ref, err)
	}
	return k
}

// token is the backend's token, for what only the module's side can do.
func (b *bench) token() *token { return b.vault.(*token) }

// alone runs f while nobody is inside the module.
func (b *bench) alone(t testing.TB, f func(*link)) {
	t.Helper()
	l, err := b.token().up(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.mod.alone(func() error { f(l); return nil }); err != nil {
		t.Fatal(err)
	}
}

// signs signs and verifies once.
func signs(ctx context.Context, k kms.Key) error {
	message := []byte("header.payload")
	s, err := k.Sign(ctx, message)
	if err != nil {
		return err
	}
	return kms.Verify(k.Algorithm(), k.Public(), message, s)
}

// eventually wants f to return nil within five seconds.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
