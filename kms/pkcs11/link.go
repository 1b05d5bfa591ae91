package pkcs11

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// lookPause is how long a key that was not found, or was found to be another,
// is not looked for again. A search costs the token more than a signature.
const lookPause = time.Second

// link is one login to one token, in one epoch of its module. When the token
// is lost the whole link is, and a new one takes its place.
type link struct {
	t     *token
	mod   *module
	lib   cryptoki
	epoch uint64
	slot  uint
	info  tokenInfo
	pool  *pool

	// The login of PKCS#11 belongs to no session, but to all that a process
	// has with a token, and it ends when the last of them is closed. So one
	// session is kept open that does nothing else: without it the pool could
	// not replace its sessions without logging out.
	desk  chan struct{} // capacity 1: guards login, and one search at a time
	login session

	mu     sync.RWMutex
	places map[keyName]place // guarded by mu; written by the holder of desk
	looks  uint64            // guarded by desk: counts the searches
	told   map[selector]bool // guarded by desk: planted keys that the log names
}

// place is where a key was found, or why not.
type place struct {
	object uint
	look   uint64 // the number of the search that found it
	err    error
	until  time.Time // err is believed until then
}

// errCrowded: the pool has shrunk instead of opening a session; try again.
var errCrowded = errors.New("no room for one more session")

// outbidError says that a session of the pool was given up for the login
// session, and that the token had no room for it again.
type outbidError struct{ err error }

func (e *outbidError) Error() string { return e.err.Error() }
func (e *outbidError) Unwrap() error { return e.err }

// withSession runs use with a session of the pool, inside the gate. A session
// that met an error is closed; one that is still in use when ctx ends comes
// back when the module lets go of it.
func withSession[T any](ctx context.Context, l *link, use func(*session) (T, error)) (T, error) {
	var zero T
	crowded := false
	for {
		s, err := l.pool.get(ctx)
		if err != nil {
			return zero, err
		}
		v, err := aside(ctx, l.t.crew.run, func() (T, error) {
			if err := l.mod.enter(ctx, l.epoch); err != nil {
				if s.open {
					l.pool.put(s)
				} else {
					l.pool.release()
				}
				return zero, err
			}
			defer l.mod.gate.leave()
			call := l.t.inUse.enter()
			defer l.t.inUse.leave(call)
			if s.open && !l.pool.current(s) {
				l.discard(s)
			}
			if !s.open {
				if err := l.open(s); err != nil {
					if classOf(err) != full {
						l.pool.release()
					} else if l.pool.shrink() {
						return zero, errCrowded
					}
					if classOf(err) == stale { // what could be fresher?
						err = &goneError{err}
					}
					return zero, err
				}
			}
			v, err := use(s)
			if outbid := (*outbidError)(nil); errors.As(err, &outbid) {
				if l.pool.shrink() {
					return zero, errCrowded
				}
				return zero, outbid.err
			}
			l.giveBack(s, err)
			return v, err
		})
		switch {
		case errors.Is(err, errCrowded):
			l.t.cfg.Logger.Warn("the token has no room for one more session; going on with fewer", "sessions", l.pool.limit())
		case err != nil && classOf(err) == full && !crowded:
			crowded = true
		default:
			return v, err
		}
	}
}

// giveBack returns s to the pool after a call that ended with err.
func (l *link) giveBack(s *session, err error) {
	if s.open && !s.spoiled && l.pool.current(s) {
		l.pool.put(s)
		return
	}
	l.discard(s)
	if err != nil && classOf(err) == full {
		l.pool.shrink()
		return
	}
	l.pool.release()
}

// open opens s.
func (l *link) open(s *session) error {
	generation := l.pool.generation.Load()
	h, err := l.lib.openSession(l.slot)
	if err != nil {
		return l.t.noted(err)
	}
	*s = session{handle: h, open: true, generation: generation}
	l.pool.opened.Add(1)
	return nil
}

// discard closes s. A session that the module has called invalid is not
// closed: its number may be another session's by now.
func (l *link) discard(s *session) {
	if !s.open {
		return
	}
	if !s.dead {
		_ = l.lib.closeSession(s.handle) // it is not used again whatever this says
	}
	*s = session{}
	l.pool.opened.Add(-1)
}

