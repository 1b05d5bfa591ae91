// Package certs keeps the TLS of a listener as its files say: the certificate,
// its key, and the CA certificates that callers' certificates must come from.
// All three are renewed while the service runs, by whoever mounts or writes them,
// and none of that ends a connection.
//
// The files are read every few seconds. That costs less than being told of
// changes would: a mount of Kubernetes changes by a symlink two folders up, other
// tools write in place or rename, and what all of them have in common is that in
// the end the bytes are others. Bytes count once they were the same in two looks,
// because one look can fall between the writing of the certificate and that of
// its key, or see half a bundle, which is also a bundle. Reload, for an operator
// who says that the files are as they should be, does not wait.
//
// What cannot be used changes nothing: the listener goes on with what it had, the
// log says once what is wrong, and Failures counts it. It is tried again at every
// look, since a certificate may be of no use only because its time has not come.
//
// A CA that is taken out of the bundle is revoked. New handshakes see the new
// bundle at once, and no session is resumed across it, because none is resumed at
// all where callers have certificates: a ticket holds that its holder was good
// once. Connections that stand already are the business of their owner, for whom
// Authorities and Changed are.
package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a Certs is made of.
type Config struct {
	// Listener names the listener in the log: "grpc" or "http". Required.
	Listener string
	// CertFile is the listener's certificate in PEM, and below it those of
	// intermediate CAs; KeyFile is its private key. Required.
	CertFile, KeyFile string
	// ClientCAFile holds the CA certificates of callers, in PEM: callers must
	// have a certificate then. Default: "", they need none.
	ClientCAFile string
	// MinVersion is the oldest version of TLS that is spoken. Default: TLS 1.3.
	MinVersion uint16
	// Every is how often the files are looked at. Default: 2s.
	Every time.Duration
	// Logger gets what an operator should know. Default: none.
	Logger *slog.Logger
}

// Certs is the TLS of a listener. It is safe for concurrent use.
type Certs struct {
	cfg      Config
	log      *slog.Logger
	current  atomic.Pointer[loaded] // what new handshakes use
	failures atomic.Uint64
	failing  atomic.Bool // told is not empty; told itself waits for files that are read

	mu   sync.Mutex // guards what follows, and is held while the files are read
	seen [32]byte   // hash of what the last look saw
	told string     // what was last said to be wrong, with its hash; empty if all is well
}

// loaded is what the files said at one time. It never changes.
type loaded struct {
	hash        [32]byte
	cert        *tls.Certificate
	authorities *Authorities  // nil where callers need no certificates
	forCallers  *tls.Config   // nil likewise
	changed     chan struct{} // closed when authorities are not those of the listener any more
}

// New reads the files. It fails if they cannot be used, as nothing could connect.
// The caller starts Run.
func New(cfg Config) (*Certs, error) {
	if cfg.Listener == "" || cfg.CertFile == "" || cfg.KeyFile == "" {
		return nil, errors.New("certs: Listener, CertFile and KeyFile are required")
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS13
	}
	if cfg.Every <= 0 {
		cfg.Every = 2 * time.Second
	}
	c := &Certs{cfg: cfg, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("listener", cfg.Listener)
	f, err := c.read()
	defer f.clear()
	if err != nil {
		return nil, err
	}
	first, err := c.load(f)
	if err != nil {
		return nil, err
	}
	c.current.Store(first)
	return c, nil
}

// TLS is the configuration of the listener. Each handshake uses what the files
// said last.
func (c *Certs) TLS() *tls.Config {
	cfg := &tls.Config{MinVersion: c.cfg.MinVersion, CipherSuites: suites()}
	if c.cfg.ClientCAFile == "" {
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load().cert, nil }
		return cfg
	}
	// Here too, for who looks at this configuration and not at the others.
	cfg.ClientAuth, cfg.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, true
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load().forCallers, nil }
	return cfg
}

