package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/certs"
)

// errExpiredIdentity: the caller's certificate, or one that it hangs on, is past
// its end.
var errExpiredIdentity = fmt.Errorf("%w: it has expired; connect again with a new one", authz.ErrNoIdentity)

// errRevokedIdentity: what the caller's certificate hangs on was taken out of
// the bundle of CAs.
var errRevokedIdentity = fmt.Errorf("%w: the CA that issued it is trusted no more; connect again with a certificate of another", authz.ErrNoIdentity)

// connection is what is known of a caller's connection, from its handshake on.
// It is the AuthInfo of every call on it.
type connection struct {
	credentials.TLSInfo

	raw    *accepted
	of     *connections
	caller string    // by its certificate
	noName error     // why the certificate says no caller
	until  time.Time // when its certificate, or one that it hangs on, ends

	// verified are the authorities that the certificate was last verified
	// against, or nil while that is unknown. A call costs one comparison, and
	// each change of the bundle one verification of each connection.
	verified atomic.Pointer[certs.Authorities]
	// revoked ends when the certificate is not good any more, and with it the
	// streams of the connection.
	revoked context.Context //nolint:containedctx // it is the life of an identity
	revoke  context.CancelCauseFunc

	mu      sync.Mutex  // guards what follows, and is held while the certificate is verified
	leaving *time.Timer // ends the connection once it is revoked
}

// newConnection is of a handshake that saw these authorities, or later ones.
func (s *connections) newConnection(info credentials.TLSInfo, raw *accepted, by *certs.Authorities) *connection {
	c := &connection{TLSInfo: info, raw: raw, of: s}
	c.revoked, c.revoke = context.WithCancelCause(context.Background())
	c.verified.Store(by)
	if chains := info.State.VerifiedChains; len(chains) > 0 {
		c.caller, c.noName = authz.CallerFrom(chains[0][0])
		c.until = endOf(chains)
	} else {
		_, c.noName = authz.CallerFrom(nil)
	}
	return c
}

// endOf is when the last of the chains breaks.
func endOf(chains [][]*x509.Certificate) (end time.Time) {
	for _, chain := range chains {
		until := chain[0].NotAfter
		for _, cert := range chain[1:] {
			if cert.NotAfter.Before(until) {
				until = cert.NotAfter
			}
		}
		if until.After(end) {
			end = until
		}
	}
	return end
}

// revokedLeave is how long a connection stays that is revoked: for calls in
// flight to end, and for callers to read why.
const revokedLeave = 5 * time.Second

// standing returns nil while the caller is who it was at the handshake.
func (c *connection) standing(now *certs.Authorities) error {
	if time.Now().After(c.until) {
		// It was valid when the connection was made, which may be long ago.
		return errExpiredIdentity
	}
	if c.verified.Load() == now {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.verified.Load() == now: // by another call
		return nil
	case c.revoked.Err() != nil: // for good, whatever comes back into the bundle
		return errRevokedIdentity
	}
	if err := now.Verify(c.State.PeerCertificates); err != nil {
		c.revoke(errRevokedIdentity)
		c.of.revocations.Add(1)
		c.leaving = time.AfterFunc(revokedLeave, func() { _ = c.raw.Close() }) // it is given up
		return errRevokedIdentity
	}
	c.verified.Store(now)
	return nil
}

// gone is called when the connection is closed.
func (c *connection) gone() {
	c.revoke(context.Canceled)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving != nil {
		c.leaving.Stop()
	}
}

// connections are the callers' connections that stand.
type connections struct {
	certs *certs.Certs
	log   *slog.Logger
	// revocations counts connections that stood and were revoked.
	revocations atomic.Uint64

	mu   sync.Mutex // guards open
	open map[*connection]struct{}
}

// add takes a connection up after its handshake, until it is closed.
func (s *connections) add(c *connection) {
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	c.raw.whenClosed(func() {
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		c.gone()
	})
}

// follow verifies all connections whenever the bundle of CAs has changed, until
// ctx ends: calls would do so for themselves, but streams may have begun long
// ago, and who is quiet need not keep the connection. It returns nil at the end.
func (s *connections) follow(ctx context.Context) error {
	told := s.revocations.Load()
	for {
		changed := s.certs.Changed()
		s.verify()
		if n := s.revocations.Load(); n > told {
			s.log.WarnContext(ctx, "connections revoked: the CA of their callers was taken out of client_ca_file", "connections", n-told)
			told = n
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// verify verifies all connections that were not verified against the bundle as
// it is.
func (s *connections) verify() {
	now := s.certs.Authorities()
	s.mu.Lock()
	all := make([]*connection, 0, len(s.open))
	for c := range s.open {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.standing(now) // which has done what there is to do
	}
}
