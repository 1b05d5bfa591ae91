package main

import (
	"context"
	"errors"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/kms/pkcs11"
)

// workerName is the subcommand that a service starts for each PKCS#11 module
// that is to run in a process of its own.
const workerName = "pkcs11-worker"

// workerSocket is the file descriptor of the worker's end of the socket pair.
const workerSocket = 3

// workerCommand starts this very binary: the file may have been replaced by
// another version since.
func workerCommand() []string {
	self := "/proc/self/exe"
	if runtime.GOOS != "linux" {
		if path, err := os.Executable(); err == nil {
			self = path
		}
	}
	return []string{self, workerName}
}

func workerCommandLine() *cobra.Command {
	return &cobra.Command{
		Use:    workerName,
		Short:  "Run a PKCS#11 module for a service, which starts this by itself",
		Hidden: true,
		Args:   arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket := os.NewFile(workerSocket, "worker socket")
			if info, err := socket.Stat(); err != nil || info.Mode()&os.ModeSocket == 0 {
				return errors.New("this command is started by the service, for a backend with isolation: process")
			}
			return pkcs11.RunWorker(context.WithoutCancel(cmd.Context()), socket)
		},
	}
}
