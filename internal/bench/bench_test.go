//go:build linux && cgo

package main

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"encoding/hex"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/encrypter"
)

// The contestants take turns in alternating order, the callers share the work,
// and each operation is done once.
func TestContestantsTakeTurns(t *testing.T) {
	var order strings.Builder
	one := func(name string) *contestant {
		return &contestant{name: name, caller: always(func() error {
			if !strings.HasSuffix(order.String(), name) {
				order.WriteString(name)
			}
			time.Sleep(100 * time.Microsecond)
			return nil
		})}
	}
	a, b := one("a"), one("b")
	if err := interleave(4, 5*time.Millisecond, a, b); err != nil {
		t.Fatal(err)
	}
	// Calibration first; where rounds meet, the last of one is the first of
	// the next.
	if got, want := order.String(), "abababa"; got != want {
		t.Errorf("turns %q, want %q", got, want)
	}
	if len(a.spells) != 4 || len(b.ratios(a)) != 4 {
		t.Errorf("%d spells and %d ratios, want 4", len(a.spells), len(b.ratios(a)))
	}
	for _, s := range a.spells {
		if len(s.latencies) != a.ops || s.latencies[0] < 100*time.Microsecond {
			t.Errorf("%d latencies from %v on, want %d of at least 100 µs", len(s.latencies), s.latencies[0], a.ops)
		}
	}
}

func TestRatioIsTakenWithinARound(t *testing.T) {
	took := func(ms ...int) *contestant {
		c := new(contestant)
		for _, m := range ms {
			c.spells = append(c.spells, spell{cpu: time.Duration(m) * time.Millisecond})
		}
		return c
	}
	// The machine was three times slower in the second round.
	row := newRow("x", 1.5, took(4, 12, 4), took(1, 3, 2), took(1, 3, 2))
	if row.Ratio != 2 || row.Low != 1 || row.High != 2 || row.OK {
		t.Errorf("got %+v, want a ratio of 2 between 1 and 2, over", row)
	}
	if row.Ours != 4000 || row.Floor != 4000 {
		t.Errorf("medians %v and %v µs, want 4000 and 4000", row.Ours, row.Floor)
	}
}

