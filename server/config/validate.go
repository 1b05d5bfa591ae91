package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/kms"
)

// validator checks how the values fit together. It fills in what follows from
// other values: default signing algorithms and parsed key locations.
type validator struct {
	*decoder
	c *Config
}

func validate(c *Config, d *decoder) {
	v := validator{d, c}
	v.listeners()
	v.store()
	v.audit()
	v.backends()
	v.wrapping()
	v.fetch()
	v.cache()
	v.tracing()
	v.admission()
	v.issuers()
	v.keysAreBoundOnce()
	v.checkpoint()
	v.grants()
	v.limits()
}

// required notes a missing value, and reports whether it is there.
func (v *validator) required(path, value, advice string) bool {
	if value != "" {
		return true
	}
	v.add(path, "this is required", advice)
	return false
}

// oneOf notes a value that is not among known.
func (v *validator) oneOf(path, value string, known ...string) bool {
	if slices.Contains(known, value) {
		return true
	}
	v.add(path, fmt.Sprintf("there is no %s", quote(value)), suggest(value, known))
	return false
}

// noRepeats notes entries of a list that are there twice.
func noRepeats[T comparable](v *validator, path string, list []T) {
	seen := make(map[T]bool, len(list))
	for i, e := range list {
		if seen[e] {
			v.add(index(path, i), "this is in the list twice", "remove one")
		}
		seen[e] = true
	}
}

func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = string(e)
	}
	return out
}

// listeners checks addresses and who may speak to them without TLS.
func (v *validator) listeners() {
	c := v.c
	grpc := v.listener("grpc.listen", c.GRPC.Listen)
	web := v.listener("http.listen", c.HTTP.Listen)
	ops := v.listener("ops.listen", c.Ops.Listen)
	all := []*endpoint{grpc, web, ops}
	if c.Ops.MetricsListen != "" {
		all = append(all, v.listener("ops.metrics_listen", c.Ops.MetricsListen))
	}
	for i, b := range all {
		for _, a := range all[:i] {
			if a != nil && b != nil && a.clashes(b) {
				v.add(b.path, "this is the address of "+a.path+" too", "give each listener its own port")
			}
		}
	}
	v.connectionAge()

	if t := c.GRPC.TLS; t != nil {
		v.required("grpc.tls.cert_file", t.CertFile, "name the server's certificate chain")
		v.required("grpc.tls.key_file", t.KeyFile, "name the server's private key")
		v.required("grpc.tls.client_ca_file", t.ClientCAFile, "name the CA that issues the callers' certificates")
	} else if !c.Development {
		v.add("grpc.tls", "callers cannot be authenticated without TLS", "set cert_file, key_file and client_ca_file; on a developer's machine development: true does without")
	}

	if t := c.HTTP.TLS; t != nil {
		v.required("http.tls.cert_file", t.CertFile, "name the certificate chain")
		v.required("http.tls.key_file", t.KeyFile, "name its private key")
		if c.HTTP.BehindTLSProxy {
			v.add("http.behind_tls_proxy", "the listener has TLS itself", "remove this, or http.tls")
		}
	} else if web != nil && !web.loopback && !c.HTTP.BehindTLSProxy && !c.Development {
		v.add("http.listen", "off loopback this listener needs TLS, or verifiers could be given wrong keys", "set http.tls, or behind_tls_proxy: true if a proxy does it, or listen on 127.0.0.1")
	}
}

// connectionAge checks how long connections last. Where all callers connect
// anew every few seconds, handshakes are most of the work.
func (v *validator) connectionAge() {
	const least = time.Minute
	if age := v.c.GRPC.MaxConnectionAge; age != 0 && age < least {
		v.add("grpc.max_connection_age", fmt.Sprintf("%v is too short", age), fmt.Sprintf("write %v or more, or 0 for connections that last for ever", least))
	}
}

// endpoint is a listener's address.
type endpoint struct {
	path     string
	addr     netip.Addr // unspecified for all addresses
	port     uint16
	loopback bool
}

