package fetch

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestURIsThatAreRefusedByTheirText(t *testing.T) {
	tests := map[string]string{ // URL -> part of the advice
		"":                                 "empty",
		"client.example/jwks":              "begins with https://",
		"//client.example/jwks":            "begins with https://",
		"http://client.example/jwks":       "https only",
		"HTTP://client.example/jwks":       "https only",
		"ftp://client.example/jwks":        "begins with https://",
		"file:///etc/passwd":               "begins with https://",
		"https:client.example":             "begins with https://",
		"https:///jwks":                    "no host",
		"https://":                         "no host",
		"https://?q":                       "no host",
		"https://:443/":                    "no host",
		"https://user@client.example/":     "user name",
		"https://user:pw@client.example/":  "user name",
		"https://@client.example/":         "user name",
		"https://client.example@10.0.0.1/": "user name",
		"https://client.example/#keys":     "fragment",
		"https://client.example#":          "fragment",
		"https://client.example:8443/":     "port 8443",
		"https://client.example:80/":       "port 80",
		"https://client.example:/":         "no port",
		"https://[2606:4700::1]:/":         "no port",
		"https://client.example:0/":        "not a port",
		"https://client.example:0443/":     "not a port",
		"https://client.example:65979/":    "not a port", // 443 modulo 2^16
		"https://client.example:+443/":     "RFC 3986",
		"https://client.example:4a/":       "RFC 3986",
		"https://client.example:443:443/":  "RFC 3986",
		"https://client.example./":         "dot",
		"https://./":                       "dot",
		"https://client..example/":         "label is empty",
		"https://.example/":                "label is empty",
		"https://-a.example/":              "hyphen",
		"https://a_b.example/":             "letters",
		"https://a%2eexample/":             "",
		"https://client.example%00/":       "",
		"https://client.example/%zz":       "RFC 3986",
		"https://client.example\\@x/":      "0x5c",
		"https://client.example/a b":       "0x20",
		"https://client.example/\n":        "0x0a",
		"https://client.example/\x00":      "0x00",
		"https://client.example/\x7f":      "0x7f",
		" https://client.example/":         "0x20",
		"https://clïent.example/":          "punycode",
		"https://client。example/":          "punycode",
		"https://localhost/":               "localhost",
		"https://LocalHost/":               "localhost",
		"https://a.localhost/":             "localhost",
		"https://intranet/":                "single label",
		"https://127.0.0.1/":               "address",
		"https://8.8.8.8/":                 "address",
		"https://10.0.0.1/":                "address",
		"https://127.1/":                   "unusual",
		"https://2130706433/":              "unusual",
		"https://0x7f000001/":              "unusual",
		"https://0x7f.0.0.0x1/":            "unusual",
		"https://0177.0.0.1/":              "unusual",
		"https://127.0.0.01/":              "unusual",
		"https://1.2.3.4.5/":               "unusual",
		"https://a.1/":                     "unusual",
		"https://a.0x/":                    "unusual",
		"https://127.0.0.1./":              "dot",
		"https://[::1]/":                   "address",
		"https://[::ffff:127.0.0.1]/":      "IPv4 address in IPv6 form",
		"https://[::ffff:7f00:1]/":         "IPv4 address in IPv6 form",
		"https://[64:ff9b::7f00:1]/":       "address",
		"https://[fe80::1%25eth0]/":        "",
		"https://[127.0.0.1]/":             "",
		"https://[::1/":                    "",
		"https://[::1]x/":                  "",
		"https://::1/":                     "",
		"https://[]/":                      "",
		"https://[client.example]/":        "",
		"https://client.example/" + strings.Repeat("a", MaxURILength): "at most 2048",
		"https://" + strings.Repeat("a", 64) + ".example/":            "63",
		"https://" + strings.Repeat("a.", 127) + "example/":           "253",
	}
	c := newClient(t, Config{})
	for uri, want := range tests {
		t.Run(uri[:min(len(uri), 60)], func(t *testing.T) {
			err := c.CheckURI(uri)
			if !errors.Is(err, ErrURI) || errors.Is(err, ErrFetch) {
				t.Fatalf("got %v, want ErrURI", err)
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want advice with %q", err, want)
			}
			if _, gerr := c.Get(t.Context(), Request{URI: uri}); gerr == nil || gerr.Error() != err.Error() {
				t.Errorf("Get answers %v, want what CheckURI says", gerr)
			}
		})
	}
}

