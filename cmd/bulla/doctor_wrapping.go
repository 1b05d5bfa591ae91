package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server/config"
)

// wrappingKeysOf returns the wrapping keys of a backend: that of new data keys
// first.
func (d *doctor) wrappingKeysOf(backend string) []doctorKey {
	var keys []doctorKey
	for i, ref := range append([]config.KeyRef{d.cfg.Wrapping.Ref()}, d.cfg.Wrapping.FormerKeys...) {
		if ref.Backend == backend {
			keys = append(keys, doctorKey{ref: ref, wraps: true, former: i > 0, alone: true})
		}
	}
	return keys
}

// wrappingKey opens a wrapping key of a backend that cannot say more of it, and
// has it wrap. Its results are those of key.
func (w *walk) wrappingKey(ctx context.Context, b kms.Backend, k doctorKey) (check string, ok bool) {
	wrapper, err := w.openWrapper(ctx, b, k)
	switch {
	case errors.Is(err, errNoAnswer):
		return checkWrapping, false
	case err != nil:
		w.addKey(checkWrapping, k, failed, err.Error(), w.wrappingAdvice(k, err))
		return "", true
	}
	w.addKey(checkWrapping, k, good, "a key that wraps data keys", "")
	return w.wrapProbe(ctx, wrapper, k)
}