// listener reads the address of a listener; nil means that a problem was
// noted.
func (v *validator) listener(path, value string) *endpoint {
	const advice = "write IP:port, such as 127.0.0.1:8443, or :8443 for all addresses"
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		v.add(path, quote(value)+" is no address to listen on", advice)
		return nil
	}
	e := &endpoint{path: path}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		v.add(path, quote(port)+" is no port", "write a number from 1 to 65535")
		return nil
	}
	e.port = uint16(n)
	switch host {
	case "":
		e.addr = netip.IPv6Unspecified()
	case "localhost":
		e.addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		if e.addr, err = netip.ParseAddr(host); err != nil {
			v.add(path, quote(host)+" is no IP address", advice)
			return nil
		}
		e.addr = e.addr.Unmap()
	}
	e.loopback = e.addr.IsLoopback()
	if e.port == 0 && !v.c.Development {
		v.add(path, "port 0 would be another one at each start", "write a number from 1 to 65535")
	}
	if !e.loopback && v.c.Development {
		v.add(path, "in development all listeners must be on loopback", "listen on 127.0.0.1, or set development: false")
	}
	return e
}

// clashes reports whether both cannot listen at once.
func (e *endpoint) clashes(o *endpoint) bool {
	if e.port == 0 || e.port != o.port {
		return false
	}
	return e.addr == o.addr || e.addr.IsUnspecified() || o.addr.IsUnspecified()
}

// store checks which store is meant, and fills in where this machine keeps what
// is its own. Of the two stores the one that is not used is left empty.
func (v *validator) store() {
	c := v.c
	v.maxLag()
	folder := filepath.Dir(c.Store.Bolt.Path)
	if v.given("store.postgres") {
		folder = v.folder
		if p := c.Store.Postgres; p != nil { // else it could not be read
			v.required("store.postgres.dsn_file", p.DSNFile, "write the connection string into a file that only this user can read, and name it here")
		}
		if v.given("store.bolt") {
			v.add("store.bolt", "registrations are kept in PostgreSQL or in a file, not in both", `keep one of the two; "bulla registry export" and "import" carry the registrations from one to the other`)
		}
		c.Store.Bolt = Bolt{}
	} else {
		v.required("store.bolt.path", c.Store.Bolt.Path, "name the file, or remove the line for the default")
	}
	if v.given("state_dir") {
		v.required("state_dir", c.StateDir, "name a folder, or remove the line for the default")
	} else {
		c.StateDir = folder
	}
}

// leastSharedLag is the shortest max_lag of a store that replicas share. They
// look for changes twice a second, and answer with registry_stale once they have
// heard nothing for two seconds.
const leastSharedLag = 3 * time.Second

func (v *validator) maxLag() {
	lag := v.c.Store.MaxLag
	if !v.given("store.postgres") {
		v.atLeast("store.max_lag", lag, time.Second)
	} else if lag < leastSharedLag {
		v.add("store.max_lag", fmt.Sprintf("%v is too short for a database: a replica looks for changes twice a second and calls what it knows stale after 2s, so that a short stall would have it refuse all calls", lag),
			fmt.Sprintf("write %v or more; minutes let an outage pass", leastSharedLag))
	}
}

func (v *validator) atLeast(path string, got, least time.Duration) bool {
	if got < least {
		v.add(path, fmt.Sprintf("%v is too short", got), fmt.Sprintf("write %v or more", least))
		return false
	}
	return true
}

func (v *validator) backends() {
	c := v.c
	if len(c.Backends) == 0 {
		v.add("backends", "there is no backend, and so no place for signing keys", "add one, such as hsm: {pkcs11: {…}}")
	}
	for name, b := range c.Backends {
		path := join("backends", clean(name))
		if !isName(name) || name == "pkcs11" {
			v.add(path, quote(name)+" cannot name a backend", `use 1 to 63 of a-z, 0-9 and "-", and not "pkcs11", which begins a URI`)
		}
		kinds := 0
		if b.PKCS11 != nil {
			kinds++
			v.pkcs11(join(path, "pkcs11"), b.PKCS11)
		}
		if b.AWSKMS != nil {
			kinds++
			v.awskms(join(path, "awskms"), b.AWSKMS)
		}
		if b.Local != nil {
			kinds++
			v.required(join(path, "local.path"), b.Local.Path, "name the file with the keys")
			if !c.Development {
				v.add(join(path, "local"), "keys in a file are for development", "keep the keys in an HSM (pkcs11) or in awskms; on a developer's machine set development: true")
			}
		}
		if kinds != 1 {
			v.add(path, "a backend is of exactly one type", "write one of pkcs11, awskms and local under it")
		}
	}
}

