package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func keyCommand() *cobra.Command {
	var conn connection
	var issuer string
	cmd := &cobra.Command{Use: "key", Short: "Look at an issuer's signing keys, change them, and make new ones"}
	calling := []*cobra.Command{keyListCommand(&conn, &issuer), keyRotateCommand(&conn, &issuer), keyJWKSCommand(&conn, &issuer)}
	for _, c := range calling {
		conn.register(c)
		c.Flags().StringVar(&issuer, "issuer", "", "the issuer's name (may be left out if there is only one)")
	}
	return group(cmd, append(calling, keyCreateCommand())...)
}

func keyListCommand(conn *connection, issuer *string) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the signing keys and their states",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.SigningKeys.ListSigningKeys(ctx, &bullav1.ListSigningKeysRequest{Issuer: *issuer})
				if err != nil {
					return err
				}
				return show(cmd, conn.output, res, func(w io.Writer) { signingKeys(w, res.GetSigningKeys()) })
			})
		},
	}
}

// signingKeys prints a table of keys.
func signingKeys(w io.Writer, keys []*bullav1.SigningKey) {
	row(w, "KID", "ALG", "STATE", "WORKS", "BACKENDS", "SIGNS FROM", "UNTIL", "PUBLISHED UNTIL", "REMARK")
	for _, k := range keys {
		works, remark := "no", k.GetUnavailableReason()
		if k.GetAvailable() {
			works = "yes"
			if sick := k.GetUnavailableBackends(); len(sick) > 0 {
				remark = "not at " + strings.Join(sick, ", ")
			}
		}
		row(w, k.GetKeyId(), k.GetAlgorithm(), strings.TrimPrefix(k.GetState().String(), "SIGNING_KEY_STATE_"),
			works, strings.Join(k.GetBackends(), ","), when(k.GetActivateAt()), when(k.GetRetireAt()), when(k.GetRemoveAt()), remark)
	}
}

func keyRotateCommand(conn *connection, issuer *string) *cobra.Command {
	req := &bullav1.RotateSigningKeyRequest{}
	cmd := &cobra.Command{
		Use:   "rotate --algorithm ALG",
		Short: "Change to a new signing key",
		Long: `Change to a new signing key.

The new key is published at once and begins to sign when every verifier can
know it: after the issuer's jwks_max_age, twice store.max_lag and a minute. The
key before it stays published until its last token has expired. Nothing breaks.
Repeated while a change is under way, the command changes nothing and shows it.

--emergency is for a key that is feared to be stolen. It skips the waiting: the
new key signs at once and the old one is published no more. It prints what that
breaks.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.GetAlgorithm() == "" {
				return errors.New(`--algorithm is missing: give the JWS algorithm of the key to change ("bulla key list" shows them)`)
			}
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				req.Issuer = *issuer
				res, err := service.SigningKeys.RotateSigningKey(ctx, req)
				if err != nil {
					return err
				}
				for _, b := range res.GetBreaks() {
					fmt.Fprintln(cmd.ErrOrStderr(), "This breaks:", b)
				}
				return show(cmd, conn.output, res, func(w io.Writer) { signingKeys(w, res.GetSigningKeys()) })
			})
		},
	}
	cmd.Flags().StringVar(&req.Algorithm, "algorithm", "", "the JWS algorithm of the key to change, such as ES256")
	cmd.Flags().BoolVar(&req.Emergency, "emergency", false, "skip the waiting: for a key that is feared to be stolen")
	return cmd
}

func keyJWKSCommand(conn *connection, issuer *string) *cobra.Command {
	return &cobra.Command{
		Use:   "jwks",
		Short: "Print the JWK Set that verifiers need",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.SigningKeys.GetJWKS(ctx, &bullav1.GetJWKSRequest{Issuer: *issuer})
				if err != nil {
					return err
				}
				// The document is what both formats print: it is JSON already.
				_, err = cmd.OutOrStdout().Write(append(res.GetJwks(), '\n'))
				return err
			})
		},
	}
}
