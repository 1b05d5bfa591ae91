// Package server is the gRPC face of Bulla: it turns requests into calls of the
// packages that do the work, and their results and errors into replies.
//
// It adapts and decides nothing of its own about tokens: those go the one way
// of server/seal. What it does decide is the order in which a client's
// registration is checked, authorized, put on record and stored.
//
// Batches and streams are many single calls in one: each item goes the same way,
// fails alone, and is counted and logged as a call is. What is theirs is how many
// are made at once, how much is read ahead, and how they end (batch.go,
// stream.go).
//
// status.go holds the one table from errors to gRPC statuses, interceptors.go
// the one list of what every call passes through.
package server
