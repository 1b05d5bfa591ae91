package client

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/health" // by it a connection asks replicas whether they are ready
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// repeatable are the calls that may be made twice: at worst a token is made that
// nobody gets.
func repeatable() []string {
	return []string{
		bullav1.TokenService_SignAndEncrypt_FullMethodName,
		bullav1.TokenService_Sign_FullMethodName,
		bullav1.TokenService_BatchSignAndEncrypt_FullMethodName,
		bullav1.ClientKeyService_GetClientKey_FullMethodName,
		bullav1.ClientKeyService_ListClientKeys_FullMethodName,
		bullav1.ClientKeyService_ExplainClientKey_FullMethodName,
		bullav1.SigningKeyService_GetJWKS_FullMethodName,
		bullav1.SigningKeyService_ListSigningKeys_FullMethodName,
		bullav1.SigningKeyService_GetProviderMetadata_FullMethodName,
		bullav1.StatusService_GetStatus_FullMethodName,
	}
}

// The pauses of our own, where the service asks for none: they grow threefold
// from the first to the longest.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
	// longestWait is how long a pause may be that the service asks for. Beyond it
	// the caller has more use of the error, which says when.
	longestWait = 30 * time.Second
	// pushback is the trailer by which a service says when to call again (gRFC
	// A6).
	pushback = "grpc-retry-pushback-ms"
	// errorDomain is the domain of the service's reasons.
	errorDomain = "bulla"
)

// repeats says which failures are passing ones, and how long to wait for their
// end. gRPC's own retry policy knows codes alone, and waits for a pause that is
// longer than the caller's deadline until that has passed.
type repeats struct {
	attempts int // of a call, at most
	methods  []string
}

// onStream marks the context of a call that was made before, on a Stream.
type onStream struct{}

// unary makes a call again where that does no harm.
func (r repeats) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if !slices.Contains(r.methods, method) {
		return invoke(ctx, method, req, reply, conn, options...)
	}
	options = slices.Clip(options)
	attempt := 1
	if ctx.Value(onStream{}) != nil {
		attempt = 2
	}
	for ; ; attempt++ {
		var trailer metadata.MD
		err := invoke(ctx, method, req, reply, conn, append(options, grpc.Trailer(&trailer))...)
		if err == nil || !r.pause(ctx, attempt, err, trailer) {
			return err
		}
	}
}

// pause waits until a call may be made again that has failed for the n-th time.
// It returns false if it may not, or not while its caller waits.
func (r repeats) pause(ctx context.Context, n int, err error, trailer metadata.MD) bool {
	if n >= r.attempts || !passing(err) {
		return false
	}
	wait, ok := pauseAfter(n, err, trailer)
	return ok && sleep(ctx, wait)
}

// passing reports whether a failure is one that passes: a replica is gone,
// cannot do its work for now or has too much to do, the backend or a quota asks
// for less. Others with the same codes are not, such as a message that is too
// large for gRPC.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted:
		reason := reasonOf(err)
		return reason == "QUOTA_EXCEEDED" || reason == "SIGNING_THROTTLED"
	}
	return false
}

// reasonOf is the service's reason for a failure, empty if it gave none.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info.GetReason()
		}
	}
	return ""
}

// pauseAfter is how long to wait after the n-th failure: as long as the service
// asks for, and a bit more, so that not all that were turned away come back at
// one moment; else a pause of our own. ok is false where the service wants no
// other attempt, or none soon.
func pauseAfter(n int, err error, trailer metadata.MD) (wait time.Duration, ok bool) {
	if values := trailer.Get(pushback); len(values) > 0 {
		ms, err := strconv.ParseInt(values[0], 10, 32)
		if err != nil || ms < 0 {
			return 0, false
		}
		wait = time.Duration(ms) * time.Millisecond
	}
	for _, d := range status.Convert(err).Details() {
		if info, is := d.(*errdetails.RetryInfo); is {
			wait = max(wait, info.GetRetryDelay().AsDuration())
		}
	}
	if wait > longestWait {
		return 0, false
	}
	if wait == 0 {
		wait = ownPause(n)
	}
	return wait + rand.N(wait/5+1), true //nolint:gosec // spreads load, protects nothing
}

// ownPause is the n-th pause of our own.
func ownPause(n int) time.Duration {
	pause := firstPause
	for range min(n-1, 10) {
		pause *= 3
	}
	return min(pause, longestPause)
}

// sleep waits, and returns false at once if ctx ends before.
func sleep(ctx context.Context, wait time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serviceConfig is gRPC's description of how calls are made to these hosts: in
// turn to all that they stand for, and where replicas are named to those of them
// that are ready (gRFC A17). A single name may stand for many in DNS too, as that
// of a headless Service in Kubernetes does. A single address is one replica: gRPC
// connects to it when there is a call, and not before.
func serviceConfig(hosts []string) string {
	type object = map[string]any
	config := object{}
	if len(hosts) > 1 || net.ParseIP(hosts[0]) == nil {
		config["loadBalancingConfig"] = []object{{"round_robin": object{}}}
	}
	if len(hosts) > 1 {
		config["healthCheckConfig"] = object{"serviceName": ""}
	}
	doc, err := json.Marshal(config)
	if err != nil {
		panic(err) // strings
	}
	return string(doc)
}
