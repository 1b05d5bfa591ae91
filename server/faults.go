package server

import (
	"iter"

	"google.golang.org/grpc/codes"
)

// Faults yields the gRPC codes and reasons, as Observer.RPC is told them, of all
// errors that are not their callers' fault. Some come more than once.
func Faults() iter.Seq2[string, string] {
	return func(yield func(code, reason string) bool) {
		for _, r := range append([]row{unknownRow}, table...) {
			switch r.code {
			case codes.Internal, codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
				if !yield(r.code.String(), r.name()) {
					return
				}
			}
		}
	}
}
