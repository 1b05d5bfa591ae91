package server

import (
	"log/slog"
	"net"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
)

// handshakes are TLS credentials that leave a trace of a caller who was turned
// away before there was a call: with an expired certificate, one of another CA,
// or none. Such a caller reads no reason of ours, so the operator must.
type handshakes struct {
	credentials.TransportCredentials
	observer Observer
	log      *slog.Logger
	lines    *rate.Limiter // a scanner must not fill the log
}

func newHandshakes(creds credentials.TransportCredentials, observer Observer, log *slog.Logger) *handshakes {
	return &handshakes{TransportCredentials: creds, observer: observer, log: log, lines: rate.NewLimiter(1, 10)}
}

// ServerHandshake is of credentials.TransportCredentials.
func (h *handshakes) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := h.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		h.observer.HandshakeFailed()
		if h.lines.Allow() {
			h.log.Info("TLS handshake failed", "remote", conn.RemoteAddr().String(), "error", err)
		}
	}
	return secured, info, err
}

// Clone is of credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	clone := *h
	clone.TransportCredentials = h.TransportCredentials.Clone()
	return &clone
}
