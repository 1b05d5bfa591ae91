package interop

import (
	"fmt"
	"slices"
	"strings"
)

// Results is what came of a run: who opened what.
type Results struct {
	About  map[Client]About
	Opened map[Client]map[Case]bool
}

// clients are those that took part, in the order of Clients.
func (r *Results) clients() []Client {
	return slices.DeleteFunc(slices.Clone(Clients), func(c Client) bool { _, ok := r.About[c]; return !ok })
}

// Head is the part of the page that names the clients, with the versions at hand.
func (r *Results) Head() string {
	var b strings.Builder
	b.WriteString(`<!-- Written by "make interop". Change interop/report.go and run it again. -->
# Who opens Bulla's tokens

` + "`make interop`" + ` has other people's JOSE libraries open what the built binary makes, with signing keys on a
SoftHSM token: a client is registered for each combination of algorithms, a token is issued for it over gRPC, and each
library decrypts it, verifies the JWS inside against the issuer's JWK Set and returns the claims, which must be those
that went in, byte for byte. It may accept no algorithm but those of the case. What a library should open and what it
should not is written down in ` + "`interop/matrix.go`" + `; the run fails on every difference, in both directions. These tables are
the output of such a run.

| client | version | on |
| --- | --- | --- |
`)
	for _, client := range r.clients() {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", client, r.About[client].Library, r.About[client].Platform)
	}
	if _, ok := r.About[NodeJoseReverted]; ok {
		b.WriteString("\n\"Reverted\" is node-jose on a Node.js that is run with `" + Revert + "`.\n")
	}
	return b.String()
}

// Tables are the rest of the page.
func (r *Results) Tables() string {
	var b strings.Builder
	var notes notes
	standard := func(c Case) bool { return c.ContentEncryption != LegacyEncryption }

	fmt.Fprintf(&b, "\n## Key management and content encryption\n\nEach with %s.\n\n", list(ContentEncryptions, "and"))
	r.table(&b, &notes, "alg", filter(EncryptionCases(), standard), Case.Key, func(c Case) string { return c.ContentEncryption })

	fmt.Fprintf(&b, "\n## The legacy content encryption\n\n%s is that of drafts before RFC 7518, and goes with these two only. "+
		"Bulla uses it, and RSA1_5, where the issuer's policy names them and the client is registered as legacy.\n\n", LegacyEncryption)
	r.table(&b, &notes, "alg", filter(EncryptionCases(), func(c Case) bool { return !standard(c) }), Case.Key, func(c Case) string { return c.ContentEncryption })

	b.WriteString("\n## Signatures\n\nThe JWS inside. HS256, HS384 and HS512 are made with the client's secret.\n\n")
	r.table(&b, &notes, "alg", SignatureCases(), func(c Case) string { return c.Signature }, func(c Case) string { return c.Signature })

	b.WriteString("\n## Reasons\n\n")
	for i, e := range notes {
		fmt.Fprintf(&b, "%d. %s: %s\n", i+1, e.Client, e.Reason)
	}
	return b.String()
}

// Markdown is the page.
func (r *Results) Markdown() string { return r.Head() + r.Tables() }

// table writes a table with a row for each value of row, a column for each client and,
// in each cell, which values of column that client opens.
func (r *Results) table(b *strings.Builder, notes *notes, title string, cases []Case, row, column func(Case) string) {
	clients := r.clients()
	fmt.Fprintf(b, "| %s |", title)
	for _, client := range clients {
		fmt.Fprintf(b, " %s |", client)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", 1+len(clients)) + "\n")
	for len(cases) > 0 {
		name := row(cases[0])
		of := filter(cases, func(c Case) bool { return row(c) == name })
		cases = filter(cases, func(c Case) bool { return row(c) != name })
		fmt.Fprintf(b, "| %s |", name)
		for _, client := range clients {
			fmt.Fprintf(b, " %s |", r.cell(notes, client, of, column))
		}
		b.WriteString("\n")
	}
}

func (r *Results) cell(notes *notes, client Client, cases []Case, column func(Case) string) string {
	var not []string
	var why []int
	for _, c := range cases {
		if r.Opened[client][c] {
			continue
		}
		not = append(not, column(c))
		if _, because := Expect(client, r.About[client], c); because != nil {
			if n := notes.number(because); !slices.Contains(why, n) {
				why = append(why, n)
			}
		}
	}
	text := "yes"
	switch {
	case len(not) == len(cases):
		text = "no"
	case len(not) > 0:
		text = "all but " + list(not, "and")
	}
	for _, n := range why {
		text += fmt.Sprintf(" (%d)", n)
	}
	return text
}

// notes are the reasons on a page, in the order in which they are first needed.
type notes []*Exception

func (n *notes) number(e *Exception) int {
	i := slices.Index(*n, e)
	if i < 0 {
		i = len(*n)
		*n = append(*n, e)
	}
	return i + 1
}

func filter(cases []Case, keep func(Case) bool) []Case {
	var kept []Case
	for _, c := range cases {
		if keep(c) {
			kept = append(kept, c)
		}
	}
	return kept
}

// list is "a, b and c".
func list(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	n := len(words) - 1
	return strings.Join(words[:n], ", ") + " " + last + " " + words[n]
}
