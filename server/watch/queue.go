package watch

// queue holds names in the order in which they came, each of them once, and at
// most so many.
type queue struct {
	most  int
	order []string
	names map[string]struct{}
}

// add reports false if there is no room for the name.
func (q *queue) add(name string) bool {
	if _, ok := q.names[name]; ok {
		return true
	}
	if len(q.order) >= q.most {
		return false
	}
	if q.names == nil {
		q.names = make(map[string]struct{})
	}
	q.names[name] = struct{}{}
	q.order = append(q.order, name)
	return true
}

// take returns the name that came first. ok is false if there is none.
func (q *queue) take() (name string, ok bool) {
	if len(q.order) == 0 {
		return "", false
	}
	name = q.order[0]
	delete(q.names, name)
	if q.order = q.order[1:]; len(q.order) == 0 {
		q.clear() // a burst's memory is not kept
	}
	return name, true
}

func (q *queue) clear() { q.order, q.names = nil, nil }
