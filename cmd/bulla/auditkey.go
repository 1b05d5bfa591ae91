package main

import (
	"context"
	"fmt"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/signer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// checkpoints is the part of the service that has the audit log signed, if the
// configuration says so. Until it runs the log is written all the same.
func checkpoints(cfg *config.Config, log *audit.Log, open *backends, keys *keyring.Keyring) func(context.Context) error {
	c := cfg.Audit.Checkpoint
	if c == nil {
		return func(context.Context) error { return nil }
	}
	return func(ctx context.Context) error {
		return log.RunCheckpoints(ctx, audit.CheckpointConfig{
			EveryLines: c.EveryLines, Every: c.Every,
			Open: func(ctx context.Context) (kms.Key, error) {
				key, err := openAuditKey(ctx, cfg, open)
				if err == nil {
					err = signsNoTokens(cfg, keys, key)
				}
				if err != nil {
					return nil, err
				}
				return key, nil
			},
		})
	}
}

// openAuditKey opens the key of audit.checkpoint.
func openAuditKey(ctx context.Context, cfg *config.Config, open *backends) (kms.Key, error) {
	c := cfg.Audit.Checkpoint
	key, err := open.byName[c.Key.Backend].OpenKey(ctx, c.Key.Ref, c.Algorithm)
	if err != nil {
		return nil, fmt.Errorf("audit.checkpoint.key %s: %w", c.Key, err)
	}
	return key, nil
}

// signsNoTokens refuses a key that is one of an issuer's under another name, as
// far as the rings are known.
func signsNoTokens(cfg *config.Config, keys *keyring.Keyring, key kms.Key) error {
	kid, err := signer.Thumbprint(key.Public())
	if err != nil {
		return err
	}
	for _, i := range cfg.Issuers {
		list, err := keys.List(i.Name)
		if err != nil {
			continue // they are not known yet
		}
		for _, k := range list {
			if k.KeyID == kid {
				return fmt.Errorf("audit.checkpoint.key %s: %w: it is a signing key of issuer %s: make one that does nothing but sign the audit log", cfg.Audit.Checkpoint.Key, kms.ErrKeyMismatch, i.Name)
			}
		}
	}
	return nil
}
