package datakey_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
)

// keys returns the data keys of a store, as a process that starts has them.
func keys(t *testing.T, s datakey.Store, w *datakeytest.Wrapper, edit ...func(*datakey.Config)) *datakey.Keys {
	t.Helper()
	cfg := datakeytest.Config(w)
	cfg.Store = s
	for _, f := range edit {
		f(&cfg)
	}
	k, err := datakey.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func logTo(b *bytes.Buffer) func(*datakey.Config) {
	return func(c *datakey.Config) { c.Logger = slog.New(slog.NewTextHandler(b, nil)) }
}

func seal(t *testing.T, k *datakey.Keys, plaintext, aad string) (string, []byte) {
	t.Helper()
	id, sealed, err := k.Seal(t.Context(), []byte(plaintext), []byte(aad))
	if err != nil {
		t.Fatal(err)
	}
	return id, sealed
}

func wantOpen(t *testing.T, k *datakey.Keys, id string, sealed []byte, aad, want string) {
	t.Helper()
	got, err := k.Open(t.Context(), id, sealed, []byte(aad))
	if err != nil || string(got) != want {
		t.Errorf("Open under %s: got %q, %v; want %q", id, got, err, want)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
	for _, other := range []error{datakey.ErrTampered, datakey.ErrUnavailable} {
		if !errors.Is(want, other) && errors.Is(err, other) {
			t.Errorf("%s: %v is also %v", what, err, other)
		}
	}
}

func replace(t *testing.T, k *datakey.Keys) string {
	t.Helper()
	id, err := k.Replace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestOnlyWhatWasSealedOpens(t *testing.T) {
	k := keys(t, datakeytest.NewStore(), datakeytest.NewWrapper())
	id, sealed := seal(t, k, "secret", "aad")
	wantOpen(t, k, id, sealed, "aad", "secret")
	other := replace(t, k)
	for name, tc := range map[string]struct {
		id     string
		sealed []byte
		aad    string
	}{
		"other aad":     {id, sealed, "aae"},
		"other key":     {other, sealed, "aad"},
		"unknown key":   {"dk-77", sealed, "aad"},
		"no key":        {"", sealed, "aad"},
		"first changed": {id, append([]byte{sealed[0] ^ 1}, sealed[1:]...), "aad"},
		"last changed":  {id, append(slices.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1), "aad"},
		"cut short":     {id, sealed[:len(sealed)-1], "aad"},
		"very short":    {id, sealed[:3], "aad"},
		"empty":         {id, nil, "aad"},
	} {
		_, err := k.Open(t.Context(), tc.id, tc.sealed, []byte(tc.aad))
		wantErr(t, name, err, datakey.ErrTampered)
	}
}

func TestMACHoldsEachPartInItsPlace(t *testing.T) {
	k := keys(t, datakeytest.NewStore(), datakeytest.NewWrapper())
	id, mac, err := k.MAC(t.Context(), []byte("ab"), []byte("c"))
	if err != nil || len(mac) != 32 {
		t.Fatalf("got %d bytes, %v", len(mac), err)
	}
	if err := k.Verify(t.Context(), id, mac, []byte("ab"), []byte("c")); err != nil {
		t.Error(err)
	}
	other := replace(t, k)
	for name, err := range map[string]error{
		"moved border": k.Verify(t.Context(), id, mac, []byte("a"), []byte("bc")),
		"fewer parts":  k.Verify(t.Context(), id, mac, []byte("abc")),
		"more parts":   k.Verify(t.Context(), id, mac, []byte("ab"), []byte("c"), nil),
		"other order":  k.Verify(t.Context(), id, mac, []byte("c"), []byte("ab")),
		"other key":    k.Verify(t.Context(), other, mac, []byte("ab"), []byte("c")),
		"short MAC":    k.Verify(t.Context(), id, mac[:31], []byte("ab"), []byte("c")),
		"no MAC":       k.Verify(t.Context(), id, nil, []byte("ab"), []byte("c")),
	} {
		wantErr(t, name, err, datakey.ErrTampered)
	}
}

// fixed is a wrapper that knows one data key: 00 01 02 … 1f.
type fixed struct{}

func (fixed) Wrap(context.Context, []byte, []byte) ([]byte, error) {
	return nil, kms.ErrKeyDisabled
}

func (fixed) Unwrap(context.Context, []byte, []byte) ([]byte, error) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	return key, nil
}

// What is stored must open after any change of this code. The values come from
// Python: hmac, hashlib, and AESGCM of the package cryptography.
func TestStoredFormsAreThoseOfOtherImplementations(t *testing.T) {
	s := datakeytest.NewStore()
	if err := s.AddDataKey(t.Context(), datakey.Record{ID: "dk-1", Wrapped: []byte("x"), WrappedBy: datakeytest.Location}); err != nil {
		t.Fatal(err)
	}
	k := keys(t, s, nil, func(c *datakey.Config) {
		c.Open = func(context.Context, string) (kms.Wrapper, error) { return fixed{}, nil }
	})
	_, mac, err := k.MAC(t.Context(), []byte("one"), nil, []byte("three"))
	if want := "2a55bf142fa6f962a9d7b4499e30940b6585833b9bf98bd7726489c616eadf3b"; err != nil || hex.EncodeToString(mac) != want {
		t.Errorf("got MAC %x, %v; want %s", mac, err, want)
	}
	sealed, err := hex.DecodeString("6465666768696a6b6c6d6e6feefe87e7d9fce1a10aeefab73b4c3c18933289501e5df6663c37b6b3653803e5b5")
	if err != nil {
		t.Fatal(err)
	}
	wantOpen(t, k, "dk-1", sealed, "aad", "a client's secret")
}

func TestWarmPathAsksNobody(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w)
	id, sealed := seal(t, k, "secret", "aad")
	reads, calls := s.Reads(), w.Calls()
	s.Fail(errors.New("down"))
	w.SetDown(true)
	for range 100 {
		wantOpen(t, k, id, sealed, "aad", "secret")
		seal(t, k, "other", "")
		_, mac, err := k.MAC(t.Context(), []byte("x"))
		if err != nil || k.Verify(t.Context(), id, mac, []byte("x")) != nil {
			t.Fatal("MAC")
		}
	}
	if s.Reads() != reads || w.Calls() != calls {
		t.Errorf("got %d reads of the store and %d calls of the backend, want none", s.Reads()-reads, w.Calls()-calls)
	}
}

func TestReplicasThatStartAtOnceAgreeOnOneKey(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		ids = map[string]bool{} // guarded by mu
	)
	for range 8 {
		k := keys(t, s, w)
		for range 4 {
			wg.Go(func() {
				id, mac, err := k.MAC(context.Background(), []byte("x"))
				if err == nil {
					err = k.Verify(context.Background(), id, mac, []byte("x"))
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				ids[id] = true
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	if len(ids) != 1 || len(s.Snapshot()) != 1 {
		t.Errorf("got ids %v and %d records, want one", ids, len(s.Snapshot()))
	}
}

func TestReplicasThatReplaceAtOnceAgreeOnOneKey(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	first, _ := seal(t, keys(t, s, w), "", "")
	var wg sync.WaitGroup
	for range 6 {
		k := keys(t, s, w)
		wg.Go(func() {
			if id, err := k.Replace(context.Background()); err != nil || id == first {
				t.Errorf("got %s, %v; want a new key", id, err)
			}
		})
	}
	wg.Wait()
	var now []string
	for range 3 {
		id, _ := seal(t, keys(t, s, w), "", "")
		now = append(now, id)
	}
	if now[0] == first || now[0] != now[1] || now[1] != now[2] {
		t.Errorf("got current keys %v after %s, want one new one", now, first)
	}
}

func TestBackendThatIsDownIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
		id, sealed := seal(t, keys(t, s, w), "secret", "")
		w.SetDown(true)
		k := keys(t, s, w)
		_, err := k.Open(t.Context(), id, sealed, nil)
		wantErr(t, "Open", err, datakey.ErrUnavailable)
		if !errors.Is(err, kms.ErrUnavailable) {
			t.Errorf("got %v, want it to wrap the backend's error", err)
		}
		if _, _, err := k.Seal(t.Context(), nil, nil); !errors.Is(err, datakey.ErrUnavailable) {
			t.Errorf("Seal: got %v, want ErrUnavailable", err)
		}
		if k.Ready() {
			t.Error("Ready without any key")
		}
		calls := w.Calls()
		for range 100 {
			_, _ = k.Open(t.Context(), id, sealed, nil)
		}
		if n := w.Calls() - calls; n != 0 {
			t.Errorf("%d calls of a backend that has just failed, want none", n)
		}
		w.SetDown(false)
		time.Sleep(time.Second)
		wantOpen(t, k, id, sealed, "", "secret")
		if again, _ := seal(t, k, "", ""); again != id || !k.Ready() {
			t.Errorf("got key %s, ready %t; want %s", again, k.Ready(), id)
		}
	})
}

func TestStoreThatIsDownIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
		id, sealed := seal(t, keys(t, s, w), "secret", "")
		k, down := keys(t, s, w), errors.New("disk")
		s.Fail(down)
		_, err := k.Open(t.Context(), id, sealed, nil)
		wantErr(t, "Open", err, datakey.ErrUnavailable)
		if !errors.Is(err, down) {
			t.Errorf("got %v, want it to wrap the store's error", err)
		}
		_, err = k.Replace(t.Context())
		wantErr(t, "Replace", err, datakey.ErrUnavailable)
		s.Fail(nil)
		time.Sleep(time.Second)
		wantOpen(t, k, id, sealed, "", "secret")
	})
}

