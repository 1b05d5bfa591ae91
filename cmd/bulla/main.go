// Bulla seals tokens: it signs claims with keys that stay in an HSM or KMS and
// encrypts the result to one OAuth client. This is its one binary: the service,
// and the commands to set it up, look into it and call it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

// run is main with an exit code, for tests that call the binary in-process.
func run() int {
	// The first signal asks for an orderly end; a second one ends at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()

	ignoreFileSizeLimit()

	root := rootCommand()
	if err := root.ExecuteContext(ctx); err != nil {
		printError(root.ErrOrStderr(), err)
		return exitCode(err)
	}
	return 0
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "bulla",
		Short:         "Seals tokens: signed in an HSM or KMS, encrypted to one OAuth client",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		serveCommand(),
		demoCommand(),
		doctorCommand(),
		configCommand(),
		clientCommand(),
		keyCommand(),
		datakeyCommand(),
		registryCommand(),
		migrateCommand(),
		auditCommand(),
		tokenCommand(),
		statusCommand(),
		versionCommand(),
		benchCommand(),
		workerCommandLine(),
	)
	return root
}
