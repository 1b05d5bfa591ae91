package keycache

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestSourcesStayInOrder does random things to the sources and looks each time
// whether what their comments promise holds.
func TestSourcesStayInOrder(t *testing.T) {
	const most = 16
	s := newSources(most * newSource("12", &setState{}, nil, time.Now()).size())
	now := time.Now()
	var known []*source
	for step := range 20_000 {
		switch op := rand.N(6); {
		case op == 0 || len(known) == 0:
			uri := fmt.Sprint(rand.N(40))
			src := newSource(uri, &setState{}, nil, now.Add(time.Duration(step)*time.Hour))
			there := s.get(uri)
			got := s.add(src, now.Add(rand.N(time.Hour)))
			if there != nil && got != there || there == nil && got != src {
				t.Fatal("add returned another source than the one in place")
			}
			known = append(known, got)
		case op == 1:
			s.put(known[rand.N(len(known))], now.Add(rand.N(time.Hour)))
		case op == 2:
			s.drop(known[rand.N(len(known))])
		case op == 3:
			src := known[rand.N(len(known))]
			gone, had := src.gone.Load(), src.flight
			f := s.begin(src, always, func() *flight { return &flight{} })
			if gone && f != nil || !gone && f == nil || had != nil && f != had {
				t.Fatalf("begin: gone %v, flight under way %p, got %p", gone, had, f)
			}
		case op == 4:
			if src := known[rand.N(len(known))]; src.flight != nil {
				s.end(src, now.Add(rand.N(time.Hour)), rand.N(8) == 0)
			}
		default:
			if src, _ := s.first(now.Add(30 * time.Minute)); src != nil {
				for _, other := range s.queue {
					if other.due < src.due {
						t.Fatal("next is not the first that is due")
					}
				}
				s.put(src, now.Add(rand.N(time.Hour)))
			}
		}
		flights := 0
		for uri, src := range s.byURI {
			if src.uri != uri || src.gone.Load() {
				t.Fatalf("step %d: %s is in memory and gone, or under another name", step, uri)
			}
			if src.flight != nil {
				flights++
			}
			if (src.place == notQueued) != (src.flight != nil) {
				t.Fatalf("step %d: %s is at place %d of the queue, under way %v", step, uri, src.place, src.flight != nil)
			}
		}
		if len(s.queue)+flights != len(s.byURI) {
			t.Fatalf("step %d: %d queued and %d under way of %d", step, len(s.queue), flights, len(s.byURI))
		}
		for i, src := range s.queue {
			if src.place != i || s.byURI[src.uri] != src {
				t.Fatalf("step %d: place %d has a source of place %d", step, i, src.place)
			}
		}
		if s.len() > max(most, flights+1) {
			t.Fatalf("step %d: %d in memory, want at most %d", step, s.len(), most)
		}
		bytes := int64(0)
		for _, src := range s.byURI {
			bytes += src.weight
		}
		if s.bytes != bytes {
			t.Fatalf("step %d: %d bytes on record, want %d", step, s.bytes, bytes)
		}
		if len(known) > 100 {
			known = known[50:]
			for _, src := range s.byURI { // those under way must come to an end
				known = append(known, src)
			}
		}
	}
}

func TestQueueWakesForAnEarlierSource(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// Run waits for one that is due in an hour when one comes that is due
		// in a second.
		s := newSources(1 << 20)
		now := time.Now()
		s.add(newSource("late", &setState{}, nil, now), now.Add(time.Hour))
		got := make(chan string)
		go func() {
			src, err := s.next(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- src.uri
		}()
		w.sleep(10 * time.Second)
		s.add(newSource("early", &setState{}, nil, now), now.Add(11*time.Second))
		if uri := <-got; uri != "early" || time.Since(now) != 11*time.Second {
			t.Errorf("got %s after %v, want early after 11 s", uri, time.Since(now))
		}
	})
}

func TestLanesAreBounded(t *testing.T) {
	l := &lanes{perTarget: 2, allFailing: 3, targets: make(map[string]int)}
	for i, step := range []struct {
		host    string
		failing bool
		want    bool
	}{
		{"a", true, true}, {"a", true, true}, {"a", false, false}, {"b", true, true}, {"c", true, false}, {"c", false, true},
	} {
		if got := l.enter(step.host, step.failing); got != step.want {
			t.Errorf("step %d: got %v, want %v", i, got, step.want)
		}
	}
	l.leave("b", true)
	if !l.enter("c", true) {
		t.Error("a place that was left is not free")
	}
	for _, h := range []string{"a", "a", "c"} {
		l.leave(h, true)
	}
	l.leave("c", false)
	if len(l.targets) != 0 || l.failing != 0 {
		t.Errorf("got %+v after all have left", l)
	}
}
