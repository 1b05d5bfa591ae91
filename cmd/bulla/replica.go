package main

import (
	"time"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/server"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/seal"
	"github.com/bulla-project/bulla/signer/keyring"
)

// replica is what the status tells of this process beside its issuers and keys.
func replica(cfg *config.Config, backends *backends, issuers *issuer.Directory, keys *keyring.Keyring, store *openedStore, looking *storeWatch, cache *keycache.Cache, sealer *seal.Sealer) server.Replica {
	return server.Replica{
		Version:  version(),
		Started:  time.Now(),
		Degraded: looking.degraded,
		Backends: func() []server.BackendState { return backendStates(cfg, backends, issuers, keys) },
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

// backendStates is how the backends are, as far as is known without asking them:
// a PKCS#11 token says so itself, any other is down while none of its keys signs.
func backendStates(cfg *config.Config, backends *backends, issuers *issuer.Directory, keys *keyring.Keyring) []server.BackendState {
	signs, silent := signingPlaces(issuers, keys)
	var states []server.BackendState
	for name, c := range cfg.Backends {
		state := server.BackendState{Name: name, Kind: c.Kind(), Up: signs[name] || !silent[name]}
		if token, ok := backends.tokens[name]; ok {
			s := token.Stats()
			state.Up, state.Since = s.Up, s.Since
			state.InUse, state.Limit, state.Waiting = s.InUse, s.Limit, s.Waiting
		}
		states = append(states, state)
	}
	return states
}

// signingPlaces are the backends at which a key signs, and those at which one
// does not.
func signingPlaces(issuers *issuer.Directory, keys *keyring.Keyring) (signs, silent map[string]bool) {
	signs, silent = make(map[string]bool), make(map[string]bool)
	for _, i := range issuers.All() {
		list, err := keys.List(i.Name())
		if err != nil {
			continue // the rings are not known yet: no key is in any place
		}
		for _, k := range list {
			for _, p := range k.Places {
				if p.Open && p.Problem == "" {
					signs[p.Location.Backend] = true
				} else {
					silent[p.Location.Backend] = true
				}
			}
		}
	}
	return signs, silent
}
