package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter/fetch"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms"
	"github.com/bulla-project/bulla/kms/local"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// The functions below turn the configuration into that of each part.

func auditConfig(cfg *config.Config, log *slog.Logger) audit.Config {
	host, _ := os.Hostname() // else the log does without
	return audit.Config{
		Path: cfg.Audit.Path, Sync: audit.Sync(cfg.Audit.Sync), OnFailure: audit.OnFailure(cfg.Audit.OnFailure),
		FlushEvery: cfg.Audit.FlushEvery, RotateSize: int64(cfg.Audit.RotateSize), Host: host, Logger: log,
	}
}

// backends are the open backends.
type backends struct {
	byName map[string]kms.Backend
	tokens map[string]*pkcs11.Backend // those of byName that are PKCS#11

	// stuck receives why the process has to end: a module that hangs, and that
	// the configuration wants to be rid of in this way.
	stuck chan error
}

// openBackends opens the configured backends, or those of some names only.
// Those that are down now do not fail it.
func openBackends(ctx context.Context, cfg *config.Config, names map[string]bool, log *slog.Logger) (*backends, error) {
	b := &backends{byName: make(map[string]kms.Backend), tokens: make(map[string]*pkcs11.Backend), stuck: make(chan error, 1)}
	modules := pkcs11.NewModules()
	for name, c := range cfg.Backends {
		if names != nil && !names[name] {
			continue
		}
		backend, err := b.open(ctx, name, c, refusalFile(cfg), modules, log.With("backend", name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("backend %s: %w", name, err), b.Close())
		}
		b.byName[name] = backend
	}
	return b, nil
}

func (b *backends) open(ctx context.Context, name string, c config.Backend, refusals string, modules *pkcs11.Modules, log *slog.Logger) (kms.Backend, error) {
	switch {
	case c.PKCS11 != nil:
		pc := pkcs11Config(c.PKCS11, refusals, modules, log)
		if c.PKCS11.ExitOnStuck {
			pc.OnStuck = func(err error) {
				select {
				case b.stuck <- fmt.Errorf("backend %s: %w; ending, as exit_on_stuck says", name, err):
				default: // another backend was first
				}
			}
		}
		token, err := pkcs11.New(ctx, pc)
		if err != nil {
			return nil, err
		}
		b.tokens[name] = token
		return token, nil
	case c.AWSKMS != nil:
		return awskms.New(ctx, awskms.Config{Region: c.AWSKMS.Region, Endpoint: c.AWSKMS.Endpoint, Rate: c.AWSKMS.Rate, Logger: log})
	default:
		return local.New(ctx, local.Config{Path: c.Local.Path})
	}
}

// refusalFile is where all commands that log in to a token keep which PINs were
// refused.
func refusalFile(cfg *config.Config) string {
	return filepath.Join(cfg.StateDir, "pkcs11-refused.json")
}

func pkcs11Config(c *config.PKCS11, refusals string, modules *pkcs11.Modules, log *slog.Logger) pkcs11.Config {
	pc := pkcs11.Config{
		Module: c.Module, InitReserved: c.InitReserved, Token: c.Token, Serial: c.Serial, PINFile: c.PINFile, RefusalFile: refusals,
		InsistOnLogin: c.InsistOnLogin, Sessions: c.Sessions, Modules: modules, Logger: log,
	}
	if c.Isolation == config.IsolationProcess {
		pc.Worker = workerCommand()
	}
	return pc
}

func (b *backends) Close() error {
	var all error
	for name, backend := range b.byName {
		if err := backend.Close(); err != nil {
			all = errors.Join(all, fmt.Errorf("backend %s: %w", name, err))
		}
	}
	return all
}

