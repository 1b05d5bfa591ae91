package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// demoPorts are where the service of the demo listens, host:port. The ports
// stay taken from the moment they are chosen.
type demoPorts struct {
	grpc, http, ops string
	held            map[string]net.Listener // by address
}

// choosePorts takes the default ports, and free ones where those are in use.
func choosePorts(ctx context.Context) (*demoPorts, error) {
	p := &demoPorts{held: make(map[string]net.Listener)}
	for _, l := range []struct {
		address *string
		port    int
	}{{&p.grpc, 8443}, {&p.http, 8080}, {&p.ops, 9090}} {
		lis, err := listenNear(ctx, l.port)
		if err != nil {
			p.Close()
			return nil, err
		}
		*l.address = lis.Addr().String()
		p.held[*l.address] = lis
	}
	return p, nil
}

// listen hands out the listener of a port that was chosen.
func (p *demoPorts) listen(_ context.Context, address string) (net.Listener, error) {
	lis, ok := p.held[address]
	if !ok {
		return nil, fmt.Errorf("%s was not chosen", address)
	}
	return lis, nil
}

// Close lets go of the ports, where the service has not done so.
func (p *demoPorts) Close() {
	for _, lis := range p.held {
		_ = lis.Close() // it may be closed already
	}
}

// listenNear listens on loopback, at the port if it is free and else at any.
func listenNear(ctx context.Context, port int) (net.Listener, error) {
	lis, err := listenTCP(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err == nil {
		return lis, nil
	}
	lis, second := listenTCP(ctx, "127.0.0.1:0")
	if second != nil {
		return nil, errors.Join(err, second)
	}
	return lis, nil
}

// demoConfig is the configuration as an operator would write it: nothing in
// it is for development only.
func demoConfig(module string, ports *demoPorts, partyPort int) string {
	return strings.NewReplacer(
		"{grpc}", ports.grpc, "{http}", ports.http, "{ops}", ports.ops,
		"{module}", strconv.Quote(module), "{token}", demoToken,
		"{party}", fmt.Sprint(partyPort),
		"{idp}", demoIDP, "{registrar}", demoRegistrar, "{operator}", demoOperator,
		"{issuer}", demoIssuer, "{iss}", demoIss,
	).Replace(demoYAML)
}

const demoYAML = `# The configuration of "bulla demo", which writes it anew whenever it starts:
# change a copy. "bulla config check FILE" says what is wrong with one.
# Paths are relative to this file. Secrets are only ever named as files.

# For callers: gRPC over TLS 1.3. A caller is who its certificate says.
grpc:
  listen: {grpc}
  tls: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}

# For verifiers, who fetch the public signing keys at /jwks/{issuer}.
http:
  listen: {http}
  tls: {cert_file: web.crt, key_file: web.key}

# For operators: /livez, /readyz, /metrics. It has no TLS; keep it off public
# networks.
ops:
  listen: {ops}

# Registered clients and the last good key set of each.
store: {bolt: {path: bulla.db}}

# A line for each token, change and denial, written before the reply.
audit: {path: audit.log}

# Where the private signing keys are. With an HSM of your own, name its module
# and token. SoftHSM alone also needs the environment variable SOFTHSM2_CONF,
# set to the file softhsm2.conf beside this one.
backends:
  hsm:
    pkcs11: {module: {module}, token: {token}, pin_file: pin}

# The key, in one of the backends, that protects what is stored: it wraps the
# data keys that seal clients' secrets and authenticate each record.
wrapping: {backend: hsm, key: "object=demo-wrap"}

# How the public keys of clients are fetched from their jwks_uri. By default
# only public addresses and port 443 are: the demo's client is on this machine,
# with a certificate of the demo's CA.
fetch:
  ca_file: ca.crt
  allow_cidrs: [127.0.0.1/32]
  allow_ports: [{party}]

# Who may do what. All that is not listed is denied.
grants:
  - caller: {idp}
    allow: [issue]
    issuers: [{issuer}]
    token_kinds: [ID_TOKEN, LOGOUT_TOKEN, USERINFO, AUTHORIZATION_RESPONSE, INTROSPECTION, ACCESS_TOKEN]
    clients: ["*"]
  # Who can replace a client's key can read its tokens.
  - caller: {registrar}
    allow: [create_client_key, replace_client_key, generate_client_key, delete_client_key, refresh_client_key, read_client_keys]
    issuers: [{issuer}]
    clients: ["demo-*"]
  - caller: {operator}
    allow: [read_client_keys]
    issuers: [{issuer}]
    clients: ["*"]
  - caller: {operator}
    allow: [read_signing_keys]
    issuers: [{issuer}]

issuers:
  - name: {issuer}
    iss: {iss}
    default_signing_algorithm: ES256
    signing_keys:
      - {algorithm: ES256, keys: ["hsm:object=demo-es256"]}
      - {algorithm: RS256, keys: ["hsm:object=demo-rs256"]}
`
