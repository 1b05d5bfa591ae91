package server

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulla-project/bulla/encrypter/keycache"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/signer/keyring"
)

// Replica is what there is to tell of a replica beside its issuers and keys. Its
// functions answer from memory. All fields are required.
type Replica struct {
	Version string
	Started time.Time
	// Degraded returns what does not work as it should, nil if all does.
	Degraded func() error
	// Backends returns the backends, in any order.
	Backends func() []BackendState
	// Store returns how the store is.
	Store func() StoreState
	// Clients counts the clients in memory by state.
	Clients func() map[keycache.State]int
	// Tokens counts the tokens that were handed out, and those that were not.
	Tokens func() (issued, refused uint64)
}

func (r *Replica) complete() bool {
	return r.Degraded != nil && r.Backends != nil && r.Store != nil && r.Clients != nil && r.Tokens != nil
}

// BackendState is how a backend is.
type BackendState struct {
	// Name is the configuration's, Kind pkcs11, awskms or local.
	Name, Kind string
	Up         bool
	// Since is when that changed last; zero if it is not known.
	Since time.Time
	// InUse of Limit signatures are being made, and Waiting ones wait. All are
	// zero where the backend has no such limit.
	InUse, Limit, Waiting int
}

// StoreState is how the store is.
type StoreState struct {
	// Kind is bolt or postgres.
	Kind string
	Up   bool
	// Lag is for how long changes of other replicas may have been missed.
	Lag time.Duration
}

// statusService is StatusService.
type statusService struct {
	bullav1.UnsafeStatusServiceServer
	gate    gate
	keys    SigningKeys
	replica Replica
	ready   func() error
}

var _ bullav1.StatusServiceServer = (*statusService)(nil)

// GetStatus leaves a trace in the audit log only if it is denied, as all that
// reads.
func (s *statusService) GetStatus(ctx context.Context, _ *bullav1.GetStatusRequest) (*bullav1.GetStatusResponse, error) {
	res := &bullav1.GetStatusResponse{
		Version:   s.replica.Version,
		StartedAt: timestamp(s.replica.Started),
		At:        timestamppb.Now(),
	}
	var denial error
	var denied *entry
	for _, i := range s.gate.issuers.All() {
		e, err := s.gate.enter(ctx, i.Name(), "", false)
		if err != nil {
			return nil, err
		}
		if err := e.may(authz.ReadStatus); err != nil {
			e.event.Permission = string(authz.ReadStatus)
			denied, denial = e, err
			continue
		}
		res.Issuers = append(res.Issuers, s.issuer(i.Name()))
	}
	if len(res.GetIssuers()) == 0 {
		return nil, denied.deny(ctx, denial)
	}
	if err := s.ready(); err != nil {
		res.NotReady = "no issuer can sign, or the replica is stopping: readyz and the log say why"
	}
	if err := s.replica.Degraded(); err != nil {
		res.Degraded = "the store cannot be used, or changes of other replicas are not heard of: readyz and the log say why"
	}
	s.surroundings(res)
	res.TokensIssued, res.TokensRefused = s.replica.Tokens()
	return res, nil
}

// issuer is one issuer with its keys. Rings that are not known yet are shown as
// none, beside a signs that is false.
func (s *statusService) issuer(name string) *bullav1.IssuerStatus {
	one := &bullav1.IssuerStatus{Name: name}
	one.Signs, _ = s.keys.Healthy(name)
	list, err := s.keys.List(name)
	if err != nil {
		return one
	}
	for _, k := range list {
		if k.State == keyring.Retired {
			continue
		}
		key := signingKey(name, k)
		key.PublicJwk = nil
		one.SigningKeys = append(one.SigningKeys, key)
	}
	return one
}

// surroundings adds what the replica works with.
func (s *statusService) surroundings(res *bullav1.GetStatusResponse) {
	backends := slices.SortedFunc(slices.Values(s.replica.Backends()), func(a, b BackendState) int {
		return cmp.Compare(a.Name, b.Name)
	})
	for _, b := range backends {
		res.Backends = append(res.Backends, &bullav1.BackendStatus{
			Name: b.Name, Kind: b.Kind, Up: b.Up, Since: timestamp(b.Since),
			InUse: count(b.InUse), Limit: count(b.Limit), Waiting: count(b.Waiting),
		})
	}
	store := s.replica.Store()
	res.Store = &bullav1.StoreStatus{Kind: store.Kind, Up: store.Up, Lag: durationpb.New(store.Lag)}
	clients := s.replica.Clients()
	for _, state := range []keycache.State{keycache.Ready, keycache.Stale, keycache.Expired, keycache.Failing, keycache.NoUsableKey} {
		res.Clients = append(res.Clients, &bullav1.ClientCount{State: stateOf(state), Clients: count(clients[state])})
	}
}

// count is a number of things, of which there are never less than none.
func count(n int) uint64 { return uint64(max(n, 0)) }
