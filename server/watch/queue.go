package watch

// queue holds names in the order in which they came, each of them once and with
// the number that it came with last, and at most so many.
type queue struct {
	most  int
	order []string
	names map[string]uint64
}

// add reports false if there is no room for the name.
func (q *queue) add(name string, number uint64) bool {
	if _, ok := q.names[name]; ok {
		q.names[name] = number
		return true
	}
	if len(q.order) >= q.most {
		return false
	}
	if q.names == nil {
		q.names = make(map[string]uint64)
	}
	q.names[name] = number
	q.order = append(q.order, name)
	return true
}

// take returns the name that came first. ok is false if there is none.
func (q *queue) take() (name string, number uint64, ok bool) {
	if len(q.order) == 0 {
		return "", 0, false
	}
	name = q.order[0]
	number = q.names[name]
	delete(q.names, name)
	if q.order = q.order[1:]; len(q.order) == 0 {
		q.clear() // a burst's memory is not kept
	}
	return name, number, true
}

func (q *queue) clear() { q.order, q.names = nil, nil }
