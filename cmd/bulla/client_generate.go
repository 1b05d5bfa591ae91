package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func clientGenerateCommand(conn *connection, issuer *string) *cobra.Command {
	req := &bullav1.GenerateClientKeyRequest{}
	var settings []string
	var rsaBits uint32
	var curve, path string
	cmd := &cobra.Command{
		Use:   "generate CLIENT_ID",
		Short: "Make a key pair for a client, and hand out its private half this once",
		Long: `Make a key pair for a client. Bulla keeps the public half; the private half is
shown this once and kept nowhere: give it to the client by a safe way and delete
your copy. With --revision a client's key is replaced at once.`,
		Example: `  bulla client generate app-1 --setting ID_TOKEN,alg=RSA-OAEP-256,enc=A256CBC-HS512 --private-key app-1.jwk
  bulla client generate app-2 --curve X25519 --setting ID_TOKEN,alg=ECDH-ES+A128KW`,
		Args: arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Issuer, req.ClientId = *issuer, args[0]
			if rsaBits != 0 {
				req.KeySpec = &bullav1.GenerateClientKeyRequest_RsaBits{RsaBits: rsaBits}
			}
			if curve != "" {
				req.KeySpec = &bullav1.GenerateClientKeyRequest_Curve{Curve: curve}
			}
			if req.Settings, err = parseSettings(settings); err != nil {
				return err
			}
			key := &privateKeyOutput{cmd: cmd, path: path}
			if err := key.open(); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, key.discard()) }()
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.GenerateClientKey(ctx, req)
				if err != nil {
					return err
				}
				if path != "" || conn.output != "json" {
					if err := key.write(res.GetPrivateJwk()); err != nil {
						return err
					}
					res.PrivateJwk = nil
				} else {
					key.warn()
				}
				if conn.output == "json" {
					return show(cmd, conn.output, res, func(io.Writer) {})
				}
				return showClient(cmd, conn, res.GetClientKey())
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&settings, "setting", nil, settingUsage)
	f.Uint32Var(&rsaBits, "rsa-bits", 0, "make an RSA key of this many bits: 2048 to 4096")
	f.StringVar(&curve, "curve", "", "make a key on this curve: P-256, P-384, P-521, X25519 or X448")
	f.StringVar(&path, "private-key", "", "new file for the private JWK, with mode 0600 (without it, it is printed)")
	f.StringVar(&req.Revision, "revision", "", "the revision to replace (without it, only a new client is registered)")
	cmd.MarkFlagsMutuallyExclusive("rsa-bits", "curve")
	return cmd
}

// privateKeyOutput is where a private key goes that can be had only once. Its
// file is made before the key is: a key must not be lost because a path is
// wrong.
type privateKeyOutput struct {
	cmd     *cobra.Command
	path    string // empty: standard output
	file    *os.File
	written bool
}

func (o *privateKeyOutput) open() (err error) {
	if o.path == "" {
		return nil
	}
	o.file, err = os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already, and may be somebody's key: choose a new file", o.path)
	}
	return err
}

// write puts the key into the file or, if that fails, on standard output.
func (o *privateKeyOutput) write(jwk []byte) error {
	line := append(append([]byte(nil), jwk...), '\n')
	if o.file != nil {
		_, err := o.file.Write(line)
		if err == nil {
			err = o.file.Sync()
		}
		if err == nil {
			o.written = true
			_, err = fmt.Fprintf(o.cmd.ErrOrStderr(), "The private key is in %s and nowhere else. Give it to the client by a safe way, then delete the file.\n", o.path)
			return err
		}
		_, _ = fmt.Fprintf(o.cmd.ErrOrStderr(), "The private key could not be written to %s: %v. It follows on standard output.\n", o.path, err)
	}
	o.warn()
	_, err := o.cmd.OutOrStdout().Write(line)
	return err
}

func (o *privateKeyOutput) warn() {
	_, _ = fmt.Fprintln(o.cmd.ErrOrStderr(), "WARNING: this is the client's private key. It is shown this once and kept nowhere: give it to the client by a safe way, and clear your terminal.")
}

// discard removes a file that got no key.
func (o *privateKeyOutput) discard() error {
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	if !o.written {
		err = errors.Join(err, os.Remove(o.path))
	}
	return err
}