func TestURIsThatAreAccepted(t *testing.T) {
	for _, uri := range []string{
		"https://client.example/jwks.json",
		"https://client.example",
		"https://client.example:443/",
		"https://client.example?tenant=a&b=@c",
		"https://client.example/a:b/@x/%20/~u?q=/?",
		"https://Client.Example/",
		"HTTPS://client.example/",
		"https://xn--clent-fza.example/",
		"https://1a.2b/",
		"https://3com.example/",
		"https://0xcafe.example/",
		"https://client.example//..//x",
		"https://" + strings.Repeat("a", 63) + ".example/",
	} {
		if err := newClient(t, Config{}).CheckURI(uri); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestOperatorsListsDecideTheRest(t *testing.T) {
	c := newClient(t, Config{
		AllowHosts: []string{"a.example", "*.Clients.Example", "jwks", "localhost"},
		AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8")},
		AllowPorts: []int{8443},
	})
	for uri, ok := range map[string]bool{
		"https://a.example:8443/":            true,
		"https://x.clients.example:8443/":    true,
		"https://x.y.clients.example:8443/":  true,
		"https://X.CLIENTS.example:8443/":    true,
		"https://jwks:8443/":                 true,
		"https://localhost:8443/":            true,
		"https://10.1.2.3:8443/":             true,
		"https://[fd00::1]:8443/":            true,
		"https://a.example/":                 false,
		"https://clients.example:8443/":      false,
		"https://xclients.example:8443/":     false,
		"https://b.example:8443/":            false,
		"https://x.localhost:8443/":          false,
		"https://10.2.0.1:8443/":             false,
		"https://[fe80::1]:8443/":            false,
		"https://[::ffff:10.1.2.3]:8443/":    false,
		"https://[64:ff9b::10.1.2.3]:8443/":  false,
		"http://a.example:8443/":             false,
		"https://a.example:8443@b.example/":  false,
		"https://a.example:8443.b.example/":  false,
		"https://x.clients.example.b:8443/":  false,
		"https://a.example:8443:8443/":       false,
		"https://a.example.clients.org:8443": false,
	} {
		if err := c.CheckURI(uri); (err == nil) != ok {
			t.Errorf("%s: got %v, want accepted %t", uri, err, ok)
		}
	}
}

func FuzzCheckURI(f *testing.F) {
	for _, s := range []string{
		"https://client.example/jwks", "https://user@client.example/", "https://[::ffff:127.0.0.1]/", "https://0x7f.1/",
		"https://client.example:443", "https://a\\@b.example/", "https://a.example%2f@b/", "https://[fe80::1%25a]/", "https://1.2.3.4:443?x#y",
	} {
		f.Add(s)
	}
	c := newClient(f, Config{})
	f.Fuzz(func(t *testing.T, uri string) {
		err := c.CheckURI(uri)
		if err != nil {
			if !errors.Is(err, ErrURI) {
				t.Fatalf("got %v, want ErrURI", err)
			}
			return
		}
		// What passes is the same host and port to everyone who reads it.
		req, err := http.NewRequest(http.MethodGet, uri, nil)
		if err != nil {
			t.Fatalf("accepted %q, which net/http refuses: %v", uri, err)
		}
		again, err := url.Parse(req.URL.String())
		if err != nil || again.Host != req.URL.Host {
			t.Fatalf("%q reads differently the second time: %v, %v", uri, again, err)
		}
		host := strings.ToLower(req.URL.Hostname())
		if req.URL.Scheme != "https" || req.URL.User != nil || (req.URL.Port() != "" && req.URL.Port() != "443") {
			t.Errorf("accepted %q", uri)
		}
		if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") || strings.HasSuffix(host, "localhost") {
			t.Errorf("accepted the host of %q", uri)
		}
		if tt, err := c.parse(uri); err != nil || tt.host != host || tt.port != 443 {
			t.Errorf("%q: judged %+v, net/http reads %s", uri, tt, host)
		}
	})
}
