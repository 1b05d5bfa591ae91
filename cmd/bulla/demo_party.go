package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/server"
)

// makePartyKey makes the private key by which the relying party opens its
// tokens.
func (f *demoFolder) makePartyKey() error {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	key := jose.JSONWebKey{Key: private, KeyID: demoClient + "-1", Use: "enc", Algorithm: "RSA-OAEP-256"}
	doc, err := key.MarshalJSON()
	if err != nil {
		return err
	}
	return f.write("rp.jwk", append(doc, '\n'))
}

// demoParty is the relying party, the OAuth client: a TLS server of its own
// that publishes the public half of its key.
type demoParty struct {
	private  []byte // JWK
	listener net.Listener
	web      *server.Web
}

// newDemoParty listens, preferably at a port that stays the same, since it is
// part of the registered URL.
func newDemoParty(ctx context.Context, f *demoFolder, log *slog.Logger) (*demoParty, error) {
	private, err := os.ReadFile(f.file("rp.jwk"))
	if err != nil {
		return nil, err
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(private); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it and run the demo again", f.show("rp.jwk"), err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(f.file("rp.crt"), f.file("rp.key"))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "max-age=600")
		_, _ = w.Write(set) // an error means that the reader hung up
	})
	p := &demoParty{private: private}
	if p.listener, err = listenNear(ctx, 9443); err != nil {
		return nil, err
	}
	p.web = server.NewWeb(mux, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, log)
	return p, nil
}

func (p *demoParty) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

func (p *demoParty) jwksURI() string { return "https://" + p.listener.Addr().String() + "/jwks.json" }

// Close frees the port.
func (p *demoParty) Close() error { return p.listener.Close() }

// serve answers until ctx ends.
func (p *demoParty) serve(ctx context.Context) error {
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(stopped)
		<-ended.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		p.web.Shutdown(last)
	}()
	if err := p.web.Serve(p.listener); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("the relying party: %w", err)
	}
	return nil
}
