//go:build linux && cgo

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/certs"
	"github.com/bulla-project/bulla/signer"
)

// answererConfig says how an answerer is to answer.
type answererConfig struct {
	CertFile, KeyFile, CAFile string
	// Answers are the replies to give, by the request's signing algorithm, in
	// protobuf's encoding.
	Answers map[string][]byte
	// Make has a token made for each reply, as a program would that has its
	// libraries inside: signed in a session of its own, of which there may be
	// any number, verified and encrypted.
	Make *makeConfig `json:",omitempty"`
}

// makeConfig says how tokens are made.
type makeConfig struct {
	Token   softhsmtest.Token
	Signers json.RawMessage // the issuer's public JWKS
	Client  json.RawMessage // the client's public JWK
}

// answerer is a process with the smallest gRPC service that can take the
// service's place.
type answerer struct {
	pid    int
	client *client.Client

	mu  sync.Mutex // one question at a time
	in  io.WriteCloser
	out *bufio.Reader
}

// startAnswerer starts an answerer; it ends with the run, or with this process.
func (b *bench) startAnswerer(ca *harness.CA, cfg answererConfig) (*answerer, error) {
	const ip = "127.0.0.1"
	leaf := ca.Issue(b.t, harness.LeafConfig{IPs: []net.IP{net.ParseIP(ip)}})
	cfg.CertFile, cfg.KeyFile, cfg.CAFile = leaf.CertFile, leaf.KeyFile, ca.File
	doc, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.t.TempDir(), "answerer.json")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-answer", file)
	cmd.Env, cmd.Stderr = b.token.Env(), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.t.Cleanup(func() {
		_ = in.Close() // asks it to end
		_ = cmd.Wait() // what it has to say, it said
	})
	a := &answerer{pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
	address, err := a.out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the answerer did not start: %w", err)
	}
	caller := ca.Issue(b.t, harness.LeafConfig{URI: harness.Admin})
	a.client, err = client.Dial(client.Config{Address: strings.TrimSpace(address), CAFile: ca.File, CertFile: caller.CertFile, KeyFile: caller.KeyFile, Attempts: 1})
	if err == nil {
		b.t.Cleanup(func() { _ = a.client.Close() }) // nothing is lost by its errors
	}
	return a, err
}

// mallocs is the number of allocations of the answerer so far.
func (a *answerer) mallocs() (float64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := io.WriteString(a.in, "\n"); err != nil {
		return 0, err
	}
	line, err := a.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(line), 64)
}

// runAnswerer is the answerer's own process. It prints its address and then,
// for each line it reads, its number of allocations. It ends when there is
// nothing more to read.
func runAnswerer(file string) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var cfg answererConfig
	if err := json.Unmarshal(doc, &cfg); err != nil {
		return err
	}
	service := &answers{replies: make(map[string]*bullav1.SignAndEncryptResponse)}
	for alg, encoded := range cfg.Answers {
		reply := new(bullav1.SignAndEncryptResponse)
		if err := proto.Unmarshal(encoded, reply); err != nil {
			return err
		}
		service.replies[alg] = reply
	}
	if cfg.Make != nil {
		if service.maker, err = newMaker(cfg.Make); err != nil {
			return err
		}
	}
	tls, err := certs.New(certs.Config{Listener: "grpc", CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, ClientCAFile: cfg.CAFile})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// The one option that makes a server faster, measured; it would be no floor
	// without it.
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(tls.TLS())), grpc.NumStreamWorkers(32))
	bullav1.RegisterTokenServiceServer(srv, service)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	fmt.Println(listener.Addr())

	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.Mallocs)
	}
	srv.Stop()
	return <-failed
}

// answers is the service of the answerer.
type answers struct {
	bullav1.UnimplementedTokenServiceServer
	replies map[string]*bullav1.SignAndEncryptResponse
	maker   *maker // nil: the replies as they are
}

func (a *answers) SignAndEncrypt(ctx context.Context, req *bullav1.SignAndEncryptRequest) (*bullav1.SignAndEncryptResponse, error) {
	reply, ok := a.replies[req.GetSigningAlgorithm()]
	if !ok {
		return nil, fmt.Errorf("no answer for %s", req.GetSigningAlgorithm())
	}
	if a.maker == nil {
		return reply, nil
	}
	token, err := a.maker.token(ctx, req)
	if err != nil {
		return nil, err
	}
	return &bullav1.SignAndEncryptResponse{
		Token: token, SigningKeyId: reply.GetSigningKeyId(), SigningAlgorithm: reply.GetSigningAlgorithm(), EncryptionKeyId: reply.GetEncryptionKeyId(),
		EncryptionAlgorithm: reply.GetEncryptionAlgorithm(), ContentEncryption: reply.GetContentEncryption(),
	}, nil
}

// maker makes tokens with nothing around: no authorization, no audit log, no
// metrics, and no bound on sessions.
type maker struct {
	keys      map[kms.Algorithm]*signer.SigningKey
	recipient *encrypter.Recipient
}

func newMaker(cfg *makeConfig) (*maker, error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(cfg.Client, &jwk); err != nil {
		return nil, err
	}
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{
		Key: jwk.Key, KeyID: jwk.KeyID, Algorithm: serviceAlg, ContentEncryption: serviceEnc,
	})
	if err != nil {
		return nil, err
	}
	signers, err := client.ParseSigners(cfg.Signers)
	if err != nil {
		return nil, err
	}
	m := &maker{keys: make(map[kms.Algorithm]*signer.SigningKey), recipient: recipient}
	for _, jwk := range signers {
		alg := kms.Algorithm(jwk.Algorithm)
		raw, err := openRaw(&cfg.Token, alg)
		if err != nil {
			return nil, err
		}
		if m.keys[alg], err = signer.NewSigningKey(&unboundedKey{raw: raw, algorithm: alg, publicKey: jwk.Key}, signer.Options{}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *maker) token(ctx context.Context, req *bullav1.SignAndEncryptRequest) (string, error) {
	key := m.keys[kms.Algorithm(req.GetSigningAlgorithm())]
	if key == nil {
		return "", errors.New("no such key")
	}
	payload, err := signer.Prepare(signer.Request{
		Kind: "ID_TOKEN", Issuer: signer.Issuer{URL: harness.IssuerURL, DefaultLifetime: 5 * time.Minute, MaxLifetime: time.Hour},
		ClientID: req.GetClientId(), Claims: req.GetClaims(),
	}, key.Algorithm(), time.Now())
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(ctx, key, payload)
	if err != nil {
		return "", err
	}
	return m.recipient.Encrypt(jws)
}
