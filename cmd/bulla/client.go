package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func clientCommand() *cobra.Command {
	var conn connection
	var issuer string
	cmd := &cobra.Command{Use: "client", Short: "Register OAuth clients' keys and look at them"}
	conn.register(cmd)
	cmd.PersistentFlags().StringVar(&issuer, "issuer", "", "the issuer's name (may be left out if there is only one)")
	return group(cmd,
		clientRegisterCommand(&conn, &issuer),
		clientGenerateCommand(&conn, &issuer),
		clientGetCommand(&conn, &issuer),
		clientListCommand(&conn, &issuer),
		clientWatchCommand(&conn, &issuer),
		clientExplainCommand(&conn, &issuer),
		clientRefreshCommand(&conn, &issuer),
		clientDeleteCommand(&conn, &issuer),
	)
}

// parseSetting reads KIND,name=value,…
func parseSetting(text string) (*bullav1.ResponseSetting, error) {
	kind, rest, _ := strings.Cut(text, ",")
	value, ok := bullav1.TokenKind_value["TOKEN_KIND_"+kind]
	if !ok {
		return nil, fmt.Errorf("setting %q: %q is no token kind; write one of %s first", text, kind, strings.Join(kindNames(), ", "))
	}
	setting := &bullav1.ResponseSetting{TokenKind: bullav1.TokenKind(value)}
	if rest == "" {
		return setting, nil
	}
	for pair := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "alg":
			setting.EncryptionAlgorithm = value
		case "enc":
			setting.ContentEncryption = value
		case "sign":
			setting.SigningAlgorithm = value
		case "kid":
			setting.KeyId = value
		default:
			return nil, fmt.Errorf("setting %q: %q is none of alg, enc, sign and kid", text, name)
		}
	}
	return setting, nil
}

func clientGetCommand(conn *connection, issuer *string) *cobra.Command {
	return &cobra.Command{
		Use:   "get CLIENT_ID",
		Short: "Show what is known of a client",
		Args:  arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.GetClientKey(ctx, &bullav1.GetClientKeyRequest{Issuer: *issuer, ClientId: args[0]})
				if err != nil {
					return err
				}
				return showClient(cmd, conn, res.GetClientKey())
			})
		},
	}
}

func clientListCommand(conn *connection, issuer *string) *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List clients",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &bullav1.ListClientKeysRequest{Issuer: *issuer}
			if state != "" {
				value, ok := bullav1.ClientKeyState_value["CLIENT_KEY_STATE_"+strings.ToUpper(state)]
				if !ok {
					return fmt.Errorf("state %q: use READY, STALE, EXPIRED, FAILING or NO_USABLE_KEY", state)
				}
				req.State = bullav1.ClientKeyState(value)
			}
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				all := &bullav1.ListClientKeysResponse{}
				for {
					page, err := service.ClientKeys.ListClientKeys(ctx, req)
					if err != nil {
						return err
					}
					all.ClientKeys = append(all.ClientKeys, page.GetClientKeys()...)
					if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
						break
					}
				}
				return show(cmd, conn.output, all, func(w io.Writer) {
					row(w, "CLIENT", "STATE", "SOURCE", "REVISION", "SINCE", "REASON")
					for _, k := range all.GetClientKeys() {
						row(w, k.GetClientId(), stateName(k), sourceName(k), k.GetRevision(), when(k.GetStateSince()), reasonAndPending(k))
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only clients in this state")
	return cmd
}

func clientExplainCommand(conn *connection, issuer *string) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "explain CLIENT_ID",
		Short: "Show every key of a client: chosen, or why not",
		Args:  arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := kindValue(kind)
			if err != nil {
				return err
			}
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.ExplainClientKey(ctx, &bullav1.ExplainClientKeyRequest{Issuer: *issuer, ClientId: args[0], TokenKind: value})
				if err != nil {
					return err
				}
				return show(cmd, conn.output, res, func(w io.Writer) {
					row(w, "KEY", "KID", "TYPE", "USE", "ALG", "CHOSEN", "REASON")
					verdictRows(w, "", res.GetKeys())
					if p := res.GetPending(); p != nil {
						at := "from " + when(p.GetEffectiveAt())
						if len(p.GetKeys()) == 0 {
							row(w, "-", "", "", "", "", "", at+": "+p.GetReason())
						}
						verdictRows(w, at+": ", p.GetKeys())
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "ID_TOKEN", "the kind of token")
	return cmd
}

// verdictRows show what was decided about keys, each with a word before its reason.
func verdictRows(w io.Writer, before string, keys []*bullav1.KeyVerdict) {
	for _, k := range keys {
		chosen := ""
		if k.GetChosen() {
			chosen = "yes"
		}
		row(w, fmt.Sprint(k.GetIndex()), k.GetKeyId(), strings.TrimSpace(k.GetKeyType()+" "+k.GetCurve()), k.GetUse(), k.GetAlgorithm(), chosen, before+k.GetReason())
	}
}

func clientRefreshCommand(conn *connection, issuer *string) *cobra.Command {
	return &cobra.Command{
		Use:   "refresh CLIENT_ID",
		Short: "Fetch a client's jwks_uri now",
		Args:  arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.RefreshClientKey(ctx, &bullav1.RefreshClientKeyRequest{Issuer: *issuer, ClientId: args[0]})
				if err != nil {
					return err
				}
				return showClient(cmd, conn, res.GetClientKey())
			})
		},
	}
}

