package fetch

import (
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Target returns what the host of a URL is counted by, a name that
// this package has accepted: lower case, and in punycode if it is an IDN.
//
//   - A DNS name is counted by its registrable domain, by the Public Suffix
//     List: a.example.com and b.example.com are both example.com, while
//     a.github.io and b.github.io are two, as they have two owners. Where the
//     list knows no suffix, that is the last two labels. A name that is itself
//     a suffix, or has one label, stands for itself.
//   - An IPv4 address stands for itself, and an IPv6 address for its /64, which
//     is what one machine has.
//
// What remains: names of several domains may lead to one address, and who has
// many domains has many targets. That is for whoever counts to bear in mind.
func Target(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "" // refused before; if not, all such are one
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		return targetOf(a.Unmap().WithZone(""))
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return host
	}
	return domain
}

func targetOf(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}