// slow is a wrapper that answers nobody.
type slow struct{ kms.Wrapper }

func (slow) Unwrap(ctx context.Context, _, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("%w: %w", kms.ErrUnavailable, ctx.Err())
}

func TestBackendThatHangsHoldsNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
		id, sealed := seal(t, keys(t, s, w), "secret", "")
		hangs := true
		k := keys(t, s, w, func(c *datakey.Config) {
			c.Open = func(context.Context, string) (kms.Wrapper, error) {
				if hangs {
					return slow{w}, nil
				}
				return w, nil
			}
		})
		began := time.Now()
		go func() { _, _ = k.Open(context.Background(), id, sealed, nil) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := k.Open(ctx, id, sealed, nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("one who waits a second: got %v after %s", err, time.Since(began))
		}
		_, err = k.Open(context.Background(), id, sealed, nil)
		wantErr(t, "one who waits", err, datakey.ErrUnavailable)
		if took := time.Since(began); took > 21*time.Second {
			t.Errorf("it took %s", took)
		}
		hangs = false
		time.Sleep(time.Second)
		wantOpen(t, k, id, sealed, "", "secret")
	})
}

// One whose caller leaves must not make the others wait for the next try.
func TestCallerWhoLeavesSpoilsNothing(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	id, sealed := seal(t, keys(t, s, w), "secret", "")
	k := keys(t, s, w)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := k.Open(ctx, id, sealed, nil)
	wantErr(t, "Open", err, context.Canceled)
	wantOpen(t, k, id, sealed, "", "secret")
}

