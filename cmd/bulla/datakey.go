package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
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
These commands work on the store itself. Stop the service first: one process at
a time has the file. Run them as the user that the service runs as, with the
same environment.`,
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
			return withStore(cmd, *file, func(ctx context.Context, s *stoppedStore) error {
				records, err := s.store.DataKeys(ctx)
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

// stoppedStore is the store of a stopped service, and what unwraps its data keys.
type stoppedStore struct {
	cfg      *config.Config
	store    *bolt.Store
	wrapping *wrappingKeys
}

// withStore opens the store of a configuration, with the backends that its
// wrapping keys are in, and runs f on it.
func withStore(cmd *cobra.Command, file string, f func(context.Context, *stoppedStore) error) (err error) {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	path := cfg.Store.Bolt.Path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		// Open would make it.
		return fmt.Errorf("there is no store at %s: the service makes it when it starts; is this its configuration?", path)
	}
	// What is wrong is told by errors; what is right, by the command itself.
	ctx, log := cmd.Context(), slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
	s := &stoppedStore{cfg: cfg, wrapping: newWrappingKeys(cfg)}
	s.store, err = bolt.Open(ctx, bolt.Config{Path: path, DataKeys: dataKeysConfig(cfg, s.wrapping, log), Logger: log})
	if errors.Is(err, bolt.ErrInUse) {
		return fmt.Errorf("the service is running, or another command is: %s is in use; stop it, and run this again", path)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	open, err := openBackends(ctx, cfg, s.wrapping.backendNames(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, open.Close()) }()
	s.wrapping.backends.Store(open)
	return f(ctx, s)
}

// withoutTime is for lines that are read when they are printed.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
