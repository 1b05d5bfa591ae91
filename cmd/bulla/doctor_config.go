package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
)

// loadForDoctor reads the configuration. Without one there is nothing else to
// look at, and it returns nil.
func loadForDoctor(file string) (*config.Config, []finding) {
	cfg, err := config.Load(file)
	if err != nil {
		var problems config.Problems
		if !errors.As(err, &problems) {
			problems = config.Problems{{File: file, Message: err.Error(), Advice: "correct the configuration"}}
		}
		return nil, problemFindings("config", failed, problems)
	}
	found := []finding{{
		Check: "config", Subject: filepath.Base(file), Outcome: good,
		Detail: fmt.Sprintf("%s, %s, %s", plural(len(cfg.Issuers), "issuer"), plural(len(cfg.Backends), "backend"), plural(len(cfg.Grants), "grant")),
	}}
	if cfg.Development {
		found = append(found, finding{
			Check: "config", Subject: "development", Outcome: warned,
			Detail: "the service runs in development mode, which allows what is safe on a developer's machine only",
			Advice: "remove development: true before anybody trusts a token",
		})
	}
	return cfg, found
}

func problemFindings(check string, o outcome, problems config.Problems) []finding {
	var found []finding
	for _, p := range problems {
		subject := filepath.Base(p.File)
		if p.Line > 0 {
			subject += fmt.Sprintf(":%d", p.Line)
		}
		if p.Path != "" {
			subject += ": " + p.Path
		}
		found = append(found, finding{Check: check, Subject: subject, Outcome: o, Detail: p.Message, Advice: p.Advice})
	}
	return found
}

// files looks whether the files that the configuration names are there, can be
// used, and are closed to others where they hold secrets.
func (d *doctor) files(context.Context) []finding {
	problems, warnings := d.cfg.CheckFiles()
	found := append(problemFindings("file", failed, problems), problemFindings("file", warned, warnings)...)
	if len(found) == 0 {
		found = []finding{{
			Check: "files", Subject: filepath.Base(d.file), Outcome: good,
			Detail: "all files that it names are there and can be used, and secrets are closed to others",
		}}
	}
	return found
}

// fetch looks at what hosts of clients are known by.
func (d *doctor) fetch(context.Context) []finding {
	f := finding{Check: "fetch", Subject: "fetch.ca_file", Outcome: good, Detail: "not set; the system's CA certificates are used"}
	system, err := x509.SystemCertPool()
	if err != nil || system.Equal(x509.NewCertPool()) {
		f.Outcome = warned
		f.Detail = "this machine has no CA certificates"
		f.Advice = "install the package ca-certificates, else keys are fetched only from hosts with a certificate of fetch.ca_file"
	}
	if d.cfg.Fetch.CAFile == "" {
		return []finding{f}
	}
	found := authorities("fetch", "fetch.ca_file", d.cfg.Fetch.CAFile)
	if f.Outcome == warned {
		found = append(found, f)
	}
	return found
}

// grants tells who may do what, and what nobody may.
func (d *doctor) grants(context.Context) []finding {
	if d.cfg.Plaintext() {
		return []finding{{
			Check: "grants", Subject: "all issuers", Outcome: good,
			Detail: fmt.Sprintf("not used: without TLS the caller is always %q and may do everything", authz.DevelopmentCaller),
		}}
	}
	var found []finding
	for _, i := range d.cfg.Issuers {
		found = append(found, d.grantsOn(i.Name))
	}
	return found
}

// grantsOn is grants for one issuer.
func (d *doctor) grantsOn(issuer string) finding {
	callers := make(map[authz.Permission][]string)
	bound := false // somebody may issue tokens that are made for a client
	for _, g := range d.cfg.Grants {
		if !slices.Contains(g.Issuers, issuer) {
			continue
		}
		for _, p := range g.Allow {
			if !slices.Contains(callers[p], g.Caller) {
				callers[p] = append(callers[p], g.Caller)
			}
			if p.NeedsTokenKinds() {
				bound = bound || slices.ContainsFunc(g.TokenKinds, func(kind string) bool { return kind != "ACCESS_TOKEN" })
			}
		}
	}
	f := finding{Check: "grants", Subject: issuer, Outcome: good}
	var parts []string
	for _, p := range authz.Permissions() {
		if n := len(callers[p]); n > 0 {
			parts = append(parts, fmt.Sprintf("%s: %s", p, plural(n, "caller")))
		}
	}
	f.Detail = strings.Join(parts, ", ")
	switch {
	case len(callers[authz.Issue])+len(callers[authz.SignUnencrypted]) == 0:
		f.Outcome = warned
		f.Detail = "nobody may issue a token for this issuer"
		f.Advice = fmt.Sprintf("add a grant: {caller: …, allow: [issue], issuers: [%s], token_kinds: [ID_TOKEN], clients: [\"*\"]}", issuer)
	case bound && len(callers[authz.CreateClientKey]) == 0:
		f.Outcome = warned
		f.Detail += "; but nobody may register a client"
		f.Advice = "unless all clients are registered already, grant create_client_key to whoever registers them"
	}
	return f
}