// spoil notes an error that a call with s met.
func (l *link) spoil(s *session, err error) error {
	if err == nil {
		return nil
	}
	s.spoiled = true
	s.dead = errors.Is(err, ckr(0xB3)) || errors.Is(err, ckr(0xB0))
	return l.t.noted(err)
}

// steady runs call with s. If that finds something stale, it replaces s and
// runs call once more; if that fails alike on the fresh session, the token is
// asked whether it is there at all.
func steady[T any](l *link, s *session, call func() (T, error)) (T, error) {
	v, err := call()
	if err == nil || classOf(err) != stale {
		return v, err
	}
	l.t.renewals.Add(1)
	l.discard(s)
	if err := l.open(s); err != nil {
		var zero T
		if classOf(err) == stale {
			err = &goneError{err}
		}
		return zero, err
	}
	v, err = call()
	if err != nil && classOf(err) == stale {
		if lost := l.probe(s); lost != nil {
			return v, lost
		}
	}
	return v, err
}

// probe asks the token something cheap. A failure is a *goneError.
func (l *link) probe(s *session) error {
	info, err := l.lib.tokenInfo(l.slot)
	if err != nil {
		return &goneError{l.t.noted(err)}
	}
	if info.label != l.info.label || info.serial != l.info.serial {
		return &goneError{fmt.Errorf("slot %d holds another token now", l.slot)}
	}
	if _, err := l.lib.loggedIn(s.handle); err != nil {
		return &goneError{l.spoil(s, err)}
	}
	return nil
}

// check asks the token for its state and makes sure of the login.
func (l *link) check(ctx context.Context) error {
	_, err := withSession(ctx, l, func(s *session) (struct{}, error) {
		return steady(l, s, func() (struct{}, error) {
			if err := l.probe(s); err != nil {
				return struct{}{}, err
			}
			if err := l.takeDesk(ctx); err != nil {
				return struct{}{}, err
			}
			defer l.leaveDesk()
			return struct{}{}, l.ensureLogin(ctx, s)
		})
	})
	return err
}

// sign signs input with key.
func (l *link) sign(ctx context.Context, key keyName, m mechanism, input []byte) ([]byte, error) {
	return l.with(ctx, key, func(s *session, object uint) ([]byte, error) {
		sig, err := l.lib.sign(s.handle, object, m, input)
		return sig, l.spoil(s, err)
	})
}

// with runs use with a session and the object that key is now, and once more
// with both found anew if they turn out to be stale.
func (l *link) with(ctx context.Context, key keyName, use func(s *session, object uint) ([]byte, error)) ([]byte, error) {
	return withSession(ctx, l, func(s *session) ([]byte, error) {
		var last place
		return steady(l, s, func() ([]byte, error) {
			at, err := l.place(ctx, s, key, last.look)
			if err != nil {
				return nil, err
			}
			last = at
			return use(s, at.object)
		})
	})
}

// offers asks what the token offers a mechanism for.
func (l *link) offers(ctx context.Context, mechanism uint) (uint, error) {
	return withSession(ctx, l, func(*session) (uint, error) {
		flags, err := l.lib.mechanismFlags(l.slot, mechanism)
		return flags, l.t.noted(err)
	})
}

