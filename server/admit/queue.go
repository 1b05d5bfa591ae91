package admit

import "time"

// queue is who waits: a line for each caller, and the callers in a ring, of whom
// each has its turn.
type queue struct {
	waiting int
	lines   map[string]*line // of callers with somebody who waits
	turn    *line            // whose it is next; nil if nobody waits
	spare   *line            // those that nobody stands in
}

// line is what waits of one caller, the oldest first.
type line struct {
	caller     string
	n          int
	head, tail *waiter
	prev, next *line // in the ring
}

// waiter is a call that waits. It is used again when it has its verdict.
type waiter struct {
	turn     chan verdict // of capacity one: what is sent never waits
	patience time.Duration
	until    time.Duration // when its time is over; 0 for never
	timer    *time.Timer   // of its patience; nil until it is needed

	line       *line // nil once it is out of the queue
	prev, next *waiter
}

// verdict is a place, or that there is none.
type verdict struct {
	place   *place
	refused *OverloadedError
}

// len is how many stand in a line; a caller with nobody waiting has none.
func (l *line) len() int {
	if l == nil {
		return 0
	}
	return l.n
}

// push puts a waiter behind the others of its caller.
func (q *queue) push(caller string, w *waiter) {
	l := q.lines[caller]
	if l == nil {
		l = q.open(caller)
	}
	w.line, w.prev = l, l.tail
	if l.tail == nil {
		l.head = w
	} else {
		l.tail.next = w
	}
	l.tail = w
	l.n++
	q.waiting++
}

// open makes a line for a caller who has none. It has its turn after all others.
func (q *queue) open(caller string) *line {
	l := q.spare
	if l == nil {
		l = new(line)
	}
	q.spare, l.caller = l.next, caller
	q.lines[caller] = l
	if q.turn == nil {
		l.prev, l.next, q.turn = l, l, l
		return l
	}
	l.prev, l.next = q.turn.prev, q.turn
	l.prev.next, l.next.prev = l, l
	return l
}

// pop takes out the oldest of the caller whose turn it is; nil if nobody waits.
func (q *queue) pop() *waiter {
	l := q.turn
	if l == nil {
		return nil
	}
	q.turn = l.next
	w := l.head
	q.remove(w)
	return w
}

// remove takes a waiter out.
func (q *queue) remove(w *waiter) {
	l := w.line
	if w.prev == nil {
		l.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.line, w.prev, w.next = nil, nil, nil
	q.waiting--
	if l.n--; l.n > 0 {
		return
	}
	delete(q.lines, l.caller)
	if l.next == l {
		q.turn = nil
	} else {
		l.prev.next, l.next.prev = l.next, l.prev
		if q.turn == l {
			q.turn = l.next
		}
	}
	l.caller, l.prev, l.next, q.spare = "", nil, q.spare, l
}

// longest is the line with the most in it. There is one, as somebody waits.
func (q *queue) longest() *line {
	most := q.turn
	for l := most.next; l != q.turn; l = l.next {
		if l.n > most.n {
			most = l
		}
	}
	return most
}

// ahead is how many have their turn before one that comes now behind all in its
// own line: these, and of each other caller as many, and one more.
func (q *queue) ahead(own *line) int {
	n := own.len()
	for l, first := q.turn, true; l != nil && (first || l != q.turn); l, first = l.next, false {
		if l != own {
			n += min(l.n, own.len()+1)
		}
	}
	return n
}
