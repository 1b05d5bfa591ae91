package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// Config says where the service is and who calls it.
type Config struct {
	// Address is host:port of the gRPC listener. Several, separated by commas,
	// are replicas: calls go to one after the other, and to none that is down
	// or says that it is not ready. One name may also stand for several replicas
	// in DNS: then it is for DNS to leave out those that are not ready. Required.
	Address string
	// CAFile holds the CA of the service's certificate. Empty: the system's.
	CAFile string
	// CertFile and KeyFile are the caller's certificate and key, by which the
	// service knows it. Required unless Plaintext.
	CertFile, KeyFile string
	// ServerName is the name the service's certificate must hold. Empty: the
	// host of Address, of each replica its own.
	ServerName string
	// Plaintext connects without TLS, to a loopback address only: a service in
	// development.
	Plaintext bool
	// Attempts is how often a call is made, at most, while it fails in a way that
	// passes: with UNAVAILABLE (a replica has gone, cannot do its work for now, or
	// has too much to do), or with RESOURCE_EXHAUSTED for the reason QUOTA_EXCEEDED
	// or SIGNING_THROTTLED. It waits in between, for as long as the service asks
	// for, within the caller's deadline: where that is nearer, or the pause is
	// longer than 30 s, the error is returned at once. With several replicas the
	// next attempt is another's. This concerns what may be done twice: issuing
	// tokens (by a raw stream it is the caller's affair; a Stream does it), and
	// reading. Whether a change was made before the connection was lost is for the
	// caller to find out. 1 is never again, 5 the most. Default: 4.
	Attempts int
	// Options are added to those of the connection, such as a stats.Handler for
	// telemetry. Default: none.
	Options []grpc.DialOption
}

// maxAttempts is as many as gRPC itself would make.
const (
	maxAttempts     = 5
	defaultAttempts = 4
)

// maxReply is the largest reply that is received: a batch of 3 MiB of claims
// becomes nearly 6 MiB of tokens.
const maxReply = 8 << 20

// Client calls the service. It is safe for concurrent use; one is enough for a
// process.
type Client struct {
	conn    *grpc.ClientConn
	repeats repeats

	// Tokens, ClientKeys, SigningKeys and Status are the services of the API.
	Tokens      bullav1.TokenServiceClient
	ClientKeys  bullav1.ClientKeyServiceClient
	SigningKeys bullav1.SigningKeyServiceClient
	Status      bullav1.StatusServiceClient
}

// alive finds out that a service is gone without a word while a call waits for
// it: a watch would wait forever.
var alive = keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}

// Dial makes a Client. It connects at the first call and again whenever it has
// to.
func Dial(cfg Config) (*Client, error) {
	creds, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	target, options, err := cfg.target()
	if err != nil {
		return nil, err
	}
	again := repeats{attempts: cfg.Attempts, methods: repeatable()}
	switch {
	case cfg.Attempts == 0:
		again.attempts = defaultAttempts
	case cfg.Attempts < 1 || cfg.Attempts > maxAttempts:
		return nil, fmt.Errorf("%d attempts: write 1 to %d, or 0 for the default", cfg.Attempts, maxAttempts)
	}
	options = append(options, grpc.WithTransportCredentials(creds), grpc.WithKeepaliveParams(alive),
		grpc.WithChainUnaryInterceptor(again.unary), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	conn, err := grpc.NewClient(target, append(options, cfg.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Address, err)
	}
	return &Client{
		conn:        conn,
		repeats:     again,
		Tokens:      bullav1.NewTokenServiceClient(conn),
		ClientKeys:  bullav1.NewClientKeyServiceClient(conn),
		SigningKeys: bullav1.NewSigningKeyServiceClient(conn),
		Status:      bullav1.NewStatusServiceClient(conn),
	}, nil
}

// Conn is the connection, for the services that come with gRPC.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close ends the connection. Calls in flight fail.
func (c *Client) Close() error { return c.conn.Close() }

// addresses are the host:port of Address, and their hosts.
func (cfg Config) addresses() (addresses, hosts []string, err error) {
	for a := range strings.SplitSeq(cfg.Address, ",") {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return nil, nil, fmt.Errorf("address %q: write host:port: %w", a, err)
		}
		if ip := net.ParseIP(host); cfg.Plaintext && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, nil, fmt.Errorf("address %q: without TLS only a loopback address is called", a)
		}
		addresses, hosts = append(addresses, a), append(hosts, host)
	}
	return addresses, hosts, nil
}

// target is what gRPC connects to, and how calls are spread.
func (cfg Config) target() (string, []grpc.DialOption, error) {
	addresses, hosts, err := cfg.addresses()
	if err != nil {
		return "", nil, err
	}
	// A replica that was away is called again soon: gRPC's own pauses grow to two
	// minutes, and begin with a second, which is longer than a call is repeated.
	again := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}, MinConnectTimeout: 5 * time.Second}
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig(hosts)), grpc.WithConnectParams(again)}
	if len(addresses) == 1 {
		return "dns:///" + cfg.Address, options, nil
	}
	replicas := manual.NewBuilderWithScheme("bulla")
	state := resolver.State{}
	for i, a := range addresses {
		name := cfg.ServerName
		if name == "" {
			name = hosts[i]
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a, ServerName: name}}})
	}
	replicas.InitialState(state)
	// The authority of calls is that of the first; it chooses nothing.
	return "bulla:///" + addresses[0], append(options, grpc.WithResolvers(replicas)), nil
}

func (cfg Config) credentials() (credentials.TransportCredentials, error) {
	if cfg.Plaintext {
		return insecure.NewCredentials(), nil // for loopback alone: see addresses
	}
	if cfg.CertFile == "" || cfg.KeyFile == "" {
		return nil, errors.New("the service knows its callers by their certificates: give a certificate and its key")
	}
	cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the caller's certificate: %w", err)
	}
	var last atomic.Pointer[tls.Certificate]
	last.Store(&cert)
	config := &tls.Config{
		// Each connection is made with the certificate of the day: those of
		// workloads live for hours. Files that cannot be used for the moment are
		// passed over, for the last that could.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if renewed, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err == nil {
				last.Store(&renewed)
			}
			return last.Load(), nil
		},
		ServerName: cfg.ServerName,
		MinVersion: tls.VersionTLS13,
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("the CA of the service: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the CA of the service: %s holds no PEM certificate", cfg.CAFile)
		}
	}
	return credentials.NewTLS(config), nil
}
