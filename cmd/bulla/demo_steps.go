package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// The limits of the steps.
const (
	demoReady = 15 * time.Second // until the service signs
	demoCall  = 15 * time.Second // for a call
)

// demoClaims are those of the first token.
const demoClaims = `{"sub":"alice","name":"Alice Example"}`

// steps is the main job, each part done by who does it in the field.
func (d *demo) steps(ctx context.Context, started <-chan addresses) error {
	select {
	case <-started:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := d.waitReady(ctx); err != nil {
		return err
	}
	d.showService()

	registered, err := d.register(ctx)
	if err != nil {
		return fmt.Errorf("registering the client: %w", err)
	}
	d.showRegistration(registered)

	issued, err := d.issue(ctx)
	if err != nil {
		return fmt.Errorf("issuing a token: %w", err)
	}
	d.showIssued(issued)

	token, err := d.open(ctx, issued.GetToken())
	if err != nil {
		return fmt.Errorf("opening the token as the client: %w", err)
	}
	return d.showOpened(token)
}

// waitReady waits until the service has made a signature.
func (d *demo) waitReady(running context.Context) error {
	ctx, cancel := context.WithTimeout(running, demoReady)
	defer cancel()
	last := errors.New("it does not answer")
	for {
		_, err := get(ctx, http.DefaultClient, "http://"+d.ports.ops+"/readyz")
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-running.Done():
			return running.Err()
		case <-ctx.Done():
			return fmt.Errorf("the service is not ready after %v: %w", demoReady, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// call calls the service as one of the callers.
func (d *demo) call(ctx context.Context, caller string, f func(ctx context.Context, service *client.Client) error) error {
	service, err := client.Dial(client.Config{
		Address: d.ports.grpc, CAFile: d.folder.file("ca.crt"),
		CertFile: d.folder.file(caller + ".crt"), KeyFile: d.folder.file(caller + ".key"),
	})
	if err != nil {
		return err
	}
	defer service.Close() //nolint:errcheck // nothing is lost: the answer is here
	ctx, cancel := context.WithTimeout(ctx, demoCall)
	defer cancel()
	return f(ctx, service)
}

// register registers the client's jwks_uri. In a later run it is registered
// already: just so, or at another port, which is a change and needs the
// revision of what it changes.
func (d *demo) register(ctx context.Context) (*bullav1.ClientKey, error) {
	req := &bullav1.RegisterClientKeyRequest{
		Issuer: demoIssuer, ClientId: demoClient,
		KeySource: &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: d.party.jwksURI()},
		Settings: []*bullav1.ResponseSetting{{
			TokenKind:           bullav1.TokenKind_TOKEN_KIND_ID_TOKEN,
			EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM",
		}},
	}
	var registered *bullav1.ClientKey
	err := d.call(ctx, "registrar", func(ctx context.Context, service *client.Client) error {
		res, err := service.ClientKeys.RegisterClientKey(ctx, req)
		if status.Code(err) == codes.AlreadyExists {
			stored, getErr := service.ClientKeys.GetClientKey(ctx, &bullav1.GetClientKeyRequest{Issuer: demoIssuer, ClientId: demoClient})
			if getErr != nil {
				return getErr
			}
			req.Revision = stored.GetClientKey().GetRevision()
			res, err = service.ClientKeys.RegisterClientKey(ctx, req)
		}
		registered = res.GetClientKey()
		return err
	})
	return registered, err
}

// issue asks for an ID token, as an OpenID provider would.
func (d *demo) issue(ctx context.Context) (*bullav1.SignAndEncryptResponse, error) {
	var issued *bullav1.SignAndEncryptResponse
	err := d.call(ctx, "idp", func(ctx context.Context, service *client.Client) (err error) {
		issued, err = service.Tokens.SignAndEncrypt(ctx, &bullav1.SignAndEncryptRequest{
			Issuer: demoIssuer, ClientId: demoClient, TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN,
			Claims: []byte(demoClaims),
		})
		return err
	})
	return issued, err
}

// open is the client's part: it has its private key, fetches the issuer's
// public keys, and calls nobody else.
func (d *demo) open(ctx context.Context, token string) (*client.Token, error) {
	public, err := d.fetchSigners(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.folder.write("jwks.json", append(public, '\n')); err != nil { // for "bulla token open"
		return nil, err
	}
	config := client.OpenConfig{Kind: client.IDToken, Issuer: demoIss, Audience: demoClient, RequireExpiry: true}
	if config.Keys, err = client.ParseKeys(d.party.private); err != nil {
		return nil, err
	}
	if config.Signers, err = client.ParseSigners(public); err != nil {
		return nil, err
	}
	opener, err := client.NewOpener(config)
	if err != nil {
		return nil, err
	}
	return opener.Open(token)
}

// fetchSigners fetches the issuer's JWK Set.
func (d *demo) fetchSigners(ctx context.Context) ([]byte, error) {
	ca, err := os.ReadFile(d.folder.file("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", d.folder.show("ca.crt"))
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, demoCall)
	defer cancel()
	return get(ctx, &http.Client{Transport: transport}, d.jwksURL())
}

func (d *demo) jwksURL() string { return "https://" + d.ports.http + "/jwks/" + demoIssuer }

// get returns what is at a URL, if the answer is 200.
func get(ctx context.Context, from *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := from.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end, or given up
	body, err := io.ReadAll(io.LimitReader(res.Body, maxInput))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, res.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}
