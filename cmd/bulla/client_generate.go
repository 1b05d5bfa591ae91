package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

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
		Long: `Make a key pair for a client. The service keeps the public half; the private
half is handed out this once, as a JWK, and kept nowhere: bring it to the client
by a safe way and delete your copy.

With --private-key it goes into a new file that only you can read. Without, it
is printed; with -o json it is the member private_jwk of what is printed.

The key fits the algorithms of the settings, unless --rsa-bits or --curve asks
for another. With --revision the client's key is replaced at once: tokens that
are made from then on open with the new one only.`,
		Example: `  bulla client generate app-1 --setting ID_TOKEN,alg=RSA-OAEP-256,enc=A256CBC-HS512 --private-key app-1.jwk
  bulla client generate app-2 --curve X25519 --setting ID_TOKEN,alg=ECDH-ES+A128KW --private-key app-2.jwk
  bulla client generate app-1 --revision 1 --rsa-bits 3072 --setting ID_TOKEN,alg=RSA-OAEP-256 --private-key app-1-new.jwk`,
		Args: arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Issuer, req.ClientId = *issuer, args[0]
			if rsaBits != 0 && curve != "" {
				return errors.New("--rsa-bits and --curve are given, and one key is made: leave one of them out")
			}
			if rsaBits != 0 {
				req.KeySpec = &bullav1.GenerateClientKeyRequest_RsaBits{RsaBits: rsaBits}
			}
			if curve != "" {
				req.KeySpec = &bullav1.GenerateClientKeyRequest_Curve{Curve: curve}
			}
			if req.Settings, err = parseSettings(settings); err != nil {
				return err
			}
			key, err := newPrivateKeyOutput(cmd, path)
			if err != nil {
				return err
			}
			defer func() {
				if left := key.discard(); left != nil {
					err = errors.Join(err, left)
				}
			}()
			var res *bullav1.GenerateClientKeyResponse
			if err := conn.call(cmd, func(ctx context.Context, service *client.Client) (err error) {
				res, err = service.ClientKeys.GenerateClientKey(ctx, req)
				return err
			}); err != nil {
				if mayHaveArrived(err) {
					_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "It is not known whether the key was made. If it was, its private half is lost: look with \"bulla client get\", and generate anew with --revision.")
				}
				return err
			}
			if conn.output == "json" {
				return key.printJSON(res)
			}
			if err := key.write(res.GetPrivateJwk()); err != nil {
				return err
			}
			return showClient(cmd, conn, res.GetClientKey())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&settings, "setting", nil, settingUsage)
	f.Uint32Var(&rsaBits, "rsa-bits", 0, "make an RSA key of this many bits: 2048, 3072 or 4096 (or another multiple of 8 between)")
	f.StringVar(&curve, "curve", "", "make a key on this curve: P-256, P-384, P-521, X25519 or X448")
	f.StringVar(&path, "private-key", "", "new file for the private JWK, with mode 0600 (without it, it is printed)")
	f.StringVar(&req.Revision, "revision", "", "the revision to replace (without it, only a new client is registered)")
	return cmd
}

// mayHaveArrived reports whether the service may have done what a failed call
// asked for.
func mayHaveArrived(err error) bool {
	st := status.Convert(err)
	switch st.Code() {
	case codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.Unavailable:
		// gRPC's own words for a connection that did not come about; what has
		// details was answered by the service.
		return len(st.Details()) == 0 && !strings.HasPrefix(st.Message(), "connection error:") && !strings.HasPrefix(st.Message(), "name resolver error:")
	}
	return false
}

// privateKeyOutput is where a private key goes that can be had only once. Its
// file is made before the key is: a key must not be lost because a path is
// wrong.
type privateKeyOutput struct {
	cmd     *cobra.Command
	path    string   // empty: standard output
	file    *os.File // at path
	written bool
}

// newPrivateKeyOutput makes the file of path, if one is named.
func newPrivateKeyOutput(cmd *cobra.Command, path string) (*privateKeyOutput, error) {
	o := &privateKeyOutput{cmd: cmd, path: path}
	if path == "" || path == "-" {
		o.path = ""
		return o, nil
	}
	var err error
	o.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s exists already, and may hold somebody's key: name a new file", path)
	}
	return o, err
}

// write puts the key into the file or, if that fails, on standard output.
func (o *privateKeyOutput) write(jwk []byte) error {
	line := append(append([]byte(nil), jwk...), '\n')
	if o.toFile(line) {
		return nil
	}
	o.warn()
	_, err := o.cmd.OutOrStdout().Write(line)
	return err
}

// toFile reports whether the key is safe in its file.
func (o *privateKeyOutput) toFile(line []byte) bool {
	if o.file == nil {
		return false
	}
	_, err := o.file.Write(line)
	if err == nil {
		err = o.file.Sync()
	}
	if err != nil {
		_, _ = fmt.Fprintf(o.cmd.ErrOrStderr(), "The private key could not be written to %s (%v), and is on standard output instead.\n", o.path, err)
		return false
	}
	o.written = true
	_, _ = fmt.Fprintf(o.cmd.ErrOrStderr(), "The private key is in %s and nowhere else. Bring it to the client by a safe way, then delete the file.\n", o.path)
	return true
}

// printJSON prints the reply. The private key stands in it as the JWK that it
// is, unless it went into its file.
func (o *privateKeyOutput) printJSON(res *bullav1.GenerateClientKeyResponse) error {
	k, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(res.GetClientKey())
	reply := struct {
		ClientKey  json.RawMessage `json:"client_key,omitempty"`
		PrivateJWK json.RawMessage `json:"private_jwk,omitempty"`
	}{ClientKey: k}
	if err != nil {
		reply.ClientKey = nil // the private key cannot be had again
	}
	if !o.toFile(append(append([]byte(nil), res.GetPrivateJwk()...), '\n')) {
		o.warn()
		reply.PrivateJWK = res.GetPrivateJwk()
	}
	e := json.NewEncoder(o.cmd.OutOrStdout())
	e.SetEscapeHTML(false)
	return errors.Join(err, e.Encode(reply)) //nolint:gosec // to hand out the private key is what it is for
}

func (o *privateKeyOutput) warn() {
	_, _ = fmt.Fprintln(o.cmd.ErrOrStderr(), "WARNING: this is the client's private key. It is shown this once and kept nowhere: bring it to the client by a safe way, and clear your terminal.")
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
