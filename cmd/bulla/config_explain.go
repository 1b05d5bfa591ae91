package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/signer"
)

func configExplainCommand() *cobra.Command {
	var file, caller, format string
	cmd := &cobra.Command{
		Use:   "explain --config FILE --caller ID",
		Short: "Say what a caller may do by a configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if caller == "" {
				return fmt.Errorf("--caller is missing: %s", howCallersAreNamed)
			}
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			found, err := explain(cfg, caller)
			if err != nil {
				return err
			}
			if format == "json" {
				doc, err := json.MarshalIndent(found, "", "  ")
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", doc)
				return err
			}
			return table(cmd.OutOrStdout(), found.print)
		},
	}
	cmd.Flags().StringVar(&file, "config", "bulla.yaml", "the configuration")
	cmd.Flags().StringVar(&caller, "caller", "", "the caller, as its certificate names it")
	outputFlag(cmd, &format)
	return cmd
}

const howCallersAreNamed = "a caller is named by the URI SAN of its certificate, such as spiffe://example.com/idp, byte for byte; or, without one, by its DNS SAN"

// explanation is what a caller may do. Its JSON is what -o json prints.
type explanation struct {
	Caller string `json:"caller"`
	// Everything is set for the caller of a service in development without TLS.
	Everything bool            `json:"everything,omitempty"`
	Issuers    []issuerExplain `json:"issuers,omitempty"`
	Limits     []limitExplain  `json:"limits,omitempty"`
	// GrantsSHA256 is by which the log of a service tells the grants in force.
	GrantsSHA256 string `json:"grants_sha256"`
}

// issuerExplain is what a caller may do on one issuer.
type issuerExplain struct {
	Issuer string         `json:"issuer"`
	URL    string         `json:"iss"`
	Grants []grantExplain `json:"grants"`
}

// grantExplain is what one grant gives: permissions that are measured alike.
type grantExplain struct {
	Permissions []authz.Permission `json:"permissions"`
	TokenKinds  []string           `json:"token_kinds,omitempty"`
	Clients     []string           `json:"clients,omitempty"`
	Claims      *claimsExplain     `json:"claims,omitempty"`
	// Grant is its place in the file.
	Grant string `json:"grant"`
	Line  int    `json:"line"`

	where string
}

// claimsExplain is the claim policy of a grant.
type claimsExplain struct {
	MaxLifetimeSeconds int64    `json:"max_lifetime_seconds,omitempty"`
	Allow              []string `json:"allow,omitempty"`
	Require            []string `json:"require,omitempty"`
	Audiences          []string `json:"audiences,omitempty"`
	// MustAsk says that the default lifetime of a token is longer, so that a
	// request has to ask for one.
	MustAsk bool `json:"must_ask_for_lifetime,omitempty"`

	usual time.Duration // the default
}

// limitExplain is a limit of the caller, on each replica: so many a second, or at
// once.
type limitExplain struct {
	Limit     string  `json:"limit"`
	PerSecond float64 `json:"per_second,omitempty"`
	AtOnce    int     `json:"at_once,omitempty"`
}

// limitsOf are the limits of a caller: its own, else those of all.
func limitsOf(cfg *config.Config, caller string) []limitExplain {
	l := cfg.Limits
	for _, own := range l.Callers {
		if !authz.SameCaller(own.Caller, caller) {
			continue
		}
		if own.Tokens != nil {
			l.Tokens = *own.Tokens
		}
		if own.InFlight != nil {
			l.InFlight = *own.InFlight
		}
		l.Registrations = cmp.Or(own.Registrations, l.Registrations)
		l.FirstFetches = cmp.Or(own.FirstFetches, l.FirstFetches)
	}
	var list []limitExplain
	if l.Tokens > 0 {
		list = append(list, limitExplain{Limit: "tokens", PerSecond: l.Tokens})
	}
	if l.InFlight > 0 {
		list = append(list, limitExplain{Limit: "tokens", AtOnce: l.InFlight})
	}
	return append(list, limitExplain{Limit: "registrations", PerSecond: l.Registrations}, limitExplain{Limit: "first_fetches", PerSecond: l.FirstFetches})
}

// explain finds what a caller may do. It is an error if no grant names it.
func explain(cfg *config.Config, caller string) (*explanation, error) {
	found := &explanation{Caller: caller, GrantsSHA256: hashOfGrants(cfg), Limits: limitsOf(cfg, caller)}
	if cfg.Plaintext() {
		if caller != authz.DevelopmentCaller {
			return nil, fmt.Errorf("without TLS on grpc, in development, the only caller is %q, whoever calls", authz.DevelopmentCaller)
		}
		found.Everything = true
		return found, nil
	}
	known := false
	for _, is := range cfg.Issuers {
		one := issuerExplain{Issuer: is.Name, URL: is.Iss}
		for i, g := range cfg.Grants {
			if !authz.SameCaller(g.Caller, caller) {
				continue
			}
			known = true
			found.Caller = g.Caller
			if slices.Contains(g.Issuers, is.Name) {
				one.Grants = append(one.Grants, grantParts(cfg, i, is)...)
			}
		}
		if len(one.Grants) > 0 {
			found.Issuers = append(found.Issuers, one)
		}
	}
	if !known {
		return nil, unknownCaller(cfg, caller)
	}
	return found, nil
}

