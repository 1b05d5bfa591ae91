package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// relyingParty is a folder with the files of a client, and go-jose in the place of the
// issuer.
type relyingParty struct {
	t      *testing.T
	dir    string
	key    jose.JSONWebKey // the client's
	signer jose.JSONWebKey // the issuer's
	secret string
}

const (
	openIDClaims = `{"iss":"https://login.example.com","sub":"alice","aud":"app-1","iat":1,"exp":4102444800}`
	logoutClaims = `{"iss":"https://login.example.com","sub":"alice","aud":"app-1","iat":1,"exp":4102444800,"jti":"1",` +
		`"events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`
)

func newRelyingParty(t *testing.T) *relyingParty {
	t.Helper()
	p := &relyingParty{t: t, dir: t.TempDir(), secret: "a secret of the client that is long enough for HS256"}
	p.key = jose.JSONWebKey{Key: p.newKey(), KeyID: "rp-1", Use: "enc"}
	p.signer = jose.JSONWebKey{Key: p.newKey(), KeyID: "s-1", Use: "sig", Algorithm: "ES256"}
	private, err := p.key.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{p.signer.Public()}})
	if err != nil {
		t.Fatal(err)
	}
	p.write("rp.jwk", string(private))
	p.write("signers.json", string(public))
	p.write("secret", p.secret+"\n")
	p.write("old-secret", "an older secret of the client, long enough for HS256\r\n")
	p.write("id_token.jwt", p.encrypt("ECDH-ES+A128KW", "A256GCM", p.key.Public(), p.sign("", openIDClaims))+"\n")
	p.write("logout_token.jwt", p.encrypt("ECDH-ES+A128KW", "A256GCM", p.key.Public(), p.sign("logout+jwt", logoutClaims))+"\n")
	return p
}

func (p *relyingParty) newKey() *ecdsa.PrivateKey {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	return key
}

func (p *relyingParty) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(p.file(name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *relyingParty) file(name string) string { return filepath.Join(p.dir, name) }

func (p *relyingParty) sign(typ, claims string) string {
	p.t.Helper()
	opts := &jose.SignerOptions{}
	if typ != "" {
		opts = opts.WithType(jose.ContentType(typ))
	}
	return p.signWith(jose.SigningKey{Algorithm: jose.ES256, Key: p.signer}, opts, claims)
}

func (p *relyingParty) signWith(key jose.SigningKey, opts *jose.SignerOptions, claims string) string {
	p.t.Helper()
	signer, err := jose.NewSigner(key, opts)
	if err != nil {
		p.t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(claims))
	if err != nil {
		p.t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return token
}

func (p *relyingParty) encrypt(alg, enc string, to any, inner string) string {
	p.t.Helper()
	encrypter, err := jose.NewEncrypter(jose.ContentEncryption(enc), jose.Recipient{Algorithm: jose.KeyAlgorithm(alg), Key: to},
		(&jose.EncrypterOptions{}).WithContentType("JWT"))
	if err != nil {
		p.t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt([]byte(inner))
	if err != nil {
		p.t.Fatal(err)
	}
	token, err := jwe.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return token
}

// open runs "token open" in this process; the arguments that end in @ are files.
func (p *relyingParty) open(args ...string) (string, error) {
	p.t.Helper()
	for i, arg := range args {
		if name, ok := strings.CutSuffix(arg, "@"); ok {
			args[i] = p.file(name)
		}
	}
	root := rootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"token", "open"}, args...))
	err := root.ExecuteContext(p.t.Context())
	return out.String(), err
}

