package fetch

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// MaxURILength is the longest jwks_uri that is accepted, in bytes.
const MaxURILength = 2048

// target is a URL that has been found fit to fetch.
type target struct {
	url  *url.URL
	host string     // lower case, without brackets
	addr netip.Addr // the literal address, if host is one
	port int
	http bool // plain http, to a loopback address only
	// loopback says that this host may be at a loopback address although no
	// range has been opened: development only.
	loopback bool
}

// CheckURI decides from the text of a jwks_uri alone whether it may be
// fetched; it asks no one. An error wraps ErrURI and says what to write
// instead. That CheckURI accepts a URL does not mean that its host exists or
// may be dialed.
//
// Required are the scheme https, a host given as a DNS name in ASCII (or an
// address an operator has opened), an allowed port, no userinfo, no fragment,
// and no character that RFC 3986 does not know.
func (c *Client) CheckURI(uri string) error {
	_, err := c.parse(uri)
	return err
}

func rejected(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrURI, fmt.Errorf(format, args...))
}

// parse is CheckURI, and what a Get needs.
func (c *Client) parse(uri string) (*target, error) {
	switch {
	case uri == "":
		return nil, rejected("it is empty; write https://host/path")
	case len(uri) > MaxURILength:
		return nil, rejected("it has %d bytes; at most %d are allowed", len(uri), MaxURILength)
	}
	for i := range len(uri) {
		if b := uri[i]; !isURIChar(b) {
			return nil, rejected("the byte 0x%02x at position %d may not occur in a URL; percent-encode it in a path, write a host name in punycode (xn--…)", b, i)
		}
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	scheme = strings.ToLower(scheme)
	if !ok || scheme != "https" && scheme != "http" {
		return nil, rejected("it must be an absolute URL that begins with https://")
	}
	if strings.Contains(rest, "#") {
		return nil, rejected("it has a fragment (#…), which is never sent; leave it out")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority = rest[:i]
	}
	if strings.Contains(authority, "@") {
		return nil, rejected("it has a user name or password before the host; key sets are public, leave it out")
	}
	u, err := url.Parse(uri)
	// The parser must see the very host that is judged below.
	if err != nil || u.Host != authority || u.Opaque != "" || u.User != nil {
		return nil, rejected("it is not a URL as RFC 3986 defines it; write https://host/path")
	}
	t := &target{url: u, http: scheme == "http"}
	var port string
	t.host, port, err = splitAuthority(authority)
	if err != nil {
		return nil, err
	}
	if err := c.checkHost(t); err != nil {
		return nil, err
	}
	if t.http && !t.loopback {
		return nil, rejected("the scheme is http; key sets are fetched over https only")
	}
	return t, c.checkPort(t, port)
}

// isURIChar reports whether RFC 3986 lets b occur in a URL.
func isURIChar(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' ||
		strings.IndexByte("-._~:/?#[]@!$&'()*+,;=%", b) >= 0
}

// splitAuthority parts host and port, and returns the host in lower case.
func splitAuthority(authority string) (host, port string, err error) {
	host, port = authority, ""
	if v6, rest, ok := strings.Cut(authority, "]"); ok {
		if !strings.HasPrefix(v6, "[") || rest != "" && rest[0] != ':' {
			return "", "", rejected("its host is not valid; an IPv6 address is written [2001:db8::1]")
		}
		host, port = v6+"]", strings.TrimPrefix(rest, ":")
		if rest == ":" {
			return "", "", rejected("a colon is followed by no port; leave the colon out")
		}
	} else if h, p, ok := strings.Cut(authority, ":"); ok {
		host, port = h, p
		if p == "" {
			return "", "", rejected("a colon is followed by no port; leave the colon out")
		}
	}
	if host == "" {
		return "", "", rejected("it names no host; write https://host/path")
	}
	return strings.ToLower(host), port, nil
}

// checkHost judges t.host and fills in t.addr and t.loopback.
func (c *Client) checkHost(t *target) error {
	if v6, ok := strings.CutPrefix(t.host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		if err != nil || a.Zone() != "" || !a.Is6() {
			return rejected("its host is not an IPv6 address; name the host instead")
		}
		return c.checkLiteral(t, a)
	}
	if strings.HasSuffix(t.host, ".") {
		return rejected("its host ends in a dot; write the name without it")
	}
	if endsInNumber(t.host) {
		// Resolvers and libraries differ in what they make of 127.1,
		// 0x7f000001, 2130706433 or 0177.0.0.1: only one form is an address.
		a, err := netip.ParseAddr(t.host)
		if err != nil || !a.Is4() {
			return rejected("its host looks like an address in an unusual notation; name the host instead")
		}
		return c.checkLiteral(t, a)
	}
	if problem := dnsNameProblem(t.host); problem != "" {
		return rejected("its host is not a DNS name: %s", problem)
	}
	local := t.host == "localhost" || strings.HasSuffix(t.host, ".localhost")
	if local && c.loopback {
		t.loopback = true
		return nil
	}
	if !c.hosts.allow(t.host) {
		return rejected("the host %s is not among those that may be fetched from (fetch.allow_hosts); ask the operator to add it", t.host)
	}
	if c.hosts.named(t.host) {
		return nil
	}
	switch {
	case local:
		return rejected("its host is this machine (localhost); name a host that others can reach")
	case !strings.Contains(t.host, "."):
		return rejected("its host %s has a single label; write the full name, such as %s.example.com", t.host, t.host)
	}
	return nil
}

// checkLiteral judges a host that is an address. There is no name in it that
// a certificate of a public authority could speak for, and no honest reason
// for one but an operator's own network.
func (c *Client) checkLiteral(t *target, a netip.Addr) error {
	t.host, t.addr = a.String(), a
	switch {
	case a.Is4In6():
		return rejected("its host is an IPv4 address in IPv6 form; name the host instead")
	case c.loopback && isLoopback(a):
		t.loopback = true
		return nil
	case c.addrs.open(a):
		return nil
	}
	return rejected("its host is an address; name the host instead (an operator can open a range by fetch.allow_cidrs)")
}

// checkPort judges the port, "" where none is written, and fills in t.port.
func (c *Client) checkPort(t *target, port string) error {
	switch {
	case port != "":
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' || port[0] == '+' {
			return rejected("%q is not a port; ports are 1 to 65535", port)
		}
		t.port = int(n)
	case t.http:
		t.port = 80
	default:
		t.port = 443
	}
	if t.loopback || slices.Contains(c.ports, t.port) {
		return nil
	}
	return rejected("port %d is not among those that may be fetched from (fetch.allow_ports: %s); serve the keys there or ask the operator to add it",
		t.port, strings.Trim(fmt.Sprint(c.ports), "[]"))
}

// endsInNumber reports whether the last label of a host is numeric, so that
// some parser takes the whole for an IPv4 address (WHATWG URL, "ends in a
// number"). No top-level domain is numeric.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" {
		return false
	}
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// dnsNameProblem says what keeps a lower-case name from being a host name of
// DNS (RFC 1123, section 2.1), or "" if it is one.
func dnsNameProblem(name string) string {
	if len(name) > 253 {
		return "it has more than 253 characters"
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "a label is empty"
		case len(label) > 63:
			return "a label has more than 63 characters"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a label begins or ends with a hyphen"
		}
		for i := range len(label) {
			if b := label[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
				return "only letters, digits, hyphens and dots may occur; write other scripts in punycode (xn--…)"
			}
		}
	}
	return ""
}
