package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// Config says where the service is and who calls it.
type Config struct {
	// Address is host:port of the gRPC listener. Required.
	Address string
	// CAFile holds the CA of the service's certificate. Empty: the system's.
	CAFile string
	// CertFile and KeyFile are the caller's certificate and key, by which the
	// service knows it. Required unless Plaintext.
	CertFile, KeyFile string
	// ServerName is the name the service's certificate must hold. Empty: the
	// host of Address.
	ServerName string
	// Plaintext connects without TLS, to a loopback address only: a service in
	// development.
	Plaintext bool
}

// Client calls the service. It is safe for concurrent use; one is enough for a
// process.
type Client struct {
	conn *grpc.ClientConn

	// Tokens, ClientKeys and SigningKeys are the services of the API.
	Tokens      bullav1.TokenServiceClient
	ClientKeys  bullav1.ClientKeyServiceClient
	SigningKeys bullav1.SigningKeyServiceClient
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
	conn, err := grpc.NewClient("dns:///"+cfg.Address, grpc.WithTransportCredentials(creds), grpc.WithKeepaliveParams(alive))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Address, err)
	}
	return &Client{
		conn:        conn,
		Tokens:      bullav1.NewTokenServiceClient(conn),
		ClientKeys:  bullav1.NewClientKeyServiceClient(conn),
		SigningKeys: bullav1.NewSigningKeyServiceClient(conn),
	}, nil
}

// Conn is the connection, for the services that come with gRPC.
func (c *Client) Conn() grpc.ClientConnInterface { return c.conn }

// Close ends the connection. Calls in flight fail.
func (c *Client) Close() error { return c.conn.Close() }

func (cfg Config) credentials() (credentials.TransportCredentials, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: write host:port: %w", cfg.Address, err)
	}
	if cfg.Plaintext {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("address %q: without TLS only a loopback address is called", cfg.Address)
		}
		return insecure.NewCredentials(), nil
	}
	if cfg.CertFile == "" || cfg.KeyFile == "" {
		return nil, errors.New("the service knows its callers by their certificates: give a certificate and its key")
	}
	cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the caller's certificate: %w", err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert},
		ServerName:   cfg.ServerName,
		MinVersion:   tls.VersionTLS13,
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
