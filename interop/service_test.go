package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// writeVar is the environment variable that has the page written anew.
const writeVar = "BULLA_INTEROP_WRITE"

// page is where the results are written, in the module's folder.
const page = "docs/interop.md"

// legacyIssuer is the issuer whose policy has the legacy algorithms.
const legacyIssuer = "legacy"

// TestOthersOpenWhatTheServiceMakes has every client open what the built binary makes
// with keys on a token, and holds the page against what comes of it.
func TestOthersOpenWhatTheServiceMakes(t *testing.T) {
	p := newProvider(t)
	openers := StartAll(t)
	started := time.Now()
	cases := Cases()
	results := run(t, openers, cases, func(c Case) (Request, string) { return p.issue(t, c) })
	t.Logf("%d tokens, each given to %d clients, in %v", len(cases), len(openers), time.Since(started).Round(time.Second/10))
	mustRefuseTampered(t, p, openers)
	switch {
	case t.Failed(): // the page is of runs that have not
	case os.Getenv(writeVar) != "":
		writePage(t, results)
	default:
		mustBeOnPage(t, results)
	}
}

// mustRefuseTampered keeps the test honest with the service's own tokens: a client that
// opened anything would pass it.
func mustRefuseTampered(t *testing.T, p *provider, openers map[Client]*Opener) {
	t.Helper()
	c := Case{Algorithm: "ECDH-ES+A128KW", Curve: "P-256", ContentEncryption: "A256GCM", Signature: "ES256"}
	good, _ := p.issue(t, c)
	for client, o := range openers {
		if _, err := o.Open(good); err != nil {
			t.Errorf("%s does not open the token as it is: %v", client, err)
		}
		for _, part := range []int{1, 2, 3, 4} {
			r := good
			r.Token = flip(t, r.Token, part)
			if _, err := o.Open(r); err == nil {
				t.Errorf("%s opened a token with a bit of part %d changed", client, part)
			}
		}
		r := good
		r.SignersJWKS = []byte(`{"keys":[]}`)
		if _, err := o.Open(r); err == nil {
			t.Errorf("%s opened a token of an unknown signer", client)
		}
	}
}

// provider is an OpenID provider that has Bulla make its tokens.
type provider struct {
	service *harness.Service
	host    *harness.Host
	bulla   *client.Client
	jwks    map[string][]byte // by the issuer's name
	clients int
}

func newProvider(t *testing.T) *provider {
	t.Cleanup(harness.RemoveBinary)
	host := harness.NewHost(t, harness.NewCA(t, "the web"))
	service := harness.Start(t, harness.Config{
		Token:      harness.NewToken(t, "bulla-interop", kms.Algorithms()...),
		Algorithms: kms.Algorithms(),
		Host:       host,
		Issuers: []harness.M{{
			"name": legacyIssuer, "iss": issuerURL(legacyIssuer), "signing_keys": harness.SigningKeys(kms.Algorithms()...),
			"policy": harness.M{
				"legacy": true, "encryption": LegacyAlgorithms,
				"content_encryption": append([]string{LegacyEncryption}, ContentEncryptions...),
			},
		}},
		// More clients at one host than anybody else registers so fast.
		Edit: func(tree harness.M) {
			tree["limits"] = harness.M{"first_fetches": 1000, "first_fetches_per_host": 1000}
		},
	})
	p := &provider{service: service, host: host, bulla: service.Caller(t, harness.Admin), jwks: map[string][]byte{}}
	for _, issuer := range []string{harness.Issuer, legacyIssuer} {
		p.waitForKeys(t, issuer)
		code, _, doc := service.Get(t, service.HTTP, "/jwks/"+issuer)
		if code != 200 {
			t.Fatalf("jwks of %s: %d %s", issuer, code, doc)
		}
		p.jwks[issuer] = []byte(doc)
	}
	return p
}

// waitForKeys waits until all of an issuer's keys sign.
func (p *provider) waitForKeys(t *testing.T, issuer string) {
	t.Helper()
	harness.Eventually(t, func() error {
		res, err := p.bulla.SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: issuer})
		if err != nil {
			return err
		}
		ready := 0
		for _, k := range res.GetSigningKeys() {
			if k.GetAvailable() {
				ready++
			}
		}
		if want := len(kms.Algorithms()); ready != want {
			return fmt.Errorf("%d of %d signing keys of %s are ready", ready, want, issuer)
		}
		return nil
	})
}

