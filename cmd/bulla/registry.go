package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/store/records"
)

func registryCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Carry what is stored from one store to another",
		Long: `Carry what is stored from one store to another: from a file to PostgreSQL, and
back. These commands work on the store itself, and not by way of the service. With
store.bolt stop the service first: one process at a time has the file.`,
	}
	cmd.PersistentFlags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	return group(cmd, registryExportCommand(&file), registryImportCommand(&file))
}

// describeCounts says what is in an export.
func describeCounts(c records.Counts) string {
	return strings.Join([]string{
		plural(c.Registrations, "client"), plural(c.Tombstones, "deleted client"), plural(c.KeySets, "key set"),
		plural(c.Rings, "key ring"), plural(c.DataKeys, "data key"),
	}, ", ")
}
