package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// What the demo prints: about a screen of plain text. The functions stand in
// the order of the screen.

// printf prints. That nobody reads it is no reason to stop serving.
func (d *demo) printf(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format, args...) }

// step prints a step: what was done, and below it the particulars.
func (d *demo) step(number int, title string, lines ...string) {
	d.printf("%d. %s\n", number, title)
	for _, line := range lines {
		d.printf("   %s\n", line)
	}
}

func (d *demo) title() {
	d.printf("Bulla seals a token: signed in an HSM, encrypted to one client.\n\n")
}

// showFolder shows what was made. lacks is why it had to be.
func (d *demo) showFolder(lacks string) {
	title := "An HSM token and certificates, made in the private folder " + d.folder.show()
	switch lacks {
	case "":
		title = "An HSM token and certificates, from the last run, in " + d.folder.show()
	case "new":
	default:
		title += "\n   (anew: " + lacks + ")"
	}
	d.step(1, title,
		"SoftHSM token "+demoToken+" with a random PIN; it made its keys inside: ES256 and RS256 to sign,",
		"and an AES key that protects what the service stores",
		"CA; certificates of the service, the client, and three callers:",
		strings.Join([]string{demoIDP, demoRegistrar, demoOperator}, ", "))
}

func (d *demo) showService() {
	d.step(2, "The service is ready: it has signed with a key in the token",
		"gRPC     "+d.ports.grpc+", TLS 1.3 with client certificates",
		"HTTP     "+d.jwksURL()+" for verifiers; http://"+d.ports.ops+" for operators",
		"config   "+d.folder.show("bulla.yaml")+", log service.log, audit log audit.log")
}

func (d *demo) showRegistration(k *bullav1.ClientKey) {
	lines := []string{k.GetJwksUri()}
	for _, c := range k.GetChosenKeys() {
		lines = append(lines, fmt.Sprintf("encrypts with %s and %s, to its key %q", c.GetEncryptionAlgorithm(), c.GetContentEncryption(), c.GetKeyId()))
	}
	for _, w := range k.GetWarnings() {
		lines = append(lines, "warning: "+w)
	}
	d.step(3, "The registrar registered the client "+demoClient+" by its jwks_uri", lines...)
}

func (d *demo) showIssued(issued *bullav1.SignAndEncryptResponse) {
	token := issued.GetToken()
	d.step(4, "The identity provider asked for an ID token with "+demoClaims,
		fmt.Sprintf("%.56s… (%d characters)", token, len(token)))
}

// showOpened shows the opened token.
func (d *demo) showOpened(token *client.Token) error {
	var claims bytes.Buffer
	if err := json.Indent(&claims, token.Claims, "   ", "  "); err != nil {
		return err
	}
	d.step(5, "The client decrypted it with its private key and verified it with the issuer's JWKS",
		"JWE header  "+string(token.EncryptionHeader.JSON),
		"JWS header  "+string(token.SignatureHeader.JSON),
		"claims      "+claims.String())
	d.printf("\n")
	return nil
}

// showNext shows commands to paste. Each has a comment above it and ends at
// the next, or at an empty line.
func (d *demo) showNext() {
	bulla, file := quoteShell(program()), func(name string) string { return quoteShell(d.folder.show(name)) }
	as := func(caller string) string {
		return fmt.Sprintf("--addr %s --tls-ca %s \\\n    --tls-cert %s --tls-key %s", d.ports.grpc, file("ca.crt"), file(caller+".crt"), file(caller+".key"))
	}
	d.printf("Serving until Ctrl-C. Now paste into another terminal, in the same folder:\n\n")
	for _, next := range []struct{ comment, command string }{
		{"a token, and what its client sees of it", fmt.Sprintf(
			"echo '{\"sub\":\"bob\"}' | %s token issue --client %s %s |\n  %s token open --key %s --jwks %s -",
			bulla, demoClient, as("idp"), bulla, file("rp.jwk"), file("jwks.json"))},
		{"the clients", bulla + " client list " + as("operator")},
		{"the signing keys", bulla + " key list " + as("operator")},
		{"what verifiers fetch, and the metrics", fmt.Sprintf("curl -s --cacert %s %s\ncurl -s http://%s/metrics | grep ^bulla_",
			file("ca.crt"), d.jwksURL(), d.ports.ops)},
		{"is everything right behind the configuration?", fmt.Sprintf("SOFTHSM2_CONF=%s %s doctor --config %s",
			file("softhsm2.conf"), bulla, file("bulla.yaml"))},
		{"who did what", "tail -n 3 " + file("audit.log")},
	} {
		d.printf("  # %s\n", next.comment)
		for line := range strings.Lines(next.command + "\n") {
			d.printf("  %s", line)
		}
	}
	d.printf("\n")
}

// program is this binary, as the user called it.
func program() string {
	name := os.Args[0]
	if filepath.IsAbs(name) || !strings.ContainsRune(name, filepath.Separator) {
		return name
	}
	return filepath.Clean(name)
}

// quoteShell quotes a word for a POSIX shell, if it has to be.
func quoteShell(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
