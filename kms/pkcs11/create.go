package pkcs11

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/kms"
)

// createdIDSize is the length in bytes of CKA_ID of the keys that are made
// here. It is random, so that two keys of one tag, even two made by replicas
// that know nothing of each other, have references of their own.
const createdIDSize = 16

var _ kms.Creator = (*Backend)(nil)

// CreateKey has the token generate a key pair that stays on it and whose
// private half signs and does nothing else. The tag is the label of both
// halves, and the reference is that and a random id:
//
//	object=TAG;id=%8E%1F…
//
// What the token made is read back before it is believed: a private key that
// could be read, or taken out, or do more than sign, is destroyed again and is
// kms.ErrKeyMismatch. So is a key that the token has no mechanism for. A token,
// or a user, that may not create keys is kms.ErrKeyDisabled.
//
// One key is made at a time, on a session of its own, and signatures go on. The
// generation is never repeated after an error, whatever it is: a key may have
// come to be, and FindKeys tells.
func (b *Backend) CreateKey(ctx context.Context, spec kms.KeySpec, tag string) (string, error) {
	if err := b.enter(ctx); err != nil {
		return "", err
	}
	defer b.leave()
	if err := spec.Check(); err != nil {
		return "", err
	}
	if err := kms.CheckTag(tag); err != nil {
		return "", err
	}
	sel, err := b.vault.create(ctx, spec, tag)
	if err != nil {
		return "", err
	}
	return sel.String(), nil
}

// FindKeys returns the private keys on the token that have tag as their label
// and an id such as CreateKey gives, sorted. One that the token says was not made
// in it, or has not always been kept in it, is left out and named in the log:
// who may put a key there must not have it taken for one that was created.
func (b *Backend) FindKeys(ctx context.Context, tag string) ([]string, error) {
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	defer b.leave()
	if err := kms.CheckTag(tag); err != nil {
		return nil, err
	}
	found, err := b.vault.tagged(ctx, tag)
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, sel := range found {
		refs = append(refs, sel.String())
	}
	slices.Sort(refs)
	return refs, nil
}

// generator is how a token is asked for a key pair.
type generator struct {
	mechanism uint        // CKM_…
	public    []attribute // what says which key it is to be
	// domains, if there is more than one, are ways to write the same
	// CKA_EC_PARAMS, of which a module knows one.
	domains [][]byte
	// able are the things beside signing that a key of this type can do by
	// PKCS#11: CKA_DECRYPT and the like.
	able []uint
}

// Values of CKA_EC_PARAMS: the object identifier of the curve, and for Ed25519
// in PKCS#11 v3.0 (section 2.3.10) also its name, which SoftHSM wants.
var (
	paramsP256        = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	paramsP384        = []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}
	paramsP521        = []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}
	paramsEd25519Name = append([]byte{0x13, 0x0c}, "edwards25519"...)
	paramsEd25519     = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
)

// generatorOf is how a key for spec, which was checked, is asked for.
func generatorOf(spec kms.KeySpec) generator {
	switch spec.Algorithm.KeyType() {
	case kms.EC:
		params := map[int][]byte{32: paramsP256, 48: paramsP384, 66: paramsP521}[spec.Algorithm.CoordinateSize()]
		return generator{mechanism: ckmECKeyPairGen, domains: [][]byte{params}, able: []uint{ckaDerive}}
	case kms.OKP:
		return generator{mechanism: ckmECEdwardsKeyPairGen, domains: [][]byte{paramsEd25519Name, paramsEd25519}}
	default:
		return generator{
			mechanism: ckmRSAKeyPairGen,
			public: []attribute{
				{kind: ckaModulusBits, ulong: true, num: uint(spec.Bits())},
				{kind: ckaPublicExponent, bytes: []byte{0x01, 0x00, 0x01}},
			},
			able: []uint{ckaDecrypt, ckaUnwrap, ckaSignRecover},
		}
	}
}

// moreThanSign are the attributes by which a private key does more than sign.
var moreThanSign = []uint{ckaDecrypt, ckaUnwrap, ckaSignRecover, ckaDerive}