func (v *validator) pkcs11(path string, p *PKCS11) {
	v.required(join(path, "module"), p.Module, "name the PKCS#11 library, such as /usr/lib/softhsm/libsofthsm2.so")
	v.required(join(path, "pin_file"), p.PINFile, "write the user PIN into a file that only this user can read, and name it here")
	if p.Token == "" && p.Serial == "" {
		v.add(join(path, "token"), "the token is not named", "write its label as token, or its serial number as serial")
	}
	if len(p.Token) > 32 {
		v.add(join(path, "token"), "a token's label has at most 32 bytes", "copy it from pkcs11-tool --list-token-slots")
	}
	if len(p.Serial) > 16 {
		v.add(join(path, "serial"), "a token's serial number has at most 16 bytes", "copy it from pkcs11-tool --list-token-slots")
	}
	if p.Sessions < 0 || p.Sessions > 4096 {
		v.add(join(path, "sessions"), fmt.Sprintf("%d sessions cannot be", p.Sessions), "write 0 for the default, or 1 to 4096")
	}
	v.oneOf(join(path, "isolation"), p.Isolation, IsolationNone, IsolationProcess)
	if p.ExitOnStuck && p.Isolation == IsolationProcess {
		v.add(join(path, "exit_on_stuck"), "a module in a process of its own never takes the service with it", "remove it: a stuck process is replaced anyway")
	}
	if len(p.InitReserved) > 4096 {
		v.add(join(path, "init_reserved"), "it has more than 4096 bytes", "write what the module's own manual asks for")
	}
}

func (v *validator) awskms(path string, a *AWSKMS) {
	v.required(join(path, "region"), a.Region, "write the region of the keys, such as eu-west-1")
	if a.Rate < 1 {
		v.add(join(path, "rate"), fmt.Sprintf("%d signatures a second cannot be", a.Rate), "write 1 or more")
	}
	if a.Endpoint == "" {
		return
	}
	u, err := url.Parse(a.Endpoint)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		v.add(join(path, "endpoint"), "this is no endpoint", "write https://host, or remove the line for the region's own")
	case u.Scheme == "http" && !isLoopbackHost(u.Hostname()):
		v.add(join(path, "endpoint"), "http is for loopback only", "write https://host")
	}
}

// wrapping checks where the wrapping key is.
func (v *validator) wrapping() {
	const advice = `write wrapping: {backend: hsm, key: "object=wrap-1"}, with the name of a backend and of an AES key made for this alone`
	w := &v.c.Wrapping
	if w.Backend == "" && w.Key == "" {
		v.add("wrapping", "there is no key to protect what is stored", advice)
		return
	}
	if !v.required("wrapping.backend", w.Backend, advice) || !v.required("wrapping.key", w.Key, advice) {
		return
	}
	if _, ok := v.c.Backends[w.Backend]; !ok {
		if len(v.c.Backends) > 0 && !v.bad["backends"] && !v.bad[join("backends", clean(w.Backend))] {
			v.add("wrapping.backend", fmt.Sprintf("there is no backend %s", quote(w.Backend)), suggest(w.Backend, backendNames(v.c.Backends)))
		}
		return
	}
	if v.c.Backends[w.Backend].PKCS11 != nil {
		if _, problem := pkcs11Attributes(w.Key); problem != nil {
			v.add("wrapping.key", problem.message, problem.advice)
		}
	}
	noRepeats(v, "wrapping.former", w.Former)
	for i, text := range w.Former {
		ref, problem := parseKeyRef(text, v.c.Backends)
		switch {
		case problem != nil:
			v.add(index("wrapping.former", i), problem.message, problem.advice)
		case ref == w.Ref():
			v.add(index("wrapping.former", i), "this is the wrapping key itself", "remove it")
		}
		w.FormerKeys = append(w.FormerKeys, ref)
	}
}

func isLoopbackHost(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || (err == nil && addr.Unmap().IsLoopback())
}