// grantParts splits a grant into permissions that are measured alike, as it stands
// for one of its issuers.
func grantParts(cfg *config.Config, i int, is config.Issuer) []grantExplain {
	g := cfg.Grants[i]
	path := fmt.Sprintf("grants[%d]", i)
	var tokens, clients, rest []authz.Permission
	for _, p := range g.Allow {
		switch {
		case p.NeedsTokenKinds():
			tokens = append(tokens, p)
		case p.NeedsClients():
			clients = append(clients, p)
		default:
			rest = append(rest, p)
		}
	}
	var parts []grantExplain
	add := func(permissions []authz.Permission, kinds, names []string, claims *claimsExplain) {
		if len(permissions) > 0 {
			parts = append(parts, grantExplain{
				Permissions: permissions, TokenKinds: kinds, Clients: names, Claims: claims,
				Grant: path, Line: cfg.Line(path), where: fmt.Sprintf("%s:%d", cfg.File(), cfg.Line(path)),
			})
		}
	}
	add(tokens, g.TokenKinds, g.Clients, explainClaims(g, is))
	add(clients, nil, g.Clients, nil)
	add(rest, nil, nil, nil)
	return parts
}

func explainClaims(g config.Grant, is config.Issuer) *claimsExplain {
	if g.Claims == nil {
		return nil
	}
	c := &claimsExplain{
		MaxLifetimeSeconds: int64(g.Claims.MaxLifetime / time.Second), Allow: g.Claims.Allow, Require: g.Claims.Require, Audiences: g.Claims.Audiences,
		usual: is.DefaultLifetime,
	}
	for _, kind := range []signer.TokenKind{signer.IDToken, signer.AccessToken} { // others are short-lived by themselves
		c.MustAsk = c.MustAsk || g.Claims.MaxLifetime > 0 && g.Claims.MaxLifetime < is.DefaultLifetime && slices.Contains(g.TokenKinds, string(kind))
	}
	return c
}

// unknownCaller says that no grant names a caller, and what may be meant.
func unknownCaller(cfg *config.Config, caller string) error {
	text := fmt.Sprintf("no grant of %s names the caller %q, so that it may do nothing", cfg.File(), caller)
	if like := cfg.CallersLike(caller); len(like) > 0 {
		for i := range like {
			like[i] = fmt.Sprintf("%q", like[i])
		}
		text += "\n  did you mean " + strings.Join(like, " or ") + "?"
	}
	if err := authz.CheckCaller(caller); err != nil {
		text += "\n  no certificate names a caller so: " + err.Error()
	}
	return fmt.Errorf("%s\n  %s", text, howCallersAreNamed)
}

func (e *explanation) print(w io.Writer) {
	row(w, "caller", e.Caller)
	if e.Everything {
		row(w, "may do", "everything: this is development, without TLS, and grants are not used")
	}
	for _, is := range e.Issuers {
		fmt.Fprintln(w)
		row(w, "issuer", fmt.Sprintf("%s (%s)", is.Issuer, is.URL))
		for _, g := range is.Grants {
			fmt.Fprintln(w)
			g.print(w)
		}
	}
	fmt.Fprintln(w)
	for _, l := range e.Limits {
		what, pace := strings.ReplaceAll(l.Limit, "_", " "), fmt.Sprintf("%v", l.PerSecond)
		if l.AtOnce > 0 {
			row(w, "limit", fmt.Sprintf("%d %s at once, on each replica", l.AtOnce, what))
			continue
		}
		row(w, "limit", fmt.Sprintf("%s %s a second, on each replica", pace, what))
	}
	row(w, "grants", "sha256 "+e.GrantsSHA256)
}

func (g *grantExplain) print(w io.Writer) {
	row(w, "  may", commas(g.Permissions))
	field(w, "  token kinds", commas(g.TokenKinds))
	if slices.Contains(g.Clients, "*") {
		row(w, "  clients", "all")
	} else {
		field(w, "  clients", commas(g.Clients))
	}
	if c := g.Claims; c != nil {
		c.print(w)
	}
	row(w, "  granted in", g.where)
}

func (c *claimsExplain) print(w io.Writer) {
	if longest := time.Duration(c.MaxLifetimeSeconds) * time.Second; longest > 0 {
		text := "at most " + span(longest)
		if c.MustAsk {
			text += "; a request must ask for one, as the default is " + span(c.usual)
		}
		row(w, "  lifetime", text)
	}
	if len(c.Allow) > 0 {
		row(w, "  claims", "only "+commas(c.Allow)+", and as always "+commas(authz.NeverListed()))
	}
	field(w, "  must give", commas(c.Require))
	if len(c.Audiences) > 0 {
		row(w, "  aud", "only "+commas(c.Audiences)+", beside the client that the token is for")
	}
}

func commas[T ~string](list []T) string {
	texts := make([]string, len(list))
	for i, t := range list {
		texts[i] = string(t)
	}
	return strings.Join(texts, ", ")
}

// span is a duration without the units that say nothing: 10m, not 10m0s.
func span(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
