package config

import (
	"net/netip"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/authz"
)

// Config is the whole configuration, with defaults filled in, paths made
// absolute and all relations checked. It is not changed after Load.
type Config struct {
	// Development allows, on loopback addresses only, what must not leave a
	// developer's machine: gRPC without TLS, the caller then being
	// "development" with all permissions; signing keys in a file (backends of
	// type local); client keys from loopback addresses; an issuer URL with
	// http. All listeners must then be on loopback. Default: false.
	Development bool `yaml:"development"`

	// GRPC is the listener for callers.
	GRPC GRPC `yaml:"grpc"`
	// HTTP is the listener for verifiers, who fetch /jwks/{issuer name}.
	HTTP HTTP `yaml:"http"`
	// Ops is the listener for operators: /livez, /readyz, /metrics.
	Ops Ops `yaml:"ops"`
	// Store is where registrations, fetched key sets and signing key rings are
	// kept.
	Store Store `yaml:"store"`
	// StateDir is a folder for the little that this machine remembers by itself
	// and shares with no other: which PINs a token has refused. It must be
	// writable and of this replica alone, and outlive the process; without it a
	// supervisor that restarts the service could lock a token. Default: the
	// folder of the bolt file; with PostgreSQL, that of the configuration.
	StateDir string `yaml:"state_dir" is:"path"`
	// Audit is the record of every token, change and denial.
	Audit Audit `yaml:"audit"`
	// Backends are the places where signing keys live, by name: 1 to 63 lower
	// case letters, digits and dashes, but not "pkcs11". Required: at least
	// one.
	Backends map[string]Backend `yaml:"backends"`
	// Wrapping is the key that wraps the data keys, which seal stored secrets
	// and authenticate what is stored. Required.
	Wrapping Wrapping `yaml:"wrapping"`
	// Fetch says how client keys are fetched from a jwks_uri.
	Fetch Fetch `yaml:"fetch"`
	// Cache is the memory for clients that are kept ready.
	Cache Cache `yaml:"cache"`
	// Admission says how many signatures are asked of each backend at once, and
	// how many calls wait for that.
	Admission Admission `yaml:"admission"`
	// Limits bound what each caller may ask for.
	Limits Limits `yaml:"limits"`
	// Tracing says where traces go.
	Tracing Tracing `yaml:"tracing"`
	// Grants say who may do what. Default: none, so that nobody may do
	// anything, except in development without TLS, where grants are not used.
	Grants []Grant `yaml:"grants"`
	// Issuers are the OpenID providers that tokens are issued for. Required:
	// at least one.
	Issuers []Issuer `yaml:"issuers"`

	name string              // of the file, for messages
	at   map[string]position // of the values, for messages
}

// GRPC is the listener for callers.
type GRPC struct {
	// Listen is IP:port, localhost:port, or :port for all addresses. Port 0,
	// which takes a free one, is for development. Default: 127.0.0.1:8443.
	Listen string `yaml:"listen"`
	// Health serves gRPC's health service, by which balancers and clients with
	// several replicas leave out those that cannot sign. It asks for no grant,
	// only for a certificate. Default: true.
	Health bool `yaml:"health"`
	// Reflection lets tools such as grpcurl ask for the API. Default: true.
	Reflection bool `yaml:"reflection"`
	// MaxConnectionAge is how long a connection is used, a tenth more or less.
	// Then the caller is asked to make another, which loses no call, so that
	// load reaches replicas that were added. A stream that lasts may go on for a
	// minute more. 0 is for ever, else 1m or more. Default: 30m.
	MaxConnectionAge time.Duration `yaml:"max_connection_age"`
	// TLS is required, except in development: without it callers are not
	// authenticated. With it they are, in development too.
	TLS *MutualTLS `yaml:"tls"`
}

// MutualTLS is a listener's TLS where callers have certificates too.
type MutualTLS struct {
	// CertFile is the server's certificate chain in PEM. Required.
	CertFile string `yaml:"cert_file" is:"path"`
	// KeyFile is its private key in PEM. Required.
	KeyFile string `yaml:"key_file" is:"path"`
	// ClientCAFile holds the CA certificates, in PEM, that callers'
	// certificates are issued by. Required.
	ClientCAFile string `yaml:"client_ca_file" is:"path"`
}

// HTTP is the listener for verifiers.
type HTTP struct {
	// Listen is as in GRPC. Default: 127.0.0.1:8080.
	Listen string `yaml:"listen"`
	// TLS, or BehindTLSProxy, is required off loopback: verifiers trust what
	// they fetch here. Default: none.
	TLS *TLS `yaml:"tls"`
	// BehindTLSProxy says that a proxy in front of the listener does the TLS.
	// Default: false.
	BehindTLSProxy bool `yaml:"behind_tls_proxy"`
}