func (l *link) takeDesk(ctx context.Context) error {
	select {
	case l.desk <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *link) leaveDesk() { <-l.desk }

// ensureLogin makes sure that the login session lives and that the user is
// logged in, as modules without a login find no keys and call that a success.
// The caller holds the desk. It fails with errEpoch on a retired link, whose
// login session nobody would close again.
//
// own is the caller's session of the pool, nil for none. If the token has no
// room for the login session it may be closed to make some, and is opened again
// after; if that cannot be, the error is an *outbidError.
func (l *link) ensureLogin(ctx context.Context, own *session) (failed error) {
	if l.pool.retired.Load() {
		return errEpoch
	}
	in, err := l.lib.loggedIn(l.login.handle)
	if err != nil {
		old := l.login
		_ = l.spoil(&old, err)
		had := own != nil && own.open
		h, err := l.openFirst(l.lib.openSession, own)
		if err != nil {
			return err
		}
		l.login = session{handle: h, open: true}
		defer func() {
			if had && !own.open && failed == nil {
				failed = l.reopen(own)
			}
		}()
		if !old.dead && old.handle != h {
			_ = l.lib.closeSession(old.handle) // only now, when it is not the last one
		}
		if in, err = l.lib.loggedIn(h); err != nil {
			return l.t.noted(err)
		}
	}
	if in {
		return nil
	}
	return l.t.logIn(ctx, l.lib, l.epoch, l.slot, l.login.handle)
}

// openFirst opens a session that comes before those of the pool: as long as the
// token has no room for it, one of them is closed.
func (l *link) openFirst(open func(slot uint) (uint, error), own *session) (uint, error) {
	for {
		h, err := open(l.slot)
		if err == nil || codeClass(err) != full || !l.makeRoom(own) {
			return h, l.t.noted(err)
		}
		_ = l.t.noted(err)
	}
}

// makeRoom closes a session of the pool: an idle one, with which the pool
// becomes smaller, else own. It reports false if there is none.
func (l *link) makeRoom(own *session) bool {
	for {
		select {
		case s := <-l.pool.idle:
			l.pool.inUse.Add(1)
			_, err := l.lib.loggedIn(s.handle)
			_ = l.spoil(s, err)
			l.discard(s)
			if err != nil { // it took no room
				l.pool.release()
				continue
			}
			l.pool.shrink()
			return true
		default:
		}
		if own == nil || !own.open {
			return false
		}
		l.discard(own)
		return true
	}
}

// reopen opens a session of the pool that makeRoom has closed.
func (l *link) reopen(s *session) error {
	err := l.open(s)
	if err != nil && classOf(err) == full {
		return &outbidError{err}
	}
	return err
}

// place is where key is now. A search is made if there was none, or if the
// last one's number is stale, which the caller found no longer good.
func (l *link) place(ctx context.Context, s *session, key keyName, stale uint64) (place, error) {
	if at, ok := l.known(key, stale); ok {
		return at, at.err
	}
	if err := l.takeDesk(ctx); err != nil {
		return place{}, err
	}
	defer l.leaveDesk()
	if at, ok := l.known(key, stale); ok {
		return at, at.err
	}
	if err := l.ensureLogin(ctx, s); err != nil {
		return place{}, err
	}
	object, err := l.locate(s, key)
	switch {
	case errors.Is(err, kms.ErrKeyNotFound), errors.Is(err, kms.ErrKeyMismatch):
		// An answer, to be believed for a while.
	case err != nil:
		return place{}, err
	}
	l.looks++
	at := place{object: object, look: l.looks, err: err}
	if err != nil {
		at.until = time.Now().Add(lookPause)
	}
	l.mu.Lock()
	l.places[key] = at
	l.mu.Unlock()
	return at, err
}

// known is what is remembered of key and still good.
func (l *link) known(key keyName, stale uint64) (place, bool) {
	l.mu.RLock()
	at, ok := l.places[key]
	l.mu.RUnlock()
	if !ok || at.err != nil && time.Now().After(at.until) || at.err == nil && at.look == stale {
		return place{}, false
	}
	return at, true
}

// locate finds the private key object with key's name and public half, or the
// secret key object with its name and traits.
func (l *link) locate(s *session, key keyName) (uint, error) {
	if key.kind == kms.Oct {
		return l.locateSecret(s, key)
	}
	objects, err := l.candidates(s, key.selector, key.kind)
	if err != nil {
		return 0, err
	}
	for _, object := range objects {
		publics, err := l.publics(s, object, key.kind)
		if err != nil {
			return 0, err
		}
		for _, p := range publics {
			if fingerprintOf(p) == key.public {
				return object, nil
			}
		}
	}
	return 0, anotherKey(key.selector)
}

// anotherKey is the answer to a key that was replaced while it was open.
func anotherKey(sel selector) error {
	return fmt.Errorf("%w: %s is another key now than when it was opened; put the old one back, or restart to use the new one", kms.ErrKeyMismatch, sel)
}

// candidates are the private keys of one type that sel names, at least one.
func (l *link) candidates(s *session, sel selector, kind kms.KeyType) ([]uint, error) {
	objects, err := l.lib.find(s.handle, sel.template(ckoPrivateKey))
	if err != nil {
		return nil, l.spoil(s, err)
	}
	var fit []uint
	var other kms.KeyType
	for _, object := range objects {
		v, err := l.lib.attribute(s.handle, object, ckaKeyType)
		if err != nil {
			return nil, l.spoil(s, err)
		}
		if k := kindOf(ulong(v)); k == kind {
			fit = append(fit, object)
		} else {
			other = k
		}
	}
	switch {
	case len(fit) > 0:
		return fit, nil
	case len(objects) > 0:
		if other == "" {
			other = "another"
		}
		return nil, fmt.Errorf("%w: %s is a key of type %s, and the algorithm needs one of type %s", kms.ErrKeyMismatch, sel, other, kind)
	}
	// Nothing there. A token that is gone says the same.
	if err := l.probe(s); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: token %q has no private key with %s; `%s` shows what it has",
		kms.ErrKeyNotFound, l.info.label, sel, toolCommand(l.t.cfg.Module, l.info.label, "--login --list-objects"))
}

