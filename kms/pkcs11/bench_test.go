//go:build cgo

package pkcs11

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// BenchmarkSign sets one signature against the floor: C_SignInit and C_Sign, in
// one crossing into C, on one session of the same token, with the digest made
// beforehand. Compare the medians of cpu-µs/op of several runs, each of all
// variants in turn:
//
//	raw       the floor
//	binding   the same by github.com/miekg/pkcs11, in three calls
//	key       Key.Sign without a deadline, which needs no goroutine
//	deadline  Key.Sign with one, as a service calls it
//
// The number at the end of the name is how many sign at once. One alone pays
// for the waking of idle processors at each change of goroutine, which callers
// of a busy service do not.
func BenchmarkSign(b *testing.B) {
	hsm := softhsmtest.New(b, "bench")
	hsm.GenerateKey("ES256", "01", kms.ES256)
	hsm.GenerateKey("RS256", "02", kms.RS256)
	back := start(b, hsm)
	message := make([]byte, 600)
	live, cancel := context.WithCancel(context.Background())
	defer cancel()

	for _, alg := range []kms.Algorithm{kms.ES256, kms.RS256} {
		k := back.key(b, "object="+string(alg), alg)
		for _, callers := range []int{1, 2, 4, 16} {
			for _, v := range []struct {
				name   string
				signer func(testing.TB) func() error
			}{
				{"raw", func(tb testing.TB) func() error { return rawSigner(tb, back, k.(*key), message) }},
				{"binding", func(tb testing.TB) func() error { return bindingSigner(tb, back, k.(*key), message) }},
				{"key", func(testing.TB) func() error {
					return func() error { _, err := k.Sign(context.Background(), message); return err }
				}},
				{"deadline", func(testing.TB) func() error {
					return func() error { _, err := k.Sign(live, message); return err }
				}},
			} {
				b.Run(fmt.Sprintf("%s/%s/%d", alg, v.name, callers), func(b *testing.B) {
					var left atomic.Int64
					left.Store(int64(b.N))
					var signers []func() error
					for range callers {
						signers = append(signers, v.signer(b))
					}
					b.ResetTimer()
					report := reportCPU(b)
					var wg sync.WaitGroup
					for _, sign := range signers {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if err := sign(); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					report()
				})
			}
		}
	}
}

// rawSigner is C_SignInit and C_Sign on a session of its own.
func rawSigner(tb testing.TB, back *bench, k *key, message []byte) func() error {
	tb.Helper()
	c, session, object := rawSession(tb, back, k)
	input := inputOf(k.algorithm, message)
	return func() error {
		_, err := c.sign(session, object, k.mechanism, input)
		return err
	}
}

// bindingSigner is rawSigner by the binding's own calls.
func bindingSigner(tb testing.TB, back *bench, k *key, message []byte) func() error {
	tb.Helper()
	c, session, object := rawSession(tb, back, k)
	input := inputOf(k.algorithm, message)
	mech := []*p11.Mechanism{p11.NewMechanism(k.mechanism.kind, nil)}
	return func() error {
		if err := c.c.SignInit(p11.SessionHandle(session), mech, p11.ObjectHandle(object)); err != nil {
			return err
		}
		_, err := c.c.Sign(p11.SessionHandle(session), input)
		return err
	}
}

// rawSession opens a session beside the backend's.
func rawSession(tb testing.TB, back *bench, k *key) (c *binding, session, object uint) {
	tb.Helper()
	l := mustLink(tb, back)
	c = l.lib.(*meddler).cryptoki.(*binding)
	session, err := c.openSession(l.slot)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.closeSession(session) })
	return c, session, l.places[k.name].object
}

// reportCPU reports the processor time of the process for each operation from
// now until the returned function is called.
func reportCPU(b *testing.B) func() {
	begin := cpuTime(b)
	return func() {
		b.ReportMetric(float64((cpuTime(b)-begin).Nanoseconds())/1000/float64(b.N), "cpu-µs/op")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
