// Package faults does to the built binary what tokens, modules and clouds do in
// production, one thing after the other, while 32 callers ask for tokens over
// gRPC with client certificates. For each fault it tells how many requests
// failed and with what, how long it took to recover once the cause was gone,
// whether every token verifies with a JOSE library that is not ours, and
// whether the process lived on; and it holds each against its goal.
//
// faults_test.go is the list of faults, kms_test.go that of AWS KMS's, rig_test.go
// what they are done to, and load_test.go the callers.
//
// BULLA_SOAK=1 gives each fault its full length, all of them with the module in
// a worker too, and writes its part of docs/faults.md; the latter alone is done by
// BULLA_FAULTS_WRITE=1. Without it, the goal of 2 s is one of 5 s where the race
// detector and other packages' tests slow the service down.
package faults
