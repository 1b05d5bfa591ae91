package telemetry

import (
	"iter"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/bulla-project/bulla/encrypter/keycache"
	_ "github.com/bulla-project/bulla/proto/bulla/v1" // registers the API
	"github.com/bulla-project/bulla/signer"
)

// Expect makes the series that are there before anything has happened: for each
// method its good calls, and for each that issues tokens the code and reason of
// all that may go wrong without its caller being at fault, for their items too;
// for each issuer its tokens; and the results of fetches.
func (m *Metrics) Expect(issuers []string, faults iter.Seq2[string, string]) {
	for service, method := range methods() {
		m.flying.WithLabelValues(method)
		m.rpc.WithLabelValues(method)
		m.rpcs.WithLabelValues(method, "OK", "")
		if service != "TokenService" {
			continue
		}
		items := strings.HasPrefix(method, "Batch") || strings.HasPrefix(method, "Stream")
		if items {
			m.items.WithLabelValues(method, "OK", "")
		}
		for code, reason := range faults {
			m.rpcs.WithLabelValues(method, code, reason)
			if items {
				m.items.WithLabelValues(method, code, reason)
			}
		}
	}
	for _, issuer := range issuers {
		for _, kind := range signer.TokenKinds() {
			m.tokens.WithLabelValues(issuer, string(kind))
		}
	}
	for _, what := range []keycache.Fetched{keycache.FetchedChanged, keycache.FetchedUnchanged, keycache.FetchedNothing} {
		m.fetches.WithLabelValues(string(what))
	}
}

// methods are the services and methods of the API.
func methods() iter.Seq2[string, string] {
	return func(yield func(service, method string) bool) {
		protoregistry.GlobalFiles.RangeFilesByPackage("bulla.v1", func(file protoreflect.FileDescriptor) bool {
			for i := range file.Services().Len() {
				service := file.Services().Get(i)
				for j := range service.Methods().Len() {
					if !yield(string(service.Name()), string(service.Methods().Get(j).Name())) {
						return false
					}
				}
			}
			return true
		})
	}
}