func (v *validator) fetch() {
	f := v.c.Fetch
	for i, h := range f.AllowHosts {
		if !isHostPattern(h) {
			v.add(index("fetch.allow_hosts", i), quote(h)+" is no host", `write a name, or "*.example.com" for all names below one`)
		}
	}
	noRepeats(v, "fetch.allow_hosts", f.AllowHosts)
	for i, s := range f.AllowCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			v.add(index("fetch.allow_cidrs", i), quote(s)+" is no range of addresses", "write one such as 10.1.0.0/16, or 10.1.2.3/32 for a single address")
		} else if p != p.Masked() {
			v.add(index("fetch.allow_cidrs", i), quote(s)+" has bits set behind its prefix", fmt.Sprintf("write %s for the range, or %s/%d for the address", p.Masked(), p.Addr(), p.Addr().BitLen()))
		}
	}
	noRepeats(v, "fetch.allow_cidrs", f.AllowCIDRs)
	if len(f.AllowPorts) == 0 {
		v.add("fetch.allow_ports", "without a port nothing can be fetched", "write [443], or remove the line")
	}
	for i, p := range f.AllowPorts {
		if p < 1 || p > 65535 {
			v.add(index("fetch.allow_ports", i), fmt.Sprintf("%d is no port", p), "write a number from 1 to 65535")
		}
	}
	noRepeats(v, "fetch.allow_ports", f.AllowPorts)

	least := time.Second
	if v.c.Development {
		least = time.Millisecond
	}
	ok := v.atLeast("fetch.min_refresh", f.MinRefresh, least)
	if v.atLeast("fetch.max_stale", f.MaxStale, least); ok {
		v.inOrder("fetch.default_refresh", f.DefaultRefresh, "fetch.min_refresh", f.MinRefresh, "fetch.max_refresh", f.MaxRefresh)
	}
}

// minMemory is what a cache needs to be one.
const minMemory Size = 8 << 20

func (v *validator) cache() {
	if m := v.c.Cache.Memory; m < minMemory {
		v.add("cache.memory", fmt.Sprintf("%v is too little", m), fmt.Sprintf("write %v or more", minMemory))
	}
}

// inOrder notes a value that is not between two others. It says so where one
// of the three was given, so that there is a line to look at.
func (v *validator) inOrder(path string, value time.Duration, lowPath string, low time.Duration, highPath string, high time.Duration) {
	if low <= value && value <= high {
		return
	}
	for _, p := range []string{path, lowPath, highPath} {
		if v.bad[p] {
			return
		}
	}
	at := path
	for _, p := range []string{path, lowPath, highPath} {
		if v.given(p) {
			at = p
			break
		}
	}
	field := func(p string) string { return p[strings.LastIndexByte(p, '.')+1:] }
	v.add(at, fmt.Sprintf("%s %v must not be above %s %v, nor that above %s %v", field(lowPath), low, field(path), value, field(highPath), high), "change one of them")
}

// isName reports whether s can name an issuer or a backend.
func isName(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

func isHostPattern(s string) bool {
	s = strings.ToLower(strings.TrimPrefix(s, "*."))
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isName(label) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	_, err := netip.ParseAddr(s) // addresses are for allow_cidrs
	return err != nil
}

func (v *validator) issuers() {
	c := v.c
	if len(c.Issuers) == 0 {
		v.add("issuers", "there is no issuer, and so nothing to issue", "add one with name, iss and signing_keys")
	}
	names, urls := make(map[string]int), make(map[string]int)
	for i := range c.Issuers {
		is, path := &c.Issuers[i], index("issuers", i)
		if v.required(join(path, "name"), is.Name, "write a short name for requests and grants, such as main") {
			if !isName(is.Name) {
				v.add(join(path, "name"), quote(is.Name)+" cannot name an issuer", `use 1 to 63 of a-z, 0-9 and "-"`)
			}
			if first, ok := names[is.Name]; ok {
				v.add(join(path, "name"), fmt.Sprintf("this is the name of %s too", index("issuers", first)), "give each issuer its own")
			} else {
				names[is.Name] = i
			}
		}
		if v.iss(join(path, "iss"), is.Iss) {
			if first, ok := urls[is.Iss]; ok {
				v.add(join(path, "iss"), fmt.Sprintf("this is the URL of %s too", index("issuers", first)), "give each issuer its own: verifiers know only one set of keys for a URL")
			} else {
				urls[is.Iss] = i
			}
		}
		v.oneOf(join(path, "profile"), is.Profile, ProfileDefault, ProfileFAPI)
		v.lifetimes(path, is)
		v.keyChangeDelay(join(path, "key_change_delay"), is.KeyChangeDelay)
		v.policy(join(path, "policy"), is)
		v.signingKeys(path, is)
		v.rotation(path, is)
	}
}

// iss checks an issuer URL: OpenID Connect Core 1.0, section 2, and RFC 8414,
// section 2.
func (v *validator) iss(path, value string) bool {
	const advice = "write https://host or https://host/path, as it is to stand in tokens"
	if !v.required(path, value, advice) {
		return false
	}
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "" || strings.ContainsFunc(value, unicode.IsSpace):
		v.add(path, quote(value)+" is no issuer URL", advice)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(value, "#"):
		v.add(path, "an issuer URL has no user, query or fragment", advice)
	case u.Scheme == "http" && !v.c.Development:
		v.add(path, "an issuer URL begins with https", advice+"; http is for development")
	case u.Scheme != "https" && u.Scheme != "http":
		v.add(path, "an issuer URL begins with https", advice)
	default:
		return true
	}
	return false
}

