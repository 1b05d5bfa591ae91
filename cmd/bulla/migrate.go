package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/store/postgres"
)

func migrateCommand() *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "migrate --config FILE",
		Short: "Bring the schema of the database up to date",
		Long: `Bring the schema of the database in store.postgres up to what this version needs.

The service does the same when it starts, unless store.postgres.migrate is false.
Run this command where the service's own user may not change the schema, with a
connection string of one who may. Replicas of this version and of the one before
may be running, and any number of these commands at the same time: one migrates,
and the others wait for it.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			if cfg.Store.Postgres == nil {
				return printMigration(cmd, output, migration{Store: "bolt", Detail: "there is nothing to migrate: the store is a file, which has the schema of the version that made it"})
			}
			c, err := postgresConfig(cfg, storeUse{log: commandLog(cmd)})
			if err != nil {
				return err
			}
			from, to, err := postgres.Migrate(cmd.Context(), c)
			if err != nil {
				return fmt.Errorf("store.postgres: %w", err)
			}
			m := migration{Store: "postgres", From: &from, To: &to}
			switch from {
			case to:
				m.Detail = fmt.Sprintf("the schema has version %d already", to)
			case 0:
				m.Detail = fmt.Sprintf("the schema was made, with version %d", to)
			default:
				m.Detail = fmt.Sprintf("the schema was migrated from version %d to version %d", from, to)
			}
			return printMigration(cmd, output, m)
		},
	}
	cmd.Flags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	outputFlag(cmd, &output)
	return cmd
}

// migration is what a migration has come to. A file has no versions.
type migration struct {
	Store  string `json:"store"`
	From   *int   `json:"from,omitempty"`
	To     *int   `json:"to,omitempty"`
	Detail string `json:"detail"`
}

func printMigration(cmd *cobra.Command, output string, m migration) error {
	if output == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), m.Detail)
	return err
}
