package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestQuantilesAreWithinThreePercent(t *testing.T) {
	var h histogram
	var all []time.Duration
	for range 20000 {
		d := time.Duration(rand.ExpFloat64() * float64(3*time.Millisecond))
		all = append(all, d)
		h.add(d, 1)
	}
	slices.Sort(all)
	s := h.snapshot()
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(int(q*float64(len(all))+0.999999), 1)-1]
		got := s.quantile(q)
		if got < want || float64(got) > float64(want)*1.032+1 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if s.total != 20000 || s.most != all[len(all)-1] {
		t.Errorf("%d counted, the longest %v, want 20000 and %v", s.total, s.most, all[len(all)-1])
	}
	if later := h.snapshot().since(s); later.total != 0 || later.quantile(0.5) != 0 {
		t.Errorf("since then %d were counted", later.total)
	}
}

func TestEveryDurationHasItsBucket(t *testing.T) {
	last := -1
	for _, d := range []time.Duration{0, 1, 31, 32, 33, 63, 64, 65, 1000, time.Millisecond, time.Second, time.Hour, 1<<63 - 1} {
		i := bucketOf(d)
		if i < last || i >= histogramBuckets {
			t.Errorf("%v is in bucket %d, after %d of %d", d, i, last, histogramBuckets)
		}
		if end := bucketEnd(i); end < d || i > 0 && bucketEnd(i-1) >= d {
			t.Errorf("%v is in bucket %d, which ends at %v and begins after %v", d, i, end, bucketEnd(i-1))
		}
		last = i
	}
}

func TestBarsHaveAllThatWasCounted(t *testing.T) {
	var h histogram
	for _, d := range []time.Duration{3 * time.Microsecond, 900 * time.Microsecond, 990 * time.Microsecond, 1100 * time.Microsecond, 80 * time.Second} {
		h.add(d, 2)
	}
	bars := h.snapshot().bars()
	var sum int64
	for _, b := range bars {
		sum += b.count
	}
	if sum != 10 {
		t.Errorf("the bars have %d, want 10", sum)
	}
	if first, last := bars[0], bars[len(bars)-1]; first.upTo != 5*time.Microsecond && first.upTo != 3*time.Microsecond || last.upTo != 100*time.Second {
		t.Errorf("bars from %v to %v", first.upTo, last.upTo)
	}
	i := slices.IndexFunc(bars, func(b bar) bool { return b.upTo == time.Millisecond })
	if bars[i].count != 4 || bars[i+1].count != 2 {
		t.Errorf("up to 1 ms are %d, then %d; want 4 and 2", bars[i].count, bars[i+1].count)
	}
	var none histogram
	if bars := none.snapshot().bars(); len(bars) != 0 {
		t.Errorf("nothing is drawn as %v", bars)
	}
}

func TestAClosedLoopAsksAgainWhenItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		l := &load{unit: 1, callers: 4, lasting: 10 * time.Second, timeout: time.Minute, ask: func(ctx context.Context, n int) (int, []error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(100 * time.Millisecond)
			return n, nil
		}}
		r := newRecord()
		if n := l.run(t.Context(), r); n != 0 {
			t.Errorf("%d were not begun", n)
		}
		s := r.latencies.snapshot()
		if s.total != 400 || most.Load() != 4 || r.lasted() != 10*time.Second {
			t.Errorf("%d tokens, %d at once, in %v; want 400, 4, 10 s", s.total, most.Load(), r.lasted())
		}
	})
}