// TLS is a listener's TLS.
type TLS struct {
	// CertFile is the certificate chain in PEM. Required.
	CertFile string `yaml:"cert_file" is:"path"`
	// KeyFile is its private key in PEM. Required.
	KeyFile string `yaml:"key_file" is:"path"`
}

// Ops is the listener for operators. It has no TLS and shows no secrets; keep
// it off public networks.
type Ops struct {
	// Listen is as in GRPC. Default: 127.0.0.1:9090.
	Listen string `yaml:"listen"`
	// MetricsListen is another address, for /metrics alone, which is then not on
	// Listen: who collects metrics need not reach the rest. Default: "", which
	// leaves it on Listen.
	MetricsListen string `yaml:"metrics_listen"`
}

// Store is where registrations, fetched key sets and signing key rings are
// kept: in a file or in PostgreSQL. Only one of the two can be given.
type Store struct {
	// Bolt keeps them in a file, for one replica. Default: with its defaults,
	// unless Postgres is given.
	Bolt Bolt `yaml:"bolt"`
	// Postgres keeps them in a database that any number of replicas share.
	// Default: none.
	Postgres *Postgres `yaml:"postgres"`
	// MaxLag is how long a replica goes on with what it knows when it cannot
	// hear of changes any more: its replies say registry_stale meanwhile, and
	// after it they are refused. Signing keys stand twice as long (see package
	// keyring). All replicas must have the same. A file has no changes that
	// others make, so that with Bolt only the signing keys depend on it.
	// With Postgres it is 3s or more. Default: 15m.
	MaxLag time.Duration `yaml:"max_lag"`
}

// Bolt is a store in one file.
type Bolt struct {
	// Path of the file, which is created if it is missing. Default: bulla.db.
	Path string `yaml:"path" is:"path"`
}

// Postgres is a store in a PostgreSQL database, version 14 or later.
type Postgres struct {
	// DSNFile holds the connection string, with its password: a secret. It is
	// a URL (postgres://…) or keywords and values (host=… user=…). Required.
	DSNFile string `yaml:"dsn_file" is:"path of a DSN"`
	// ListenDSNFile holds the connection string for the one connection that
	// LISTENs: it must go to the server itself where DSNFile's goes to a
	// pooler. Default: "", which is that of DSNFile.
	ListenDSNFile string `yaml:"listen_dsn_file" is:"path of a DSN"`
	// Migrate lets the service bring the schema up to date when it starts.
	// Else "bulla migrate" does. Default: true.
	Migrate bool `yaml:"migrate"`
}

// Ways to sync and to fail of Audit.
const (
	SyncGroup         = "group"
	SyncAlways        = "always"
	OnFailureDeny     = "deny"
	OnFailureContinue = "continue"
)

// Audit is the record of every token, change and denial.
type Audit struct {
	// Path of the file, which is created if it is missing; "-" is the standard
	// output. Default: audit.log.
	Path string `yaml:"path" is:"path or -"`
	// Sync is SyncGroup, which syncs every FlushEvery, or SyncAlways, which
	// syncs before each reply. Default: SyncGroup.
	Sync string `yaml:"sync"`
	// OnFailure is OnFailureDeny, which denies calls that cannot be recorded,
	// or OnFailureContinue. Default: OnFailureDeny.
	OnFailure string `yaml:"on_failure"`
	// FlushEvery is what a loss of power can cost with SyncGroup: 1ms to 10s.
	// Default: 50ms.
	FlushEvery time.Duration `yaml:"flush_every"`
	// RotateSize is how large the file may grow before it is renamed and
	// another begun: 64KiB or more, or "" for as large as it gets, until
	// somebody renames it and sends SIGHUP. Default: "".
	RotateSize Size `yaml:"rotate_size" is:"size or nothing"`
	// Checkpoint has the log signed. Default: it is not, and then whoever can
	// rewrite the whole file can do so unseen.
	Checkpoint *AuditCheckpoint `yaml:"checkpoint"`
}

// AuditCheckpoint says how the audit log is signed.
type AuditCheckpoint struct {
	// Location is the place of the key, as that of a signing key. The key does
	// nothing else: it is none of an issuer's and wraps nothing. Required.
	Location string `yaml:"key"`
	// Algorithm is the JWS alg of the key. Default: ES256.
	Algorithm kms.Algorithm `yaml:"algorithm"`
	// EveryLines is after how many lines the log is signed, 1 to 50000. Default:
	// 1000.
	EveryLines int `yaml:"every_lines"`
	// Every is how long after the last signature it is signed if there were
	// lines: 1s or more. Default: 1m.
	Every time.Duration `yaml:"every"`

	// Key is Location parsed.
	Key KeyRef
}

