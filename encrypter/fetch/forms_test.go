package fetch

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// disguises are ways to write addresses that are not public, in a URL's host.
func disguises() []string {
	return []string{
		// 127.0.0.1 as inet_aton of some system reads it
		"2130706433", "017700000001", "0x7f000001", "0X7F000001", "127.1", "127.0.1", "0177.0.0.1", "0177.0.0.01", "0x7f.0x0.0x0.0x1",
		"0x7f.1", "127.0.0.0x1", "127.000.000.001", "00000000177.1", "4294967296", "127.0.0.1.", "127.0.0.1..", "127.0.0.256", "1.127.0.0.1", "0", "0x0", "0.0",
		// and as IPv6
		"[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:1]", "[::FFFF:7F00:0001]", "[::7f00:1]",
		"[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::127.0.0.1]", "[64:ff9b:1:abcd::7f00:1]",
		"[2002:7f00:1::]", "[2002:7f00:1::1]", "[2001:0:7f00:1::]", "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[fe80::5efe:7f00:1]",
		"[::]", "[0:0:0:0:0:0:0:0]", "[0:0:0:0:0:0:0:1]", "[::1]", "[::01]",
		// zones and percent signs
		"[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%25lo]", "[::1%2525]", "127.0.0.1%25", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "127.0.0.1%00.example", "127.0.0.1%2f.example", "%5b::1%5d", "localhost%2eexample%00",
		// the metadata services of clouds
		"169.254.169.254", "2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518", "169.16689662", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]",
		"[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[fd00:ec2::254]", "100.100.100.200", "192.0.0.192", "168.63.129.16",
		// digits and dots of other scripts
		"①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1", "127．0．0．1", "localhost\u00ad", "ｌocalhost", "ⓛocalhost", "locaⅼhost",
		// userinfo, ports and backslashes
		"client.example@127.0.0.1", "client.example:443@127.0.0.1", "127.0.0.1@client.example", "@127.0.0.1", "a:b@", "client.example:@127.0.0.1:443",
		"127.0.0.1:443@client.example:443", "client.example\\@127.0.0.1", "client.example;@127.0.0.1", "client.example%40127.0.0.1", "client.example:80", "client.example:22", "client.example:443:22", "client.example:0x1bb",
		"client.example:443\\@127.0.0.1", "client.example:443@@127.0.0.1", "127.0.0.1:", "client.example:-443", "client.example: 443", "client.example:４４３", "client.example:0443", "client.example:65979",
		// names of this machine and its network
		"localhost", "LOCALHOST", "localhost.", "LocalHost.", "a.localhost", "a.b.localhost.", "intranet", "intranet.", "kubernetes",
		// and other shapes
		"client.example.", "client..example", ".client.example", "-client.example", "client_1.example", "[client.example]", "[]", "[", "]", "[::1]client.example", "[::1", "::1", "*.example", "a,b.example", "a$b.example",
		"client.example\t", "client.example\r\nHost:127.0.0.1", "client.example\x00", " client.example", "client.example\u2028", "client\u202e.example", "cl\u0456ent.example", "clïent.example", "xn--cl\u00efent.example",
	}
}

// Whatever an address is written like, a URL is refused by its text; and where
// an operator has opened the address, only by its one plain form.
func TestDisguisedHostsAreRefusedByTheirText(t *testing.T) {
	closed := newClient(t, Config{})
	opened := newClient(t, Config{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
	plain := map[string]bool{ // what is plain in the list, and is for those who open it
		"169.254.169.254": true, "100.100.100.200": true, "192.0.0.192": true, "168.63.129.16": true,
	}
	for _, host := range disguises() {
		for _, rest := range []string{"", "/", "/jwks?x=@y", "?q"} {
			uri := "https://" + host + rest
			if err := closed.CheckURI(uri); !errors.Is(err, ErrURI) {
				t.Errorf("%q: got %v, want ErrURI", uri, err)
			}
			target, err := opened.parse(uri)
			switch {
			case err != nil && !errors.Is(err, ErrURI):
				t.Errorf("%q, all opened: got %v, want ErrURI", uri, err)
			case err != nil || plain[host]:
			case !strings.HasPrefix(host, "[") || target.addr.Is4() || target.addr.Is4In6() || target.addr.Zone() != "":
				t.Errorf("%q, all opened: read as %v", uri, target.addr)
			}
		}
	}
}

func TestSchemesBesideHTTPSAreRefused(t *testing.T) {
	c := newClient(t, Config{})
	for _, uri := range []string{
		"http://client.example/", "HTTP://client.example/", "hTTp://client.example/", "ws://client.example/", "wss://client.example/", "ftp://client.example/", "ftps://client.example/",
		"file:///etc/passwd", "file://client.example/etc/passwd", "gopher://client.example/", "dict://client.example:443/", "ldap://client.example/", "data:application/json,{}", "jar:https://client.example/!/",
		"unix:///run/docker.sock", "http+unix://%2frun%2fdocker.sock/", "https+unix://client.example/", "netdoc:///etc/passwd", "view-source:https://client.example/", "javascript:0",
		"https:/client.example/", "https:///client.example/", "https:\\\\client.example/", "https//client.example/", "://client.example/", "https ://client.example/", "\thttps://client.example/", "url:https://client.example/",
		"https://https://client.example/", "httpſ://client.example/",
	} {
		if err := c.CheckURI(uri); !errors.Is(err, ErrURI) {
			t.Errorf("%q: got %v, want ErrURI", uri, err)
		}
	}
}

// A name in capitals is the same host to all who look at it.
func TestHostIsReadInLowerCase(t *testing.T) {
	c := newClient(t, Config{})
	for uri, want := range map[string]string{
		"https://Client.EXAMPLE/":        "client.example",
		"https://XN--CLENT-FZA.example/": "xn--clent-fza.example",
		"HTTPS://CLIENT.EXAMPLE:443":     "client.example",
	} {
		if target, err := c.parse(uri); err != nil || target.host != want {
			t.Errorf("%s: got %+v, %v; want the host %s", uri, target, err, want)
		}
	}
}
