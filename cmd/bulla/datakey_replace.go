package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/envelope"
)

func datakeyReplaceCommand(file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "replace",
		Short: "Make a new data key, seal everything anew under it, and remove the old ones",
		Long: `Make a new data key, seal and authenticate everything stored anew under it, and
remove the old ones. It may be broken off at any moment: run it again, and it
goes on with the key it had made. It begins with nothing while something is
stored under a data key that does not open.

To replace the wrapping key as well, make the new one in its backend, name it in
wrapping.key and the old one, as BACKEND:KEY, in wrapping.former. Run this
command and start the service. Once it is well, take the old one out of the
configuration and destroy it: whatever copies there are of the store as it was
can then be read by nobody. As long as the old one is there and configured, who
can write the store can put removed data keys and their records back from such a
copy. So after a leak, replace the wrapping key too. In a fleet every replica has
to know both keys before this command is run: name the new one in the
wrapping.former of all first, and have them restarted one by one.

A record that fails its authentication was changed by somebody who can write the
store. It is named, left as it is, and not used.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, *file, func(ctx context.Context, s *storeAlone) error {
				return (&replacing{store: s, keys: s.Keys(), out: cmd.OutOrStdout()}).run(ctx)
			})
		},
	}
}

// replacing is one run of "datakey replace".
type replacing struct {
	store   storage
	keys    *datakey.Keys
	out     io.Writer
	removed int // old data keys
}

// run leaves the store with one data key: the current one, if something is still
// under another, and else a new one.
func (r *replacing) run(ctx context.Context) error {
	if err := r.sweep(ctx); err != nil {
		return err
	}
	list, err := r.keys.List(ctx)
	if err != nil {
		return wrappingTrouble(err)
	}
	var newest *datakey.Info
	for i := range list {
		if list[i].Current {
			newest = &list[i]
		}
	}
	if newest != nil && len(list) > 1 {
		// A run that was broken off has made it, or the service, which found
		// another wrapping key in its configuration. To make one more each time
		// would fill the store with data keys.
		if err := r.moveTo(ctx, newest.ID); err != nil {
			return err
		}
		_, err := fmt.Fprintf(r.out, "it was made at %s, and everything had not been sealed under it yet; run this again for a newer one\n", newest.CreatedAt.UTC().Format(time.RFC3339))
		return err
	}
	made, err := r.keys.Replace(ctx)
	if err != nil {
		return wrappingTrouble(err)
	}
	return r.moveTo(ctx, made)
}

// sweep removes the data keys that no row names, such as those that a run
// before had no time to remove, and those that somebody put there. It fails if
// a data key does not open and a row names it: without that key the row cannot
// be told from a forged one, and would be lost.
func (r *replacing) sweep(ctx context.Context) error {
	list, err := r.keys.List(ctx)
	if err != nil {
		return wrappingTrouble(err)
	}
	var needed []string
	for _, k := range list {
		if k.Current {
			continue
		}
		err := r.keys.Retire(ctx, k.ID)
		switch {
		case err == nil:
			r.removed++
		case errors.Is(err, datakey.ErrInUse) && k.Problem != "":
			needed = append(needed, fmt.Sprintf("%s (%v)", k.Problem, err))
		case !errors.Is(err, datakey.ErrInUse):
			return wrappingTrouble(err)
		}
	}
	if len(needed) == 0 {
		return nil
	}
	return fmt.Errorf(`no data key was made and no record was changed: %s. Name in wrapping.former the wrapping keys that these data keys were wrapped by, or mend their backends: "bulla doctor" says what is wrong. Where a data key is none of yours, register the clients that name it anew, or delete them, and run this again`, strings.Join(needed, "; "))
}

// moveTo seals everything anew under the current data key, and removes the
// others.
func (r *replacing) moveTo(ctx context.Context, current string) error {
	broken := func(err error) error {
		return fmt.Errorf("%w; %s is the data key now, and those before it are still there for what is still under them: run the command again", err, current)
	}
	done, err := r.store.Reseal(ctx, secrets.New(r.keys, datakey.ErrTampered).Reseal)
	if err != nil {
		return broken(wrappingTrouble(err))
	}
	refused := refusedRecords(done)
	list, err := r.keys.List(ctx)
	if err != nil {
		return errors.Join(refused, broken(wrappingTrouble(err)))
	}
	for _, k := range list {
		if k.Current {
			continue
		}
		if err := r.keys.Retire(ctx, k.ID); err != nil {
			return errors.Join(refused, broken(wrappingTrouble(err)))
		}
		r.removed++
	}
	if _, err := fmt.Fprintf(r.out, "%s is the data key now: %s sealed anew under it, %s removed\n",
		current, plural(done.Rows, "record"), plural(r.removed, "old data key")); err != nil {
		return errors.Join(refused, err)
	}
	return refused
}

// refusedRecords tells of the records that were left as found, nil if there are
// none.
func refusedRecords(done envelope.Resealed) error {
	if done.Refused == 0 {
		return nil
	}
	return fmt.Errorf("%s failed the authentication and stayed as found: the lines above name them. Somebody has changed the store: register such clients anew; other records come back from a backup only", plural(done.Refused, "record"))
}

// wrappingTrouble says what to do where a wrapping key did not do its part.
func wrappingTrouble(err error) error {
	if !errors.Is(err, datakey.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w; \"bulla doctor\" says what is wrong with the backend or the key", err)
}