// Backend is one place of signing keys. Exactly one field is set.
type Backend struct {
	PKCS11 *PKCS11 `yaml:"pkcs11"`
	AWSKMS *AWSKMS `yaml:"awskms"`
	Local  *Local  `yaml:"local"` // in development only
}

// PKCS11 is a token of an HSM.
type PKCS11 struct {
	// Module is the PKCS#11 library. Required.
	Module string `yaml:"module" is:"path"`
	// Token is the label of the token, Serial its serial number. One of them
	// is required; where both are given, both must match. Default: "".
	Token  string `yaml:"token"`
	Serial string `yaml:"serial"`
	// PINFile holds the user PIN. Required.
	PINFile string `yaml:"pin_file" is:"path"`
	// InsistOnLogin tries the PIN although the token warns that few tries are
	// left. Default: false.
	InsistOnLogin bool `yaml:"insist_on_login"`
	// Sessions is the number of signatures in flight, 0 to 4096. Default: 0,
	// which is two for each core.
	Sessions int `yaml:"sessions"`
	// Isolation is IsolationNone, where the module runs in the process of the
	// service, or IsolationProcess, where it runs in one of its own, which is
	// started anew when the module crashes or hangs. Default: IsolationNone.
	Isolation string `yaml:"isolation"`
	// ExitOnStuck ends the service, for its supervisor to start it anew, when a
	// call is stuck in a module that runs in its process and the token cannot
	// be brought back without that. Default: false.
	ExitOnStuck bool `yaml:"exit_on_stuck"`
	// InitReserved is given to the module when it is initialized, for the few
	// that need parameters, such as NSS softokn. Default: "".
	InitReserved string `yaml:"init_reserved"`
}

// Where a PKCS#11 module runs.
const (
	IsolationNone    = "none"
	IsolationProcess = "process"
)

// AWSKMS is AWS Key Management Service in one region.
type AWSKMS struct {
	// Region, such as eu-west-1. Required.
	Region string `yaml:"region"`
	// Endpoint is the URL to use in place of the region's own: https, or http
	// on loopback. Default: "".
	Endpoint string `yaml:"endpoint"`
	// Rate is the number of signatures a second that this process asks for at
	// most. Default: 300.
	Rate int `yaml:"rate"`
}

// Local is signing keys in a file, for development.
type Local struct {
	// Path of the file. Required.
	Path string `yaml:"path" is:"path"`
}

// Wrapping is the key that wraps the data keys.
type Wrapping struct {
	// Backend names the backend that has the key. Required.
	Backend string `yaml:"backend"`
	// Key is the key in that backend's own notation, such as object=wrap-1:
	// an AES key or an RSA key pair of a PKCS#11 token, a symmetric key of AWS
	// KMS. It signs no tokens. Required.
	Key string `yaml:"key"`
	// Former are the places, as backend:key, of wrapping keys that were used
	// before, or that other replicas use already: what they wrap can be read
	// still. Default: none.
	Former []string `yaml:"former"`

	// FormerKeys is Former parsed.
	FormerKeys []KeyRef
}

// Ref is the place of the key, as that of a signing key.
func (w Wrapping) Ref() KeyRef { return KeyRef{Backend: w.Backend, Ref: w.Key} }

// Fetch says how client keys are fetched from a jwks_uri.
type Fetch struct {
	// CAFile holds CA certificates, in PEM, to trust beside the system's.
	// Default: "".
	CAFile string `yaml:"ca_file" is:"path"`
	// AllowHosts, if not empty, lists the only hosts that may be named: names,
	// or "*.example.com". Default: every host.
	AllowHosts []string `yaml:"allow_hosts"`
	// AllowCIDRs opens ranges of addresses that are not public. Each was
	// checked to be one: see CIDRs. Default: none.
	AllowCIDRs []string `yaml:"allow_cidrs"`
	// AllowPorts lists the ports that may be named. Default: 443.
	AllowPorts []int `yaml:"allow_ports"`
	// MinRefresh and MaxRefresh bound how long a set is fresh, DefaultRefresh
	// is for one whose server does not say. Default: 1m, 24h, 10m.
	MinRefresh     time.Duration `yaml:"min_refresh"`
	DefaultRefresh time.Duration `yaml:"default_refresh"`
	MaxRefresh     time.Duration `yaml:"max_refresh"`
	// MaxStale is how long after that a set may be used while it cannot be
	// fetched. Default: 24h.
	MaxStale time.Duration `yaml:"max_stale"`
}