func TestTokenOpens(t *testing.T) {
	p := newRelyingParty(t)
	idToken := p.sign("", openIDClaims)
	derived := sha256.Sum256([]byte(p.secret))
	p.write("secret.jwt", p.encrypt("A128KW", "A128CBC-HS256", derived[:16], idToken))
	hs := p.signWith(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(p.secret)}, nil, openIDClaims)
	p.write("secret-hs.jwt", p.encrypt("A256KW", "A128GCM", derived[:], hs))
	der, err := x509.MarshalPKCS8PrivateKey(p.key.Key)
	if err != nil {
		t.Fatal(err)
	}
	p.write("rp.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	p.write("signed.jwt", idToken)
	shared := strings.Replace(openIDClaims, `"aud":"app-1"`, `"aud":["app-1","app-2","app-3"],"azp":"app-1"`, 1)
	p.write("shared.jwt", p.encrypt("ECDH-ES", "A256GCM", p.key.Public(), p.sign("", shared)))
	p.write("empty", "\n")

	for _, test := range []struct {
		name string
		args []string
		want string // in the output; if the command fails, in its error after "!"
	}{
		{"with a JWK", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "id_token.jwt@"}, `"sub": "alice"`},
		{"with PEM", []string{"--key", "rp.pem@", "--jwks", "signers.json@", "id_token.jwt@"}, `"sub": "alice"`},
		{"the lists name it", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--alg", "ECDH-ES,ECDH-ES+A128KW", "--enc", "A256GCM", "--signing-alg", "ES256", "id_token.jwt@"}, `"sub": "alice"`},
		{"another alg", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--alg", "ECDH-ES", "id_token.jwt@"}, `!alg) is "ECDH-ES+A128KW"`},
		{"another enc", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--enc", "A128GCM", "id_token.jwt@"}, `!enc) is "A256GCM"`},
		{"another signing alg", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--signing-alg", "PS256", "id_token.jwt@"}, `!"ES256"`},
		{"an alg that does not exist", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--alg", "RSA", "id_token.jwt@"}, `!--alg: "RSA" is not supported here`},
		{"the kind it is", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "LOGOUT_TOKEN", "logout_token.jwt@"}, `logout+jwt`},
		{"another kind", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "LOGOUT_TOKEN", "id_token.jwt@"}, "!kind LOGOUT_TOKEN"},
		{"no kind", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "LOGOUT", "id_token.jwt@"}, `!--kind: "LOGOUT" is not a kind`},
		{"for others too", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "ID_TOKEN", "--aud", "app-1", "shared.jwt@"}, "!not in --trusted-audience"},
		{"for others too, one of them trusted", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "ID_TOKEN", "--aud", "app-1", "--trusted-audience", "app-2", "shared.jwt@"}, "!not in --trusted-audience"},
		{"for others too, all of them trusted", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--kind", "ID_TOKEN", "--aud", "app-1", "--trusted-audience", "app-2", "--trusted-audience", "app-3", "shared.jwt@"}, `"app-3"`},
		{"trusted for no kind", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--aud", "app-1", "--trusted-audience", "app-2", "shared.jwt@"}, "!if --kind and --aud are set"},
		{"with a secret", []string{"--client-secret-file", "secret@", "--jwks", "signers.json@", "secret.jwt@"}, `"alg": "A128KW"`},
		{"with an older secret too", []string{"--client-secret-file", "old-secret@", "--client-secret-file", "secret@", "--jwks", "signers.json@", "secret.jwt@"}, `"alg": "A128KW"`},
		{"with another secret", []string{"--client-secret-file", "old-secret@", "--jwks", "signers.json@", "secret.jwt@"}, "!cannot be decrypted"},
		{"signed with the secret", []string{"--client-secret-file", "secret@", "secret-hs.jwt@"}, `"alg": "HS256"`},
		{"signed with the secret, listed", []string{"--client-secret-file", "secret@", "--jwks", "signers.json@", "--signing-alg", "HS256", "secret-hs.jwt@"}, `"alg": "HS256"`},
		{"signed with the secret, unexpectedly", []string{"--client-secret-file", "secret@", "--jwks", "signers.json@", "secret-hs.jwt@"}, `!"HS256"`},
		{"HS256 without a secret", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "--signing-alg", "HS256", "id_token.jwt@"}, "!give it in --client-secret-file"},
		{"with an empty secret", []string{"--client-secret-file", "empty@", "secret.jwt@"}, "!empty is empty"},
		{"signed only", []string{"--key", "rp.jwk@", "--jwks", "signers.json@", "signed.jwt@"}, "!--allow-unencrypted"},
		{"signed only, allowed", []string{"--allow-unencrypted", "--jwks", "signers.json@", "signed.jwt@"}, `"sub": "alice"`},
		{"without a key", []string{"--jwks", "signers.json@", "id_token.jwt@"}, "!--key is missing"},
		{"without signers", []string{"--key", "rp.jwk@", "id_token.jwt@"}, "!--jwks is missing"},
		{"signers that are a private key", []string{"--key", "rp.jwk@", "--jwks", "rp.jwk@", "id_token.jwt@"}, "!not sig"},
		{"a public key as private", []string{"--key", "signers.json@", "--jwks", "signers.json@", "id_token.jwt@"}, "!public key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.t = t
			out, err := p.open(test.args...)
			if text, fails := strings.CutPrefix(test.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), text) || out != "" {
					t.Fatalf("got %q, %v, want nothing but %q in the error", out, err, text)
				}
				if strings.Contains(err.Error(), p.secret) || strings.Contains(err.Error(), "OpenConfig") {
					t.Errorf("got error %v", err)
				}
			} else if err != nil || !strings.Contains(out, test.want) {
				t.Errorf("got %q, %v, want %q", out, err, test.want)
			}
		})
	}
}

