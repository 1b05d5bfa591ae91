package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/config"
)

// doctorKey is a key that the configuration names.
type doctorKey struct {
	ref       config.KeyRef
	algorithm kms.Algorithm // of a signing key
	// alone is false if the key has to be compared with others: its other
	// locations, or the key of the audit log.
	alone bool

	wraps  bool // it is a wrapping key
	former bool // and wraps nothing new
	audits bool // it signs the audit log
}

// check is what the finding of the key is called.
func (k doctorKey) check() string {
	if k.wraps {
		return checkWrapping
	}
	return checkKey
}

// The checks of a key, after what the package of its backend calls them.
const (
	checkKey      = "key"
	checkWrapping = "wrapping"
	checkProbe    = "probe"
)

// keysOf returns the keys of a backend, in the order of the configuration:
// those that sign tokens, then that of the audit log, then those that wrap.
func (d *doctor) keysOf(backend string) []doctorKey {
	var keys []doctorKey
	for _, i := range d.cfg.Issuers {
		for _, k := range i.SigningKeys {
			for _, ref := range k.Keys {
				known := slices.IndexFunc(keys, func(k doctorKey) bool { return k.ref == ref })
				switch {
				case ref.Backend != backend:
				case known < 0:
					keys = append(keys, doctorKey{ref: ref, algorithm: k.Algorithm, alone: len(k.Keys) == 1 && d.cfg.Audit.Checkpoint == nil})
				case len(k.Keys) > 1:
					keys[known].alone = false
				}
			}
		}
	}
	if c := d.cfg.Audit.Checkpoint; c != nil && c.Key.Backend == backend {
		keys = append(keys, doctorKey{ref: c.Key, algorithm: c.Algorithm, audits: true})
	}
	return append(keys, d.wrappingKeysOf(backend)...)
}

// backend goes from the opening of a backend to a signature by each key, and a
// wrapped data key. Each
// step is bounded by itself.
func (d *doctor) backend(ctx context.Context, name string) []finding {
	w := &walk{doctor: d, name: name, keys: d.keysOf(name)}
	c := d.cfg.Backends[name]
	if c.PKCS11 != nil {
		w.pkcs11(ctx, c.PKCS11)
	} else {
		w.other(ctx, c)
	}
	return w.found
}

// walk is the way through one backend.
type walk struct {
	*doctor
	name  string
	keys  []doctorKey
	found []finding
}

// add notes a finding about the backend.
func (w *walk) add(check string, o outcome, detail, advice string) {
	w.found = append(w.found, finding{Check: check, Subject: w.name, Outcome: o, Detail: detail, Advice: advice, backend: w.name})
}

// addKey notes a finding about one of its keys.
func (w *walk) addKey(check string, k doctorKey, o outcome, detail, advice string) {
	w.found = append(w.found, finding{Check: check, Subject: k.ref.String(), Outcome: o, Detail: detail, Advice: advice, backend: w.name})
}

// hung notes a step that did not come back.
func (w *walk) hung(ctx context.Context, check string, keys []doctorKey) {
	detail, advice := w.noAnswer(), "see why the module, the token or the network does not answer; --timeout allows more time"
	if ctx.Err() != nil {
		detail, advice = fmt.Sprintf("the doctor's time of %v was over before this was done", w.timeout), "allow more with --timeout"
	}
	if len(keys) > 0 {
		w.addKey(check, keys[0], failed, detail, advice)
		w.leaveOut(keys[1:])
		return
	}
	w.add(check, failed, detail, advice)
	w.leaveOut(w.keys)
}

// leaveOut notes the keys that were not looked at, because of what stands
// above.
func (w *walk) leaveOut(keys []doctorKey) {
	if len(keys) == 0 {
		return
	}
	var refs []string
	for _, k := range keys {
		refs = append(refs, k.ref.String())
	}
	w.add(checkKey, warned, strings.Join(refs, ", ")+" not looked at", "mend what stands above first")
}

