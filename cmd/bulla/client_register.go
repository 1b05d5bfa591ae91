package main

import (
	"bytes"
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func clientRegisterCommand(conn *connection, issuer *string) *cobra.Command {
	req := &bullav1.RegisterClientKeyRequest{}
	var source keySource
	var settings []string
	cmd := &cobra.Command{
		Use:   "register CLIENT_ID",
		Short: "Register a client's key source and settings, or change them",
		Example: `  bulla client register app-1 --jwks-uri https://app.example.com/jwks --setting ID_TOKEN,alg=RSA-OAEP-256,enc=A256GCM
  bulla client register app-2 --jwks keys.json --setting ID_TOKEN,alg=ECDH-ES+A128KW --setting USERINFO,alg=ECDH-ES
  bulla client register app-3 --pem client.crt --setting ID_TOKEN,alg=RSA-OAEP,enc=A128GCM
  bulla client register app-4 --client-secret secret.txt --setting ID_TOKEN,alg=dir,enc=A256GCM,sign=HS256
  bulla client register app-5 --metadata registration.json`,
		Args: arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Issuer, req.ClientId = *issuer, args[0]
			if err := source.read(cmd, req); err != nil {
				return err
			}
			var err error
			if req.Settings, err = parseSettings(settings); err != nil {
				return err
			}
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.RegisterClientKey(ctx, req)
				if err != nil {
					return err
				}
				return showClient(cmd, conn, res.GetClientKey())
			})
		},
	}
	f := cmd.Flags()
	source.register(cmd)
	f.StringArrayVar(&settings, "setting", nil, settingUsage)
	f.StringVar(&req.Revision, "revision", "", "the revision to replace (without it, only a new client is registered)")
	f.BoolVar(&req.AllowUnfetched, "allow-unfetched", false, "register even if the URL cannot be fetched now")
	f.BoolVar(&req.Legacy, "legacy", false, "allow RSA1_5 and A128CBC+HS256, where the issuer's policy names them too")
	f.BoolVar(&req.X5T, "x5t", false, "send the x5t header beside x5t#S256 where the key has a certificate")
	return cmd
}

const settingUsage = "KIND[,alg=ALG][,enc=ENC][,sign=ALG][,kid=KID], once for each kind of token"

// keySource is where a client's keys come from, by the flags of a command.
type keySource struct{ jwks, jwksURI, pem, secret, metadata string }

func (s *keySource) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.jwks, "jwks", "", "file with the client's JWK Set, or - for standard input")
	f.StringVar(&s.jwksURI, "jwks-uri", "", "URL of the client's JWK Set")
	f.StringVar(&s.pem, "pem", "", "file with the client's public key or certificate in PEM, or -")
	f.StringVar(&s.secret, "client-secret", "", "file with the client's secret, or - (a line feed at its end does not count)")
	f.StringVar(&s.metadata, "metadata", "", "file with the client's OpenID registration in JSON, or -")
	cmd.MarkFlagsMutuallyExclusive("jwks", "jwks-uri", "pem", "client-secret", "metadata")
}

// maxDocument bounds files that hold keys and a little more, in bytes. The
// service has narrower bounds, and says which.
const maxDocument = 1 << 20

// read puts the key source into a request.
func (s *keySource) read(cmd *cobra.Command, req *bullav1.RegisterClientKeyRequest) error {
	switch {
	case s.jwks != "":
		doc, err := readInput(cmd, s.jwks, registry.MaxJWKS)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_Jwks{Jwks: doc}
	case s.jwksURI != "":
		req.KeySource = &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: s.jwksURI}
	case s.pem != "":
		doc, err := readInput(cmd, s.pem, maxDocument)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_PublicKeyPem{PublicKeyPem: string(doc)}
	case s.secret != "":
		secret, err := readInput(cmd, s.secret, maxDocument)
		if err != nil {
			return err
		}
		secret = bytes.TrimSuffix(bytes.TrimSuffix(secret, []byte("\n")), []byte("\r"))
		if len(secret) == 0 {
			return errors.New("the file of --client-secret is empty: write the client's secret into it")
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: string(secret)}
	case s.metadata != "":
		doc, err := readInput(cmd, s.metadata, maxDocument)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: doc}
	}
	return nil
}

func parseSettings(texts []string) ([]*bullav1.ResponseSetting, error) {
	var settings []*bullav1.ResponseSetting
	for _, text := range texts {
		setting, err := parseSetting(text)
		if err != nil {
			return nil, err
		}
		settings = append(settings, setting)
	}
	return settings, nil
}
