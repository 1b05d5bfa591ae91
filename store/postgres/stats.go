package postgres

import "time"

// Stats is how the store is, for metrics.
type Stats struct {
	// Up is false while the database cannot be reached, or its tables cannot be
	// used.
	Up bool
	// Connections of the pool. The one that listens is not among them.
	InUse, Idle, Max int
	// Listening says that changes are heard of by NOTIFY. If not, they are found
	// by looking.
	Listening bool
	// Lag is for how long nothing has been known of what others write; zero if
	// nobody has followed the feed yet.
	Lag time.Duration
}

func (e *engine) stats() Stats {
	pool := e.pool.Stat()
	s := Stats{
		Up:        e.cond.well.Load(),
		InUse:     int(pool.AcquiredConns()),
		Idle:      int(pool.IdleConns()),
		Max:       int(pool.MaxConns()),
		Listening: e.hears.Load(),
	}
	if t := e.current.Load(); t != nil {
		s.Lag = time.Since(*t)
	}
	return s
}
