// Package overload asks the built binary for three times as many tokens as its
// HSM can sign, over gRPC with client certificates, and looks at what becomes of
// those who are served: there should be about as many as without the overload
// (at least 90 % of the peak), and they should not have waited long (the 99th
// percentile at most five times that of a service with nothing else to do). And
// it has one caller flood the service while another asks for a token now and
// then, who should notice little and be turned away never.
//
// The HSM is SoftHSM behind a module of our own that lets each signature take
// its time, as a network HSM does: what there is too little of is the HSM, and
// not the CPU on which the callers of the test run as well. BULLA_SOAK=1 has it
// with SoftHSM at its own speed too, on half of the CPUs, and the callers on the
// other half, where the goals are lower; gives all of it its full length; and
// writes the part of docs/load.md with the figures.
//
// A run consists of rounds: unloaded, peak and overload follow one another in
// each, so that all three see the same machine. The full run holds the medians
// of its rounds against the goals. The short one, which shares the machine with
// the tests of other packages, wants one round of a few that meets both goals: a
// service that lets its queue grow, or spends its time on refusals, has none.
//
// rig_test.go is the service, load_test.go the callers, overload_test.go and
// fairness_test.go the tests.
package overload
