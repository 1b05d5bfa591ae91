package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func keyCommand() *cobra.Command {
	var conn connection
	var issuer string
	cmd := &cobra.Command{Use: "key", Short: "Look at an issuer's signing keys"}
	conn.register(cmd)
	cmd.PersistentFlags().StringVar(&issuer, "issuer", "", "the issuer's name (may be left out if there is only one)")
	return group(cmd, keyListCommand(&conn, &issuer), keyJWKSCommand(&conn, &issuer))
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
				return show(cmd, conn.output, res, func(w io.Writer) {
					row(w, "KID", "ALG", "STATE", "SIGNS", "BACKENDS", "ACTIVE SINCE", "REMARK")
					for _, k := range res.GetSigningKeys() {
						signs := "no"
						if k.GetAvailable() {
							signs = "yes"
						}
						row(w, k.GetKeyId(), k.GetAlgorithm(), strings.TrimPrefix(k.GetState().String(), "SIGNING_KEY_STATE_"),
							signs, strings.Join(k.GetBackends(), ","), when(k.GetActivateAt()), k.GetUnavailableReason())
					}
				})
			})
		},
	}
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