func TestReplacedKeyStillOpensAndNothingNewIsUnderIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
		a, b := keys(t, s, w), keys(t, s, w)
		first, sealed := seal(t, a, "secret", "")
		seal(t, b, "", "")
		second := replace(t, a)
		if now, err := a.Current(t.Context()); err != nil || now != second || second == first {
			t.Errorf("got current %s, %v; want %s, another than %s", now, err, second, first)
		}
		wantOpen(t, a, first, sealed, "", "secret")
		// The other replica can read at once, and writes under it in a minute.
		newer, sealedNew := seal(t, a, "new", "")
		wantOpen(t, b, newer, sealedNew, "", "new")
		time.Sleep(time.Minute)
		if id, _ := seal(t, b, "", ""); id != second {
			t.Errorf("the other replica seals under %s after a minute, want %s", id, second)
		}
	})
}

func TestRetiredKeyIsUnknown(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w)
	first, sealed := seal(t, k, "secret", "")
	wantErr(t, "Retire of the current key", k.Retire(t.Context(), first), datakey.ErrInUse)
	second := replace(t, k)
	s.SetInUse(first, true)
	wantErr(t, "Retire of a key in use", k.Retire(t.Context(), first), datakey.ErrInUse)
	wantOpen(t, k, first, sealed, "", "secret")
	s.SetInUse(first, false)
	if err := k.Retire(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	_, err := k.Open(t.Context(), first, sealed, nil)
	wantErr(t, "Open under a retired key", err, datakey.ErrTampered)
	wantErr(t, "Retire again", k.Retire(t.Context(), first), datakey.ErrNotFound)
	list, err := k.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != second || !list[0].Current || list[0].Problem != "" {
		t.Errorf("List: got %+v, %v", list, err)
	}
}

