package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode"
)

// Tracing says where OpenTelemetry traces go: to a collector, by OTLP over gRPC.
// What they show is in docs/observability.md.
type Tracing struct {
	// Endpoint is the collector's host:port. Default: "", no traces.
	Endpoint string `yaml:"endpoint"`
	// CAFile holds the CA certificates, in PEM, that the collector's certificate
	// is issued by. Default: "", those of the system.
	CAFile string `yaml:"ca_file" is:"path"`
	// Insecure sends traces without TLS. They name callers and clients. Default:
	// false.
	Insecure bool `yaml:"insecure"`
	// Sample is the share of calls that is traced, from 0 to 1. Calls whose
	// callers trace them already are traced if they are. Default: 0.01.
	Sample float64 `yaml:"sample"`
}

func (t *Tracing) setDefaults() { t.Sample = 0.01 }

func (v *validator) tracing() {
	t := v.c.Tracing
	if t.Sample < 0 || t.Sample > 1 {
		v.add("tracing.sample", fmt.Sprintf("%v is no share", t.Sample), "write a number from 0, for none, to 1, for all calls")
	}
	if t.Endpoint == "" {
		return // the rest may stand, for when it is wanted
	}
	host, port, err := net.SplitHostPort(t.Endpoint)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 || strings.ContainsFunc(host, notInHost) {
		v.add("tracing.endpoint", quote(t.Endpoint)+" is no host:port", "write the collector's, without a scheme, such as otel-collector:4317")
	}
	if t.Insecure && t.CAFile != "" {
		v.add("tracing.ca_file", "without TLS there is no certificate to check", "remove it, or insecure")
	}
}

// notInHost is for what no host name and no address has.
func notInHost(r rune) bool {
	return unicode.IsSpace(r) || strings.ContainsRune("/?#@%,;", r) || r > unicode.MaxASCII
}

// Kind is the type of the backend as the configuration calls it.
func (b Backend) Kind() string {
	switch {
	case b.PKCS11 != nil:
		return "pkcs11"
	case b.AWSKMS != nil:
		return "awskms"
	}
	return "local"
}
