// Package fleet tests several replicas of the built binary that share one
// PostgreSQL, one SoftHSM token and the clients' hosts, as a platform runs
// them: what one of them acknowledges is in force on the others, one of them
// fetches a jwks_uri for all, and whatever dies meanwhile, nobody gets a token for a
// key that was replaced, and nothing is lost that was acknowledged.
//
// fleet_test.go is all of it at once under load, for half a minute; with
// BULLA_SOAK=1 it takes three, and its table becomes a part of docs/faults.md
// (which BULLA_FAULTS_WRITE=1 does for a short run too). load_test.go has the
// callers and changes_test.go those who change clients meanwhile. The other files
// have a promise each, with times that are printed. rig_test.go is what they
// are all done to.
//
// Where the race detector and other packages' tests slow the service down, a
// second may be three: that tells a fleet that hears of changes from one that
// does not, and no more.
package fleet