// find is open of the vault.
func (l *link) find(ctx context.Context, want wanted, kind kms.KeyType) (found, error) {
	return search(ctx, l, want, func(s *session) (found, error) { return l.read(s, want.selector, kind) })
}

// search runs read with a session, at the desk and logged in, if want is about
// this token.
func search[T any](ctx context.Context, l *link, want wanted, read func(*session) (T, error)) (T, error) {
	var zero T
	if why := want.disagrees(l.info); why != "" {
		return zero, fmt.Errorf("%w: %s", kms.ErrReference, why)
	}
	return withSession(ctx, l, func(s *session) (T, error) {
		return steady(l, s, func() (T, error) {
			if err := l.takeDesk(ctx); err != nil {
				return zero, err
			}
			defer l.leaveDesk()
			if err := l.ensureLogin(ctx, s); err != nil {
				return zero, err
			}
			return read(s)
		})
	})
}

// read finds the one private key that sel names and reads what is to be known
// of it.
func (l *link) read(s *session, sel selector, kind kms.KeyType) (found, error) {
	objects, err := l.candidates(s, sel, kind)
	if err != nil {
		return found{}, err
	}
	if len(objects) > 1 {
		return found{}, fmt.Errorf("%w: %s fits %d private keys; name the key by object and id together", kms.ErrReference, sel, len(objects))
	}
	object := objects[0]
	for _, a := range []struct {
		kind uint
		bad  bool
		why  string
	}{
		{ckaSign, false, "its attribute CKA_SIGN is false, so it may not sign"},
		{ckaAlwaysAuthenticate, true, "its attribute CKA_ALWAYS_AUTHENTICATE is true: it asks for the PIN at each signature, which a service cannot give"},
	} {
		v, err := l.optional(s, object, a.kind)
		if err != nil {
			return found{}, err
		}
		if len(v) == 1 && (v[0] != 0) == a.bad {
			return found{}, fmt.Errorf("%w: %s: %s", kms.ErrKeyDisabled, sel, a.why)
		}
	}
	var f found
	if v, err := l.optional(s, object, ckaExtractable); err != nil {
		return found{}, err
	} else if len(v) == 1 && v[0] != 0 {
		f.extractable = true
	}
	if f.publics, err = l.publics(s, object, kind); err != nil {
		return found{}, err
	}
	if len(f.publics) == 0 {
		return found{}, fmt.Errorf("%w: the token holds no public key and no certificate beside the private key %s; put its public key on the token with the same id", kms.ErrKeyMismatch, sel)
	}
	return f, nil
}

// optional reads an attribute that need not be there, or need not be shown.
func (l *link) optional(s *session, object, kind uint) ([]byte, error) {
	v, err := l.lib.attribute(s.handle, object, kind)
	if errors.Is(err, ckr(0x11)) || errors.Is(err, ckr(0x12)) {
		return nil, nil
	}
	return v, l.spoil(s, err)
}

