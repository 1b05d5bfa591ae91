//go:build unix

package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	switch os.Getenv("AUDIT_TEST_CHILD") {
	case "ack", "rotate":
		childAcknowledges()
	case "full":
		childFillsDisk()
	default:
		goleak.VerifyTestMain(m)
	}
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "audit.log")
	}
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// ids reads the log at path and returns the client_ids of its lines in order.
// A line that is no JSON object fails the test, unless it is one of torn.
func ids(t testing.TB, path string, torn ...string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		t.Errorf("%s ends within a line", path)
	}
	var out []string
	for line := range bytes.Lines(data) {
		if slices.Contains(torn, strings.TrimSuffix(string(line), "\n")) {
			continue
		}
		var e struct {
			ClientID string `json:"client_id"`
			Log      string `json:"log"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("line %q: %v", line, err)
		}
		if e.Log == "" { // else it tells of the log itself
			out = append(out, e.ClientID)
		}
	}
	return out
}

func record(t testing.TB, l *Log, id string) {
	t.Helper()
	if err := l.Record(context.Background(), Event{Outcome: Issued, ClientID: id}); err != nil {
		t.Fatalf("Record(%s): %v", id, err)
	}
}

func wantIDs(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("client_ids in the log: got %q, want %q", got, want)
	}
}

func TestRecordIsInTheFileWhenItReturns(t *testing.T) {
	for _, sync := range []Sync{SyncGroup, SyncAlways} {
		path := filepath.Join(t.TempDir(), "audit.log")
		l := open(t, Config{Path: path, Sync: sync})
		record(t, l, "a")
		wantIDs(t, ids(t, path), "a")
		record(t, l, "b")
		wantIDs(t, ids(t, path), "a", "b")
	}
}

func TestRecordStampsTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	before := time.Now().Truncate(time.Microsecond)
	record(t, l, "a")
	after := time.Now()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Time time.Time }
	lines := bytes.Split(bytes.TrimSpace(data), []byte{'\n'})
	if err := json.Unmarshal(lines[len(lines)-1], &e); err != nil {
		t.Fatal(err)
	}
	if e.Time.Before(before) || e.Time.After(after) {
		t.Errorf("time is %v, want between %v and %v", e.Time, before, after)
	}
}

func TestFileIsPrivateAndIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got != 0o600 {
		t.Errorf("mode: got %v, want 0600", got)
	}
	l = open(t, Config{Path: path})
	record(t, l, "b")
	wantIDs(t, ids(t, path), "a", "b")
}

func TestConcurrentRecordsAreAllWrittenOnceAndWhole(t *testing.T) {
	for _, sync := range []Sync{SyncGroup, SyncAlways} {
		t.Run(string(sync), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := open(t, Config{Path: path, Sync: sync})
			want := concurrently(t, l, 16, 50)
			got := ids(t, path)
			slices.Sort(got)
			wantIDs(t, got, want...)
			stats := l.Stats()
			if stats.Records != uint64(len(want)) || stats.Failures != 0 {
				t.Errorf("stats: got %+v, want %d records and no failures", stats, len(want))
			}
			if sync == SyncAlways && stats.Syncs != stats.Writes {
				t.Errorf("stats: got %d syncs for %d writes, want one each", stats.Syncs, stats.Writes)
			}
			t.Logf("%d records in %d writes, %d syncs", stats.Records, stats.Writes, stats.Syncs)
		})
	}
}

// concurrently records callers×each events and returns their ids, sorted.
func concurrently(t *testing.T, l *Log, callers, each int) []string {
	t.Helper()
	var wg sync.WaitGroup
	var want []string
	for c := range callers {
		for i := range each {
			want = append(want, fmt.Sprintf("%02d-%03d", c, i))
		}
		wg.Go(func() {
			for i := range each {
				if err := l.Record(context.Background(), Event{Outcome: Issued, ClientID: fmt.Sprintf("%02d-%03d", c, i)}); err != nil {
					t.Errorf("Record: %v", err)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	return want
}

// faulty is the real file with a fault on top.
type faulty struct {
	regular
	mu       sync.Mutex
	short    int   // write only so many bytes of the next write, then fail; -1: no fault
	syncErr  error // what Sync answers
	noBack   bool  // takeBack fails, as on a file with the append-only attribute
	syncs    int
	blocked  chan struct{} // if set, Write waits for it
	arrivals chan struct{} // if set, told of each Write
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.arrivals != nil {
		f.arrivals <- struct{}{}
	}
	if f.blocked != nil {
		<-f.blocked
	}
	f.mu.Lock()
	short := f.short
	f.mu.Unlock()
	if short >= 0 {
		n, err := f.regular.Write(p[:min(short, len(p))])
		return n, errors.Join(err, syscall.ENOSPC)
	}
	return f.regular.Write(p)
}

func (f *faulty) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	if f.syncErr != nil {
		return f.syncErr
	}
	return f.regular.Sync()
}

func (f *faulty) takeBack(n int64) error {
	if f.noBack {
		return syscall.EPERM
	}
	return f.regular.takeBack(n)
}

func (f *faulty) set(short int, syncErr error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.short, f.syncErr = short, syncErr
}

// inject puts a faulty file under l before its first record.
func inject(l *Log) *faulty {
	l.writing.Lock()
	defer l.writing.Unlock()
	f := &faulty{regular: l.file.(regular), short: -1}
	l.file = f
	return f
}

func TestHalfWrittenLineIsTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	var logged bytes.Buffer
	l := open(t, Config{Path: path, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	f := inject(l)
	record(t, l, "a")

	f.set(20, nil)
	for range 3 {
		if err := l.Record(t.Context(), Event{ClientID: "lost"}); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Record on a full disk: got %v, want ErrUnavailable", err)
		}
		wantIDs(t, ids(t, path), "a")
	}
	f.set(-1, nil)
	record(t, l, "b")
	wantIDs(t, ids(t, path), "a", "b")

	if got := l.Stats(); got.Records != 2 || got.Failures != 3 || got.Lost != 0 {
		t.Errorf("stats: got %+v, want 2 records, 3 failures, none lost", got)
	}
	if n := strings.Count(logged.String(), "cannot be written"); n != 1 {
		t.Errorf("the failure was logged %d times, want once:\n%s", n, &logged)
	}
	if !strings.Contains(logged.String(), "written again") || strings.Contains(logged.String(), "lost") {
		t.Errorf("the log should tell of the recovery and show no event:\n%s", &logged)
	}
}

func TestHalfWrittenLineThatCannotBeTakenBackIsEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	f := inject(l)
	f.noBack = true
	record(t, l, "a")

	f.set(4, nil)
	if err := l.Record(t.Context(), Event{ClientID: "lost"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	f.set(1, nil) // room for the line feed only
	if err := l.Record(t.Context(), Event{ClientID: "lost"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	f.set(-1, nil)
	record(t, l, "b")
	record(t, l, "c")
	wantIDs(t, ids(t, path, `{"v"`), "a", "b", "c")
}

func TestContinueLetsCallsThroughAndCountsThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path, OnFailure: OnFailureContinue})
	f := inject(l)
	f.set(3, nil)
	record(t, l, "lost")
	record(t, l, "lost")
	f.set(-1, nil)
	record(t, l, "a")
	wantIDs(t, ids(t, path), "a")
	if got := l.Stats(); got.Lost != 2 || got.Failures != 2 || got.Records != 1 {
		t.Errorf("stats: got %+v, want 2 lost of 2 failures, 1 record", got)
	}
}

func TestFailedSyncDeniesAndLeavesNoLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path, Sync: SyncAlways})
	f := inject(l)
	f.set(-1, syscall.EIO)
	if err := l.Record(t.Context(), Event{ClientID: "lost"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	wantIDs(t, ids(t, path))
	f.set(-1, nil)
	record(t, l, "a")
	wantIDs(t, ids(t, path), "a")
}

func TestGroupSyncsOnceEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "audit.log")})
		if err != nil {
			t.Fatal(err)
		}
		f := inject(l)
		syncs := func() int {
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.syncs
		}
		for range 10 {
			record(t, l, "a")
		}
		time.Sleep(49 * time.Millisecond)
		if got := syncs(); got != 0 {
			t.Errorf("after 49 ms: %d syncs, want 0", got)
		}
		time.Sleep(time.Millisecond)
		if got := syncs(); got != 1 {
			t.Errorf("after 50 ms: %d syncs, want 1", got)
		}
		time.Sleep(time.Hour)
		if got := syncs(); got != 1 {
			t.Errorf("after an idle hour: %d syncs, want 1", got)
		}
		record(t, l, "b")
		time.Sleep(50 * time.Millisecond)
		if got := syncs(); got != 2 {
			t.Errorf("after another record: %d syncs, want 2", got)
		}
		record(t, l, "c")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got := syncs(); got != 3 {
			t.Errorf("after Close: %d syncs, want 3", got)
		}
	})
}

func TestAfterAFailedGroupSyncEachRecordIsSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "audit.log")
		l, err := Open(t.Context(), Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f := inject(l)
		f.set(-1, syscall.EIO)
		record(t, l, "a")
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if err := l.Record(t.Context(), Event{ClientID: "lost"}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("with fsync still failing: got %v, want ErrUnavailable", err)
		}
		f.set(-1, nil)
		before := l.Stats().Syncs
		record(t, l, "b")
		if got := l.Stats().Syncs - before; got != 1 {
			t.Errorf("the record after a failed fsync was synced %d times before Record returned, want once", got)
		}
		record(t, l, "c")
		if got := l.Stats().Syncs - before; got != 1 {
			t.Errorf("after an fsync that worked: %d syncs, want the flusher to do it again", got)
		}
		wantIDs(t, ids(t, path), "a", "b", "c")
	})
}

func TestCallersThatComeTogetherShareOneWrite(t *testing.T) {
	l := open(t, Config{Sync: SyncAlways})
	f := inject(l)
	f.blocked, f.arrivals = make(chan struct{}), make(chan struct{}, 10)
	const callers = 20
	var wg sync.WaitGroup
	wg.Go(func() { record(t, l, "first") })
	<-f.arrivals // the first is in its write, and stuck
	for range callers {
		wg.Go(func() { record(t, l, "later") })
	}
	waitPending(t, l, callers)
	close(f.blocked)
	wg.Wait()
	if got := l.Stats(); got.Records != callers+1 || got.Writes != 2 || got.Syncs != 2 {
		t.Errorf("stats: got %+v, want %d records in 2 writes and 2 syncs", got, callers+1)
	}
}

// waitPending waits until n events are in the batch that waits for its turn.
func waitPending(t *testing.T, l *Log, n uint64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		pending := l.next != nil && l.next.events == n
		l.mu.Unlock()
		if pending {
			return
		}
	}
	t.Fatalf("%d events should wait behind the write", n)
}

func TestStuckDiskFreesWaitersAndBoundsMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	f := inject(l)
	f.blocked, f.arrivals = make(chan struct{}), make(chan struct{}, 10)
	var wg sync.WaitGroup
	var ok atomic.Int64
	lead := func() {
		if l.Record(context.Background(), Event{ClientID: "leader"}) == nil {
			ok.Add(1)
		}
	}
	wg.Go(lead) // stuck in its write
	<-f.arrivals
	wg.Go(lead) // leads the batch that waits
	waitPending(t, l, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Record(ctx, Event{ClientID: "impatient"})
	if errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter whose context ended: got %v, want context.Canceled and no complaint of the log", err)
	}
	refused := false
	for range 2 * maxPending / maxText {
		err := l.Record(ctx, Event{ClientID: strings.Repeat("x", maxText)})
		refused = refused || (errors.Is(err, ErrUnavailable) && !errors.Is(err, context.Canceled))
	}
	l.mu.Lock()
	pending := len(l.next.lines)
	l.mu.Unlock()
	if !refused || pending > maxPending {
		t.Errorf("behind a stuck write: refused %v, %d bytes pending, want a refusal at %d", refused, pending, maxPending)
	}
	close(f.blocked)
	wg.Wait()
	if got := ok.Load(); got != 2 {
		t.Errorf("%d of the 2 leaders were told that their record is written", got)
	}
	if got := ids(t, path); !slices.Contains(got, "impatient") {
		t.Error("the record of a caller that left was dropped")
	}
}

func TestTornLastLineIsEndedAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	const torn = `{"v":1,"client_id":"to`
	if err := os.WriteFile(path, []byte(`{"v":1,"client_id":"a"}`+"\n"+torn), 0o600); err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	l := open(t, Config{Path: path, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	record(t, l, "b")
	record(t, l, "c")
	wantIDs(t, ids(t, path, torn), "a", "b", "c")
	if !strings.Contains(logged.String(), "ends within a line") {
		t.Errorf("the torn line was not logged: %s", &logged)
	}
}

func TestReopenGoesOnInANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	if err := l.Reopen(t.Context()); err != nil {
		t.Fatalf("Reopen of a file that nobody has moved: %v", err)
	}
	record(t, l, "b")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	record(t, l, "c")
	if err := l.Reopen(t.Context()); err != nil {
		t.Fatalf("Reopen: %v", err)
	}
	record(t, l, "d")
	wantIDs(t, ids(t, path+".1"), "a", "b", "c")
	wantIDs(t, ids(t, path), "d")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode of the new file: got %v, want 0600", info.Mode())
	}
}

func TestReopenThatFailsKeepsTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	record(t, l, "a")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(t.Context()); err == nil {
		t.Fatal("Reopen of a folder: no error")
	}
	record(t, l, "b")
	wantIDs(t, ids(t, path+".1"), "a", "b")
}

func TestReopenUnderLoadLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path, FlushEvery: time.Millisecond})
	stop := make(chan struct{})
	var rotations []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			old := fmt.Sprintf("%s.%d", path, i)
			if err := os.Rename(path, old); err != nil {
				t.Errorf("rename: %v", err)
			}
			rotations = append(rotations, old)
			if err := l.Reopen(t.Context()); err != nil {
				t.Errorf("Reopen: %v", err)
			}
		}
	})
	want := concurrently(t, l, 8, 200)
	close(stop)
	wg.Wait()
	got := ids(t, path)
	for _, old := range rotations {
		got = append(got, ids(t, old)...)
	}
	slices.Sort(got)
	wantIDs(t, got, want...)
}

func TestFileIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	if other, err := Open(t.Context(), Config{Path: path}); err == nil {
		_ = other.Close()
		t.Error("a second log was opened on the same file")
	} else if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want ErrInUse and the path", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Path: path})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no path"},
		{Config{Path: filepath.Join(dir, "a"), Sync: "sometimes"}, "sync is"},
		{Config{Path: filepath.Join(dir, "a"), OnFailure: "panic"}, "on_failure is"},
		{Config{Path: filepath.Join(dir, "a"), FlushEvery: -1}, "negative"},
		{Config{Path: Stdout, Sync: SyncAlways}, "cannot be synced"},
		{Config{Path: filepath.Join(dir, "missing", "a")}, "folder must exist"},
		{Config{Path: dir}, "no regular file"},
		{Config{Path: filepath.Join(dir, "fifo")}, "no regular file"},
	} {
		l, err := Open(t.Context(), tc.cfg)
		if err == nil {
			_ = l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Open(%+v): got %v, want an error with %q", tc.cfg, err, tc.want)
		}
	}
}

func TestClosedLogDenies(t *testing.T) {
	l := open(t, Config{})
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	if err := l.Record(t.Context(), Event{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Record after Close: got %v, want ErrUnavailable", err)
	}
	if err := l.Reopen(t.Context()); err == nil {
		t.Error("Reopen after Close: no error")
	}
}

func TestCloseWaitsForRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	var wg sync.WaitGroup
	var acknowledged atomic.Int64
	for range 8 {
		wg.Go(func() {
			for l.Record(context.Background(), Event{ClientID: "a"}) == nil {
				acknowledged.Add(1)
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if got, want := int64(len(ids(t, path))), acknowledged.Load(); got != want {
		t.Errorf("%d lines in the log, %d were acknowledged", got, want)
	}
}

// BenchmarkLine is the work on one line before it is written: as it was before
// lines were a chain, and as it is.
func BenchmarkLine(b *testing.B) {
	e := tokenEvent()
	b.Run("format", func(b *testing.B) {
		var buf []byte
		b.ReportAllocs()
		defer cpuPerOp(b)()
		for b.Loop() {
			buf = e.appendLine(buf[:0])
		}
	})
	b.Run("format and link", func(b *testing.B) {
		var buf, out []byte
		end := newChain()
		b.ReportAllocs()
		defer cpuPerOp(b)()
		for b.Loop() {
			buf = e.appendLine(buf[:0])
			out = end.link(out[:0], buf)
		}
		b.ReportMetric(float64(len(out)), "B/line")
	})
}

// tokenEvent is what a token leaves.
func tokenEvent() Event {
	e := fullEvent()
	e.Reason, e.OldThumbprint, e.NewThumbprint, e.Settings, e.KeySource, e.Revision = "", "", "", "", "", 0
	return e
}

// BenchmarkVerify is the reading of a log.
func BenchmarkVerify(b *testing.B) {
	var log bytes.Buffer
	end, e := newChain(), tokenEvent()
	log.Write(end.link(nil, appendBeginning(nil, logOpened, "", &foreign{})))
	const lines = 20_000
	for range lines {
		log.Write(end.link(nil, e.appendLine(nil)))
	}
	b.SetBytes(int64(log.Len()))
	for b.Loop() {
		r, err := Verify(b.Context(), []string{"-"}, VerifyOptions{Stdin: bytes.NewReader(log.Bytes())})
		if err != nil || !r.Good || r.Lines != lines+1 {
			b.Fatalf("%+v, %v", r, err)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, sync := range []Sync{SyncGroup, SyncAlways} {
		e := fullEvent()
		b.Run(string(sync)+"/alone", func(b *testing.B) {
			l := open(b, Config{Sync: sync})
			b.ReportAllocs()
			defer cpuPerOp(b)()
			for b.Loop() {
				if err := l.Record(b.Context(), e); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(sync)+"/32callers", func(b *testing.B) {
			l := open(b, Config{Sync: sync})
			b.ReportAllocs()
			b.SetParallelism(32 / runtime.GOMAXPROCS(0))
			defer cpuPerOp(b)()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Record(b.Context(), e); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(l.Stats().Records)/float64(l.Stats().Writes), "records/write")
		})
	}
}

// cpuPerOp reports the CPU time of the process, which is what an event costs
// however long it waits for the disk.
func cpuPerOp(b *testing.B) func() {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := cpu()
	return func() { b.ReportMetric(float64((cpu()-start).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op") }
}
