package server

import (
	"context"
	"log/slog"
	"runtime"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// itemsAtOnce is how many tokens of one batch, or of one stream, are made at
// once: enough to keep a backend busy that is a network away, and so few that
// neither fills the queue before a backend by itself. Who gets the backend next
// is decided there for each token, and is fair between callers.
func itemsAtOnce() int { return min(32, max(8, 2*runtime.GOMAXPROCS(0))) }

// item makes the n-th token of a call that asks for many. It goes the way of a
// single call and fails alone, with the status that a single call would have.
func (s *tokenService) item(ctx context.Context, method string, n int, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, *rpcstatus.Status) {
	res, err := s.guarded(ctx, method, req)
	if err != nil {
		return nil, s.itemFailed(ctx, method, n, err)
	}
	s.server.cfg.Observer.Item(method, codes.OK.String(), "")
	return res, nil
}

// guarded keeps a panic to the one item.
func (s *tokenService) guarded(ctx context.Context, method string, req *bullav1.SignAndEncryptRequest) (res *bullav1.SignAndEncryptResponse, err error) {
	defer s.server.caught(ctx, method, &err)
	return s.SignAndEncrypt(ctx, req)
}

// itemFailed counts an item that failed, logs what its caller is not told, and
// returns what it is told.
func (s *tokenService) itemFailed(ctx context.Context, method string, n int, err error) *rpcstatus.Status {
	st := statusOf(err)
	s.server.cfg.Observer.Item(method, st.Code().String(), Reason(err))
	s.server.log.LogAttrs(ctx, levelOf(st.Code(), err), "call failed",
		slog.String("rpc", method), slog.Int("item", n), slog.String("code", st.Code().String()),
		slog.String("reason", Reason(err)), slog.Any("error", err))
	return st.Proto()
}
