package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// maxDials is how many addresses of one host are tried.
const maxDials = 4

// connect resolves the host once, checks every answer, and returns a
// connection to the first address that accepts one, after the TLS handshake
// unless the URL is plain http. The error is a *Failure.
func (c *Client) connect(ctx context.Context, t *target) (net.Conn, error) {
	addrs, err := c.resolve(ctx, t)
	if err != nil {
		return nil, err
	}
	conn, err := c.dialAny(ctx, t, addrs)
	if err != nil {
		return nil, failure(ctx, ClassConnect, err)
	}
	// The context bounds dialing and handshake; the deadline what follows.
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			_ = conn.Close()
			return nil, failure(ctx, ClassConnect, err)
		}
	}
	if t.http {
		return conn, nil
	}
	tc := tls.Client(conn, &tls.Config{
		ServerName: t.host,
		RootCAs:    c.roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, failure(ctx, ClassTLS, fmt.Errorf("%s at %s: %w", t.host, conn.RemoteAddr(), err))
	}
	return tc, nil
}

// resolve returns the addresses of the host, all of which may be dialed. One
// that may not spoils them all: an honest host has no use for a mix.
func (c *Client) resolve(ctx context.Context, t *target) ([]netip.Addr, error) {
	addrs := []netip.Addr{t.addr}
	if !t.addr.IsValid() {
		var err error
		addrs, err = c.resolver.LookupNetIP(ctx, "ip", c.lookupName(t.host))
		if err != nil {
			return nil, failure(ctx, ClassDNS, err)
		}
		if len(addrs) == 0 {
			return nil, failure(ctx, ClassDNS, fmt.Errorf("%s has no address", t.host))
		}
	}
	out := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		// Resolvers may hand IPv4 addresses over in mapped form. Unmapped they
		// meet the rules for IPv4, and are dialed as what was judged.
		out[i] = a.Unmap()
		if !c.mayDial(t, out[i]) {
			return nil, &Failure{Class: ClassBlockedAddress, Cause: fmt.Errorf("%s is at %s, which is not public and not opened by fetch.allow_cidrs", t.host, a)}
		}
	}
	return out, nil
}

// lookupName makes a name absolute, so that the search list of
// /etc/resolv.conf cannot turn it into a name of the operator's own network.
// Names the operator has listed may be meant that way.
func (c *Client) lookupName(host string) string {
	if c.hosts.named(host) || !strings.Contains(host, ".") {
		return host
	}
	return host + "."
}

// mayDial reports whether t may be at address a.
func (c *Client) mayDial(t *target, a netip.Addr) bool {
	if t.loopback {
		// localhost in development: there and nowhere else.
		return isLoopback(a)
	}
	return c.addrs.allow(a)
}

// dialAny tries the addresses in the resolver's order, each with its share of
// the time that is left.
func (c *Client) dialAny(ctx context.Context, t *target, addrs []netip.Addr) (net.Conn, error) {
	if len(addrs) > maxDials {
		addrs = addrs[:maxDials]
	}
	var errs []error
	for i, a := range addrs {
		conn, err := c.dialOne(ctx, t, netip.AddrPortFrom(a, uint16(t.port)), len(addrs)-i) //nolint:gosec // parse has checked that it is a port
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (c *Client) dialOne(ctx context.Context, t *target, to netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		share := time.Until(deadline) / time.Duration(left)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	d := net.Dialer{
		KeepAlive: -1,
		// The last word: the address the kernel is about to connect to.
		Control: func(_, address string, _ syscall.RawConn) error {
			return c.checkDialed(t, to, address)
		},
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// checkDialed refuses any address but the one that was resolved and checked.
func (c *Client) checkDialed(t *target, want netip.AddrPort, address string) error {
	got, err := netip.ParseAddrPort(address)
	if err != nil || got != want || !c.mayDial(t, got.Addr()) {
		return fmt.Errorf("dialing %s instead of %s is refused", address, want)
	}
	return nil
}