// A service that answers nothing for a second and all at once then: a closed loop
// would see one slow call of each caller. All that should have begun in that
// second waited for it.
func TestAnOpenLoopCountsFromWhenCallsShouldHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := &load{unit: 1, callers: 2, rate: 100, lasting: 4 * time.Second, timeout: time.Minute, ask: func(ctx context.Context, n int) (int, []error) {
			if since := time.Since(began); since >= time.Second && since < 2*time.Second {
				time.Sleep(time.Until(began.Add(2 * time.Second)))
			}
			return n, nil
		}}
		r := newRecord()
		if n := l.run(t.Context(), r); n != 0 {
			t.Errorf("%d were not begun", n)
		}
		s := r.latencies.snapshot()
		if s.total != 400 {
			t.Errorf("%d tokens, want 400", s.total)
		}
		// A quarter of all waited, up to a second.
		if got := s.quantile(0.74); got > 20*time.Millisecond {
			t.Errorf("p74 is %v, want next to nothing", got)
		}
		if got := s.quantile(0.875); got < 480*time.Millisecond || got > 530*time.Millisecond {
			t.Errorf("p87.5 is %v, want half a second", got)
		}
		if s.most < 990*time.Millisecond || s.most > 1010*time.Millisecond {
			t.Errorf("the longest took %v, want a second", s.most)
		}
	})
}

func TestAnOpenLoopSaysWhatItDidNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{unit: 10, callers: 2, rate: 1000, lasting: 2 * time.Second, timeout: time.Minute, ask: func(ctx context.Context, n int) (int, []error) {
			time.Sleep(500 * time.Millisecond)
			return n, nil
		}}
		r := newRecord()
		notBegun := l.run(t.Context(), r)
		if made := int(r.latencies.snapshot().total); made < 80 || made > 100 || made+notBegun != 2000 {
			t.Errorf("%d made and %d not begun, want 80 to 100 and the others of 2000", made, notBegun)
		}
	})
}

func TestALoadEndsWithItsCountAndWhenItIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		l := &load{unit: 32, callers: 3, count: 100, timeout: time.Minute, ask: func(ctx context.Context, n int) (int, []error) {
			asked.Add(int32(n))
			time.Sleep(time.Millisecond)
			return n, nil
		}}
		r := newRecord()
		l.run(t.Context(), r)
		if got := r.latencies.snapshot().total; got != 100 || asked.Load() != 100 {
			t.Errorf("%d of %d made, want 100", got, asked.Load())
		}

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(1500*time.Millisecond, cancel)
		l = &load{unit: 1, callers: 3, timeout: time.Minute, ask: func(ctx context.Context, n int) (int, []error) {
			if !pause(ctx, time.Second) {
				return 0, []error{ctx.Err()}
			}
			return n, nil
		}}
		r = newRecord()
		began := time.Now()
		l.run(ctx, r)
		if got := r.latencies.snapshot().total; got != 3 || r.failedSoFar() != 0 || time.Since(began) != 1500*time.Millisecond {
			t.Errorf("%d made and %d failed in %v, want 3 and 0 in 1.5 s", got, r.failedSoFar(), time.Since(began))
		}
	})
}

func TestALoadDoesNotSpinWhereNoServiceIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{unit: 1, callers: 1, lasting: 10 * time.Second, timeout: time.Minute, ask: func(context.Context, int) (int, []error) {
			return 0, []error{status.Error(codes.Unavailable, "connection refused")}
		}}
		r := newRecord()
		l.run(t.Context(), r)
		if got := r.failedSoFar(); got != 100 {
			t.Errorf("%d failures in ten seconds, want 100", got)
		}
	})
}

