package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer/keyring"
)

// PublicKeys knows what the issuers publish: keyring.Keyring.
type PublicKeys interface {
	PublicKeys(issuer string) (keyring.PublicKeys, error)
}

// JWKSHandler serves /jwks/{issuer} to verifiers: the public keys of an issuer,
// with how long they may be cached. It serves nothing else, and needs no HSM.
//
// A set that the store could not authenticate yet may be cached by nobody: if
// it is forged, it has to end when the store can tell. Nor may one that was last
// read from the store so long ago that keys may have changed since.
func JWKSHandler(issuers *issuer.Directory, keys PublicKeys, maxAge func(issuer string) time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks/{issuer}", func(w http.ResponseWriter, r *http.Request) {
		found, err := issuers.Find(r.PathValue("issuer"))
		if err != nil {
			http.Error(w, "no such issuer", http.StatusNotFound)
			return
		}
		set, err := keys.PublicKeys(found.Name())
		if err != nil {
			// An empty set that verifiers cache would outlive the trouble: a first
			// start whose HSM is down knows its rings, and no key in them.
			w.Header().Set("Retry-After", "5")
			http.Error(w, "the keys are not known yet", http.StatusServiceUnavailable)
			return
		}
		h := w.Header()
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(maxAge(found.Name()).Seconds())))
		if set.Unverified || set.Stale {
			h.Set("Cache-Control", "no-store")
		}
		h.Set("Content-Type", "application/jwk-set+json")
		h.Set("ETag", set.ETag)
		h.Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(set.JWKS))
	})
	return mux
}

// Ops is what is told to those who run the service.
type Ops struct {
	// Ready returns why no tokens are issued, nil if some are: Server.Ready.
	Ready func() error
	// Degraded returns what does not work as it should while tokens are issued
	// all the same, nil if all does. Default: all does.
	Degraded func() error
	// Metrics serves the metrics. Default: none, as they are at an address of
	// their own (MetricsHandler).
	Metrics http.Handler
}

// OpsHandler serves /livez, /readyz and /metrics to those who run the service.
//
// A service that is degraded is ready. What it lacks, such as the store, the
// other replicas lack too, so that to take all of them out of service would make
// an outage of it. It is so for twice max_lag: without the store for longer than
// that, keys may have been changed elsewhere, nothing is signed any more, and
// /readyz answers 503. So it does from the beginning where a replica starts while
// its store is away, as that has never read its keys.
func OpsHandler(o Ops) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if o.Degraded != nil {
			if err := o.Degraded(); err != nil {
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				_, _ = fmt.Fprintf(w, "ok, but degraded: %v\n", err)
				return
			}
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	return mux
}

// MetricsHandler serves /metrics and nothing else.
func MetricsHandler(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	return mux
}

// Web is a small HTTP server with an owner.
type Web struct{ http http.Server }

// NewWeb makes a server of handler, over TLS unless tlsConfig is nil.
func NewWeb(handler http.Handler, tlsConfig *tls.Config, logger *slog.Logger) *Web {
	return &Web{http: http.Server{
		Handler:           handler,
		TLSConfig:         tlsConfig,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}}
}

// Serve answers requests on lis until Shutdown. It returns nil then.
func (w *Web) Serve(lis net.Listener) error {
	var err error
	if w.http.TLSConfig != nil {
		err = w.http.ServeTLS(lis, "", "")
	} else {
		err = w.http.Serve(lis)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown waits for requests in flight until ctx ends, and cuts off what is
// left.
func (w *Web) Shutdown(ctx context.Context) {
	if w.http.Shutdown(ctx) != nil {
		_ = w.http.Close() // its errors are those of connections we give up
	}
}
