// Bench says what a token costs, and what it would have to cost.
//
// Speed in microseconds tells more of the machine than of the program, and on
// a shared machine not even that. So nothing is measured alone: each thing
// stands beside its floor, the least work that any program would have to do for
// the same result, and what counts is the ratio of the two. The floors are made
// of the same primitives on the same keys:
//
//	a JWE                   the sum of its random numbers, key management,
//	                        content encryption and base64
//	a PKCS#11 signature     the hash, C_SignInit and C_Sign in a loop on a session
//	                        of the same token
//	a token of the service  a gRPC call that answers with ready bytes, over mTLS
//	                        and of the same sizes, plus the raw signature, its
//	                        verification and the primitives of the JWE
//
// A module that runs in a process of its own is set against one that does not,
// by their signatures a second.
//
// Contestants take turns: a round has a spell of each, every other round in the
// opposite order, after a garbage collection that none of them is charged for.
// What is printed is the median over the rounds, of the processor time an
// operation takes (user and system, all threads, the garbage collector
// included), and of the ratio, which is taken within each round so that a
// machine that slows down for a while slows down both.
//
// The service is the binary that is shipped, run as a process of its own on a
// SoftHSM token, and the call that only answers is served by a process of its
// own too; both are charged for themselves and for the client that calls them.
//
// The tool judges nothing: it prints where the goals are met and where not, and
// fails only if something does not work. Every token that the service makes for
// it in the beginning is opened and verified.
package main