func (v *validator) lifetimes(path string, is *Issuer) {
	for _, l := range []struct {
		name  string
		value time.Duration
	}{{"default_lifetime", is.DefaultLifetime}, {"max_lifetime", is.MaxLifetime}, {"jwks_max_age", is.JWKSMaxAge}} {
		if v.atLeast(join(path, l.name), l.value, time.Second) && l.value%time.Second != 0 {
			v.add(join(path, l.name), fmt.Sprintf("%v is no whole number of seconds, and tokens and headers know no other", l.value), "write one")
		}
	}
	if is.DefaultLifetime > is.MaxLifetime && is.MaxLifetime >= time.Second && !v.bad[join(path, "max_lifetime")] {
		at := join(path, "default_lifetime")
		if !v.given(at) {
			at = join(path, "max_lifetime")
		}
		v.add(at, fmt.Sprintf("default_lifetime %v is above max_lifetime %v", is.DefaultLifetime, is.MaxLifetime), "lower the one or raise the other")
	}
}

func (v *validator) policy(path string, is *Issuer) {
	p, fapi := is.Policy, is.Profile == ProfileFAPI
	for i, a := range p.Signing {
		at := index(join(path, "signing"), i)
		if v.oneOf(at, string(a), signingNames()...) && fapi && !a.AllowedInFAPI() {
			v.notFAPI(at, string(a), fapiSigning())
		}
	}
	noRepeats(v, join(path, "signing"), p.Signing)
	legacy := false
	for i, a := range p.Encryption {
		at := index(join(path, "encryption"), i)
		if v.oneOf(at, string(a), texts(encrypter.KeyAlgorithms())...) && fapi && !a.AllowedInFAPI() {
			v.notFAPI(at, string(a), "another")
		}
		legacy = v.legacy(at, string(a), a.Legacy(), p.Legacy || fapi) || legacy
	}
	noRepeats(v, join(path, "encryption"), p.Encryption)
	for i, e := range p.ContentEncryption {
		at := index(join(path, "content_encryption"), i)
		if v.oneOf(at, string(e), texts(encrypter.ContentEncryptions())...) && fapi && !e.AllowedInFAPI() {
			v.notFAPI(at, string(e), "another")
		}
		legacy = v.legacy(at, string(e), e.Legacy(), p.Legacy || fapi) || legacy
	}
	noRepeats(v, join(path, "content_encryption"), p.ContentEncryption)
	if p.Legacy && !legacy {
		v.add(join(path, "legacy"), "no list of this policy names a legacy algorithm, so that this has no effect", "name RSA1_5 in encryption or A128CBC+HS256 in content_encryption, beside the others that are to be allowed, or remove the line")
	}
	v.rsaBits(path, p)
}

// legacy notes a legacy algorithm where the policy does not say that it means
// it, and reports whether name is one.
func (v *validator) legacy(path, name string, is, allowed bool) bool {
	if is && !allowed {
		v.add(path, quote(name)+" is only kept for old clients", "write legacy: true in this policy if you need it, or remove it")
	}
	return is
}

