package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/config"
)

func configCommand() *cobra.Command {
	return group(&cobra.Command{Use: "config", Short: "Check a configuration, and say what it means"}, configCheckCommand(), configExplainCommand())
}

func configCheckCommand() *cobra.Command {
	var files bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a configuration, without running it",
		Args:  arguments("FILE"),
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok: %s, %s, %s\n", args[0],
				plural(len(cfg.Issuers), "issuer"), plural(len(cfg.Backends), "backend"), plural(len(cfg.Grants), "grant"))
			return nil
		},
	}
	cmd.Flags().BoolVar(&files, "files", false, "look for the files that it names, too")
	return cmd
}
