package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a DNS server on UDP. Each time a name is asked for, it gives the
// next of that name's answers, and says that it holds for no time at all.
type nameServer struct {
	conn net.PacketConn

	mu      sync.Mutex
	answers map[string][]netip.Addr // by name, with the dot; guarded by mu
	aliases map[string]string       // CNAMEs; guarded by mu
	asked   []string                // guarded by mu
}

func startDNS(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, answers: make(map[string][]netip.Addr), aliases: make(map[string]string)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, err := s.reply(buf[:n]); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return s
}

// resolver is Go's own, asking this server.
func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
}

func (s *nameServer) reply(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, errors.Join(err, errors.New("no question"))
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	name := q.Name.String()
	if to := s.alias(name); to != "" {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
			Body:   &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)},
		})
		name = to
	}
	head := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: q.Class}
	if a := s.next(name, q.Type); a.IsValid() {
		if a.Is4() {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
		} else {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return m.Pack()
}

func (s *nameServer) alias(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aliases[name]
}

// next is the next answer of a name, if it is of the type that is asked for.
func (s *nameServer) next(name string, kind dnsmessage.Type) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.answers[name]
	if len(list) == 0 || list[0].Is4() != (kind == dnsmessage.TypeA) {
		return netip.Addr{}
	}
	s.asked = append(s.asked, name)
	if len(list) > 1 {
		s.answers[name] = list[1:]
	}
	return list[0]
}

func (s *nameServer) serve(name string, list ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name], s.asked = addrs(list...), nil
}

func (s *nameServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// The name server of an attacker gives another answer each time it is asked:
// what is dialed is what was judged, and it is asked once.
func TestNameServerThatChangesItsMind(t *testing.T) {
	ca, ns := newCA(t), startDNS(t)
	cert := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(time.Hour), testHost)}}
	good := startWith(t, ca, "127.0.0.1:0", cert, serve(200, nil, document))
	inside := startWith(t, ca, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), good.addr.Port()).String(), cert, serve(200, nil, `{"keys":"stolen"}`))
	cfg := good.config()
	cfg.Resolver = ns.resolver()
	c := newClient(t, cfg)
	for range 5 {
		ns.serve(testHost+".", "127.0.0.1", "127.0.0.2")
		got, err := c.Get(t.Context(), Request{URI: good.uri()})
		if err != nil || string(got.Document) != document {
			t.Fatalf("got %v, %v", got, err)
		}
		if n := ns.count(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		_, err = c.Get(t.Context(), Request{URI: good.uri()})
		wantFailure(t, err, ClassBlockedAddress)
	}
	if len(inside.hits) != 0 {
		t.Error("the address that was not judged was reached")
	}
}

func TestNamesThatLeadInsideAreNotDialed(t *testing.T) {
	ns := startDNS(t)
	c := newClient(t, Config{Resolver: ns.resolver()})
	for _, a := range []string{
		"0.0.0.0", "10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.100.100.200", "::", "::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
		"64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:a00:1::1", "2001:0:a00:1::1", "fd00:ec2::254", "fe80::1",
	} {
		ns.serve("inside.example.", a)
		_, err := c.Get(t.Context(), Request{URI: "https://inside.example/"})
		wantFailure(t, err, ClassBlockedAddress)
		if !strings.Contains(err.Error(), netip.MustParseAddr(a).Unmap().String()) {
			t.Errorf("the log reads %q, want the address %s in it", err, a)
		}
	}
	// Nor by way of another name, which is none that a URL may have.
	ns.serve("metadata.", "169.254.169.254")
	ns.mu.Lock()
	ns.aliases["alias.example."] = "metadata."
	ns.mu.Unlock()
	_, err := c.Get(t.Context(), Request{URI: "https://alias.example/"})
	wantFailure(t, err, ClassBlockedAddress)

	_, err = c.Get(t.Context(), Request{URI: "https://nothing.example/"})
	wantFailure(t, err, ClassDNS)
}