// moved returns the configuration of one who names another wrapping key.
func moved(from, to *datakeytest.Wrapper, former ...string) func(*datakey.Config) {
	return func(c *datakey.Config) {
		c.Location, c.Former = "test:wrap-2", former
		c.Open = func(_ context.Context, location string) (kms.Wrapper, error) {
			return map[string]kms.Wrapper{datakeytest.Location: from, "test:wrap-2": to}[location], nil
		}
	}
}

func TestNewWrappingKeyBringsANewDataKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w1, w2 := datakeytest.NewStore(), datakeytest.NewWrapper(), datakeytest.NewWrapper()
		old, sealed := seal(t, keys(t, s, w1), "secret", "")
		k := keys(t, s, w1, moved(w1, w2, datakeytest.Location))
		id, sealedNew := seal(t, k, "new", "")
		if id == old {
			t.Fatalf("still under %s", id)
		}
		wantOpen(t, k, old, sealed, "", "secret")

		// The old wrapping key is down: the new one does.
		w1.SetDown(true)
		k = keys(t, s, w1, moved(w1, w2, datakeytest.Location))
		wantOpen(t, k, id, sealedNew, "", "new")
		if again, _ := seal(t, k, "", ""); again != id {
			t.Errorf("got key %s, want %s", again, id)
		}
		_, err := k.Open(t.Context(), old, sealed, nil)
		wantErr(t, "Open under the key that is down", err, datakey.ErrUnavailable)

		// Who does not name the old one accepts nothing of it.
		w1.SetDown(false)
		var log bytes.Buffer
		k = keys(t, s, w1, moved(w1, w2), logTo(&log))
		_, err = k.Open(t.Context(), old, sealed, nil)
		wantErr(t, "Open without naming the old wrapping key", err, datakey.ErrTampered)
		if !strings.Contains(fmt.Sprint(err), "name it as a former one") || !strings.Contains(log.String(), "former") {
			t.Errorf("got error %q and log %q, want the advice", err, log.String())
		}
		// A fleet that is half configured does not fight over the current key.
		if again, _ := seal(t, keys(t, s, w1), "", ""); again != old {
			t.Errorf("who names the old wrapping key seals under %s, want %s", again, old)
		}
	})
}

func TestNobodyBringsInADataKey(t *testing.T) {
	ctx := t.Context()
	foreign := datakeytest.NewStore()
	evil := keys(t, foreign, datakeytest.NewWrapper())
	seal(t, evil, "", "")
	for range 7 {
		replace(t, evil)
	}
	evilKey := foreign.Snapshot()["dk-8"]

	tests := map[string]func(records map[string]datakey.Record){
		"one of another wrapping key": func(r map[string]datakey.Record) { r["dk-8"] = evilKey },
		"one that names another backend": func(r map[string]datakey.Record) {
			k := evilKey
			k.WrappedBy = "dev:mine"
			r["dk-8"] = k
		},
		"an old one with a new number": func(r map[string]datakey.Record) {
			old := r["dk-1"]
			old.ID = "dk-8"
			r["dk-8"] = old
		},
		"one without anything": func(r map[string]datakey.Record) { r["dk-8"] = datakey.Record{ID: "dk-8"} },
		"the highest number": func(r map[string]datakey.Record) {
			k := evilKey
			k.ID = "dk-18446744073709551615"
			r[k.ID] = k
		},
		"ids that are none": func(r map[string]datakey.Record) {
			for _, id := range []string{"", "dk-", "dk-0", "dk-03", "dk--1", "dk-18446744073709551616", "3", "DK-3", "dk-3 "} {
				r[id] = datakey.Record{ID: id, Wrapped: r["dk-2"].Wrapped, WrappedBy: r["dk-2"].WrappedBy, CreatedAt: r["dk-2"].CreatedAt}
			}
		},
	}
	for name, attack := range tests {
		t.Run(name, func(t *testing.T) {
			s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
			k := keys(t, s, w)
			_, sealed := seal(t, k, "secret", "")
			if id := replace(t, k); id != "dk-2" {
				t.Fatalf("got %s", id)
			}
			s.Tamper(attack)
			var log bytes.Buffer
			fresh := keys(t, s, w, logTo(&log))
			for _, k := range []*datakey.Keys{fresh, k} {
				if err := k.Reload(ctx); err != nil {
					t.Fatal(err)
				}
				if id, err := k.Current(ctx); id != "dk-2" || err != nil {
					t.Errorf("got current %s, %v; want dk-2", id, err)
				}
				wantOpen(t, k, "dk-1", sealed, "", "secret")
			}
			for id := range s.Snapshot() {
				if id != "dk-1" && id != "dk-2" {
					err := fresh.Verify(ctx, id, make([]byte, 32))
					wantErr(t, "Verify under "+id, err, datakey.ErrTampered)
				}
			}
			if !strings.Contains(log.String(), "ERROR") {
				t.Errorf("no alarm: %s", log.String())
			}
			if id := replace(t, fresh); id != "dk-3" && id != "dk-9" {
				t.Errorf("Replace: got %s, want the next number", id)
			}
			again := keys(t, s, w)
			if id, err := again.Current(ctx); id != "dk-3" && id != "dk-9" || err != nil {
				t.Errorf("after Replace: got current %s, %v", id, err)
			}
		})
	}
}

