package pkcs11

import (
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/bulla-project/bulla/kms"
)

// outbox writes frames. One goroutine, run, does all writing, and what gathers
// until it gets to that goes out together: under load a system call, and the
// waking of the other end, is for many frames. A lone frame is not held back.
type outbox struct {
	w    io.Writer
	wake chan struct{} // capacity 1: something waits

	// mu guards what follows, and what the owner of the outbox keeps in step
	// with what was sent.
	mu     sync.Mutex
	queue  []byte // frames that wait
	awake  bool   // run knows of them
	closed error  // no more frames are taken
	lazy   int    // frames that wait without run knowing
	timer  *time.Timer
	armed  bool // timer will tell run
}

// The bounds on frames that are held back for others to join them.
const (
	maxLazy  = 8
	lazyTime = 500 * time.Microsecond
)

func newOutbox(w io.Writer) *outbox { return &outbox{w: w, wake: make(chan struct{}, 1)} }

// send queues a frame. An error means that it was not queued.
func (o *outbox) send(kind frameKind, id uint64, parts ...[]byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.add(kind, id, parts...)
}

// add is send for the holder of mu.
func (o *outbox) add(kind frameKind, id uint64, parts ...[]byte) error {
	if err := o.put(kind, id, parts...); err != nil {
		return err
	}
	o.rouse()
	return nil
}

// addLater is add for a frame that may wait a moment for others to join it. The
// caller holds mu, and knows that there will be others.
func (o *outbox) addLater(kind frameKind, id uint64, parts ...[]byte) error {
	if err := o.put(kind, id, parts...); err != nil || o.awake {
		return err
	}
	if o.lazy++; o.lazy >= maxLazy {
		o.rouse()
		return nil
	}
	if !o.armed {
		o.armed = true
		if o.timer == nil {
			o.timer = time.AfterFunc(lazyTime, o.timeout)
		} else {
			o.timer.Reset(lazyTime)
		}
	}
	return nil
}

// timeout is the end of the time that frames wait for others.
func (o *outbox) timeout() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.armed = false
	if o.lazy > 0 {
		o.rouse()
	}
}

// rouse tells run that frames wait. The caller holds mu.
func (o *outbox) rouse() {
	if !o.awake && o.closed == nil {
		o.awake, o.lazy = true, 0
		o.wake <- struct{}{} // has room: run took the last one before it cleared awake
	}
}

// put queues a frame. The caller holds mu.
func (o *outbox) put(kind frameKind, id uint64, parts ...[]byte) error {
	n := headSize
	for _, p := range parts {
		n += len(p)
	}
	switch {
	case o.closed != nil:
		return o.closed
	case n > maxFrame:
		return errFrameSize
	case len(o.queue)+n > maxQueued:
		return fmt.Errorf("%w: the PKCS#11 worker process does not take what it is sent", kms.ErrThrottled)
	}
	if n += lengthSize; cap(o.queue)-len(o.queue) < n {
		grown := make([]byte, len(o.queue), max(2*cap(o.queue), len(o.queue)+n, 4<<10))
		copy(grown, o.queue)
		clear(o.queue) // there may be a PIN in it
		o.queue = grown
	}
	o.queue = appendFrame(o.queue, kind, id, parts...)
	return nil
}

// close makes send fail with why from now on, and lets run end when it has
// written what waits.
func (o *outbox) close(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed == nil {
		o.closed = why
		close(o.wake)
	}
}

// run writes until close, or until writing fails.
func (o *outbox) run() error {
	var spare []byte
	for range o.wake {
		runtime.Gosched() // others that were woken together may have something to send
		for {
			o.mu.Lock()
			batch := o.queue
			if len(batch) == 0 {
				o.awake = false
				o.mu.Unlock()
				break
			}
			o.queue = spare[:0]
			o.mu.Unlock()
			_, err := o.w.Write(batch)
			clear(batch)
			if err != nil {
				return err
			}
			if spare = batch; cap(spare) > inboxSize {
				spare = nil
			}
		}
	}
	return nil
}

// flush waits until nothing waits to be written, but no longer than limit.
func (o *outbox) flush(limit time.Duration) {
	o.mu.Lock()
	if len(o.queue) > 0 {
		o.rouse()
	}
	o.mu.Unlock()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		o.mu.Lock()
		idle := !o.awake
		o.mu.Unlock()
		if idle {
			return
		}
	}
}