// The key wrap of the floor is that of RFC 3394, section 4.6.
func TestFloorWrapsKeys(t *testing.T) {
	kek, _ := hex.DecodeString("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	key, _ := hex.DecodeString("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	const want = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
	if got := hex.EncodeToString(keyWrap(nil, block, key)); got != want {
		t.Errorf("wrapped key %s, want %s", got, want)
	}
}

func TestEveryCombinationHasAFloor(t *testing.T) {
	jws := signedToken(943)
	keys := make(map[string]crypto.PublicKey)
	pairs := make(map[string]bool)
	for _, c := range everyJWE() {
		if c.size == "3072" {
			continue // as 2048, and slow to make
		}
		key, err := c.key(keys)
		if err != nil {
			t.Fatal(err)
		}
		floor, err := jweFloor(c.alg, c.enc, key, jws)
		if err == nil {
			err = floor()
		}
		if err != nil {
			t.Errorf("%s: %v", c, err)
		}
		theirs, err := joseJWE(c, key, jws)
		if err == nil && theirs != nil {
			err = theirs()
		}
		if err != nil {
			t.Errorf("%s: go-jose: %v", c, err)
		}
	}
	for _, c := range everyJWE("2048", "P-256", secret) {
		pairs[string(c.alg)+" "+string(c.enc)] = true
	}
	// Every alg with the six enc of RFC 7518; the legacy one with two.
	if want := len(encrypter.KeyAlgorithms())*6 + 2; len(pairs) != want {
		t.Errorf("%d pairs of alg and enc are measured, want %d", len(pairs), want)
	}
	if _, err := jweFloor("dir", encrypter.A256GCM, nil, jws); err == nil {
		t.Error("no key has a floor")
	}
	if _, err := jweFloor("PBES2-HS256+A128KW", encrypter.A256GCM, encrypter.SecretKey(make([]byte, 16)), jws); err == nil {
		t.Error("an unknown algorithm has a floor")
	}
	if n := len(request("ES256").GetClaims()); n != claimsSize {
		t.Errorf("the claims have %d bytes, want %d", n, claimsSize)
	}
}

// Not every row of a table has a peer.
func TestPeersAreShownWhereThereAreAny(t *testing.T) {
	r := newReport(7)
	r.section("One")
	r.add(Row{Name: "alone", Ours: 1, Floor: 1, Ratio: 1, Low: 1, High: 1, Goal: 1.1, OK: true})
	r.add(Row{Name: "raced", Ours: 1, Floor: 1, Ratio: 1, Low: 1, High: 1, Goal: 1.1, OK: true, Peer: "them", PeerMicros: 3, PeerRatio: 3})
	r.add(Row{Name: "beaten", Ours: 4, Floor: 4, Ratio: 1, Low: 1, High: 1, Goal: 1.1, OK: true, Peer: "them", PeerMicros: 3, PeerRatio: 0.75, Slower: true})
	var out bytes.Buffer
	if err := r.writeText(&out); err != nil {
		t.Fatal(err)
	}
	_, tables, _ := strings.Cut(out.String(), "\n")
	const want = `
One

          ours µs  floor µs  ratio   (low–high)  goal      them µs  ratio
  alone      1.00      1.00   1.00  (1.00–1.00)  1.10  ok
  raced      1.00      1.00   1.00  (1.00–1.00)  1.10  ok     3.00   3.00
  beaten     4.00      4.00   1.00  (1.00–1.00)  1.10  ok     3.00   0.75  faster than ours
`
	if tables != want {
		t.Errorf("got\n%s\nwant\n%s", tables, want)
	}
}

func TestTablesAreAligned(t *testing.T) {
	r := newReport(7)
	r.section("One")
	r.add(Row{Name: "a", Ours: 1.25, Floor: 1, Ratio: 1.25, Low: 1.2, High: 1.3, Goal: 1.1, Allocs: &Allocs{Ours: 40, Floor: 9, Goal: 30}})
	r.add(Row{Name: "longer", Ours: 1234, Floor: 1200, Ratio: 1.03, Low: 1, High: 1.1, Goal: 1.1, OK: true, Allocs: &Allocs{Ours: 10, Floor: 9, Goal: 30}})
	r.section("Two")
	r.addLatency(LatencyRow{Name: "x", InFlight: 32, P50: 1, P99: 26, PerSecond: 1000, Micros: 300, Goal: 25})
	var out bytes.Buffer
	if err := r.writeText(&out); err != nil {
		t.Fatal(err)
	}
	_, tables, _ := strings.Cut(out.String(), "\n")
	const want = `
One

          ours µs  floor µs  ratio   (low–high)  goal        allocs  floor's  beyond  goal
  a          1.25      1.00   1.25  (1.20–1.30)  1.10  over      40        9      31    30  over
  longer     1234      1200   1.03  (1.00–1.10)  1.10    ok      10        9       1    30    ok

Two

     in flight  p50 ms  p99 ms  goal        tokens/s  CPU µs
  x         32    1.00   26.00  25.0  over      1000     300
`
	if tables != want {
		t.Errorf("got\n%s\nwant\n%s", tables, want)
	}
	if err := r.writeJSON(&out); err != nil {
		t.Fatal(err)
	}
}

// TestTheToolRuns runs the whole of it, the service and its HSM included: the
// parts above say nothing of whether they still fit together.
func TestTheToolRuns(t *testing.T) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", "run", ".", "-quick", "-json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	var report Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	var titles []string
	for _, s := range report.Sections {
		titles = append(titles, s.Title)
	}
	for _, want := range []string{"JWE: every alg with every enc", "X25519", "PKCS#11", "Service", "Many tokens", "Latency"} {
		if !slices.ContainsFunc(titles, func(title string) bool { return strings.HasPrefix(title, want) }) {
			t.Errorf("the report has the sections %q, and none of %s", titles, want)
		}
	}
}
