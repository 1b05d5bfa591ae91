package server

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
)

// WatchClientKeys tells how clients stand after each change. A change that leads
// to what the caller was told last is not told, nor is one that was overtaken by
// another before the caller came to read of it.
//
// A caller that does not read blocks nothing but its own call.
func (s *clientKeyService) WatchClientKeys(req *bullav1.WatchClientKeysRequest, stream grpc.ServerStreamingServer[bullav1.WatchClientKeysResponse]) error {
	e, err := s.gate.enter(stream.Context(), req.GetIssuer(), "", false)
	if err != nil {
		return err
	}
	if err := e.allowSome(stream.Context(), authz.ReadClientKeys); err != nil {
		return err
	}
	ctx, cancel := whileIdentified(stream.Context())
	defer cancel()
	ctx, release := e.whileGranted(ctx, authz.ReadClientKeys)
	defer release()
	w, err := s.watches.Watch(e.event.Caller, e.issuer.Name(), e.mayReadNow)
	if err != nil {
		return err
	}
	defer w.Close()
	// By these the caller knows that it misses nothing from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	told := newTellings()
	for {
		clientID, err := w.Next(ctx)
		if err != nil {
			return e.ended(stream.Context(), err)
		}
		res, err := s.changed(ctx, e.issuer.Name(), clientID, w.Told())
		if err != nil {
			return e.ended(stream.Context(), err)
		}
		if res == nil {
			continue
		}
		w.LookAgain(clientID, changesByItself(res.GetClientKey()))
		if !told.anew(res) || !e.mayReadNow(clientID) {
			continue
		}
		if err := send(ctx, stream, res); err != nil {
			return e.ended(stream.Context(), err)
		}
	}
}

// send sends a message, or gives up when ctx ends: a caller that does not read
// holds its watch no longer than one that does. The goroutine that still sends
// then ends with the stream, which gRPC ends when its handler returns. No other
// one sends on the stream after that.
func send(ctx context.Context, stream grpc.ServerStreamingServer[bullav1.WatchClientKeysResponse], res *bullav1.WatchClientKeysResponse) error {
	sent := make(chan error, 1)
	go func() { sent <- stream.Send(res) }()
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// whileIdentified is a context that ends with the caller's certificate, or when
// its CA is trusted no more: a watch may outlive both, and who has none any more
// is nobody.
func whileIdentified(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	forget := func() bool { return true }
	if c := connectionOf(ctx); c != nil {
		forget = context.AfterFunc(c.revoked, func() { end(context.Cause(c.revoked)) })
	}
	expire := func() {}
	if until := callOf(ctx).until; !until.IsZero() {
		ctx, expire = context.WithDeadlineCause(ctx, until, errExpiredIdentity)
	}
	return ctx, func() {
		forget()
		expire()
		end(context.Canceled)
	}
}

// changed is how a client stands after a change that was the told-th of all; nil
// if nothing is known of it.
func (s *clientKeyService) changed(ctx context.Context, issuer, clientID string, told uint64) (*bullav1.WatchClientKeysResponse, error) {
	limited, cancel := context.WithTimeoutCause(ctx, longestCall, fmt.Errorf("%w: no answer for %s", registry.ErrUnavailable, longestCall))
	defer cancel()
	res, err := s.looks.share(limited, lookAt{issuer, clientID}, told, s.watches.Told, func(ctx context.Context) (*bullav1.WatchClientKeysResponse, error) {
		return s.look(ctx, issuer, clientID)
	})
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil, nil
	case err != nil && limited.Err() != nil:
		return nil, context.Cause(limited)
	}
	return res, err
}

func (s *clientKeyService) look(ctx context.Context, issuer, clientID string) (*bullav1.WatchClientKeysResponse, error) {
	reg, err := s.store.Get(ctx, issuer, clientID)
	if unreadable := registry.Unreadable(issuer, clientID, err); unreadable != nil {
		reg, err = unreadable, nil
	}
	if err != nil {
		return nil, err
	}
	if reg.Deleted && reg.Pending == nil {
		return &bullav1.WatchClientKeysResponse{ClientKey: bareClientKey(reg), Deleted: true}, nil
	}
	key, err := s.shown(ctx, reg)
	if err != nil {
		return nil, err
	}
	return &bullav1.WatchClientKeysResponse{ClientKey: key}, nil
}

// changesByItself is when a client's state changes without anybody's doing; zero
// if it does not.
func changesByItself(k *bullav1.ClientKey) time.Time {
	var first time.Time
	if k.GetExpiresAt() != nil && k.GetState() != stateOf(keycache.Expired) {
		first = k.GetExpiresAt().AsTime()
	}
	if p := k.GetPendingChange(); p != nil {
		if at := p.GetEffectiveAt().AsTime(); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if first.IsZero() {
		return first
	}
	return first.Add(time.Second) // surely over
}

// tellings remembers what a caller was told last of each client: of the most
// recent ones, so that nobody's watch takes more memory the longer it lasts. A
// client that is forgotten may be told of once more than need be.
type tellings struct {
	seed maphash.Seed
	// recent and former hold the client's name and a hash of what was told. When
	// recent is full it becomes former, and what was former is forgotten.
	recent, former map[string]uint64
}

// maxRecent is how many clients fit into each half.
const maxRecent = 5000

func newTellings() *tellings {
	return &tellings{seed: maphash.MakeSeed(), recent: make(map[string]uint64)}
}

// anew reports whether a message is not what was told last of its client, and
// remembers it.
func (t *tellings) anew(res *bullav1.WatchClientKeysResponse) bool {
	clientID, hash := res.GetClientKey().GetClientId(), t.hash(res)
	last, ok := t.recent[clientID]
	if !ok {
		last, ok = t.former[clientID]
	}
	if ok && last == hash {
		return false
	}
	if len(t.recent) >= maxRecent {
		t.recent, t.former = make(map[string]uint64), t.recent
	}
	t.recent[clientID] = hash
	return true
}

// hash covers what makes two messages of a client differ: the registration, the
// state and the keys in use, and what waits; not the times of the last look at a URL and of the
// next, nor under which number the log has why it failed this time.
func (t *tellings) hash(res *bullav1.WatchClientKeysResponse) uint64 {
	k := res.GetClientKey()
	var h maphash.Hash
	h.SetSeed(t.seed)
	maphash.WriteComparable(&h, res.GetDeleted())
	maphash.WriteComparable(&h, k.GetRevision())
	maphash.WriteComparable(&h, k.GetState())
	if k.GetState() == stateOf(keycache.NoUsableKey) {
		maphash.WriteComparable(&h, k.GetStateReason())
	}
	writeChosen(&h, k.GetChosenKeys())
	if p := k.GetPendingChange(); p != nil {
		maphash.WriteComparable(&h, p.GetEffectiveAt().AsTime().UnixNano())
		maphash.WriteComparable(&h, p.GetState())
		writeChosen(&h, p.GetChosenKeys())
	}
	return h.Sum64()
}

func writeChosen(h *maphash.Hash, keys []*bullav1.ChosenKey) {
	for _, c := range keys {
		maphash.WriteComparable(h, [...]string{kindName(c.GetTokenKind()), c.GetKeyId(), c.GetThumbprint()})
	}
}
