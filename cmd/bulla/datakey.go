package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/bolt"
)

func datakeyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "datakey",
		Short: "Look at the keys that protect what is stored, and replace them",
		Long: `Look at the keys that protect what is stored, and replace them.

Data keys seal clients' secrets and authenticate every stored record; the
wrapping key of the configuration, which stays in its HSM or KMS, wraps them.
These commands work on the store itself. With store.bolt stop the service first:
one process at a time has the file. With store.postgres replicas may be running.
Run them as the user that the service runs as, with the same environment.`,
	}
	cmd.PersistentFlags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	return group(cmd, datakeyListCommand(&file), datakeyReplaceCommand(&file))
}

func datakeyListCommand(file *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the data keys, and unwrap each to see whether it can be used",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, *file, func(ctx context.Context, s *storeAlone) error {
				records, err := s.DataKeys(ctx)
				if err != nil {
					return err
				}
				list, err := listDataKeys(ctx, s.cfg, records, s.wrapping.open)
				if err != nil {
					return err
				}
				if output == "json" {
					return printDataKeysJSON(cmd.OutOrStdout(), list)
				}
				return printDataKeys(cmd, list)
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func printDataKeys(cmd *cobra.Command, list []datakey.Info) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), "There is no data key yet: the service makes the first when it writes.")
		return err
	}
	return table(cmd.OutOrStdout(), func(w io.Writer) {
		row(w, "ID", "CURRENT", "WRAPPED BY", "CREATED", "PROBLEM")
		for _, k := range list {
			current := ""
			if k.Current {
				current = "yes"
			}
			row(w, k.ID, current, k.WrappedBy, k.CreatedAt.UTC().Format(time.RFC3339), k.Problem)
		}
	})
}

// printDataKeysJSON prints an array with an object for each key.
func printDataKeysJSON(out io.Writer, list []datakey.Info) error {
	type object struct {
		ID        string    `json:"id"`
		Current   bool      `json:"current"`
		WrappedBy string    `json:"wrapped_by"`
		CreatedAt time.Time `json:"created_at"`
		Problem   string    `json:"problem,omitempty"`
	}
	objects := make([]object, len(list))
	for i, k := range list {
		objects[i] = object{ID: k.ID, Current: k.Current, WrappedBy: k.WrappedBy, CreatedAt: k.CreatedAt.UTC(), Problem: k.Problem}
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return e.Encode(objects)
}

// storeAlone is the store of a configuration without the service, and what
// unwraps its data keys.
type storeAlone struct {
	*openedStore

	cfg      *config.Config
	wrapping *wrappingKeys
}

// withStore opens the store of a configuration, with the backends that its
// wrapping keys are in, and runs f on it. A file must be there already.
func withStore(cmd *cobra.Command, file string, f func(context.Context, *storeAlone) error) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	return withStoreOf(cmd, cfg, storeUse{existing: true}, f)
}

// withStoreOf is withStore for a configuration that was read, and other uses. It
// fills in what protects the store.
func withStoreOf(cmd *cobra.Command, cfg *config.Config, use storeUse, f func(context.Context, *storeAlone) error) (err error) {
	ctx := cmd.Context()
	s := &storeAlone{cfg: cfg, wrapping: newWrappingKeys(cfg)}
	use.log = commandLog(cmd)
	use.keys = dataKeysConfig(cfg, s.wrapping, use.log)
	s.openedStore, err = openStore(ctx, cfg, use)
	if errors.Is(err, bolt.ErrInUse) {
		return fmt.Errorf("the service is running, or another command is: %s is in use; stop it, and run this again", cfg.Store.Bolt.Path)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Check(ctx); err != nil {
		return err
	}
	open, err := openBackends(ctx, cfg, s.wrapping.backendNames(), use.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, open.Close()) }()
	s.wrapping.backends.Store(open)
	return f(ctx, s)
}

// commandLog is the log of a command that ends: what is wrong is told by errors
// and lines of their own; what is right, by the command itself.
func commandLog(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
}

// withoutTime is for lines that are read when they are printed.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