// openedBackend is what the opening of a backend came to.
type openedBackend[B kms.Backend] struct {
	backend B
	err     error
}

// other is the walk through AWS KMS, or through a file.
func (w *walk) other(ctx context.Context, c config.Backend) {
	open, reach := "file", "file"
	detail, advice := "", "correct the file, or make keys in another"
	if c.AWSKMS != nil {
		open, reach = "region", "service"
		detail, advice = "AWS KMS answers in "+c.AWSKMS.Region+" and knows the credentials", "correct the backend in the configuration, and what the environment says to the AWS SDK"
	}
	o, ok := within(ctx, w.step, func(ctx context.Context) openedBackend[kms.Backend] {
		b, err := new(backends).open(ctx, w.name, c, "", nil, slog.New(slog.DiscardHandler))
		return openedBackend[kms.Backend]{b, err}
	})
	if !ok {
		w.hung(ctx, open, nil)
		return
	}
	if o.err != nil {
		w.add(open, failed, o.err.Error(), advice)
		w.leaveOut(w.keys)
		return
	}
	w.keep(o.backend)
	if c.AWSKMS != nil {
		w.add(open, good, c.AWSKMS.Region, "")
	} else {
		detail = c.Local.Path + ": private keys in the clear"
	}
	switch err := w.inTime(ctx, o.backend.Check); {
	case errors.Is(err, errNoAnswer):
		w.hung(ctx, reach, nil)
		return
	case err != nil:
		w.add(reach, failed, err.Error(), "see that the backend can be reached and lets this process in")
		w.leaveOut(w.keys)
		return
	}
	w.add(reach, good, detail, "")
	for i, k := range w.keys {
		look := w.key
		if k.wraps {
			look = w.wrappingKey
		}
		if check, ok := look(ctx, o.backend, k); !ok {
			w.hung(ctx, check, w.keys[i:])
			return
		}
	}
}

// key opens a key and has it sign a probe. If that hangs, ok is false and
// check is the step at which it does.
func (w *walk) key(ctx context.Context, b kms.Backend, k doctorKey) (check string, ok bool) {
	key, err := w.openKey(ctx, b, k)
	switch {
	case errors.Is(err, errNoAnswer):
		return checkKey, false
	case err != nil:
		w.addKey(checkKey, k, failed, err.Error(), k.advice(err))
		return "", true
	}
	w.addKey(checkKey, k, good, describeKey(key.Public())+" for "+string(k.algorithm), "")
	switch err := w.inTime(ctx, func(ctx context.Context) error { return signProbe(ctx, key) }); {
	case errors.Is(err, errNoAnswer):
		return checkProbe, false
	case err != nil:
		w.addKey(checkProbe, k, failed, err.Error(), k.advice(err))
	default:
		w.addKey(checkProbe, k, good, fmt.Sprintf("a signature with %s verifies", k.algorithm), "")
		w.proofs.add(k.ref, key.Public())
	}
	return "", true
}

// openKey opens a key, or returns errNoAnswer.
func (d *doctor) openKey(ctx context.Context, b kms.Backend, k doctorKey) (kms.Key, error) {
	answer := make(chan kms.Key, 1) // not a variable, which a late answer would race for
	err := d.inTime(ctx, func(ctx context.Context) error {
		key, err := b.OpenKey(ctx, k.ref.Ref, k.algorithm)
		answer <- key
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-answer, nil
}

// signProbe has key sign a probe, and verifies the signature.
func signProbe(ctx context.Context, key kms.Key) error {
	message := []byte(kms.ProbePrefix + rand.Text())
	signature, err := key.Sign(ctx, message)
	if err != nil {
		return err
	}
	if err := kms.Verify(key.Algorithm(), key.Public(), message, signature); err != nil {
		return fmt.Errorf("%w: the %w with the key's own public half", kms.ErrKeyMismatch, err)
	}
	return nil
}

// advice is what to do about an error of the key.
func (k doctorKey) advice(err error) string {
	text := keyAdvice(err)
	if k.audits {
		text = strings.Replace(text, "the key's location in signing_keys", "audit.checkpoint.key", 1)
	}
	return text
}

// keyAdvice is what to do about an error of a key.
func keyAdvice(err error) string {
	for _, a := range []struct {
		err    error
		advice string
	}{
		{kms.ErrReference, "correct the key's location in signing_keys"},
		{kms.ErrKeyNotFound, "correct the key's location in signing_keys, or create the key"},
		{kms.ErrKeyMismatch, "use a key that fits the algorithm, or the algorithm that fits the key"},
		{kms.ErrKeyDisabled, "let the key sign, or use one that may"},
		{kms.ErrThrottled, "run the doctor again in a moment, or ask for a higher quota"},
	} {
		if errors.Is(err, a.err) {
			return a.advice
		}
	}
	return "see whether the backend can be reached, and run the doctor again"
}

func describeKey(public crypto.PublicKey) string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA key of %d bits", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "key on " + k.Curve.Params().Name
	}
	return "Ed25519 key"
}

