package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// group makes of cmd a command that only holds others. Alone it prints its help;
// cobra would do the same, and succeed, for a subcommand that does not exist.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.DisableFlagsInUseLine = true // its flags belong to its commands
	cmd.AddCommand(commands...)
	return cmd
}

// unknownCommand names what was mistyped, and what may have been meant.
func unknownCommand(cmd *cobra.Command, name string) error {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2 // as cobra has it for the root
	}
	advice := fmt.Sprintf("run %q for the commands there are", cmd.CommandPath()+" --help")
	if similar := cmd.SuggestionsFor(name); len(similar) > 0 {
		advice = "did you mean " + strings.Join(similar, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q: %s", name, cmd.CommandPath(), advice)
}

// flagError tells a flag that is wrong from one that belongs to a mistyped
// command and is unknown only because of that.
func flagError(cmd *cobra.Command, err error) error {
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	if strings.HasPrefix(err.Error(), "unknown ") {
		return fmt.Errorf("%w: run %q for the flags there are", err, cmd.CommandPath()+" --help")
	}
	return err
}

// arguments requires one argument for each name, and says which are missing.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s is missing: usage: %s", strings.Join(names[len(args):], " and "), cmd.UseLine())
		case len(args) > len(names):
			return fmt.Errorf("unexpected argument %q: usage: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}
