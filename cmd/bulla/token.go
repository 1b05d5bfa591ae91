package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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
	f.StringVar(&kind, "kind", "ID_TOKEN", "the kind of token: "+strings.Join(kindNames(), ", "))
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

// maxSecretFile is the longest client secret that is read from a file.
const maxSecretFile = 4 << 10

// openFlags are the flags of "token open": the files that the client has, and what
// it expects.
type openFlags struct {
	config            client.OpenConfig
	keyFile, jwksFile string
	secretFiles       []string
	kind              string
	inner             bool
	output            string
}

// tokenOpenCommand is the other end: it calls nobody.
func tokenOpenCommand() *cobra.Command {
	var flags openFlags
	cmd := &cobra.Command{
		Use:   "open FILE|-",
		Short: "Decrypt and verify a token as its client would",
		Example: `  bulla token open --key private.jwk --jwks signers.json --aud app-1 token.jwt
  bulla token open --client-secret-file secret --jwks signers.json --alg A128KW --inner token.jwt`,
		Args: arguments("FILE|-"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opener, err := flags.opener(cmd)
			if err != nil {
				return err
			}
			text, err := readInput(cmd, args[0], maxInput)
			if err != nil {
				return err
			}
			token, err := opener.Open(string(bytes.TrimSpace(text)))
			if err != nil {
				return byFlag(err)
			}
			return printToken(cmd.OutOrStdout(), token, flags.inner, flags.output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.keyFile, "key", "", "file with the client's private key: a JWK, a JWK Set or PEM")
	f.StringArrayVar(&flags.secretFiles, "client-secret-file", nil, "file with the client's secret, for keys made of it (A*KW, A*GCMKW, dir) and HS signatures; repeat it for older ones")
	f.StringVar(&flags.jwksFile, "jwks", "", "file with the issuer's public JWK Set")
	f.StringVar(&flags.kind, "kind", "", "require this kind of token: "+strings.Join(kindNames(), ", "))
	f.StringVar(&flags.config.Issuer, "iss", "", "require this iss")
	f.StringVar(&flags.config.Audience, "aud", "", "require this aud")
	f.StringArrayVar(&flags.config.TrustedAudiences, "trusted-audience", nil, "with --kind and --aud: accept a token that is for this party too; repeat it for more")
	f.StringSliceVar(&flags.config.KeyAlgorithms, "alg", nil, "accept only these algorithms of key management (default: all but RSA1_5)")
	f.StringSliceVar(&flags.config.ContentEncryptions, "enc", nil, "accept only these content encryptions (default: all but A128CBC+HS256)")
	f.StringSliceVar(&flags.config.SignatureAlgorithms, "signing-alg", nil, "accept only these signing algorithms (default: all that --jwks verifies; without it HS256, HS384 and HS512)")
	f.BoolVar(&flags.config.AllowLegacy, "allow-legacy", false, "accept RSA1_5 and A128CBC+HS256 too, where --alg and --enc are not given")
	f.BoolVar(&flags.config.AllowExpired, "allow-expired", false, "open an expired token too")
	f.BoolVar(&flags.config.AllowUnencrypted, "allow-unencrypted", false, "open a token that is signed only, too")
	f.BoolVar(&flags.inner, "inner", false, "print the inner signed JWT, once it has been verified")
	outputFlag(cmd, &flags.output)
	return cmd
}

// opener reads the files and makes of them what opens the token.
func (f *openFlags) opener(cmd *cobra.Command) (*client.Opener, error) {
	f.config.Kind = client.TokenKind(f.kind)
	if f.keyFile == "" && len(f.secretFiles) == 0 && !f.config.AllowUnencrypted {
		return nil, errors.New("--key is missing: give the file with the client's private key, or with --client-secret-file the one with its secret")
	}
	if f.jwksFile == "" && len(f.secretFiles) == 0 {
		return nil, errors.New("--jwks is missing: give the file with the issuer's public keys (\"bulla key jwks\" prints them)")
	}
	if f.keyFile != "" {
		private, err := readInput(cmd, f.keyFile, maxInput)
		if err != nil {
			return nil, err
		}
		if f.config.Keys, err = client.ParseKeys(private); err != nil {
			return nil, fmt.Errorf("%s: %w", f.keyFile, err)
		}
	}
	for _, name := range f.secretFiles {
		secret, err := readInput(cmd, name, maxSecretFile)
		if err != nil {
			return nil, err
		}
		// The line's end is the editor's, not the secret's.
		if secret = bytes.TrimRight(secret, "\r\n"); len(secret) == 0 {
			return nil, fmt.Errorf("%s is empty: it must hold the client's secret", name)
		}
		f.config.ClientSecrets = append(f.config.ClientSecrets, secret)
	}
	if f.jwksFile != "" {
		public, err := readInput(cmd, f.jwksFile, maxInput)
		if err != nil {
			return nil, err
		}
		if f.config.Signers, err = client.ParseSigners(public); err != nil {
			return nil, fmt.Errorf("%s: %w", f.jwksFile, err)
		}
	}
	opener, err := client.NewOpener(f.config)
	return opener, byFlag(err)
}

// byFlag has an error speak of flags where package client speaks of its fields.
func byFlag(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.NewReplacer(
		"OpenConfig.", "",
		"KeyAlgorithms", "--alg",
		"ContentEncryptions", "--enc",
		"SignatureAlgorithms", "--signing-alg",
		"AllowUnencrypted", "--allow-unencrypted",
		"ClientSecrets", "--client-secret-file",
		"Signers", "--jwks",
		"TrustedAudiences", "--trusted-audience",
		"Audience", "--aud",
		"Kind", "--kind",
	).Replace(err.Error()))
}

func kindNames() []string {
	var names []string
	for _, kind := range client.TokenKinds() {
		names = append(names, string(kind))
	}
	return names
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
