package server

import (
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/bulla-project/bulla/server/certs"
)

// handshakes are TLS credentials that know who has come in: each connection
// carries a *connection. They leave a trace of a caller who was turned away
// before there was a call: with an expired certificate, one of another CA, or
// none. Such a caller reads no reason of ours, so the operator must.
type handshakes struct {
	credentials.TransportCredentials
	certs    *certs.Certs
	standing *connections
	observer Observer
	log      *slog.Logger
	lines    *rate.Limiter // a scanner must not fill the log
}

func newHandshakes(c *certs.Certs, standing *connections, observer Observer, log *slog.Logger) *handshakes {
	return &handshakes{
		TransportCredentials: credentials.NewTLS(c.TLS()), certs: c, standing: standing,
		observer: observer, log: log, lines: rate.NewLimiter(1, 10),
	}
}

// ServerHandshake is of credentials.TransportCredentials.
func (h *handshakes) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// Before the handshake, which may see later ones: what it saw is then
	// verified once more, and never once less.
	authorities := h.certs.Authorities()
	secured, info, err := h.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		h.observer.HandshakeFailed()
		if h.lines.Allow() {
			h.log.Info("TLS handshake failed", "remote", conn.RemoteAddr().String(), "error", err)
		}
		return nil, nil, err
	}
	shaken, isTLS := info.(credentials.TLSInfo)
	raw, isOurs := conn.(*accepted)
	if !isTLS || !isOurs {
		_ = secured.Close() // it is not taken
		return nil, nil, fmt.Errorf("server: a handshake of %T on %T", info, conn)
	}
	one := h.standing.newConnection(shaken, raw, authorities)
	h.standing.add(one)
	return secured, one, nil
}

// Clone is of credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	clone := *h
	clone.TransportCredentials = h.TransportCredentials.Clone()
	return &clone
}
