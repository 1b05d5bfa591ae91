package keycache

import (
	"container/heap"
	"container/list"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// sources are the key sets in memory: one source for each URL, so that no two
// fetches of one URL can be under way at once. Those that are not being
// fetched are also queued by the time they are due, and only those can be
// dropped to make room.
//
// The lock is for the cold paths. A client keeps a pointer to its source and
// looks here only when it has none or the source is gone.
type sources struct {
	most    int64     // bytes, about
	nothing *setState // of sources that are gone

	wake chan struct{} // holds a token when the head of the queue may have changed
	look chan struct{} // holds a token when looks may not be empty

	mu    sync.Mutex
	byURI map[string]*source // guarded by mu
	queue dueQueue           // guarded by mu
	looks []*source          // those to look at in the store, none of which is under way; guarded by mu
	bytes int64              // the weight of all; guarded by mu
	// unread has the news that came of sources and was not read from the store
	// yet, the oldest first; guarded by mu.
	unread list.List

	made time.Time
	// oldest is when the first of unread came, in nanoseconds since made; 0 for
	// none. It is changed while mu is held.
	oldest atomic.Int64
}

// news is that the stored set of a source has, or may have, changed.
type news struct {
	of *source
	at time.Duration // since sources.made
}

// notQueued is the place of a source that is not in the queue.
const notQueued = -1

func newSources(most int64) *sources {
	return &sources{most: most, nothing: &setState{}, made: time.Now(), wake: make(chan struct{}, 1), look: make(chan struct{}, 1), byURI: make(map[string]*source)}
}

// get returns the source of a URL, nil if there is none.
func (t *sources) get(uri string) *source {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byURI[uri]
}

// add takes src in, to be fetched at due, and returns the source of its URL:
// src, or the one that was there.
func (t *sources) add(src *source, due time.Time) *source {
	size := src.size()
	t.mu.Lock()
	defer t.mu.Unlock()
	if there := t.byURI[src.uri]; there != nil {
		return there
	}
	for t.bytes+size > t.most && t.evict() {
	}
	src.weight = size
	t.bytes += size
	t.byURI[src.uri] = src
	t.enqueue(src, due)
	return src
}

// reweigh weighs src anew, and makes room for it if it has grown.
func (t *sources) reweigh(src *source) {
	size := src.size()
	t.mu.Lock()
	defer t.mu.Unlock()
	if src.gone.Load() || t.byURI[src.uri] != src {
		return
	}
	t.bytes += size - src.weight
	src.weight = size
	for t.bytes > t.most && len(t.byURI) > 1 && t.evict() {
	}
}

// total is how many bytes all sources take, about.
func (t *sources) total() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes
}

// put queues src for due.
func (t *sources) put(src *source, due time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !src.gone.Load() && src.flight == nil {
		t.enqueue(src, due)
	}
}

// drop forgets src, unless it is being fetched.
func (t *sources) drop(src *source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !src.gone.Load() && src.flight == nil {
		t.forget(src)
	}
}

// begin returns the flight of src that is under way or, if needed says so,
// starts the one it is given. It returns nil if there is none and none is
// needed, and if src is gone: look again.
func (t *sources) begin(src *source, needed func() bool, start func() *flight) *flight {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src.gone.Load() {
		return nil
	}
	if src.flight == nil && needed() {
		src.flight = start()
		t.dequeue(src)
	}
	return src.flight
}

// end queues src after its flight, or forgets it.
func (t *sources) end(src *source, due time.Time, forget bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	src.flight = nil
	if forget {
		t.forget(src)
		return
	}
	t.enqueue(src, due)
	if src.look {
		t.wantLook(src)
	}
}

// lookAt has the store looked at for news of src.
func (t *sources) lookAt(src *source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lookLocked(src)
}

// lookAtURI is lookAt for the source of a URL, if there is one.
func (t *sources) lookAtURI(uri string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if src := t.byURI[uri]; src != nil {
		t.lookLocked(src)
	}
}

// distrustAll is lookAt for all sources: the store may not have what they have.
func (t *sources) distrustAll() {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.byURI))
	t.mu.Unlock()
	// Each may be busy choosing from its set. Nobody else shall wait for that.
	for _, src := range all {
		src.distrust()
		t.lookAt(src)
	}
}

// noteForced notes when a refresh was last forced, anywhere.
func (t *sources) noteForced(src *source, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	src.forced = nanos(at)
}

// lookLocked is lookAt for one who holds mu. A source that is wanted already, or
// will be at the end of its flight, stays so.
func (t *sources) lookLocked(src *source) {
	if src.look || src.gone.Load() {
		return
	}
	src.look = true
	t.await(src)
	if src.flight == nil {
		t.wantLook(src)
	}
}

// await notes that there is news of src which has not been read. The caller
// holds mu.
func (t *sources) await(src *source) {
	if src.unread == nil {
		src.unread = t.unread.PushBack(news{src, time.Since(t.made)})
		t.noteOldest()
	}
}

