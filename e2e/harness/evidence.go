package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Evidence is what a run of tests leaves behind: the secrets that its calls
// carried, and all that callers, operators and auditors could read meanwhile.
// Neither must be found in the other.
//
// Secret is what the API marks as debug_redact, and what the harness makes that
// is private. Of claims it is the values, but for those that stand in the open
// anyway: who issued, for whom.
type Evidence struct {
	mu       sync.Mutex
	secrets  map[string]string // by value: what it is; guarded by mu
	passages []passage         // guarded by mu
}

// passage is a text that somebody could read.
type passage struct{ where, text string }

// evidence is that of the process: services and callers of all its tests leave
// theirs here.
var evidence Evidence

// Written has a text searched too, that somebody else than the harness collected.
func Written(where, text string) { evidence.Written(where, text) }

// SearchEvidence returns an error that names where secrets of this process's tests
// were written. It says how much was searched for how many.
func SearchEvidence() error {
	found, secrets, size := evidence.search()
	fmt.Printf("searched %d KiB of logs, metrics, traces, audit lines and errors for %d secrets\n", size>>10, secrets)
	if len(found) > 0 {
		return fmt.Errorf("secrets were written:\n%s", strings.Join(found, "\n"))
	}
	return nil
}

const (
	// shortest is the length below which a secret may stand anywhere by chance.
	shortest = 8
	// fragment is how much of a long secret gives it away, cut off or not.
	fragment = 24
	// enough bounds what a long run of load is remembered by.
	enough = 200_000
)

// Secret says that a value must not be written.
func (e *Evidence) Secret(what, value string) {
	if len(value) < shortest {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.secrets == nil {
		e.secrets = make(map[string]string)
	}
	if len(e.secrets) < enough {
		e.secrets[value] = what
	}
}

// Written says that a text could be read.
func (e *Evidence) Written(where, text string) {
	if text == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.passages = append(e.passages, passage{where, text})
}

// encoded are runs of base64url, hexadecimal and the like: where the long secrets
// would be.
var encoded = regexp.MustCompile(`[A-Za-z0-9_+/-]{24,}`)

// search looks for long encoded secrets by their beginnings, of which there are
// too many to look for each, and for the others one by one.
func (e *Evidence) search() (found []string, secrets, size int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	long, others := make(map[string]string), make(map[string]string)
	for value, what := range e.secrets {
		if len(value) >= fragment && encoded.FindString(value) == value {
			long[value[:fragment]] = what
		} else {
			others[value] = what
		}
	}
	// Most places are ruled out by three bytes: the rest would take minutes under
	// the race detector.
	begins := make([]bool, 1<<24)
	for value := range long {
		begins[three(value)] = true
	}
	findings := make(map[string]bool)
	for _, p := range e.passages {
		size += len(p.text)
		for _, run := range encoded.FindAllString(p.text, -1) {
			for i := 0; i+fragment <= len(run); i++ {
				if !begins[three(run[i:])] {
					continue
				}
				if what, ok := long[run[i:i+fragment]]; ok {
					findings[what+" in "+p.where] = true
				}
			}
		}
		for value, what := range others {
			if strings.Contains(p.text, value) {
				findings[fmt.Sprintf("%s (%.40q) in %s", what, value, p.where)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(findings)), len(e.secrets), size
}

// three is the first three bytes of a text as a number.
func three(text string) int { return int(text[0])<<16 | int(text[1])<<8 | int(text[2]) }

// watched are the options by which a caller's messages and errors are seen.
func (e *Evidence) watched() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			e.message(req)
			err := call(ctx, method, req, reply, cc, opts...)
			if err == nil {
				e.message(reply)
			}
			e.failure(method, err)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, err
			}
			return &watchedStream{stream, e, method}, nil
		}),
	}
}

// watchedStream is a stream whose messages are seen.
type watchedStream struct {
	grpc.ClientStream
	evidence *Evidence
	method   string
}

func (s *watchedStream) SendMsg(m any) error {
	s.evidence.message(m)
	return s.ClientStream.SendMsg(m)
}

func (s *watchedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.evidence.message(m)
	}
	s.evidence.failure(s.method, err)
	return err
}

// failure keeps what a caller is told.
func (e *Evidence) failure(method string, err error) {
	if st, ok := status.FromError(err); ok && err != nil {
		e.Written("the error of "+method, fmt.Sprint(st.Message(), st.Details()))
	}
}

// message keeps the secrets of a message.
func (e *Evidence) message(m any) {
	if m, ok := m.(proto.Message); ok {
		e.fields(m.ProtoReflect())
	}
}

func (e *Evidence) fields(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		options, _ := field.Options().(*descriptorpb.FieldOptions)
		switch {
		case options.GetDebugRedact() && field.Kind() == protoreflect.BytesKind:
			e.document(string(field.Name()), v.Bytes())
		case options.GetDebugRedact():
			e.text(string(field.Name()), v.String())
		case field.IsMap() || field.Kind() != protoreflect.MessageKind:
		case field.IsList():
			for i := range v.List().Len() {
				e.fields(v.List().Get(i).Message())
			}
		default:
			e.fields(v.Message())
		}
		return true
	})
}

// text is a secret of its own. Of a token it is all but the header, and but what is
// as short as an IV or a tag, which give nothing away.
func (e *Evidence) text(name, value string) {
	if name != "token" {
		e.Secret(name, value)
		return
	}
	for i, part := range strings.Split(value, ".") {
		if i > 0 && len(part) >= fragment {
			e.Secret("a part of a token", part)
		}
	}
}

// open are the members of claims, keys and metadata whose values may be read.
var open = []string{
	"iss", "aud", "azp", "client_id", "jti", "events", "kty", "crv", "kid", "alg", "use", "n", "e", "x", "y", "x5c", "x5t", "x5t#S256", "jwks", "jwks_uri",
	"client_name", "redirect_uris", "grant_types", "response_types", "application_type", "token_endpoint_auth_method", "scope",
}

// document is JSON whose values are secret, but for those that are open.
func (e *Evidence) document(name string, doc []byte) {
	var members map[string]any
	if json.Unmarshal(doc, &members) != nil {
		return // it is wrong in a way that some test wants
	}
	e.members(name, members)
}

func (e *Evidence) members(of string, members map[string]any) {
	for name, value := range members {
		if slices.Contains(open, name) || strings.HasSuffix(name, "_alg") || strings.HasSuffix(name, "_enc") {
			continue
		}
		switch value := value.(type) {
		case string:
			e.Secret(of+"."+name, value)
		case map[string]any:
			e.members(of+"."+name, value)
		}
	}
}
