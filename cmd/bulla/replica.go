package main

import (
	"time"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/server"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/seal"
)

// replica is what the status tells of this process beside its issuers and keys.
func replica(cfg *config.Config, backends *backends, answering *backendWatch, store *openedStore, looking *storeWatch, cache *keycache.Cache, sealer *seal.Sealer) server.Replica {
	return server.Replica{
		Version:  version(),
		Started:  time.Now(),
		Degraded: looking.degraded,
		Backends: func() []server.BackendState { return backendStates(cfg, backends, answering) },
		Store: func() server.StoreState {
			kind := "bolt"
			if store.shared {
				kind = "postgres"
			}
			return server.StoreState{Kind: kind, Up: looking.up(), Lag: looking.lag()}
		},
		Clients: cache.States,
		Tokens:  sealer.Totals,
	}
}

// backendStates is how the backends are, as far as is known without asking them.
func backendStates(cfg *config.Config, backends *backends, answering *backendWatch) []server.BackendState {
	var states []server.BackendState
	for name, c := range cfg.Backends {
		state := server.BackendState{Name: name, Kind: c.Kind(), Up: answering.up(name)}
		if token, ok := backends.tokens[name]; ok {
			s := token.Stats()
			state.Since, state.InUse, state.Limit, state.Waiting = s.Since, s.InUse, s.Limit, s.Waiting
		}
		states = append(states, state)
	}
	return states
}
