package pkcs11

import "time"

// Stats is what a backend can tell about its token for metrics. Backends that
// share a token tell the same.
//
// Of a token in a worker process, all but Isolated, WorkerRestarts and Logins
// is what the worker told last: at most a second ago, or a tenth of one if it
// is about being up or down.
type Stats struct {
	Up     bool
	Reason string    // why it is down, "" while up; for people, not a label
	Since  time.Time // of the last change between up and down

	Limit   int // sessions that may sign at once, now
	Open    int // sessions of the pool that are open
	InUse   int // of these, or about to be opened, in use
	Waiting int // calls that wait for a session
	Stuck   int // calls that have been inside the module for more than five seconds

	Waits       uint64  // calls that had to wait for a session, each when its wait was over
	WaitSeconds float64 // how long they waited, all together

	Logins   uint64 // C_Login calls, good or bad
	Renewals uint64 // calls made once more on a new session
	Restarts uint64 // C_Finalize and C_Initialize to bring the token back

	Isolated       bool   // the module runs in a worker process
	WorkerRestarts uint64 // new worker processes in the place of one that ended

	// Errors counts what the module answered, by name and number, such as
	// "CKR_SESSION_HANDLE_INVALID (0xB3)".
	Errors map[string]uint64
}