func newIssuers(cfg *config.Config) (*issuer.Directory, error) {
	var list []*issuer.Issuer
	for _, c := range cfg.Issuers {
		var algorithms []kms.Algorithm
		for _, k := range c.SigningKeys {
			if !slices.Contains(algorithms, k.Algorithm) {
				algorithms = append(algorithms, k.Algorithm)
			}
		}
		i, err := issuer.New(issuer.Config{
			Name:    c.Name,
			Token:   signer.Issuer{URL: c.Iss, DefaultLifetime: c.DefaultLifetime, MaxLifetime: c.MaxLifetime},
			Profile: issuer.Profile(c.Profile), DefaultAlgorithm: c.DefaultSigningAlgorithm, SigningKeys: algorithms,
			Signing: c.Policy.Signing, Encryption: c.Policy.Encryption, ContentEncryption: c.Policy.ContentEncryption,
			Legacy: c.Policy.Legacy, MinRSABits: c.Policy.MinRSABits, MaxRSABits: c.Policy.MaxRSABits,
			KeyChangeDelay: c.KeyChangeDelay,
		})
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	return issuer.NewDirectory(list...), nil
}

func newPolicy(cfg *config.Config) (*authz.Policy, error) {
	if cfg.Plaintext() {
		return authz.Development(), nil
	}
	return authz.New(cfg.AuthzGrants())
}

func keyringConfig(cfg *config.Config, store keyring.Store, backends map[string]kms.Backend, auditLog *audit.Log, log *slog.Logger) keyring.Config {
	c := keyring.Config{
		Store: store, Backends: backends, MaxLag: cfg.Store.MaxLag, Logger: log,
		Alone:   cfg.Store.Postgres == nil, // a bolt file is one process's
		Changed: func(ctx context.Context, change keyring.Change) { recordChange(ctx, auditLog, change, log) },
	}
	for _, i := range cfg.Issuers {
		one := keyring.Issuer{
			Name: i.Name, DefaultAlgorithm: i.DefaultSigningAlgorithm, JWKSMaxAge: i.JWKSMaxAge, MaxLifetime: i.MaxLifetime,
			Rotation: keyring.Rotation{Every: i.Rotation.Every, Create: i.Rotation.Create == config.CreateAuto},
		}
		for _, k := range i.SigningKeys {
			key := keyring.Key{Algorithm: k.Algorithm, SkipVerify: !k.Verify}
			for _, ref := range k.Keys {
				key.Locations = append(key.Locations, keyring.Location{Backend: ref.Backend, Ref: ref.Ref})
			}
			one.Keys = append(one.Keys, key)
		}
		c.Issuers = append(c.Issuers, one)
	}
	return c
}

// recordChange puts a change of signing keys on record, whoever asked for it or
// none. What has been stored is in force also if it cannot be recorded.
func recordChange(ctx context.Context, auditLog *audit.Log, change keyring.Change, log *slog.Logger) {
	e := audit.Event{
		Outcome: audit.Changed, Issuer: change.Issuer, SigningAlgorithm: string(change.Algorithm),
		OldThumbprint: change.OldKeyID, NewThumbprint: change.NewKeyID, KeySource: "rotation",
	}
	if change.Emergency {
		e.Settings = "emergency"
	}
	if err := auditLog.Record(ctx, e); err != nil {
		log.ErrorContext(ctx, "a change of signing keys is not on record", "issuer", change.Issuer, "algorithm", change.Algorithm, "error", err)
	}
}

func fetchConfig(cfg *config.Config, log *slog.Logger) fetch.Config {
	return fetch.Config{
		CAFile: cfg.Fetch.CAFile, AllowHosts: cfg.Fetch.AllowHosts, AllowCIDRs: cfg.Fetch.CIDRs(), AllowPorts: cfg.Fetch.AllowPorts,
		AllowLoopbackHTTP: cfg.Development, Logger: log,
	}
}

// jwksMaxAge finds how long verifiers may keep an issuer's keys.
func jwksMaxAge(cfg *config.Config) func(issuer string) time.Duration {
	return ofIssuer(cfg, func(i config.Issuer) time.Duration { return i.JWKSMaxAge })
}

// longestRSA is the largest bound of any issuer: key sets are shared.
func longestRSA(cfg *config.Config) int {
	bits := 0
	for _, i := range cfg.Issuers {
		bits = max(bits, i.Policy.MaxRSABits)
	}
	return bits
}

// ofIssuer finds a value of an issuer by its name.
func ofIssuer[T any](cfg *config.Config, value func(config.Issuer) T) func(name string) T {
	values := make(map[string]T)
	for _, i := range cfg.Issuers {
		values[i.Name] = value(i)
	}
	return func(name string) T { return values[name] }
}

func keycacheConfig(cfg *config.Config, store *openedStore, fetcher keycache.Fetcher, keeper keycache.Secrets, changed func(uri string), fetched func(keycache.Fetched, time.Duration), log *slog.Logger) keycache.Config {
	c := keycache.Config{
		Store: store, Fetcher: fetcher, Secrets: keeper, KeySetChanged: changed, Fetched: fetched, Logger: log,
		MaxMemory: int64(cfg.Cache.Memory), Leases: store.Leases(), MaxLag: cfg.Store.MaxLag,
		Limits:     jwks.Limits{MaxRSABits: longestRSA(cfg)},
		MinRSABits: ofIssuer(cfg, func(i config.Issuer) int { return i.Policy.MinRSABits }),
		MaxRSABits: ofIssuer(cfg, func(i config.Issuer) int { return i.Policy.MaxRSABits }),
		IssuerURL:  ofIssuer(cfg, func(i config.Issuer) string { return i.Iss }),
		Policy: keycache.Policy{
			MinRefresh: cfg.Fetch.MinRefresh, DefaultRefresh: cfg.Fetch.DefaultRefresh,
			MaxRefresh: cfg.Fetch.MaxRefresh, MaxStale: cfg.Fetch.MaxStale,
		},
	}
	if store.shared {
		c.Feed = store
	}
	return c
}