// attempts are the pairs of templates to try, in order. Modules differ in what
// they let be said, even if it says nothing: so first all that must not be is
// forbidden, then what the type of key could do, then nothing, which leaves it
// to the module; what came of it is read back in each case.
func (g generator) attempts(sel selector) (attempts []templates) {
	domains := g.domains
	if len(domains) == 0 {
		domains = [][]byte{nil}
	}
	for _, params := range domains {
		public := slices.Clone(g.public)
		if params != nil {
			public = append(public, attribute{kind: ckaECParams, bytes: params})
		}
		name := []attribute{boolean(ckaToken, true), {kind: ckaLabel, bytes: []byte(sel.label)}, {kind: ckaID, bytes: []byte(sel.id)}}
		// That it verifies is left to the module: nobody asks it to, and
		// tpm2-pkcs11 answers CKR_GENERAL_ERROR to CKA_VERIFY.
		public = slices.Concat(public, name)
		private := slices.Concat(name, []attribute{
			boolean(ckaPrivate, true), boolean(ckaSensitive, true), boolean(ckaExtractable, false), boolean(ckaSign, true),
		})
		for i, forbidden := range [][]uint{moreThanSign, g.able, nil} {
			t := templates{public: public, private: slices.Clone(private)}
			for _, kind := range forbidden {
				t.private = append(t.private, boolean(kind, false))
			}
			if i < 2 { // a public key may be read by anybody
				t.public = append(slices.Clone(public), boolean(ckaPrivate, false))
			}
			attempts = append(attempts, t)
		}
	}
	return attempts
}

// templates are those of one C_GenerateKeyPair.
type templates struct{ public, private []attribute }

