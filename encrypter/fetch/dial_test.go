package fetch

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// listen returns the address of a listener that nobody accepts from.
func listen(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func TestAddressesThatAreNotPublicAreNeverDialed(t *testing.T) {
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
		"168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1",
		"192.168.255.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
		"240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::10.0.0.1", "::8.8.8.8", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:0:10.0.0.1",
		"64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1", "100::1", "100:0:0:1::1",
		"2001::1", "2001:0:4136:e378::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:a00:1::1", "2002:808:808::1",
		"3fff::1", "3fff:fff::1", "4000::1", "5f00::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
		"2606:4700::1111%eth0",
	} {
		t.Run(a, func(t *testing.T) {
			addr := netip.MustParseAddr(a)
			c := newClient(t, Config{
				Timeout:  time.Second,
				Resolver: &fakeResolver{answers: map[string][][]netip.Addr{testHost + ".": {{netip.MustParseAddr("9.9.9.9"), addr}}}},
			})
			_, err := c.Get(t.Context(), Request{URI: "https://" + testHost + "/"})
			wantFailure(t, err, ClassBlockedAddress)
			// The dialer's own check would have refused it too.
			tt := &target{host: testHost}
			if to := netip.AddrPortFrom(addr, 443); c.checkDialed(tt, to, to.String()) == nil {
				t.Error("the check at connect time lets it pass")
			}
		})
	}
}

func TestPublicAddressesMayBeDialed(t *testing.T) {
	c := newClient(t, Config{})
	for _, a := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "172.15.255.255",
		"172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "::ffff:8.8.8.8",
		"2606:4700::1111", "2001:200::1", "2001:4860:4860::8888", "2a00:1450::1", "3ffe::1",
	} {
		if addr := netip.MustParseAddr(a).Unmap(); !c.mayDial(&target{}, addr) {
			t.Errorf("%s is refused", a)
		}
	}
}

func TestOpenedRangeOpensExactlyItself(t *testing.T) {
	c := newClient(t, Config{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}})
	for a, want := range map[string]bool{
		"10.1.0.1": true, "10.1.255.255": true, "fd00:1::5": true,
		"10.0.255.255": false, "10.2.0.0": false, "fd00:2::": false, "127.0.0.1": false,
		"64:ff9b::a01:1": false, "2002:a01:1::": false, "::a01:1": false, "fd00:1::5%lo": false,
	} {
		if got := c.mayDial(&target{}, netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: got %t, want %t", a, got, want)
		}
	}
}

func TestMappedFormOfAnOpenedAddressIsDialedAsIPv4(t *testing.T) {
	s := start(t, serve(200, nil, document))
	s.resolver.answers[testHost+"."] = [][]netip.Addr{addrs("::ffff:127.0.0.1")}
	if _, err := s.get(t, s.config(), Request{}); err != nil {
		t.Error(err)
	}
}

// The DNS answer changes between the check and the connection: the second
// answer must never be asked for.
func TestRebindingDoesNotMoveTheConnection(t *testing.T) {
	ca := newCA(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(time.Hour), testHost)}}
	good := startWith(t, ca, "127.0.0.1:0", cfg, serve(200, nil, document))
	bad := startWith(t, ca, fmt.Sprintf("127.0.0.2:%d", good.addr.Port()), cfg, serve(200, nil, `{"keys":"stolen"}`))
	good.resolver.answers[testHost+"."] = [][]netip.Addr{addrs("127.0.0.1"), addrs("127.0.0.2")}

	c := newClient(t, good.config())
	got, err := c.Get(t.Context(), Request{URI: good.uri()})
	if err != nil || string(got.Document) != document {
		t.Fatalf("got %v, %v", got, err)
	}
	if n := len(good.resolver.asked); n != 1 {
		t.Errorf("the name was looked up %d times, want 1", n)
	}
	// The next fetch sees the new answer, which is not opened.
	_, err = c.Get(t.Context(), Request{URI: good.uri()})
	wantFailure(t, err, ClassBlockedAddress)
	if len(bad.hits) != 0 {
		t.Error("the second address was reached")
	}
	// Were another address to reach the socket all the same, it is refused.
	want := netip.MustParseAddrPort("1.1.1.1:443")
	for _, address := range []string{"1.1.1.2:443", "1.1.1.1:80", "10.0.0.1:443", "nonsense"} {
		if c.checkDialed(&target{}, want, address) == nil {
			t.Errorf("dialing %s instead of %s is not refused", address, want)
		}
	}
}