// keyProofs collects the public keys that signed their probes. The sections of
// the backends fill it in side by side.
type keyProofs struct {
	mu     sync.Mutex
	public map[config.KeyRef]publicKey // guarded by mu
}

// publicKey is what all public keys of package crypto can do.
type publicKey interface{ Equal(crypto.PublicKey) bool }

// add notes the public key of a key that has signed.
func (p *keyProofs) add(ref config.KeyRef, public crypto.PublicKey) {
	k, ok := public.(publicKey)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.public == nil {
		p.public = make(map[config.KeyRef]publicKey)
	}
	p.public[ref] = k
}

// compare looks whether the locations of one signing key hold the same key
// pair. Those that did not sign are told of already.
func (p *keyProofs) compare(cfg *config.Config) []finding {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []finding
	for _, i := range cfg.Issuers {
		for _, k := range i.SigningKeys {
			if len(k.Keys) < 2 {
				continue
			}
			f := finding{Check: "locations", Subject: fmt.Sprintf("%s %s", i.Name, k.Algorithm), Outcome: good}
			var first config.KeyRef
			n := 0
			for _, ref := range k.Keys {
				public := p.public[ref]
				switch {
				case public == nil:
				case n == 0:
					first, n = ref, 1
				case !p.public[first].Equal(public):
					f.Outcome = failed
					f.Detail = fmt.Sprintf("%s and %s hold different key pairs", first, ref)
					f.Advice = "copy one key pair to all locations, or list different keys apart"
				default:
					n++
				}
			}
			if f.Outcome == good {
				f.Detail = fmt.Sprintf("%d of %d hold the same key pair", n, len(k.Keys))
				if n < len(k.Keys) {
					f.Outcome, f.Advice = warned, "mend the others: the service takes the next location only when it opens the key, at a start or after a loss"
				}
			}
			found = append(found, f)
		}
	}
	return append(found, p.compareAudit(cfg)...)
}

// compareAudit looks whether the key of the audit log signs tokens too, under
// another name. The caller holds p.mu.
func (p *keyProofs) compareAudit(cfg *config.Config) []finding {
	if cfg.Audit.Checkpoint == nil || p.public[cfg.Audit.Checkpoint.Key] == nil {
		return nil
	}
	ref := cfg.Audit.Checkpoint.Key
	for _, other := range sortedRefs(p.public) {
		if other != ref && p.public[other].Equal(p.public[ref]) {
			return []finding{{
				Check: checkKey, Subject: ref.String(), Outcome: failed, Detail: fmt.Sprintf("it is the key pair of %s, which signs tokens", other),
				Advice: "make a key that does nothing but sign the audit log, and name it in audit.checkpoint.key",
			}}
		}
	}
	return nil
}

func sortedRefs(keys map[config.KeyRef]publicKey) []config.KeyRef {
	return slices.SortedFunc(maps.Keys(keys), func(a, b config.KeyRef) int { return strings.Compare(a.String(), b.String()) })
}
