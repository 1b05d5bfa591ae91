package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

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
		Long: `Register where a client's keys come from, and how each kind of token is made for
it. The service makes a trial encryption and says what deserves a look.

The key source is one of --jwks, --jwks-uri, --pem, --client-secret-file and
--metadata; a client whose tokens are only signed needs none. A secret is read
from a file or standard input, never from the command line, which others can
see. The OpenID registration of --metadata, taken as the provider received it,
brings its own settings; a --setting takes the place of the one of its kind.

A setting without alg says that tokens of this kind are signed and not
encrypted. Logout tokens share the setting of ID tokens. Without sign, requests
and the issuer choose the signing algorithm; HS256, HS384 and HS512 sign with
the client's secret.

To change a client, name the revision that it has ("bulla client get" shows it):
whoever can replace a key can read the tokens, so that nobody does it unawares.
The same registration once more changes nothing.`,
		Example: `  bulla client register app-1 --jwks-uri https://app.example.com/jwks --setting ID_TOKEN,alg=RSA-OAEP-256,enc=A256GCM
  bulla client register app-2 --jwks keys.json --setting ID_TOKEN,alg=ECDH-ES+A128KW --setting USERINFO,alg=ECDH-ES
  bulla client register app-3 --pem client.crt --setting ID_TOKEN,alg=RSA-OAEP,enc=A128GCM
  bulla client register app-4 --client-secret-file secret.txt --setting ID_TOKEN,alg=dir,enc=A256GCM,sign=HS256
  bulla client register app-5 --metadata registration.json`,
		Args: arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Issuer, req.ClientId = *issuer, args[0]
			err := source.check(cmd)
			if err != nil {
				return err
			}
			if req.Settings, err = parseSettings(settings); err != nil {
				return err
			}
			if err := source.read(cmd, req); err != nil {
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
	f.StringVar(&s.secret, "client-secret-file", "", "file with the client's secret, or - (a line feed at its end does not count)")
	f.StringVar(&s.metadata, "metadata", "", "file with the client's OpenID registration in JSON, or -")
}

// check sees to it that one source at most is given.
func (s *keySource) check(cmd *cobra.Command) error {
	given, empty := []string(nil), ""
	for _, name := range sourceFlags {
		if f := cmd.Flags().Lookup(name); f.Changed {
			given = append(given, "--"+name)
			if f.Value.String() == "" {
				empty = "--" + name
			}
		}
	}
	switch {
	case len(given) > 1:
		return fmt.Errorf("%s are given, and a client has one key source: leave all but one out; a client with keys and a secret is registered with --metadata", strings.Join(given, " and "))
	case empty != "":
		// It comes from a variable that was not set.
		return fmt.Errorf("%s is empty: give it a value, or leave it out for a client whose tokens are only signed", empty)
	}
	return nil
}

// sourceFlags are the flags of a keySource. One at most is given.
var sourceFlags = []string{"jwks", "jwks-uri", "pem", "client-secret-file", "metadata"}

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
		text, err := readPEM(cmd, s.pem)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_PublicKeyPem{PublicKeyPem: text}
	case s.secret != "":
		secret, err := readSecret(cmd, s.secret)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret}
	case s.metadata != "":
		doc, err := readInput(cmd, s.metadata, maxDocument)
		if err != nil {
			return err
		}
		req.KeySource = &bullav1.RegisterClientKeyRequest_ClientMetadata{ClientMetadata: doc}
	}
	return nil
}

// readPEM reads a public key or certificate. What is in it is for the service
// to judge; but a private key does not leave this machine.
func readPEM(cmd *cobra.Command, name string) (string, error) {
	text, err := readInput(cmd, name, maxDocument)
	switch {
	case err != nil:
		return "", err
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return "", fmt.Errorf("%s holds a private key, which only its client should have, and which was not sent: give the public one (openssl pkey -in %s -pubout)", name, quoteShell(name))
	case !utf8.Valid(text):
		return "", fmt.Errorf("%s is not in PEM, which is text: convert it (openssl x509 -inform DER -in FILE for a certificate, openssl pkey -pubin -inform DER -in FILE for a key)", name)
	}
	return string(text), nil
}

// readSecret reads a client's secret, less the end of its line. Its errors
// name no file that is not there: somebody may have written the secret itself
// in its place.
func readSecret(cmd *cobra.Command, name string) (string, error) {
	text, err := readInput(cmd, name, maxSecretFile)
	if err != nil {
		var path *fs.PathError
		if !errors.As(err, &path) {
			return "", err
		}
		return "", fmt.Errorf("--client-secret-file names a file with the secret, or - for standard input, and the one that was named cannot be read: %w. If that was the secret itself, your shell's history and others on this machine may have seen it: take a new one", path.Err)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	const what = "what --client-secret-file names "
	switch {
	case len(text) == 0:
		return "", errors.New(what + "is empty: it must hold the client's secret")
	case bytes.ContainsAny(text, "\r\n"):
		return "", errors.New(what + "has several lines: it must hold the client's secret in one, and nothing else")
	case !utf8.Valid(text):
		return "", errors.New(what + "is not text in UTF-8: is it the right file?")
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")):
		return "", errors.New(what + "begins with a byte order mark, which would become part of the secret: save it without")
	}
	return string(text), nil
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