func TestNextAddressIsTriedWhenOneDoesNotAnswer(t *testing.T) {
	s := start(t, serve(200, nil, document))
	cfg := s.config()
	cfg.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	// Nothing listens at 127.9.9.9, which is refused at once.
	s.resolver.answers[testHost+"."] = [][]netip.Addr{addrs("127.9.9.9", "127.0.0.1")}
	if _, err := s.get(t, cfg, Request{}); err != nil {
		t.Error(err)
	}
	s.resolver.answers[testHost+"."] = [][]netip.Addr{addrs("127.9.9.9", "127.9.9.8")}
	_, err := s.get(t, cfg, Request{})
	wantFailure(t, err, ClassConnect)
}

func TestNameThatDoesNotResolve(t *testing.T) {
	r := &fakeResolver{answers: map[string][][]netip.Addr{"empty.example.": {{}}}}
	c := newClient(t, Config{Resolver: r, AllowHosts: []string{"*.example", "jwks", "a.internal"}})
	for host, asked := range map[string]string{
		"none.example":  "none.example.",
		"empty.example": "empty.example.",
		// The search list of resolv.conf serves names the operator listed only.
		"jwks":       "jwks",
		"a.internal": "a.internal",
	} {
		r.asked = nil
		_, err := c.Get(t.Context(), Request{URI: "https://" + host + "/"})
		wantFailure(t, err, ClassDNS)
		if len(r.asked) != 1 || r.asked[0] != asked {
			t.Errorf("%s: asked for %q, want %q", host, r.asked, asked)
		}
	}
}

func TestBlockedAddressReadsLikeAnyOtherFailure(t *testing.T) {
	c := newClient(t, Config{Resolver: &fakeResolver{answers: map[string][][]netip.Addr{testHost + ".": {addrs("10.0.0.1")}}}})
	_, blocked := c.Get(t.Context(), Request{URI: "https://" + testHost + "/"})
	_, unknown := c.Get(t.Context(), Request{URI: "https://no.example/"})
	for _, err := range []error{blocked, unknown} {
		if !errors.Is(err, ErrFetch) || errors.Is(err, ErrURI) {
			t.Errorf("got %v, want ErrFetch and not ErrURI", err)
		}
	}
}

func TestDevelopmentAllowsLoopbackAndNothingElse(t *testing.T) {
	plain := startWith(t, nil, "127.0.0.1:0", nil, serve(200, nil, document))
	r := &fakeResolver{answers: map[string][][]netip.Addr{
		"localhost":      {addrs("127.0.0.1")},
		testHost + ".":   {addrs("127.0.0.1")},
		"a.localhost.":   {addrs("10.0.0.1")},
		"pub.localhost.": {addrs("9.9.9.9")},
	}}
	c := newClient(t, Config{AllowLoopbackHTTP: true, Resolver: r})
	port := plain.addr.Port()
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if _, err := c.Get(t.Context(), Request{URI: fmt.Sprintf("http://%s:%d/", host, port)}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	// A name from outside that points here is no less an attack.
	_, err := c.Get(t.Context(), Request{URI: "https://" + testHost + "/"})
	wantFailure(t, err, ClassBlockedAddress)
	// And localhost that points elsewhere is not localhost.
	for _, host := range []string{"a.localhost", "pub.localhost"} {
		_, err = c.Get(t.Context(), Request{URI: "http://" + host + "/"})
		wantFailure(t, err, ClassBlockedAddress)
	}
	for _, uri := range []string{"http://" + testHost + "/", "http://10.0.0.1/", fmt.Sprintf("https://%s:%d/", testHost, port)} {
		if err := c.CheckURI(uri); !errors.Is(err, ErrURI) {
			t.Errorf("CheckURI(%s): got %v, want ErrURI", uri, err)
		}
	}
}

func TestDefaultResolverKnowsTheHostsFile(t *testing.T) {
	s := startWith(t, nil, "127.0.0.1:0", nil, serve(200, nil, document))
	c := newClient(t, Config{AllowLoopbackHTTP: true})
	// Where localhost is ::1 first, nobody listens there, and 127.0.0.1 is next.
	if _, err := c.Get(t.Context(), Request{URI: fmt.Sprintf("http://localhost:%d/", s.addr.Port())}); err != nil {
		t.Error(err)
	}
}

func TestRedirectTargetIsNotContacted(t *testing.T) {
	inner := startWith(t, nil, "127.0.0.1:0", nil, serve(200, nil, document))
	s := start(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+inner.addr.String()+"/", http.StatusFound)
	})
	cfg := s.config()
	cfg.AllowLoopbackHTTP = true
	_, err := s.get(t, cfg, Request{})
	wantFailure(t, err, ClassRedirect)
	if len(inner.hits) != 0 {
		t.Error("the redirect was followed")
	}
	if strings.Contains(err.Error(), inner.addr.String()) {
		t.Errorf("the failure repeats where the redirect leads: %v", err)
	}
}