// publics reads the public keys that may belong to a private key object: from
// public key objects with its id (or if it has none, its label), else from
// certificates, else from the private object itself, which has them for RSA.
// The result may be empty.
func (l *link) publics(s *session, object uint, kind kms.KeyType) ([][]byte, error) {
	by := attribute{kind: ckaID}
	var err error
	if by.bytes, err = l.optional(s, object, ckaID); err != nil {
		return nil, err
	}
	if len(by.bytes) == 0 {
		by.kind = ckaLabel
		if by.bytes, err = l.optional(s, object, ckaLabel); err != nil {
			return nil, err
		}
	}
	var objects []uint
	if len(by.bytes) > 0 {
		objects, err = l.lib.find(s.handle, []attribute{
			{kind: ckaClass, ulong: true, num: ckoPublicKey}, {kind: ckaKeyType, ulong: true, num: ckkOf(kind)}, by,
		})
		if err != nil {
			return nil, l.spoil(s, err)
		}
	}
	read := func(object, kind uint) ([]byte, error) {
		v, err := l.optional(s, object, kind)
		if err == nil && len(v) == 0 {
			err = fmt.Errorf("attribute 0x%X is missing", kind)
		}
		return v, err
	}
	var out [][]byte
	add := func(pub crypto.PublicKey, err error) error {
		if err == nil {
			var pkix []byte
			if pkix, err = x509.MarshalPKIXPublicKey(pub); err == nil {
				out = append(out, pkix)
				return nil
			}
		}
		if s.spoiled {
			return err
		}
		l.t.cfg.Logger.Debug("a public key on the token cannot be read", "why", err)
		return nil
	}
	for _, o := range objects {
		if err := add(publicOf(kind, o, read)); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 && len(by.bytes) > 0 {
		certs, err := l.lib.find(s.handle, []attribute{{kind: ckaClass, ulong: true, num: ckoCertificate}, by})
		if err != nil {
			return nil, l.spoil(s, err)
		}
		for _, c := range certs {
			der, err := read(c, ckaValue)
			if err == nil {
				err = add(certificatePublic(der))
			}
			if err != nil && s.spoiled {
				return nil, err
			}
		}
	}
	if len(out) == 0 && kind == kms.RSA {
		if err := add(publicOf(kind, object, read)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// retire closes the sessions of a link that is not used any more, as they come
// back, unless they died with their epoch. The others of the process keep
// their login: it ends with the last session.
func (l *link) retire(ctx context.Context) {
	l.pool.retire()
	l.distrust(ctx)
	// First the gate, then the desk, as calls do: whoever waits at a gate that
	// is parked with the desk in hand keeps those inside from coming out.
	if err := l.mod.enter(ctx, l.epoch); err != nil {
		return
	}
	defer l.mod.gate.leave()
	if err := l.takeDesk(ctx); err != nil {
		return
	}
	defer l.leaveDesk()
	call := l.t.others.enter()
	defer l.t.others.leave(call)
	_ = l.lib.closeSession(l.login.handle)
}

// distrust throws away all sessions of the pool. Each goes back to it when it is
// closed, and counts as in use until then, so that a module that hangs in one is
// found out.
func (l *link) distrust(ctx context.Context) {
	old := l.pool.distrust()
	if err := l.mod.enter(ctx, l.epoch); err != nil {
		for range old {
			l.pool.release()
		}
		return
	}
	defer l.mod.gate.leave()
	calls := make([]uint64, len(old))
	for i := range old {
		calls[i] = l.t.inUse.enter()
	}
	for i, s := range old {
		l.discard(s)
		l.t.inUse.leave(calls[i])
		l.pool.release()
	}
}

// close waits for signatures, closes all sessions and logs out. If a call is
// stuck in the module nothing is closed, and that is the error.
func (l *link) close(ctx context.Context) error {
	open, ok := l.pool.drain(closeWait)
	if !ok {
		return fmt.Errorf("signatures are still running after %v: %w", closeWait, errStuck)
	}
	if err := l.mod.lock(ctx); err != nil {
		return err
	}
	defer l.mod.unlock()
	if l.mod.epoch.Load() != l.epoch {
		return nil // the sessions died with their epoch
	}
	return l.mod.alone(func() error {
		for _, s := range open {
			l.discard(s)
		}
		_ = l.lib.logout(l.login.handle)       // closing the last session does it too
		_ = l.lib.closeSession(l.login.handle) // and C_Finalize closes what is left
		return nil
	})
}