// rsaBits checks the bounds of clients' RSA keys.
func (v *validator) rsaBits(path string, p Policy) {
	good := true
	for _, bound := range []struct {
		name string
		bits int
	}{{"min_rsa_bits", p.MinRSABits}, {"max_rsa_bits", p.MaxRSABits}} {
		if bound.bits < encrypter.MinRSABits || bound.bits > encrypter.MaxRSABits {
			v.add(join(path, bound.name), fmt.Sprintf("%d bits cannot be", bound.bits), fmt.Sprintf("write %d to %d", encrypter.MinRSABits, encrypter.MaxRSABits))
			good = false
		}
	}
	if good && p.MinRSABits > p.MaxRSABits {
		at := join(path, "min_rsa_bits")
		if !v.given(at) {
			at = join(path, "max_rsa_bits")
		}
		v.add(at, fmt.Sprintf("min_rsa_bits %d is above max_rsa_bits %d", p.MinRSABits, p.MaxRSABits), "lower the one or raise the other")
	}
}

// signingNames are the JWS algorithms a policy may name.
func signingNames() []string {
	return texts(append(kms.Algorithms(), kms.SecretAlgorithms()...))
}

// signing notes a name that is no JWS algorithm of a signing key. For a name
// that has a meaning of its own nothing similar is proposed.
func (v *validator) signing(path string, a kms.Algorithm) bool {
	switch a {
	case "HS256", "HS384", "HS512", "none":
		v.add(path, fmt.Sprintf("%s is not signed with a key pair", quote(string(a))), "use one of: "+strings.Join(texts(kms.Algorithms()), ", "))
		return false
	}
	return v.oneOf(path, string(a), texts(kms.Algorithms())...)
}

func fapiSigning() string {
	var names []string
	for _, a := range kms.Algorithms() {
		if a.AllowedInFAPI() {
			names = append(names, string(a))
		}
	}
	return strings.Join(names, ", ")
}

func (v *validator) notFAPI(path, name, instead string) {
	v.add(path, "the fapi profile does not allow "+quote(name), "use "+instead+", or profile: default")
}

func (v *validator) signingKeys(path string, is *Issuer) {
	keys := join(path, "signing_keys")
	if len(is.SigningKeys) == 0 {
		v.add(keys, "the issuer has no signing key", `add one, such as {algorithm: ES256, keys: ["hsm:object=login-es256"]}`)
		return
	}
	var algorithms []kms.Algorithm
	wrong := false
	for i := range is.SigningKeys {
		k, at := &is.SigningKeys[i], index(keys, i)
		v.locations(at, k)
		alg := join(at, "algorithm")
		if !v.required(alg, string(k.Algorithm), "write the JWS algorithm of the key, such as ES256") ||
			!v.signing(alg, k.Algorithm) {
			wrong = true
			continue
		}
		if slices.Contains(algorithms, k.Algorithm) {
			continue // a key to change to; what is wrong with its algorithm has been said
		}
		algorithms = append(algorithms, k.Algorithm)
		switch {
		case is.Profile == ProfileFAPI && !k.Algorithm.AllowedInFAPI():
			v.notFAPI(alg, string(k.Algorithm), fapiSigning())
		case len(is.Policy.Signing) > 0 && !slices.Contains(is.Policy.Signing, k.Algorithm):
			v.add(alg, "policy.signing does not list this algorithm, so that the key could never sign", "add it there, or remove the key")
		}
	}
	v.defaultAlgorithm(path, is, algorithms, wrong)
}

// defaultAlgorithm checks the issuer's, or chooses it of those that it has keys
// for. wrong says that a key's algorithm is none.
func (v *validator) defaultAlgorithm(path string, is *Issuer, have []kms.Algorithm, wrong bool) {
	at := join(path, "default_signing_algorithm")
	switch a := is.DefaultSigningAlgorithm; {
	case a != "" && !a.Known():
		v.signing(at, a)
	case wrong:
		// Until it is right nothing can be said.
	case a != "" && !slices.Contains(have, a):
		v.add(at, fmt.Sprintf("the issuer has no signing key for %s", quote(string(a))), "add one, or use one of: "+strings.Join(texts(have), ", "))
	case a != "":
	case slices.Contains(have, kms.ES256):
		is.DefaultSigningAlgorithm = kms.ES256
	case len(have) == 1:
		is.DefaultSigningAlgorithm = have[0]
	default:
		v.add(at, "of several keys, none for ES256, one has to be the default", "write one of: "+strings.Join(texts(have), ", "))
	}
}

