package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
)

// connection is the flags of every command that calls a service.
type connection struct {
	config  client.Config
	timeout time.Duration
	output  string
}

func (c *connection) register(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.config.Address, "addr", "127.0.0.1:8443", "the service's gRPC listener")
	f.StringVar(&c.config.CAFile, "tls-ca", "", "file with the CA of the service's certificate (default: the system's)")
	f.StringVar(&c.config.CertFile, "tls-cert", "", "file with your certificate")
	f.StringVar(&c.config.KeyFile, "tls-key", "", "file with your certificate's key")
	f.StringVar(&c.config.ServerName, "tls-server-name", "", "name in the service's certificate (default: the host of --addr)")
	f.BoolVar(&c.config.Plaintext, "plaintext", false, "call a service in development, on loopback, without TLS")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for the answer")
	outputFlag(cmd, &c.output)
}

// call connects, and runs f within the timeout.
func (c *connection) call(cmd *cobra.Command, f func(ctx context.Context, service *client.Client) error) error {
	c.config.Attempts = 1 // whoever looks wants to see why it fails
	service, err := client.Dial(c.config)
	if err != nil {
		return err
	}
	defer service.Close() //nolint:errcheck // nothing is lost: the answer is here
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
	defer cancel()
	return f(ctx, service)
}