func TestChangedRecordDoesNotOpen(t *testing.T) {
	for name, change := range map[string]func(*datakey.Record){
		"wrapped": func(r *datakey.Record) { r.Wrapped = append([]byte{r.Wrapped[0] ^ 1}, r.Wrapped[1:]...) },
		"time":    func(r *datakey.Record) { r.CreatedAt = r.CreatedAt.Add(time.Microsecond) },
		"short":   func(r *datakey.Record) { r.Wrapped = r.Wrapped[:5] },
		"long":    func(r *datakey.Record) { r.Wrapped = make([]byte, 10_000) },
	} {
		t.Run(name, func(t *testing.T) {
			s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
			held := keys(t, s, w)
			id, sealed := seal(t, held, "secret", "")
			s.Tamper(func(records map[string]datakey.Record) {
				r := records[id]
				change(&r)
				records[id] = r
			})
			fresh := keys(t, s, w)
			_, err := fresh.Open(t.Context(), id, sealed, nil)
			wantErr(t, "Open", err, datakey.ErrTampered)
			// New things are written under a new key, of another number.
			if now, _ := seal(t, fresh, "", ""); now == id {
				t.Errorf("sealed under %s", now)
			}
			// A process that has the key is not shaken.
			if err := held.Reload(t.Context()); err != nil {
				t.Error(err)
			}
			wantOpen(t, held, id, sealed, "", "secret")
		})
	}
}

func TestRunningProcessNeverGoesBackToAnOlderKey(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	var log bytes.Buffer
	k := keys(t, s, w, logTo(&log))
	seal(t, k, "", "")
	earlier := s.Snapshot()
	second := replace(t, k)
	s.Tamper(func(records map[string]datakey.Record) {
		clear(records)
		maps.Copy(records, earlier)
	})
	if err := k.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id, err := k.Current(t.Context()); err != nil || id != second {
		t.Errorf("got current %s, %v; want %s still", id, err, second)
	}
	if !strings.Contains(log.String(), "gone from the store") {
		t.Errorf("got log %q, want an alarm", log.String())
	}
}

// Else whoever can make the backend fail could undo a replacement.
func TestNothingIsWrittenUnderAnOlderKeyWhileTheNewestCannotBeHad(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w)
	first, sealed := seal(t, k, "secret", "")
	second := replace(t, k)
	newest := s.Snapshot()[second]
	fresh := keys(t, s, w, func(c *datakey.Config) {
		c.Open = func(context.Context, string) (kms.Wrapper, error) { return &fails{w, newest.Wrapped}, nil }
	})
	wantOpen(t, fresh, first, sealed, "", "secret")
	_, _, err := fresh.Seal(t.Context(), nil, nil)
	wantErr(t, "Seal", err, datakey.ErrUnavailable)
}

// fails is a wrapper that is down for one wrapped key.
type fails struct {
	kms.Wrapper
	wrapped []byte
}

func (f *fails) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if bytes.Equal(wrapped, f.wrapped) {
		return nil, kms.ErrThrottled
	}
	return f.Wrapper.Unwrap(ctx, wrapped, aad)
}

// lossy is a wrapper that does not give back what it was given.
type lossy struct{ kms.Wrapper }

func (l lossy) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	key, err := l.Wrapper.Unwrap(ctx, wrapped, aad)
	key[0] ^= 1
	return key, err
}