func TestLegacyTokenOpensWhereAllowed(t *testing.T) {
	// go-jose writes RSA1_5; the client needs a key for it.
	p := newRelyingParty(t)
	text, err := os.ReadFile("../../client/testdata/pem/rsa-pkcs1.pem")
	if err != nil {
		t.Fatal(err)
	}
	p.write("rsa.pem", string(text))
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	p.write("legacy.jwt", p.encrypt("RSA1_5", "A128CBC-HS256", &key.PublicKey, p.sign("", openIDClaims)))
	args := func(more ...string) []string {
		return append(more, "--key", "rsa.pem@", "--jwks", "signers.json@", "legacy.jwt@")
	}
	if _, err := p.open(args()...); err == nil || !strings.Contains(err.Error(), "RSA1_5") {
		t.Errorf("by default: got error %v, want RSA1_5 refused", err)
	}
	for _, more := range [][]string{{"--allow-legacy"}, {"--alg", "RSA1_5"}} {
		if out, err := p.open(args(more...)...); err != nil || !strings.Contains(out, "alice") {
			t.Errorf("with %v: got %q, %v", more, out, err)
		}
	}
}

func TestInnerTokenIsPrintedOnlyIfVerified(t *testing.T) {
	p := newRelyingParty(t)
	inner := p.sign("", openIDClaims)
	p.write("good.jwt", p.encrypt("ECDH-ES", "A256GCM", p.key.Public(), inner))
	p.write("bad.jwt", p.encrypt("ECDH-ES", "A256GCM", p.key.Public(), inner[:len(inner)-8]+"AAAAAAAA"))
	out, err := p.open("--key", "rp.jwk@", "--jwks", "signers.json@", "--inner", "good.jwt@")
	if err != nil || out != inner+"\n" {
		t.Errorf("got %q, %v, want the inner token", out, err)
	}
	out, err = p.open("--key", "rp.jwk@", "--jwks", "signers.json@", "--inner", "bad.jwt@")
	if err == nil || out != "" {
		t.Errorf("with a wrong signature: got %q, %v", out, err)
	}
}

// TestLogoutPageWorksAsWritten runs the shell blocks of docs/logout.md, in their order
// and in one shell, with this binary on the PATH.
func TestLogoutPageWorksAsWritten(t *testing.T) {
	page, err := os.ReadFile("../../docs/logout.md")
	if err != nil {
		t.Fatal(err)
	}
	p := newRelyingParty(t)
	bin := t.TempDir()
	command := fmt.Sprintf("#!/bin/sh\n%s=1 exec '%s' -test.run='^TestDoctorProcess$' -- \"$@\"\n", asProcess, os.Args[0])
	if err := os.WriteFile(filepath.Join(bin, "bulla"), []byte(command), 0o700); err != nil {
		t.Fatal(err)
	}
	script, blocks := "set -eu\n", strings.Split(string(page), "```sh\n")[1:]
	if len(blocks) != 4 {
		t.Errorf("the page has %d blocks of commands, want 4", len(blocks))
	}
	for _, rest := range blocks {
		block, _, _ := strings.Cut(rest, "```")
		script += block
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hint, err := os.ReadFile(p.file("id_token_hint"))
	if err != nil || strings.Count(string(hint), ".") != 2 {
		t.Fatalf("got hint %q, %v, want a signed token", hint, err)
	}
	if form, err := os.ReadFile(p.file("logout.html")); err != nil || !strings.Contains(string(form), `value="`+strings.TrimSpace(string(hint))+`"`) {
		t.Errorf("got page %s, %v, want the hint in it", form, err)
	}
	for _, want := range []string{`"sub": "alice"`, `"typ": "logout+jwt"`, `backchannel-logout`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("got no %q, but:\n%s", want, out)
		}
	}
}
