package fetch

import (
	"fmt"
	"net/netip"
	"slices"
)

// notPublic4 lists the IPv4 ranges that are never dialed unless opened: those
// of the IANA IPv4 Special-Purpose Address Registry (RFC 6890) that are not
// globally reachable, the multicast and reserved blocks, and one public
// address that clouds use for their own.
var notPublic4 = prefixes(
	"0.0.0.0/8",        // this network (RFC 791)
	"10.0.0.0/8",       // private (RFC 1918)
	"100.64.0.0/10",    // carrier-grade NAT (RFC 6598)
	"127.0.0.0/8",      // loopback (RFC 1122)
	"168.63.129.16/32", // the Azure platform's address inside every virtual network
	"169.254.0.0/16",   // link-local (RFC 3927), cloud metadata services
	"172.16.0.0/12",    // private (RFC 1918)
	"192.0.0.0/24",     // IETF protocol assignments (RFC 6890)
	"192.0.2.0/24",     // documentation (RFC 5737)
	"192.88.99.0/24",   // 6to4 relay anycast, deprecated (RFC 7526)
	"192.168.0.0/16",   // private (RFC 1918)
	"198.18.0.0/15",    // benchmarking (RFC 2544)
	"198.51.100.0/24",  // documentation (RFC 5737)
	"203.0.113.0/24",   // documentation (RFC 5737)
	"224.0.0.0/4",      // multicast (RFC 5771)
	"240.0.0.0/4",      // reserved (RFC 1112), and limited broadcast
)

// public6 is the only block that IANA hands out for global unicast (RFC
// 4291, section 2.4). Whatever lies outside is refused without being listed:
// the unspecified and loopback addresses, IPv4-mapped and IPv4-compatible
// ones, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard-only (100::/64), SRv6
// SIDs, unique local, link-local, site-local, multicast.
var public6 = netip.MustParsePrefix("2000::/3")

// notPublic6 lists what public6 contains and is not public all the same.
var notPublic6 = prefixes(
	"2001::/23",     // IETF protocol assignments (RFC 2928): Teredo, benchmarking, ORCHID
	"2001:db8::/32", // documentation (RFC 3849)
	"2002::/16",     // 6to4 (RFC 3056): carries an IPv4 address of anyone's choice
	"3fff::/20",     // documentation (RFC 9637)
)

var loopbacks = prefixes("127.0.0.0/8", "::1/128")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// addressRules says which addresses may be dialed.
type addressRules struct {
	opened []netip.Prefix
}

func newAddressRules(open []netip.Prefix) (addressRules, error) {
	for _, p := range open {
		switch {
		case !p.IsValid():
			return addressRules{}, fmt.Errorf("fetch: allow_cidrs: a prefix is not valid; write it as 10.1.0.0/16 or fd00:1::/32")
		case p.Addr().Is4In6():
			return addressRules{}, fmt.Errorf("fetch: allow_cidrs: %s is an IPv4 range in IPv6 form; write it as 10.1.0.0/16", p)
		case p != p.Masked():
			return addressRules{}, fmt.Errorf("fetch: allow_cidrs: %s has bits set beyond its length; write %s", p, p.Masked())
		}
	}
	return addressRules{opened: slices.Clone(open)}, nil
}

// open reports whether the operator has opened a range that holds a. An
// address is compared in the form it has, so that opening 10.0.0.0/8 opens
// none of its disguises in IPv6.
func (r addressRules) open(a netip.Addr) bool { return contains(r.opened, a) }

// allow reports whether a may be dialed. IPv4-mapped addresses must have been
// unmapped: they are not public in the form they have here.
func (r addressRules) allow(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	if r.open(a) {
		return true
	}
	if a.Is4() {
		return !contains(notPublic4, a)
	}
	return public6.Contains(a) && !contains(notPublic6, a)
}

func isLoopback(a netip.Addr) bool { return contains(loopbacks, a) }

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}