func TestKeyThatDoesNotComeBackIsNotUsed(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w, func(c *datakey.Config) {
		c.Open = func(context.Context, string) (kms.Wrapper, error) { return lossy{w}, nil }
	})
	_, _, err := k.Seal(t.Context(), nil, nil)
	wantErr(t, "Seal", err, datakey.ErrUnavailable)
	if n := len(s.Snapshot()); n != 0 {
		t.Errorf("%d records were stored, want none", n)
	}
}

func TestStoreFullOfDataKeysIsRefused(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	first, sealed := seal(t, keys(t, s, w), "secret", "")
	s.Tamper(func(records map[string]datakey.Record) {
		for i := range 100_000 {
			id := fmt.Sprintf("dk-%d", i+2)
			records[id] = datakey.Record{ID: id, Wrapped: []byte(id), WrappedBy: datakeytest.Location}
		}
	})
	calls := w.Calls()
	k := keys(t, s, w)
	_, _, err := k.Seal(t.Context(), nil, nil)
	wantErr(t, "Seal", err, datakey.ErrUnavailable)
	_, err = k.List(t.Context())
	wantErr(t, "List", err, datakey.ErrUnavailable)
	wantErr(t, "Retire", k.Retire(t.Context(), "dk-2"), datakey.ErrUnavailable)
	if !strings.Contains(fmt.Sprint(err), "100001 data keys") {
		t.Errorf("got %q, want their number in it", err)
	}
	if w.Calls() != calls {
		t.Error("the backend was asked")
	}
	wantOpen(t, k, first, sealed, "", "secret") // one key, one call
}

// What the service makes itself must never come near the limit of what it
// reads.
func TestDataKeysAreNotMadeWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
		first, sealed := seal(t, keys(t, s, w), "secret", "")
		k := keys(t, s, w)
		var err error
		for range 100 {
			if _, err = k.Replace(t.Context()); err != nil {
				break
			}
		}
		wantErr(t, "Replace", err, datakey.ErrUnavailable)
		if n := len(s.Snapshot()); n != 32 || !strings.Contains(fmt.Sprint(err), "the store has 32 data keys already") {
			t.Errorf("got %d data keys, %v; want 32 and the advice", n, err)
		}
		// Everything goes on, in new processes too, and there is a way out.
		k = keys(t, s, w)
		wantOpen(t, k, first, sealed, "", "secret")
		seal(t, k, "new", "")
		if err := k.Retire(t.Context(), first); err != nil {
			t.Error(err)
		}
		replace(t, k)
	})
}

func TestReplaceMakesOneKey(t *testing.T) {
	s, w1, w2 := datakeytest.NewStore(), datakeytest.NewWrapper(), datakeytest.NewWrapper()
	seal(t, keys(t, s, w1), "", "")
	k := keys(t, s, w1, moved(w1, w2, datakeytest.Location))
	if id := replace(t, k); id != "dk-2" || len(s.Snapshot()) != 2 {
		t.Errorf("under a new wrapping key: got %s and %d data keys, want dk-2 and 2", id, len(s.Snapshot()))
	}
	if id := replace(t, keys(t, datakeytest.NewStore(), w1)); id != "dk-1" {
		t.Errorf("in an empty store: got %s, want dk-1", id)
	}
}

func TestToLookAndToRetireMakesNoKey(t *testing.T) {
	s, w1, w2 := datakeytest.NewStore(), datakeytest.NewWrapper(), datakeytest.NewWrapper()
	k := keys(t, s, w1)
	if list, err := k.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List of an empty store: got %+v, %v", list, err)
	}
	wantErr(t, "Retire", k.Retire(t.Context(), "dk-1"), datakey.ErrNotFound)
	seal(t, k, "", "")
	k = keys(t, s, w1, moved(w1, w2))
	if list, err := k.List(t.Context()); err != nil || len(list) != 1 || list[0].Current || list[0].Problem == "" {
		t.Errorf("List: got %+v, %v", list, err)
	}
	s.SetInUse("dk-1", true)
	wantErr(t, "Retire", k.Retire(t.Context(), "dk-1"), datakey.ErrInUse)
	if n := len(s.Snapshot()); n != 1 {
		t.Errorf("got %d data keys, want 1", n)
	}
}