// refusedTemplate reports that err is the answer to a template, so that no key
// has come to be and another may be tried.
func refusedTemplate(err error) bool {
	for _, c := range []ckr{0x10, 0x12, 0x13, 0xD0, 0xD1, 0x130, 0x140} {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// create is of vault. It is not made to wait for a session of the pool, nor
// does it hold the desk while the token looks for primes.
func (l *link) create(ctx context.Context, spec kms.KeySpec, tag string) (selector, error) {
	select {
	case l.t.makeTurn <- struct{}{}:
	case <-ctx.Done():
		return selector{}, fmt.Errorf("waiting for another key to be made: %w", ctx.Err())
	}
	return aside(ctx, alone, func() (selector, error) {
		defer func() { <-l.t.makeTurn }()
		if err := l.mod.enter(ctx, l.epoch); err != nil {
			return selector{}, err
		}
		defer l.mod.gate.leave()
		call := l.t.making.enter()
		defer l.t.making.leave(call)
		l.mod.generating.Add(1)
		defer l.mod.generating.Add(-1)

		s, err := l.writable(ctx)
		if err != nil {
			return selector{}, err
		}
		defer l.discardWritable(s)
		var id [createdIDSize]byte
		_, _ = rand.Read(id[:]) // never fails
		sel := selector{label: tag, id: string(id[:]), byLabel: true, byID: true}
		if err := ctx.Err(); err != nil { // nobody would hear of the key
			return selector{}, err
		}
		return sel, l.generate(s, spec, sel)
	})
}

// writable opens a session that may create objects, with the user logged in:
// the login is that of all sessions (PKCS#11 v2.40, section 5.6).
func (l *link) writable(ctx context.Context) (*session, error) {
	h, err := l.openFirst(l.lib.openWritable, nil)
	if err != nil {
		if classOf(err) == stale { // what could be fresher?
			err = &goneError{err}
		}
		return nil, withCreateAdvice(err)
	}
	s := &session{handle: h, open: true}
	if err := l.takeDesk(ctx); err != nil {
		l.discardWritable(s)
		return nil, err
	}
	defer l.leaveDesk()
	if err := l.ensureLogin(ctx, nil); err != nil {
		l.discardWritable(s)
		return nil, err
	}
	return s, nil
}

// discardWritable is discard for a session that is not of the pool.
func (l *link) discardWritable(s *session) {
	if !s.dead {
		_ = l.lib.closeSession(s.handle) // it is not used again whatever this says
	}
}

// generate makes the key pair and sees what came of it.
func (l *link) generate(s *session, spec kms.KeySpec, sel selector) error {
	g := generatorOf(spec)
	flags, err := l.lib.mechanismFlags(l.slot, g.mechanism)
	if err != nil {
		return l.spoil(s, err)
	}
	if flags&ckfGenerateKeyPair == 0 {
		return fmt.Errorf("%w: token %q does not make keys for %s (it has no %s); make the key with the token's own tools, or choose another algorithm",
			kms.ErrKeyMismatch, l.info.label, spec.Algorithm, mechanismName(g.mechanism))
	}
	var public, private uint
	for _, t := range g.attempts(sel) {
		public, private, err = l.lib.generateKeyPair(s.handle, g.mechanism, t.public, t.private)
		if err == nil || !refusedTemplate(err) {
			break
		}
		_ = l.t.noted(err)
	}
	switch {
	case err == nil:
	case errors.Is(err, ckrNotSupported):
		return fmt.Errorf("%w: token %q makes no keys by PKCS#11; make the key with the token's own tools: %w", kms.ErrKeyMismatch, l.info.label, err)
	case refusedTemplate(err):
		return fmt.Errorf("%w: token %q does not make a key for %s with the attributes it must have: %w", kms.ErrKeyMismatch, l.info.label, spec.Algorithm, err)
	default:
		err = l.spoil(s, err)
		if classOf(err) == stale {
			if lost := l.probe(s); lost != nil {
				return lost
			}
		}
		return withCreateAdvice(err)
	}
	fault := l.examineCreated(s, spec, public, private)
	if fault == nil {
		return nil
	}
	return errors.Join(fault, l.destroyCreated(s, sel, public, private))
}

// examineCreated reads back what the token has made.
func (l *link) examineCreated(s *session, spec kms.KeySpec, public, private uint) error {
	for _, a := range []struct {
		kind   uint
		want   bool
		silent bool // the module need not know it
		why    string
	}{
		{ckaSensitive, true, false, "it is not sensitive (CKA_SENSITIVE), so its value could be read"},
		{ckaExtractable, false, false, "it is extractable (CKA_EXTRACTABLE), so it could be taken out"},
		{ckaAlwaysSensitive, true, true, "it has not always been sensitive (CKA_ALWAYS_SENSITIVE)"},
		{ckaNeverExtractable, true, true, "it has been extractable (CKA_NEVER_EXTRACTABLE)"},
		{ckaToken, true, false, "it is gone with its session (CKA_TOKEN)"},
		{ckaSign, true, false, "it does not sign (CKA_SIGN)"},
		{ckaPrivate, true, false, "it can be used without a login (CKA_PRIVATE)"},
		{ckaDecrypt, false, true, "it decrypts (CKA_DECRYPT)"},
		{ckaUnwrap, false, true, "it unwraps keys (CKA_UNWRAP)"},
		{ckaSignRecover, false, true, "it signs with recovery (CKA_SIGN_RECOVER)"},
		{ckaDerive, false, true, "it derives keys (CKA_DERIVE)"},
		{ckaAlwaysAuthenticate, false, true, "it asks for the PIN at each signature (CKA_ALWAYS_AUTHENTICATE)"},
	} {
		v, err := l.optional(s, private, a.kind)
		if err != nil {
			return err
		}
		if len(v) == 0 && a.silent {
			continue
		}
		if len(v) != 1 || (v[0] != 0) != a.want {
			return fmt.Errorf("%w: the key that token %q made was not taken, because %s; make the key with the token's own tools", kms.ErrKeyMismatch, l.info.label, a.why)
		}
	}
	pub, err := publicOf(spec.Algorithm.KeyType(), public, func(object, kind uint) ([]byte, error) {
		v, err := l.lib.attribute(s.handle, object, kind)
		return v, l.spoil(s, err)
	})
	if err == nil {
		err = spec.Algorithm.CheckPublic(pub)
	}
	if r, ok := pub.(*rsa.PublicKey); err == nil && ok && (r.N.BitLen() != spec.Bits() || r.E != 65537) {
		err = fmt.Errorf("%w: token %q made an RSA key of %d bits with the exponent %d, and one of %d bits with 65537 was asked for", kms.ErrKeyMismatch, l.info.label, r.N.BitLen(), r.E, spec.Bits())
	}
	var c ckr
	if err != nil && !errors.As(err, &c) && !errors.Is(err, kms.ErrKeyMismatch) {
		err = fmt.Errorf("%w: the public key that token %q made cannot be used: %w", kms.ErrKeyMismatch, l.info.label, err)
	}
	return err
}

// destroyCreated takes a key away that must not be used. The error, if any,
// says that it is still there.
func (l *link) destroyCreated(s *session, sel selector, public, private uint) error {
	var errs []error
	for _, object := range []uint{private, public} {
		if err := l.lib.destroyObject(s.handle, object); err != nil {
			errs = append(errs, l.spoil(s, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("it could not be destroyed either; delete %s on the token: %w", sel, err)
	}
	return nil
}

// withCreateAdvice says what to do about a token that lets no key be made.
func withCreateAdvice(err error) error {
	if errors.Is(err, ckrWriteProtected) || errors.Is(err, ckrReadOnly) {
		return fmt.Errorf("%w; the token cannot be written to: let its user create objects, or make keys with the token's own tools and list them (create: never)", err)
	}
	return err
}

// tagged is of vault.
func (l *link) tagged(ctx context.Context, tag string) ([]selector, error) {
	sel := selector{label: tag, byLabel: true}
	return search(ctx, l, wanted{selector: sel}, func(s *session) ([]selector, error) {
		objects, err := l.lib.find(s.handle, sel.template(ckoPrivateKey))
		if err != nil {
			return nil, l.spoil(s, err)
		}
		if len(objects) == 0 { // a token that is gone says the same
			return nil, l.probe(s)
		}
		var found []selector
		for _, object := range objects {
			id, err := l.optional(s, object, ckaID)
			if err != nil {
				return nil, err
			}
			if len(id) != createdIDSize {
				continue
			}
			one := selector{label: tag, id: string(id), byLabel: true, byID: true}
			why, err := l.planted(s, object)
			if err != nil {
				return nil, err
			}
			if why == "" {
				found = append(found, one)
			} else {
				l.tellPlanted(one, why)
			}
		}
		return found, nil
	})
}

// planted says why a private key is not one that create made, "" if it may be.
//
// A token sets CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE by
// itself (PKCS#11 v2.40, section 4.9): true for a key that was made in it and
// never let out, false for one that was put there. What a module does not know,
// or does not show, is not held against a key. The last two together say all
// there is to say: NSS softokn keeps them rightly, but calls no private key
// local that it made, and any local that was put there by who says so.
func (l *link) planted(s *session, object uint) (why string, err error) {
	kept := 0
	for _, a := range []struct {
		kind uint
		why  string
	}{
		{ckaNeverExtractable, "it has been extractable, or was not made in the token (CKA_NEVER_EXTRACTABLE)"},
		{ckaAlwaysSensitive, "its value could once be read, or it was not made in the token (CKA_ALWAYS_SENSITIVE)"},
		{ckaLocal, "it was not made in the token (CKA_LOCAL)"},
	} {
		v, err := l.optional(s, object, a.kind)
		switch {
		case err != nil:
			return "", err
		case len(v) != 1 || a.kind == ckaLocal && kept == 2:
		case v[0] == 0:
			return a.why, nil
		default:
			kept++
		}
	}
	return "", nil
}

// maxTold bounds how many planted keys are remembered to have been told of.
const maxTold = 1024

// tellPlanted logs a key that was put on the token under the tag of another,
// once. The caller holds the desk.
func (l *link) tellPlanted(sel selector, why string) {
	if l.told[sel] || len(l.told) >= maxTold {
		return
	}
	l.told[sel] = true
	l.t.cfg.Logger.Warn("a private key on the token has the tag and the form of a key that was created here, but was not; it is not used. Find out who put it there, and delete it",
		"token", l.info.label, "serial", l.info.serial, "key", sel.String(), "why", why)
}

func (t *token) create(ctx context.Context, spec kms.KeySpec, tag string) (selector, error) {
	var before error // of the first time: a key may have come to be
	return use(ctx, t, true, func(l *link) (selector, error) {
		if before != nil {
			return selector{}, before
		}
		sel, err := l.create(ctx, spec, tag)
		if !errors.Is(err, errEpoch) { // which comes before the generation
			before = err
		}
		return sel, err
	})
}

func (t *token) tagged(ctx context.Context, tag string) ([]selector, error) {
	return use(ctx, t, true, func(l *link) ([]selector, error) { return l.tagged(ctx, tag) })
}
