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

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
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

func datakeyReplaceCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "replace",
		Short: "Make a new data key, seal everything anew under it, and remove the old ones",
		Long: `Make a new data key, seal and authenticate everything stored anew under it, and
remove the old ones. It may be broken off at any moment and run again.

To replace the wrapping key as well, make the new one in its backend, name it in
wrapping.key and the old one, as BACKEND:KEY, in wrapping.former. Run this
command and start the service. Once it is well, take the old one out of the
configuration and destroy it: whatever copies there are of the store as it was
can then be read by nobody.

A record that fails its authentication was changed by somebody who can write the
file. It is named, left as it is, and not used.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, *file, func(ctx context.Context, s *stoppedStore) error {
				return replaceDataKeys(ctx, cmd.OutOrStdout(), s.store)
			})
		},
	}
}

// replaceDataKeys leaves the store with one data key, a new one.
func replaceDataKeys(ctx context.Context, out io.Writer, store *bolt.Store) error {
	keys := store.Keys()
	current, err := keys.Replace(ctx)
	if err != nil {
		return wrappingTrouble(err)
	}
	broken := func(err error) error {
		return fmt.Errorf("%w; %s is the data key now, and those before it are still there for what is still under them: run the command again", err, current)
	}
	keeper := secrets.New(keys, datakey.ErrTampered)
	done, err := store.Reseal(ctx, func(ctx context.Context, reg *registry.Registration) (*registry.Secret, error) {
		material, err := keeper.Open(ctx, reg)
		if err != nil {
			return nil, err
		}
		return keeper.Seal(ctx, reg.Issuer, reg.ClientID, material, reg.Source.Secret.ExpiresAt)
	})
	if err != nil {
		return broken(wrappingTrouble(err))
	}
	list, err := keys.List(ctx)
	if err != nil {
		return broken(wrappingTrouble(err))
	}
	removed := 0
	for _, k := range list {
		if k.Current {
			continue
		}
		if err := keys.Retire(ctx, k.ID); err != nil {
			return broken(err)
		}
		removed++
	}
	if _, err := fmt.Fprintf(out, "%s is the data key now: %s sealed anew under it, %s removed\n",
		current, plural(done.Rows, "record"), plural(removed, "old data key")); err != nil {
		return err
	}
	if done.Refused > 0 {
		return fmt.Errorf("%s failed the authentication and stayed as found: the lines above name them. Somebody has changed the store: register such clients anew; other records come back from a backup only", plural(done.Refused, "record"))
	}
	return nil
}

// wrappingTrouble says what to do where a wrapping key did not do its part.
func wrappingTrouble(err error) error {
	if !errors.Is(err, datakey.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w; \"bulla doctor\" says what is wrong with the backend or the key", err)
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