// looked notes that the store was looked at for src. What was told of it in the
// meantime is still to be read.
func (t *sources) looked(src *source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled(src)
	if src.look && !src.gone.Load() {
		t.await(src)
	}
}

// settled takes src out of unread, if it is there. The caller holds mu.
func (t *sources) settled(src *source) {
	if src.unread != nil {
		t.unread.Remove(src.unread)
		src.unread = nil
		t.noteOldest()
	}
}

// noteOldest brings oldest up to date. The caller holds mu.
func (t *sources) noteOldest() {
	var at time.Duration
	if first := t.unread.Front(); first != nil {
		at = max(first.Value.(news).at, 1)
	}
	t.oldest.Store(int64(at))
}

// lag is for how long the oldest news of a source has not been read, 0 if there
// is none. It neither waits nor allocates.
func (t *sources) lag() time.Duration {
	at := t.oldest.Load()
	if at == 0 {
		return 0
	}
	return time.Since(t.made) - time.Duration(at)
}

// wantLook puts src among looks. The caller holds mu.
func (t *sources) wantLook(src *source) {
	t.looks = append(t.looks, src)
	select {
	case t.look <- struct{}{}:
	default:
	}
}

// nextLook waits for a source to look at in the store.
func (t *sources) nextLook(ctx context.Context) (*source, error) {
	for {
		if src := t.takeLook(); src != nil {
			return src, nil
		}
		select {
		case <-t.look:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// takeLook returns a source to look at in the store, nil for none. What changes
// from now on asks for another look.
func (t *sources) takeLook() *source {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.looks) > 0 {
		src := t.looks[0]
		t.looks[0] = nil
		t.looks = t.looks[1:]
		if !src.look || src.flight != nil {
			continue // taken already, or it comes back at the end of its flight
		}
		src.look = false
		if len(t.looks) > 0 {
			select {
			case t.look <- struct{}{}: // for the next who waits
			default:
			}
		}
		if !src.gone.Load() {
			return src
		}
	}
	t.looks = nil
	return nil
}

// dueAt is when src is fetched next.
func (t *sources) dueAt(src *source) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Unix(0, src.due)
}

func (t *sources) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byURI)
}

// next waits for the first source that is due and takes it out of the queue.
func (t *sources) next(ctx context.Context) (*source, error) {
	for {
		src, wait := t.first(time.Now())
		if src != nil {
			return src, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-t.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// first takes the first source out of the queue if it is due, and says else
// how long to wait for one.
func (t *sources) first(now time.Time) (src *source, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return nil, time.Hour
	}
	src = t.queue[0]
	if wait = time.Duration(src.due - now.UnixNano()); wait > 0 {
		// A clock that is set must not be noticed too late.
		return nil, min(wait, time.Minute)
	}
	t.dequeue(src)
	return src, 0
}

// enqueue puts src in the queue, or moves it in there. The caller holds mu.
func (t *sources) enqueue(src *source, due time.Time) {
	src.due = nanos(due)
	if src.place == notQueued {
		heap.Push(&t.queue, src)
	} else {
		heap.Fix(&t.queue, src.place)
	}
	if t.queue[0] == src {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// nanos is a time in Unix nanoseconds, 0 for none.
func nanos(t time.Time) int64 {
	if t.Unix() < 0 {
		return 0
	}
	return t.UnixNano()
}

// dequeue takes src out of the queue, if it is there. The caller holds mu.
func (t *sources) dequeue(src *source) {
	if src.place != notQueued {
		heap.Remove(&t.queue, src.place)
	}
}

// forget makes src gone, and lets go of what it has. The caller holds mu.
func (t *sources) forget(src *source) {
	t.dequeue(src)
	t.settled(src)
	delete(t.byURI, src.uri)
	t.bytes -= src.weight
	src.gone.Store(true)
	// A client may keep src for long, and must not keep what it has.
	src.state.Store(t.nothing)
	src.text.Store(nil)
}

// sampled is how many sources are compared to find one to evict.
const sampled = 8

// evict makes room by forgetting the one of a few sources taken at random that
// has been unused for the longest time, which is nearly as good as the oldest
// of all and needs no list. It reports false if every source is being fetched.
// The caller holds mu.
func (t *sources) evict() bool {
	if len(t.queue) == 0 {
		return false
	}
	oldest := t.queue[rand.N(len(t.queue))] //nolint:gosec // chooses a victim, protects nothing
	for range sampled - 1 {
		if s := t.queue[rand.N(len(t.queue))]; s.used.Load() < oldest.used.Load() { //nolint:gosec // likewise
			oldest = s
		}
	}
	t.forget(oldest)
	return true
}

// dueQueue is a heap (container/heap) by due.
type dueQueue []*source

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *dueQueue) Push(x any) {
	src := x.(*source)
	src.place = len(*q)
	*q = append(*q, src)
}

func (q *dueQueue) Pop() any {
	old := *q
	last := len(old) - 1
	src := old[last]
	old[last] = nil // let go of it
	src.place = notQueued
	*q = old[:last]
	return src
}