func (v *validator) locations(path string, k *SigningKey) {
	at := join(path, "keys")
	if len(k.Locations) == 0 {
		v.add(at, "the key has no location", `write at least one, such as ["hsm:object=login-es256"]`)
	}
	noRepeats(v, at, k.Locations)
	k.Keys = make([]KeyRef, len(k.Locations))
	for i, text := range k.Locations {
		ref, problem := parseKeyRef(text, v.c.Backends)
		if problem != nil {
			if !v.bad["backends"] && !v.bad[join("backends", backendPart(text))] {
				v.add(index(at, i), problem.message, problem.advice)
			}
			continue
		}
		k.Keys[i] = ref
	}
}

// backendPart is what stands for the backend in a key location.
func backendPart(text string) string {
	name, _, _ := strings.Cut(text, ":")
	return clean(name)
}

// keysAreBoundOnce notes locations that stand under two algorithms, as a key
// pair is used with one only, and those that stand twice among an issuer's keys
// of one.
func (v *validator) keysAreBoundOnce() {
	type use struct {
		path        string
		issuer, key int
		alg         kms.Algorithm
	}
	first := make(map[KeyRef]use)
	for i, is := range v.c.Issuers {
		for j, k := range is.SigningKeys {
			for l, ref := range k.Keys {
				path := index(join(index(join(index("issuers", i), "signing_keys"), j), "keys"), l)
				if ref == (KeyRef{}) {
					continue
				}
				if v.wraps(ref) {
					v.add(path, "this is the wrapping key", "use a key pair that does nothing but sign tokens")
				}
				switch u, ok := first[ref]; {
				case !ok:
					first[ref] = use{path, i, j, k.Algorithm}
				case u.alg != k.Algorithm:
					v.add(path, fmt.Sprintf("%s uses this key with %s", u.path, quote(string(u.alg))), "use a key pair with one algorithm only; make another for this one")
				case u.issuer == i && u.key != j:
					v.add(path, u.path+" is this key too", "list each key once; a key to change to has a location of its own")
				}
			}
		}
	}
}

// wraps reports whether a key is one that wraps, as far as its location tells.
func (v *validator) wraps(ref KeyRef) bool {
	return slices.ContainsFunc(append([]KeyRef{v.c.Wrapping.Ref()}, v.c.Wrapping.FormerKeys...), func(w KeyRef) bool { return v.same(ref, w) })
}

// same reports whether two locations are of one key, as far as they tell.
func (v *validator) same(a, b KeyRef) bool {
	if a == b {
		return true
	}
	if a.Backend != b.Backend || v.c.Backends[a.Backend].PKCS11 == nil {
		return false
	}
	x, problemX := pkcs11Attributes(a.Ref)
	y, problemY := pkcs11Attributes(b.Ref)
	return problemX == nil && problemY == nil && x["object"] == y["object"] && x["id"] == y["id"]
}

// clockSkew is what the clocks of replicas and verifiers may differ by.
const clockSkew = time.Minute

// rotation checks how an issuer's keys are replaced.
func (v *validator) rotation(path string, is *Issuer) {
	r := is.Rotation
	every, create := join(join(path, "rotation"), "every"), join(join(path, "rotation"), "create")
	// A key is published this long before it signs (see package keyring), and
	// only one change is under way at a time.
	lead := is.JWKSMaxAge + 2*v.c.Store.MaxLag + clockSkew
	switch {
	case r.Every < 0:
		v.add(every, "it is negative", "write 0 for no schedule, or a duration such as 720h")
	case r.Every > 0 && r.Every < 2*lead:
		v.add(every, fmt.Sprintf("with jwks_max_age %v and store.max_lag %v a key is published %v before it signs, and two changes have to fit", is.JWKSMaxAge, v.c.Store.MaxLag, lead),
			fmt.Sprintf("write %v or more", 2*lead))
	}
	if !v.oneOf(create, r.Create, CreateNever, CreateAuto) || r.Create != CreateAuto {
		return
	}
	for i, k := range is.SigningKeys {
		if len(k.Locations) > 1 {
			v.add(index(join(path, "signing_keys"), i), "a key in several places cannot be made by Bulla: its private half leaves no place",
				"write create: never and list each new key with all its places, or leave one place")
		}
	}
}
