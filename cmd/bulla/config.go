package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check a configuration"}
	cmd.AddCommand(configCheckCommand())
	return cmd
}

func configCheckCommand() *cobra.Command {
	var files bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a configuration, without running it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(args[0])
			if err != nil {
				return err
			}
			if files {
				problems, warnings := cfg.CheckFiles()
				for _, w := range warnings {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
				}
				if len(problems) > 0 {
					return problems
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok: %d issuers, %d backends, %d grants\n",
				args[0], len(cfg.Issuers), len(cfg.Backends), len(cfg.Grants))
			return nil
		},
	}
	cmd.Flags().BoolVar(&files, "files", false, "look for the files that it names, too")
	return cmd
}