// CIDRs returns AllowCIDRs parsed.
func (f *Fetch) CIDRs() []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(f.AllowCIDRs))
	for _, s := range f.AllowCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil { // as validate has seen
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

// Cache is the memory for clients that are kept ready.
type Cache struct {
	// Memory bounds it: a number with KiB, MiB or GiB, 8MiB or more. What does
	// not fit is read from the store again when it is asked for. Default:
	// 160MiB, which is for 100,000 clients.
	Memory Size `yaml:"memory"`
}

// Grant allows a caller something, as authz.Grant does. Every list that one of
// its permissions is measured by must be given.
type Grant struct {
	// Caller is the URI SAN or DNS SAN of the caller's certificate. Required.
	Caller string `yaml:"caller"`
	// Allow lists permissions. Required.
	Allow []authz.Permission `yaml:"allow"`
	// Issuers lists issuer names. Required.
	Issuers []string `yaml:"issuers"`
	// TokenKinds lists token kinds. Required for issue and sign_unencrypted,
	// else not allowed.
	TokenKinds []string `yaml:"token_kinds"`
	// Clients lists client_ids, prefixes with a "*" at the end, or "*".
	// Required for all permissions but read_signing_keys, rotate_signing_keys
	// and read_status, else not allowed.
	Clients []string `yaml:"clients"`
	// Claims bounds the tokens that issue and sign_unencrypted give. Else not
	// allowed. Default: any token.
	Claims *Claims `yaml:"claims"`
}

// Claims is the claim policy of a grant, as authz.ClaimPolicy has it: at least
// one of its fields must be given, and a token must keep to all that are.
type Claims struct {
	// MaxLifetime is the longest time from iat to exp, in whole seconds; tokens
	// without exp are then not given. Default: 0, which is as long as the issuer
	// allows.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// Allow lists the only claims that the caller may give, beside iss, aud, iat
	// and exp, and beside what Bulla fills in. Default: any.
	Allow []string `yaml:"allow"`
	// Require lists claims that the caller must give. Default: none.
	Require []string `yaml:"require"`
	// Audiences lists what aud may name beside the client, and in access tokens
	// at all: values, prefixes with a "*" at the end, or "*". Default: beside the
	// client, those for whom a grant of the caller would give the token too; in
	// access tokens any.
	Audiences []string `yaml:"audiences"`
}

// Profiles of an issuer.
const (
	ProfileDefault = "default"
	ProfileFAPI    = "fapi"
)

// Issuer is one OpenID provider.
type Issuer struct {
	// Name is what requests, grants and URLs call it: 1 to 63 lower case
	// letters, digits and dashes. Required.
	Name string `yaml:"name"`
	// Iss is the issuer URL that stands in tokens: https, without query and
	// fragment. Required.
	Iss string `yaml:"iss"`
	// Profile is ProfileDefault or ProfileFAPI, which allows only what the
	// FAPI 2.0 security profile does. Default: ProfileDefault.
	Profile string `yaml:"profile"`
	// DefaultSigningAlgorithm is for clients and requests that name none.
	// Default: ES256 if there is such a key, else that of the only key.
	DefaultSigningAlgorithm kms.Algorithm `yaml:"default_signing_algorithm"`
	// DefaultLifetime is that of tokens whose request says neither exp nor
	// lifetime, MaxLifetime that which none may exceed. Default: 5m, 1h.
	DefaultLifetime time.Duration `yaml:"default_lifetime"`
	MaxLifetime     time.Duration `yaml:"max_lifetime"`
	// JWKSMaxAge is how long verifiers may keep the issuer's public keys.
	// Default: 10m.
	JWKSMaxAge time.Duration `yaml:"jwks_max_age"`
	// Policy says which algorithms may be used.
	Policy Policy `yaml:"policy"`
	// SigningKeys are the keys. Of several with one algorithm the first signs
	// to begin with, and the others wait to take its place (see Rotation).
	// Required.
	SigningKeys []SigningKey `yaml:"signing_keys"`
	// Rotation says how signing keys are replaced.
	Rotation Rotation `yaml:"rotation"`
	// KeyChangeDelay is how long a change of a client that is or was registered
	// waits before it takes effect, so that one that should not be is found out
	// in time: 1s to 720h. A change that waits keeps the time that it was given.
	// Default: 0, at once.
	KeyChangeDelay time.Duration `yaml:"key_change_delay"`
}

// Policy says which algorithms may be used for an issuer. An empty list stands
// for those that its table allows by default.
type Policy struct {
	// Signing lists JWS alg values: those of the issuer's keys, and HS256,
	// HS384 and HS512 for clients that sign in with a secret. Default: empty.
	Signing []kms.Algorithm `yaml:"signing"`
	// Encryption lists JWE alg values. Default: empty.
	Encryption []encrypter.KeyAlgorithm `yaml:"encryption"`
	// ContentEncryption lists JWE enc values. Default: empty.
	ContentEncryption []encrypter.ContentEncryption `yaml:"content_encryption"`
	// MinRSABits and MaxRSABits bound the RSA keys of clients, 2048 to 8192.
	// Default: 2048 and 4096.
	MinRSABits int `yaml:"min_rsa_bits"`
	MaxRSABits int `yaml:"max_rsa_bits"`
	// Legacy allows the algorithms that are only kept for old clients, RSA1_5
	// and A128CBC+HS256, where the lists above name them and the client is
	// registered as legacy. Default: false.
	Legacy bool `yaml:"legacy"`
}

// SigningKey is one key pair and its algorithm.
type SigningKey struct {
	// Algorithm is the JWS alg. Required.
	Algorithm kms.Algorithm `yaml:"algorithm"`
	// Locations is where the key pair is: several locations of one key pair
	// stand in for each other, in this order. Required.
	Locations []string `yaml:"keys"`
	// Verify says that each signature is verified before it leaves. Default:
	// true.
	Verify bool `yaml:"verify"`

	// Keys is Locations parsed.
	Keys []KeyRef
}

// Rotation says how signing keys are replaced.
type Rotation struct {
	// Every is how long a key signs before the next takes its place, 0 for
	// until somebody asks for a new one. Default: 0.
	Every time.Duration `yaml:"every"`
	// Create is CreateNever, where the operator makes new keys and lists them,
	// or CreateAuto, where they are made in the backend of the key before.
	// Default: CreateNever.
	Create string `yaml:"create"`
}

// Who makes new signing keys.
const (
	CreateNever = "never"
	CreateAuto  = "auto"
)

// Plaintext reports whether gRPC is served without TLS, to the one caller
// authz.DevelopmentCaller.
func (c *Config) Plaintext() bool { return c.GRPC.TLS == nil }

// AuthzGrants returns the grants as package authz takes them.
func (c *Config) AuthzGrants() []authz.Grant {
	grants := make([]authz.Grant, len(c.Grants))
	for i, g := range c.Grants {
		grants[i] = authz.Grant{
			Caller: g.Caller, Allow: g.Allow, Issuers: g.Issuers, TokenKinds: g.TokenKinds, Clients: g.Clients,
			Claims: (*authz.ClaimPolicy)(g.Claims),
		}
	}
	return grants
}

func (g *GRPC) setDefaults() {
	g.Listen, g.Health, g.Reflection, g.MaxConnectionAge = "127.0.0.1:8443", true, true, 30*time.Minute
}

func (h *HTTP) setDefaults()  { h.Listen = "127.0.0.1:8080" }
func (o *Ops) setDefaults()   { o.Listen = "127.0.0.1:9090" }
func (s *Store) setDefaults() { s.MaxLag = 15 * time.Minute }
func (b *Bolt) setDefaults()  { b.Path = "bulla.db" }

func (p *Postgres) setDefaults() { p.Migrate = true }
func (c *Cache) setDefaults()    { c.Memory = 160 << 20 }

func (a *Audit) setDefaults() {
	a.Path, a.Sync, a.OnFailure, a.FlushEvery = "audit.log", SyncGroup, OnFailureDeny, 50*time.Millisecond
}

func (a *AuditCheckpoint) setDefaults() {
	a.Algorithm, a.EveryLines, a.Every = kms.ES256, 1000, time.Minute
}

func (p *PKCS11) setDefaults() { p.Isolation = IsolationNone }
func (a *AWSKMS) setDefaults() { a.Rate = 300 }

func (f *Fetch) setDefaults() {
	f.AllowPorts = []int{443}
	f.MinRefresh, f.DefaultRefresh, f.MaxRefresh = time.Minute, 10*time.Minute, 24*time.Hour
	f.MaxStale = 24 * time.Hour
}

func (i *Issuer) setDefaults() {
	i.Profile = ProfileDefault
	i.DefaultLifetime, i.MaxLifetime = 5*time.Minute, time.Hour
	i.JWKSMaxAge = 10 * time.Minute
}

func (p *Policy) setDefaults()     { p.MinRSABits, p.MaxRSABits = 2048, 4096 }
func (k *SigningKey) setDefaults() { k.Verify = true }
func (r *Rotation) setDefaults()   { r.Create = CreateNever }
