package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/server/config"
)

func demoCommand() *cobra.Command {
	var dir string
	var once bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on a SoftHSM token, then keep serving",
		Long: `Show the main job on a SoftHSM token, then keep serving.

The demo makes a token, certificates and a configuration in a private folder,
starts the service and a client (a relying party) with its own jwks_uri,
registers the client, issues an ID token for it over mutual TLS, and opens it as
the client would. What it made is used again the next time; to begin from
nothing, remove the folder.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &demo{out: cmd.OutOrStdout(), once: once}
			err := d.run(cmd.Context(), dir)
			if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
				return errors.New("interrupted before the demo was through; run it again")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".bulla/demo", "private folder for all that the demo makes")
	cmd.Flags().BoolVar(&once, "once", false, "end after the first token")
	return cmd
}

// The names of the demo. They stand in its configuration, certificates and
// tokens.
const (
	demoIssuer = "main"
	demoIss    = "https://login.example.com"
	demoClient = "demo-app"
)

// demo is one run of the command.
type demo struct {
	out  io.Writer
	once bool

	folder *demoFolder
	ports  *demoPorts
	party  *demoParty
}

// run makes what is missing, serves, and goes through the steps of the main
// job. It ends with ctx, or with the last step if it is to do them once.
func (d *demo) run(ctx context.Context, dir string) (err error) {
	module, err := findSoftHSM()
	if err != nil {
		return err
	}
	if d.folder, err = openDemoFolder(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.folder.Close()) }()

	d.title()
	lacks, err := d.folder.provision(ctx, module)
	if err != nil {
		return fmt.Errorf("making %s: %w", d.folder.show(), err)
	}
	// SoftHSM looks for its tokens where this says, in this process only.
	if err := os.Setenv("SOFTHSM2_CONF", d.folder.file("softhsm2.conf")); err != nil {
		return err
	}
	d.showFolder(lacks)

	log, err := d.folder.create("service.log")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	logger := slog.New(slog.NewJSONHandler(log, nil))
	if d.party, err = newDemoParty(ctx, d.folder, logger); err != nil {
		return err
	}
	defer d.party.Close() //nolint:errcheck // its listener may be closed already
	if d.ports, err = choosePorts(ctx); err != nil {
		return err
	}
	defer d.ports.Close()
	cfg, err := d.configure(module)
	if err != nil {
		return err
	}
	if err := d.serve(ctx, cfg, logger); err != nil {
		return fmt.Errorf("%w\n  %s says more. If what the demo made is damaged, remove %s and run it again",
			err, d.folder.show("service.log"), d.folder.show())
	}
	if d.once {
		d.printf("demo: ok\n")
	}
	return nil
}

// configure writes the configuration and loads it, as "bulla serve" would.
func (d *demo) configure(module string) (*config.Config, error) {
	text := demoConfig(module, d.ports, d.party.port())
	if err := d.folder.write("bulla.yaml", []byte(text)); err != nil {
		return nil, err
	}
	return config.Load(d.folder.file("bulla.yaml"))
}

// serve runs the service and the relying party until ctx ends or either
// fails, and the steps beside them.
func (d *demo) serve(ctx context.Context, cfg *config.Config, logger *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, running := errgroup.WithContext(ctx)
	started := make(chan addresses, 1)
	group.Go(func() error {
		return serve(running, cfg, logger, d.ports.listen, func(a addresses) { started <- a })
	})
	group.Go(func() error { return d.party.serve(running) })
	group.Go(func() error {
		if err := d.steps(running, started); err != nil {
			return err
		}
		if d.once {
			stop()
			return nil
		}
		d.showNext()
		<-running.Done()
		d.printf("\nstopping\n")
		return nil
	})
	return group.Wait()
}