// openWrapper opens a wrapping key, or returns errNoAnswer.
func (d *doctor) openWrapper(ctx context.Context, b kms.Backend, k doctorKey) (kms.Wrapper, error) {
	opener, ok := b.(kms.WrapperOpener)
	if !ok {
		return nil, fmt.Errorf("%w: this backend has no keys that wrap", kms.ErrReference)
	}
	answer := make(chan kms.Wrapper, 1) // not a variable, which a late answer would race for
	err := d.inTime(ctx, func(ctx context.Context) error {
		wrapper, err := opener.OpenWrapper(ctx, k.ref.Ref)
		answer <- wrapper
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-answer, nil
}

// wrapProbe has a wrapping key do what it is for. Its results are those of key.
func (w *walk) wrapProbe(ctx context.Context, wrapper kms.Wrapper, k doctorKey) (check string, ok bool) {
	switch err := w.inTime(ctx, func(ctx context.Context) error { return wrapAndUnwrap(ctx, wrapper) }); {
	case errors.Is(err, errNoAnswer):
		return checkProbe, false
	case err != nil:
		w.addKey(checkProbe, k, failed, err.Error(), w.wrappingAdvice(k, err))
	default:
		w.addKey(checkProbe, k, good, "a random data key was wrapped and unwrapped", "")
		w.wrappers.add(k.ref, wrapper)
	}
	return "", true
}

// wrapAndUnwrap wraps what is like a data key, bound to what is like its id.
func wrapAndUnwrap(ctx context.Context, wrapper kms.Wrapper) error {
	secret, aad := make([]byte, 32), []byte(kms.ProbePrefix+rand.Text())
	_, _ = rand.Read(secret) // never fails
	wrapped, err := wrapper.Wrap(ctx, secret, aad)
	if err != nil {
		return err
	}
	back, err := wrapper.Unwrap(ctx, wrapped, aad)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(back, secret) != 1 {
		return fmt.Errorf("%w: it unwraps something else than it has wrapped", kms.ErrKeyMismatch)
	}
	return nil
}

// wrappingAdvice is what to do about an error of a wrapping key.
func (w *walk) wrappingAdvice(k doctorKey, err error) string {
	if k.former {
		if errors.Is(err, kms.ErrReference) || errors.Is(err, kms.ErrKeyNotFound) || errors.Is(err, kms.ErrKeyMismatch) || errors.Is(err, kms.ErrKeyDisabled) {
			return "what this key has wrapped cannot be read without it, and a new key does not help: bring it back, or correct wrapping.former; remove it there once \"bulla datakey replace\" has been run"
		}
		return keyAdvice(err)
	}
	command := w.wrappingCommand(k)
	switch {
	case errors.Is(err, kms.ErrReference):
		return "correct wrapping.key"
	case errors.Is(err, kms.ErrKeyNotFound):
		return "correct wrapping.key, or make the key: " + command
	case errors.Is(err, kms.ErrKeyMismatch), errors.Is(err, kms.ErrKeyDisabled):
		return "let the key do this, or make one for it and name that in wrapping.key: " + command
	case errors.Is(err, kms.ErrUnwrap):
		return "use another wrapping key: what this one wraps would be lost"
	}
	return keyAdvice(err)
}

// wrappingCommand is how a wrapping key is made.
func (w *walk) wrappingCommand(k doctorKey) string {
	switch c := w.cfg.Backends[w.name]; {
	case c.PKCS11 != nil:
		token, label := "LABEL-OF-THE-TOKEN", "LABEL"
		if c.PKCS11.Token != "" {
			token = quoteShell(c.PKCS11.Token)
		}
		// A label that is written in another way than as it is stays the
		// operator's to fill in.
		for attribute := range strings.SplitSeq(strings.TrimPrefix(k.ref.Ref, "pkcs11:"), ";") {
			if object, is := strings.CutPrefix(attribute, "object="); is && quoteShell(object) == object && !strings.Contains(object, "%") {
				label = object
			}
		}
		return fmt.Sprintf("pkcs11-tool --module %s --token-label %s --login --keygen --key-type AES:32 --sensitive --usage-decrypt --usage-wrap --label %s --id 01",
			quoteShell(c.PKCS11.Module), token, label)
	case c.AWSKMS != nil:
		return fmt.Sprintf("aws kms create-key --region %s --key-usage ENCRYPT_DECRYPT --key-spec SYMMETRIC_DEFAULT; and allow this service's identity kms:Encrypt and kms:Decrypt with it", c.AWSKMS.Region)
	default:
		return `add {"kty":"oct","use":"enc","alg":"A256GCM","kid":"NAME","k":"…"} to the keys in the file, with the output of "openssl rand 32 | basenc --base64url | tr -d =" as k`
	}
}

// openWrappers are the wrapping keys that passed their probes. The sections of
// the backends fill it in side by side.
type openWrappers struct {
	mu   sync.Mutex
	open map[string]kms.Wrapper // by location; guarded by mu
}

func (o *openWrappers) add(ref config.KeyRef, wrapper kms.Wrapper) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == nil {
		o.open = make(map[string]kms.Wrapper)
	}
	o.open[ref.String()] = wrapper
}

func (o *openWrappers) get(location string) kms.Wrapper {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open[location]
}

// dataKeys unwraps the data keys that the store was seen to have. The store is
// closed meanwhile: a service that starts must not have to wait for an HSM.
func (d *doctor) dataKeys(ctx context.Context) []finding {
	d.stored.mu.Lock()
	read, records, broken := d.stored.read, d.stored.records, d.stored.broken
	d.stored.mu.Unlock()
	if !read {
		return nil
	}
	f := finding{Check: "datakeys", Subject: storeName(d.cfg), Outcome: good}
	if broken {
		f.Outcome = failed
		f.Detail = "an import was not completed: there are rows, and none of the data keys that an import writes last, without which nothing of them counts"
		f.Advice = `run "bulla registry import" again, with the same export, before the service is started; if there was no import, somebody has removed the data keys: restore the store from a backup`
		return []finding{f}
	}
	if len(records) == 0 {
		f.Detail = "none yet; the service makes the first when it writes"
		return []finding{f}
	}
	type answer struct {
		list []datakey.Info
		err  error
	}
	a, ok := within(ctx, d.step, func(ctx context.Context) answer {
		list, err := listDataKeys(ctx, d.cfg, records, func(_ context.Context, location string) (kms.Wrapper, error) {
			if wrapper := d.wrappers.get(location); wrapper != nil {
				return wrapper, nil
			}
			return nil, fmt.Errorf("%w: see above", kms.ErrUnavailable)
		})
		return answer{list, err}
	})
	switch {
	case !ok:
		f.Outcome, f.Detail, f.Advice = failed, d.noAnswer(), "see why the backend of the wrapping key does not answer; --timeout allows more time"
		return []finding{f}
	case a.err != nil:
		f.Outcome, f.Detail, f.Advice = failed, a.err.Error(), "see what is said above of the wrapping key"
		return []finding{f}
	}
	return d.judgeDataKeys(f, a.list)
}

// judgeDataKeys says of each data key whether what is written under it can be
// read.
func (d *doctor) judgeDataKeys(f finding, list []datakey.Info) []finding {
	known := newWrappingKeys(d.cfg).refs
	var found []finding
	var fine []string
	current := ""
	for _, k := range list {
		bad := f
		if k.Current {
			current = k.ID
		}
		_, named := known[k.WrappedBy]
		switch {
		case k.Problem == "":
			fine = append(fine, k.ID)
			continue
		case !named:
			bad.Outcome = failed
			bad.Detail = fmt.Sprintf("data key %.40q is said to be wrapped by %.100q, which the configuration does not name", k.ID, k.WrappedBy)
			bad.Advice = "if that was the wrapping key before, name it in wrapping.former: without it what is stored cannot be read; if it never was, somebody has changed the store: restore it from a backup"
		case d.wrappers.get(k.WrappedBy) == nil:
			bad.Outcome = warned
			bad.Detail, bad.Advice = k.ID+" not looked at", "mend first what stands above of "+k.WrappedBy
		default:
			bad.Outcome, bad.Detail, bad.Advice = failed, k.Problem, "somebody may have changed the store: restore it from a backup"
		}
		found = append(found, bad)
	}
	if len(fine) == 0 {
		return found
	}
	f.Detail = fmt.Sprintf("%s: unwrapped; ", strings.Join(fine, ", "))
	switch {
	case current != "":
		f.Detail += current + " is the current one"
	case len(found) == 0:
		f.Outcome = warned
		f.Detail += "none by the wrapping key in wrapping.key"
		f.Advice = "the service makes a new one when it writes; stop it and run \"bulla datakey replace\" to have everything under the new wrapping key"
	default:
		f.Detail += "which is the current one cannot be said"
	}
	return append([]finding{f}, found...)
}