// A row can name anything, and must not hurt those that are sound.
func TestIDThatIsNoneStopsNothing(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	id, sealed := seal(t, keys(t, s, w), "secret", "")
	for _, bad := range []string{"", "dk-", "dk-0", "dk-01", "current", "dk-9"} {
		k := keys(t, s, w)
		reads := s.Reads()
		_, err := k.Open(t.Context(), bad, sealed, nil)
		wantErr(t, "Open under "+bad, err, datakey.ErrTampered)
		if opens, err := k.Opens(t.Context(), bad); opens || err != nil {
			t.Errorf("Opens %q: got %t, %v", bad, opens, err)
		}
		if n := s.Reads() - reads; bad != "dk-9" && n != 0 {
			t.Errorf("%q: the store was read %d times for an id that it cannot have", bad, n)
		}
		if now, _ := seal(t, k, "new", ""); now != id {
			t.Errorf("%q: sealed under %s, want %s", bad, now, id)
		}
		if opens, err := k.Opens(t.Context(), id); !opens || err != nil {
			t.Errorf("Opens %q: got %t, %v", id, opens, err)
		}
	}
}

func TestJunkIsUnwrappedOnce(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w)
	seal(t, k, "", "")
	s.Tamper(func(records map[string]datakey.Record) {
		records["dk-9"] = datakey.Record{ID: "dk-9", Wrapped: []byte("junk"), WrappedBy: datakeytest.Location}
	})
	calls := w.Calls()
	for range 10 {
		if err := k.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.Calls() - calls; n != 1 {
		t.Errorf("got %d calls of the backend, want 1", n)
	}
}

func TestListTellsWhatIsWrong(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	k := keys(t, s, w)
	seal(t, k, "", "")
	for range 10 {
		replace(t, k)
	}
	s.Tamper(func(records map[string]datakey.Record) {
		r := records["dk-3"]
		r.Wrapped = []byte("junk")
		records["dk-3"] = r
	})
	list, err := keys(t, s, w).List(t.Context())
	if err != nil || len(list) != 11 {
		t.Fatalf("got %d, %v", len(list), err)
	}
	for i, info := range list {
		if info.ID != fmt.Sprintf("dk-%d", i+1) || info.Current != (i == 10) || (info.Problem != "") != (i == 2) {
			t.Errorf("%d: got %+v", i, info)
		}
	}
	w.SetDown(true)
	list, err = keys(t, s, w).List(t.Context())
	if err != nil || len(list) != 11 || !strings.Contains(list[10].Problem, kms.ErrUnavailable.Error()) {
		t.Errorf("with the backend down: got %+v, %v", list, err)
	}
}

func TestLogNamesIDsAndNeverKeys(t *testing.T) {
	s, w := datakeytest.NewStore(), datakeytest.NewWrapper()
	var log bytes.Buffer
	k := keys(t, s, w, logTo(&log))
	first, _ := seal(t, k, "", "")
	second := replace(t, k)
	if err := k.Retire(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{first, second, datakeytest.Location, "retired"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, log.String())
		}
	}
	if len(w.Wrapped()) != 2 {
		t.Fatalf("%d keys were wrapped", len(w.Wrapped()))
	}
	for _, secret := range w.Wrapped() {
		for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), fmt.Sprintf("%d", secret)} {
			if strings.Contains(log.String(), form) {
				t.Error("the log has a data key")
			}
		}
		for id, r := range s.Snapshot() {
			if bytes.Contains(r.Wrapped, secret) {
				t.Errorf("record %s has a data key", id)
			}
		}
	}
}

func TestConfigurationThatLacksSomethingIsRefused(t *testing.T) {
	good := datakeytest.Config(datakeytest.NewWrapper())
	good.Store = datakeytest.NewStore()
	for name, edit := range map[string]func(*datakey.Config){
		"store":    func(c *datakey.Config) { c.Store = nil },
		"open":     func(c *datakey.Config) { c.Open = nil },
		"location": func(c *datakey.Config) { c.Location = "" },
	} {
		cfg := good
		edit(&cfg)
		if _, err := datakey.New(t.Context(), cfg); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	cfg := datakeytest.Config(datakeytest.NewWrapper())
	cfg.Store = datakeytest.NewStore()
	k, err := datakey.New(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{500, 2000} {
		record := make([]byte, n)
		id, mac, err := k.MAC(b.Context(), record)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := k.Verify(b.Context(), id, mac, record); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