func clientDeleteCommand(conn *connection, issuer *string) *cobra.Command {
	var revision string
	cmd := &cobra.Command{
		Use:   "delete CLIENT_ID",
		Short: "Forget a client: no token is made for it any more",
		Args:  arguments("CLIENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.call(cmd, func(ctx context.Context, service *client.Client) error {
				res, err := service.ClientKeys.DeleteClientKey(ctx, &bullav1.DeleteClientKeyRequest{Issuer: *issuer, ClientId: args[0], Revision: revision})
				if err != nil {
					return err
				}
				return show(cmd, conn.output, res, func(w io.Writer) { row(w, "deleted "+args[0]) })
			})
		},
	}
	cmd.Flags().StringVar(&revision, "revision", "", "delete only this revision")
	return cmd
}

func showClient(cmd *cobra.Command, conn *connection, k *bullav1.ClientKey) error {
	return show(cmd, conn.output, k, func(w io.Writer) {
		field(w, "client", k.GetClientId())
		field(w, "issuer", k.GetIssuer())
		field(w, "state", stateName(k))
		field(w, "reason", k.GetStateReason())
		field(w, "since", when(k.GetStateSince()))
		field(w, "source", sourceName(k))
		field(w, "jwks_uri", k.GetJwksUri())
		for _, s := range k.GetSettings() {
			field(w, kindName(s.GetTokenKind()), describeSetting(k, s))
		}
		field(w, "fetched", when(k.GetFetchedAt()))
		field(w, "next refresh", when(k.GetNextRefreshAt()))
		field(w, "expires", when(k.GetExpiresAt()))
		for _, warning := range k.GetWarnings() {
			field(w, "warning", warning)
		}
		field(w, "revision", k.GetRevision())
		pendingFields(w, k)
	})
}

// describeSetting says how one kind of token is made for a client.
func describeSetting(k *bullav1.ClientKey, s *bullav1.ResponseSetting) string {
	signed := s.GetSigningAlgorithm()
	if s.GetEncryptionAlgorithm() == "" {
		if signed != "" {
			return "signed only, with " + signed
		}
		return "signed only"
	}
	if signed != "" {
		signed = ", signed with " + signed
	}
	key := "no key chosen"
	for _, c := range k.GetChosenKeys() {
		switch {
		case c.GetTokenKind() != s.GetTokenKind():
		case c.GetThumbprint() == "":
			// Not even a hash is shown of what is derived from a secret.
			key = "key from the client's secret"
		case c.GetKeyId() == "":
			key = "key without kid, thumbprint " + c.GetThumbprint()
		default:
			key = fmt.Sprintf("key %q, thumbprint %s", c.GetKeyId(), c.GetThumbprint())
		}
	}
	return fmt.Sprintf("%s %s, %s%s", s.GetEncryptionAlgorithm(), s.GetContentEncryption(), key, signed)
}

func stateName(k *bullav1.ClientKey) string {
	return strings.TrimPrefix(k.GetState().String(), "CLIENT_KEY_STATE_")
}

func sourceName(k *bullav1.ClientKey) string {
	if k.GetSource() == bullav1.KeySource_KEY_SOURCE_UNSPECIFIED {
		return "none" // its tokens are only signed
	}
	return strings.ToLower(strings.TrimPrefix(k.GetSource().String(), "KEY_SOURCE_"))
}

func kindName(k bullav1.TokenKind) string { return strings.TrimPrefix(k.String(), "TOKEN_KIND_") }

func kindValue(name string) (bullav1.TokenKind, error) {
	value, ok := bullav1.TokenKind_value["TOKEN_KIND_"+name]
	if !ok {
		return 0, fmt.Errorf("%q is no token kind; use one of %s", name, strings.Join(kindNames(), ", "))
	}
	return bullav1.TokenKind(value), nil
}

// maxInput bounds what is read from a file or standard input where the service
// sets no bound of its own.
const maxInput = 16 << 20

// readInput reads a file, or standard input for "-", of at most limit bytes.
func readInput(cmd *cobra.Command, name string, limit int) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close() //nolint:errcheck // only read
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		if name == "-" {
			name = "standard input"
		}
		return nil, fmt.Errorf("%s is longer than the %d KiB that are allowed: is it the right file?", name, limit>>10)
	}
	return data, nil
}
