package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/signer"
)

func tokenCommand() *cobra.Command {
	return group(&cobra.Command{Use: "token", Short: "Issue tokens, and open them as a client would"},
		tokenIssueCommand(), tokenOpenCommand())
}

// maxHashInput is what the service takes for an access token, a code and a state.
const maxHashInput = 64 << 10

// tokenIssueCommand asks a service for a token. What is secret comes from
// files, so that it stands in no list of processes.
func tokenIssueCommand() *cobra.Command {
	var conn connection
	var (
		req                     bullav1.SignRequest
		kind, claims            string
		lifetime                time.Duration
		accessToken, code       string
		state                   string
		signOnly, unencryptedOK bool
	)
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue a token from claims",
		Example: `  echo '{"sub":"alice"}' | bulla token issue --client app-1 --claims -
  bulla token issue --kind ACCESS_TOKEN --sign-only --claims claims.json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.TokenKind, err = kindValue(kind); err != nil {
				return err
			}
			if req.Claims, err = readInput(cmd, claims, signer.MaxClaimsBytes); err != nil {
				return err
			}
			for _, secret := range []struct {
				file  string
				value *string
			}{{accessToken, &req.AccessToken}, {code, &req.Code}, {state, &req.State}} {
				if secret.file == "" {
					continue
				}
				text, err := readInput(cmd, secret.file, maxHashInput)
				if err != nil {
					return err
				}
				*secret.value = strings.TrimRight(string(text), "\r\n")
			}
			if cmd.Flags().Changed("lifetime") {
				req.Lifetime = durationpb.New(lifetime)
			}
			req.AllowUnencrypted = unencryptedOK
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				if signOnly || unencryptedOK {
					res, err := service.Tokens.Sign(ctx, &req)
					if err != nil {
						return err
					}
					return show(cmd, conn.output, res, func(w io.Writer) { row(w, res.GetToken()) })
				}
				res, err := service.Tokens.SignAndEncrypt(ctx, &bullav1.SignAndEncryptRequest{
					Issuer: req.GetIssuer(), ClientId: req.GetClientId(), TokenKind: req.GetTokenKind(),
					Claims: req.GetClaims(), Lifetime: req.GetLifetime(), SigningAlgorithm: req.GetSigningAlgorithm(),
					AccessToken: req.GetAccessToken(), Code: req.GetCode(), State: req.GetState(),
				})
				if err != nil {
					return err
				}
				return show(cmd, conn.output, res, func(w io.Writer) { row(w, res.GetToken()) })
			})
		},
	}
	conn.register(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Issuer, "issuer", "", "the issuer's name (may be left out if there is only one)")
	f.StringVar(&req.ClientId, "client", "", "the OAuth client the token is for")
	f.StringVar(&kind, "kind", "ID_TOKEN", "the kind of token: ID_TOKEN, USERINFO or ACCESS_TOKEN")
	f.StringVar(&claims, "claims", "-", "file with the claims, a JSON object; - for standard input")
	f.DurationVar(&lifetime, "lifetime", 0, "how long the token is valid (default: the issuer's)")
	f.StringVar(&req.SigningAlgorithm, "alg", "", "the signing algorithm (default: the client's, else the issuer's)")
	f.StringVar(&accessToken, "access-token-file", "", "file with the access token for at_hash")
	f.StringVar(&code, "code-file", "", "file with the authorization code for c_hash")
	f.StringVar(&state, "state-file", "", "file with the state for s_hash")
	f.BoolVar(&signOnly, "sign-only", false, "a signed token, for kinds and clients without encryption")
	f.BoolVar(&unencryptedOK, "allow-unencrypted", false, "a signed token although the client registered encryption (needs the permission for it)")
	return cmd
}

// tokenOpenCommand is the other end: it calls nobody.
func tokenOpenCommand() *cobra.Command {
	var (
		config            client.OpenConfig
		keyFile, jwksFile string
		inner             bool
		output            string
	)
	cmd := &cobra.Command{
		Use:   "open FILE|-",
		Short: "Decrypt and verify a token as its client would",
		Args:  arguments("FILE|-"),
		RunE: func(cmd *cobra.Command, args []string) error {
			private, err := readInput(cmd, keyFile, maxInput)
			if err != nil {
				return err
			}
			if config.Keys, err = client.ParseKeys(private); err != nil {
				return fmt.Errorf("%s: %w", keyFile, err)
			}
			public, err := readInput(cmd, jwksFile, maxInput)
			if err != nil {
				return err
			}
			if config.Signers, err = client.ParseSigners(public); err != nil {
				return fmt.Errorf("%s: %w", jwksFile, err)
			}
			opener, err := client.NewOpener(config)
			if err != nil {
				return err
			}
			text, err := readInput(cmd, args[0], maxInput)
			if err != nil {
				return err
			}
			token, err := opener.Open(string(bytes.TrimSpace(text)))
			if err != nil {
				return err
			}
			return printToken(cmd.OutOrStdout(), token, inner, output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyFile, "key", "", "file with the client's private JWK or JWK Set")
	f.StringVar(&jwksFile, "jwks", "", "file with the issuer's public JWK Set")
	f.StringVar(&config.Issuer, "iss", "", "require this iss")
	f.StringVar(&config.Audience, "aud", "", "require this aud")
	f.BoolVar(&config.AllowExpired, "allow-expired", false, "open an expired token too")
	f.BoolVar(&inner, "inner", false, "print the inner signed JWT")
	for _, name := range []string{"key", "jwks"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag was defined two lines above
		}
	}
	outputFlag(cmd, &output)
	return cmd
}

// opened is an opened token in JSON.
type opened struct {
	EncryptionHeader json.RawMessage `json:"encryption_header,omitempty"`
	SignatureHeader  json.RawMessage `json:"signature_header"`
	Claims           json.RawMessage `json:"claims"`
}

func printToken(w io.Writer, token *client.Token, inner bool, output string) error {
	if inner {
		_, err := fmt.Fprintln(w, token.InnerJWS)
		return err
	}
	o := opened{SignatureHeader: token.SignatureHeader.JSON, Claims: token.Claims}
	if token.EncryptionHeader != nil {
		o.EncryptionHeader = token.EncryptionHeader.JSON
	}
	if output == "json" {
		return json.NewEncoder(w).Encode(o)
	}
	for _, part := range []struct {
		name string
		doc  json.RawMessage
	}{{"encrypted to the client (JWE header)", o.EncryptionHeader}, {"signed by the issuer (JWS header)", o.SignatureHeader}, {"claims", o.Claims}} {
		if part.doc == nil {
			continue
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, part.doc, "", "  "); err != nil {
			return err
		}
		fmt.Fprintf(w, "%s:\n%s\n", part.name, pretty.Bytes())
	}
	return nil
}