// suites are those of TLS 1.2 that are spoken, where it is: with forward secrecy,
// and encryption and authentication in one. TLS 1.3 has no others.
func suites() (list []uint16) {
	for _, s := range tls.CipherSuites() {
		if strings.HasPrefix(s.Name, "TLS_ECDHE_") && !strings.Contains(s.Name, "_CBC_") {
			list = append(list, s.ID)
		}
	}
	return list
}

// Authorities are the CA certificates of callers as of now; nil where callers
// need no certificates. It is the same as long as they are.
func (c *Certs) Authorities() *Authorities { return c.current.Load().authorities }

// Changed is closed when Authorities are others than they were before the call
// of Changed.
func (c *Certs) Changed() <-chan struct{} { return c.current.Load().changed }

// NotAfter is when the listener's certificate ends.
func (c *Certs) NotAfter() time.Time { return c.current.Load().cert.Leaf.NotAfter }

// Failures is how often the files were changed to what cannot be used.
func (c *Certs) Failures() uint64 { return c.failures.Load() }

// Failing says whether the files hold what cannot be used: what was changed in
// them is not in force.
func (c *Certs) Failing() bool { return c.failing.Load() }

// Run follows the files until ctx ends. It returns nil then.
func (c *Certs) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.look(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// look takes up what the files say if they said so a look ago as well.
func (c *Certs) look(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := c.read()
	defer f.clear()
	before := c.seen
	if c.seen = f.hash(err); c.seen == before {
		_ = c.take(ctx, f, err) // which has said what is wrong
	}
}

// Reload takes up what the files say now. Its error says why that cannot be
// used, and is in the log too, once.
func (c *Certs) Reload(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := c.read()
	defer f.clear()
	c.seen = f.hash(err)
	return c.take(ctx, f, err)
}

// take makes what was read, or what kept it from being read, the state of the
// listener. The caller holds mu.
func (c *Certs) take(ctx context.Context, f files, err error) error {
	defer func() { c.failing.Store(c.told != "") }()
	before := c.current.Load()
	if c.seen == before.hash {
		c.told = "" // as it was, or put back
		return nil
	}
	var now *loaded
	if err == nil {
		now, err = c.load(f)
	}
	if err != nil {
		err = fmt.Errorf("%s.tls: %w", c.cfg.Listener, err)
		if text := string(c.seen[:]) + err.Error(); text != c.told {
			c.told = text
			c.failures.Add(1)
			c.log.ErrorContext(ctx, "certificates not reloaded: the listener goes on with those it has", "error", err, "not_after", before.cert.Leaf.NotAfter)
		}
		return err
	}
	c.told = ""
	same := now.authorities.equal(before.authorities)
	if same {
		now.keep(before)
	}
	c.current.Store(now)
	if !same {
		close(before.changed)
	}
	c.log.InfoContext(ctx, "certificates reloaded", "serial", now.cert.Leaf.SerialNumber.String(), "not_after", now.cert.Leaf.NotAfter,
		"callers_ca_changed", !same)
	return nil
}

// load makes of the files what handshakes use.
func (c *Certs) load(f files) (*loaded, error) {
	cert, err := certificate(f)
	if err != nil {
		return nil, err
	}
	l := &loaded{hash: f.hash(nil), cert: cert, changed: make(chan struct{})}
	if c.cfg.ClientCAFile == "" {
		return l, nil
	}
	if l.authorities, err = readAuthorities(f.clientCA); err != nil {
		return nil, err
	}
	l.forCallers = &tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientCAs: l.authorities.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: c.cfg.MinVersion, CipherSuites: suites(), NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
	}
	return l, nil
}

// keep has a new state go on with the authorities of the one before, which say
// the same: what was verified by those need not be verified again.
func (l *loaded) keep(before *loaded) {
	l.authorities, l.changed = before.authorities, before.changed
}

// hash is of all that was read, or of why it could not be.
func (f files) hash(err error) [32]byte {
	h := sha256.New()
	for _, part := range [][]byte{f.cert, f.key, f.clientCA, fmt.Append(nil, err)} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	return [32]byte(h.Sum(nil))
}
