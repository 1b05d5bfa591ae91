package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/records"
)

func registryImportCommand(file *string) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "import --config FILE",
		Short: "Write into the store what an export holds",
		Long: `Write into the store what an export holds.

The store must be empty, or have nothing but what a run before has written of the
same export: it may be broken off at any moment, and be run again. So import
before the service is started on the store for the first time. A store.bolt that
is not there is made; the schema of a database too, if store.postgres.migrate
allows it.

Every record is authenticated before it is written. For that the configuration
has to name the wrapping key that the data keys of the export were wrapped by, as
wrapping.key or in wrapping.former.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := config.Load(*file)
			if err != nil {
				return err
			}
			in := cmd.InOrStdin()
			if path != "-" && path != "" {
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }() // only read
				in = f
			}
			var counts records.Counts
			if err := withStoreOf(cmd, cfg, storeUse{migrate: true}, func(ctx context.Context, s *storeAlone) (err error) {
				counts, err = s.Import(ctx, in)
				return err
			}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Imported %s; %s\n", describeCounts(counts), describeImport(counts))
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "file", "f", "-", `the export, or "-" for the standard input`)
	return cmd
}

// describeImport says what this run of an import did, which may not have been the
// first.
func describeImport(c records.Counts) string {
	total := c.DataKeys + c.Rings + c.Registrations + c.Tombstones + c.KeySets
	left := total - c.Written - c.There
	var text string
	switch {
	case total == 0:
		return "there was nothing to be written by this run"
	case c.Written == total:
		return plural(total, "row") + " written by this run, which is all"
	case c.Written == 0:
		text = "nothing written by this run, and " + plural(c.There, "row") + " there already"
	case c.There == 0:
		text = plural(c.Written, "row") + " written by this run"
	default:
		text = fmt.Sprintf("%s written by this run, and %d there already", plural(c.Written, "row"), c.There)
	}
	if left > 0 {
		text += "; left out " + plural(left, "key set") + " that no client names"
	}
	return text
}