// overloaded is an error of a service.
func overloaded(t *testing.T) error {
	t.Helper()
	st, err := status.New(codes.Unavailable, "this replica has too much to do: \x1b[2J try another one, or this one after a while, as it says").WithDetails(&errdetails.ErrorInfo{Domain: "bulla", Reason: "OVERLOADED"})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestReportFitsATerminal(t *testing.T) {
	r := newRecord()
	r.from = time.Now()
	r.till = r.from.Add(10 * time.Second)
	r.latencies.add(1800*time.Microsecond, 1000)
	r.latencies.add(2500*time.Microsecond, 20000)
	r.latencies.add(4*time.Millisecond, 3)
	r.latencies.add(12*time.Second, 1)
	r.add(time.Time{}, 0, []error{overloaded(t), overloaded(t), status.Error(codes.DeadlineExceeded, "x")})
	b := &benchReport{Mode: modeBatch, Callers: 8, BatchSize: 32, Rate: 2500, WarmUp: 2, NotBegun: 17, Interrupted: true}
	b.fill(r)
	var out bytes.Buffer
	if err := b.writeText(&out); err != nil {
		t.Fatal(err)
	}
	const head = `batch, 8 callers, batches of 32, 2500 tokens a second asked for, 10.0 s after 2.0 s of warm-up

  tokens        21004   2100.4 a second
  failed            3   <0.1 %
  not begun        17   no caller was free: give --callers more, or --rate less
  interrupted; this is what there was by then

  latency  p50 2.56 ms   p90 2.56 ms   p99 2.56 ms   p99.9 2.56 ms   max 12 s

    ≤ 2 ms        1000   4.8 %  ██▎
    ≤ 3 ms       20000  95.2 %  ████████████████████████████████████████████
    ≤ 5 ms           3  <0.1 %  ▏
    ≤ 7 ms           0   0.0 %
`
	text := out.String()
	if !strings.HasPrefix(text, head) {
		t.Errorf("got\n%s\nwant at its head\n%s", text, head)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.HasPrefix(line, "batch") {
			t.Errorf("a line has %d columns: %q", n, line)
		}
	}
	for _, want := range []string{"≤ 15 s           1  <0.1 %  ▏", "2  Unavailable OVERLOADED\n", "1  DeadlineExceeded\n", "too much to do: \ufffd[2J try"} {
		if !strings.Contains(text, want) {
			t.Errorf("got\n%s\nwithout %q", text, want)
		}
	}

	out.Reset()
	if err := b.writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Tokens   int
		Failed   int
		NotBegun int                `json:"not_begun"`
		Latency  map[string]float64 `json:"latency_ms"`
		Errors   []struct {
			Code, Reason string
			Count        int
		}
		Histogram []struct{ Count int }
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Tokens != 21004 || doc.Failed != 3 || doc.NotBegun != 17 || doc.Latency["max"] != 12000 || doc.Latency["p99.9"] == 0 ||
		len(doc.Errors) != 2 || doc.Errors[0].Reason != "OVERLOADED" || doc.Errors[0].Count != 2 || len(doc.Histogram) < 4 {
		t.Errorf("got %s", out.Bytes())
	}
}

func TestProgressIsALineASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r, done := newRecord(), make(chan struct{})
		told := make(chan struct{})
		go func() {
			defer close(told)
			newBenchProgress(&out).run(done, r, true)
		}()
		time.Sleep(500 * time.Millisecond)
		r.latencies.add(3*time.Millisecond, 700)
		time.Sleep(time.Second)
		r.add(time.Time{}, 0, []error{errors.New("x")})
		time.Sleep(time.Second)
		close(done)
		<-told
		want := "   1 s       700 tokens/s  p99 3.00 ms  0 failed  (warming up)\n   2 s         0 tokens/s  p99 0 µs  1 failed  (warming up)\n"
		if got := out.String(); got != want {
			t.Errorf("got\n%q, want\n%q", got, want)
		}
	})
}

func TestBenchRefusesWhatCannotBe(t *testing.T) {
	for args, want := range map[string]string{
		"":                               "--client is missing",
		"--client a --kind ACCESS_TOKEN": "use one of ID_TOKEN, LOGOUT_TOKEN",
		"--client a --mode fast":         "unary, batch or stream",
		"--client a --mode batch --batch-size 257": "--batch-size 257",
		"--client a --mode stream --streams 65":    "--streams 65",
		"--client a --callers -1":                  "--callers -1",
		"--client a --rate -1":                     "--rate -1",
		"--client a --rate NaN":                    "--rate NaN",
		"--client a --duration 0s":                 "needs a --count",
		"--client a --warm-up -1s":                 "negative",
	} {
		cmd := benchCommand()
		cmd.SetArgs(strings.Fields(args))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	for _, kind := range encryptedKinds() {
		if !json.Valid([]byte(ordinaryClaims[kind])) {
			t.Errorf("the claims of %s are no JSON", kind)
		}
	}
}