func issuerURL(issuer string) string {
	if issuer == harness.Issuer {
		return harness.IssuerURL
	}
	return "https://" + issuer + ".example.com"
}

// issue registers a client for the case and has a token made for it.
func (p *provider) issue(t *testing.T, c Case) (Request, string) {
	t.Helper()
	p.clients++
	issuer, clientID := harness.Issuer, fmt.Sprintf("interop-%d", p.clients)
	if c.Legacy() {
		issuer = legacyIssuer
	}
	registration := &bullav1.RegisterClientKeyRequest{
		Issuer: issuer, ClientId: clientID, Legacy: c.Legacy(),
		Settings: []*bullav1.ResponseSetting{{
			TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, SigningAlgorithm: c.Signature,
			EncryptionAlgorithm: c.Algorithm, ContentEncryption: c.ContentEncryption,
		}},
	}
	kid := kidOf(c.Curve)
	switch {
	case c.Symmetric():
		kid = ""
		registration.KeySource = &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret}
	case p.clients%2 == 0:
		uri := p.host.Serve("/jwks/"+c.Curve, clientKeys()[c.Curve].jwks(), time.Hour)
		registration.KeySource = &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: uri}
	default:
		registration.KeySource = &bullav1.RegisterClientKeyRequest_Jwks{Jwks: clientKeys()[c.Curve].jwks()}
	}
	if _, err := p.bulla.ClientKeys.RegisterClientKey(t.Context(), registration); err != nil {
		t.Fatalf("%s: register: %v", c, err)
	}

	// With everything given nothing is filled in: the payload is these bytes.
	now := time.Now().Unix()
	claims := fmt.Sprintf(`{"exp":%d, "iss":%q,"aud":[%[3]q,"other"],"azp":%[3]q,"sub":"zo\u00eb","iat":%[4]d,`+
		`"n":1.0,"big":12345678901234567890,"e":1e+2,"☃":"☃","":{"b":[],"a":null}}`, now+60, issuerURL(issuer), clientID, now)
	res, err := p.bulla.Tokens.SignAndEncrypt(t.Context(), &bullav1.SignAndEncryptRequest{Issuer: issuer, ClientId: clientID, Claims: []byte(claims)})
	if err != nil {
		t.Fatalf("%s: issue: %v", c, err)
	}
	if res.GetEncryptionAlgorithm() != c.Algorithm || res.GetContentEncryption() != c.ContentEncryption ||
		res.GetSigningAlgorithm() != c.Signature || res.GetEncryptionKeyId() != kid {
		t.Errorf("%s: the reply says %s, %s, %s to %q", c, res.GetEncryptionAlgorithm(), res.GetContentEncryption(), res.GetSigningAlgorithm(), res.GetEncryptionKeyId())
	}
	if hmac := strings.HasPrefix(c.Signature, "HS"); hmac != (res.GetSigningKeyId() == "") {
		t.Errorf("%s: the reply names the signing key %q", c, res.GetSigningKeyId())
	}
	return ask(c, res.GetToken(), p.jwks[issuer]), claims
}

func writePage(t *testing.T, results *Results) {
	t.Helper()
	if _, ok := results.About[NodeJoseReverted]; !ok {
		t.Fatalf("%s has a column for %s, which takes a Node.js of version 20: nothing is written", page, NodeJoseReverted)
	}
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, page), []byte(results.Markdown()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("wrote %s", page)
}

// mustBeOnPage compares the page with what was found: all of the tables, and of the
// versions those of the libraries. What they run on may be newer than on the page,
// unless it changes who opens what.
func mustBeOnPage(t *testing.T, want *Results) {
	t.Helper()
	if _, ok := want.About[NodeJoseReverted]; !ok {
		t.Logf("%s is not compared: it has one column more, of an older Node.js", page)
		return
	}
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatalf("%v; make interop writes it", err)
	}
	head, tables, _ := strings.Cut(string(doc), "\n## ")
	for client, about := range want.About {
		if line := fmt.Sprintf("| %s | %s |", client, about.Library); !strings.Contains(head, line) {
			t.Errorf("%s has no line %q: run make interop with the new version and see what has changed", page, line)
		}
	}
	if got, want := "\n## "+tables, want.Tables(); got != want {
		t.Errorf("the tables of %s are not what this run gives: run make interop", page)
	}
}
