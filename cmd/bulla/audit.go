package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/signer"
)

func auditCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "audit",
		Short: "Verify an audit log, and what that takes",
		Long: `Verify an audit log, and what that takes.

The lines of an audit log are a chain: each has the hash of the one before. With
audit.checkpoint in the configuration a key of a backend signs it from time to
time. docs/audit.md says what that proves, and what it does not.`,
	}, auditVerifyCommand(), auditCheckpointCommand(), auditKeyCommand())
}

func auditKeyCommand() *cobra.Command {
	var file string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "key --config FILE",
		Short: "Print the public key that verifies the audit log, as a JWK",
		Long: `Print the public key that verifies the audit log, as a JWK.

The command opens audit.checkpoint.key in its backend, as the service does. Keep
what it prints apart from the log: whoever verifies the log with a key that lies
beside it verifies nothing.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			c := cfg.Audit.Checkpoint
			if c == nil {
				return fmt.Errorf("%s has no audit.checkpoint: the audit log is not signed", file)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			open, err := openBackends(ctx, cfg, map[string]bool{c.Key.Backend: true}, commandLog(cmd))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, open.Close()) }()
			key, err := openAuditKey(ctx, cfg, open)
			if err != nil {
				return err
			}
			jwk, err := signer.PublicJWK(key.Public(), c.Algorithm)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", jwk)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long the backend may take")
	return cmd
}

func auditCheckpointCommand() *cobra.Command {
	var keyFile, output string
	cmd := &cobra.Command{
		Use:   "checkpoint FILE…",
		Short: "Print the last checkpoint of an audit log, to keep it elsewhere",
		Long: `Print the last checkpoint of an audit log, to keep it elsewhere.

It is one line. Have another machine collect it regularly, and keep all of them:

  ssh replica-1 bulla audit checkpoint /var/log/bulla/audit.log >> replica-1.checkpoints

"bulla audit verify --checkpoint replica-1.checkpoints" then shows whether the log
still has all that it had, its end too. With --key the signature is verified
before the checkpoint is printed. Give the rotated files too, if the last one
may be new: the checkpoint with the highest number is printed.`,
		Example: "  bulla audit checkpoint --key audit.jwk /var/log/bulla/audit.log*",
		Args:    atLeastOneFile,
		RunE: func(cmd *cobra.Command, files []string) error {
			var keys audit.Keys
			if keyFile != "" {
				var err error
				if keys, err = readAuditKeys(cmd, keyFile); err != nil {
					return err
				}
			}
			last, err := audit.LastCheckpoint(cmd.Context(), files)
			if err != nil {
				return err
			}
			if last == nil {
				return errors.New("there is no checkpoint: the log was not signed yet, or is not (audit.checkpoint)")
			}
			if keys != nil {
				if err := last.Verify(keys); err != nil {
					return fmt.Errorf("the last checkpoint, for line %d of chain %s: %w", last.Seq, last.Chain, err)
				}
			}
			if output == "json" {
				return printIndentless(cmd.OutOrStdout(), struct {
					audit.Checkpoint

					KeyID string `json:"kid"`
					JWS   string `json:"jws"`
				}{last.Checkpoint, last.KeyID, last.JWS})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), last.JWS)
			return err
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file with the public key of the audit log (JWK, JWK Set or PEM): verify the checkpoint")
	outputFlag(cmd, &output)
	return cmd
}

// readAuditKeys reads the public keys of an audit log.
func readAuditKeys(cmd *cobra.Command, name string) (audit.Keys, error) {
	document, err := readInput(cmd, name, maxInput)
	if err != nil {
		return nil, err
	}
	keys, err := audit.ParseKeys(document)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return keys, nil
}

// readCheckpoints reads checkpoints that were kept, one a line.
func readCheckpoints(cmd *cobra.Command, name string) ([]*audit.SignedCheckpoint, error) {
	document, err := readInput(cmd, name, maxInput)
	if err != nil {
		return nil, err
	}
	var list []*audit.SignedCheckpoint
	number := 0
	for line := range strings.Lines(string(document)) {
		number++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		k, err := audit.ParseCheckpoint(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		list = append(list, k)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no checkpoint", name)
	}
	return list, nil
}

func atLeastOneFile(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("FILE is missing: usage: %s", cmd.UseLine())
	}
	return nil
}

// printIndentless prints a value as one line of JSON.
func printIndentless(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(value)
}

// exitError is an error with an exit code of its own.
type exitError struct {
	error

	code int
}

func (e exitError) Unwrap() error { return e.error }

// exitCode is that of an error: 1 unless it has one of its own.
func exitCode(err error) int {
	var own exitError
	if errors.As(err, &own) {
		return own.code
	}
	return 1
}
