package encrypter

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEveryCombinationOpens(t *testing.T) {
	for _, c := range combinations(t) {
		t.Run(c.String(), func(t *testing.T) {
			r := c.recipient(t)
			lengths := []int{943}
			if slices.Contains(oneOfEach, c.size) {
				// Around the AES block and the groups of base64.
				lengths = append(lengths, 40, 41, 42, 47, 48, 49)
			}
			for _, length := range lengths {
				jws := signedToken(length)
				token, err := r.Encrypt(jws)
				if err != nil {
					t.Fatalf("Encrypt: %v", err)
				}
				if got := open(t, token, c.private, c.alg, c.enc); !bytes.Equal(got, jws) {
					t.Errorf("opened to %q, want %q", got, jws)
				}
			}
		})
	}
}

func TestHeaderNamesTheAlgorithmsAndNothingElse(t *testing.T) {
	for _, c := range combinations(t) {
		t.Run(c.String(), func(t *testing.T) {
			token := must(c.recipient(t).Encrypt(signedToken(100)))
			got := protectedHeader(t, token)
			want := map[string]any{"alg": string(c.alg), "enc": string(c.enc), "cty": "JWT", "kid": "key-1"}
			// member returns a value that differs from token to token.
			member := func(members map[string]any, name string, size int) string {
				value, _ := members[name].(string)
				if n := len(unbase64(t, value)); n != size {
					t.Errorf("%s of %d bytes, want %d", name, n, size)
				}
				return value
			}
			epk, _ := got["epk"].(map[string]any)
			switch c.size {
			case "P-256", "P-384", "P-521":
				// RFC 7518 section 6.2.1.2: as many bytes as the field has,
				// leading zeros and all.
				size := map[string]int{"P-256": 32, "P-384": 48, "P-521": 66}[c.size]
				want["epk"] = map[string]any{"kty": "EC", "crv": c.size, "x": member(epk, "x", size), "y": member(epk, "y", size)}
			case "X25519", "X448":
				// RFC 8037 section 2: no y.
				size := map[string]int{"X25519": 32, "X448": 56}[c.size]
				want["epk"] = map[string]any{"kty": "OKP", "crv": c.size, "x": member(epk, "x", size)}
			}
			if strings.HasSuffix(string(c.alg), "GCMKW") {
				want["iv"], want["tag"] = member(got, "iv", 12), member(got, "tag", 16) // RFC 7518 section 4.7.1
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			parts := strings.Split(token, ".")
			if len(parts) != 5 {
				t.Fatalf("%d parts, want 5", len(parts))
			}
			if direct := c.alg == ECDHES || c.alg == Dir; (parts[1] == "") != direct {
				t.Errorf("encrypted key %q; direct: %t", parts[1], direct)
			}
		})
	}
}

func TestTamperedTokenDoesNotOpen(t *testing.T) {
	// It is go-jose that refuses, or the reader by hand; that they do so for
	// every part shows that each of them is authenticated.
	cases := []combination{
		{A256GCMKW, A128GCM, "oct", secretKey(A256GCMKW, A128GCM)},
		{RSAOAEP, A128CBCPlusHS256, "2048", testKeys.rsa2048()},
	}
	for _, enc := range ContentEncryptions() {
		if !enc.Legacy() {
			cases = append(cases, combination{ECDHESA128KW, enc, "P-256", testKeys.ec()["P-256"]})
		}
	}
	for _, c := range cases {
		token := must(c.recipient(t).Encrypt(signedToken(100)))
		for i, name := range []string{"header", "encrypted key", "IV", "ciphertext", "tag"} {
			parts := strings.Split(token, ".")
			raw := unbase64(t, parts[i])
			if name == "header" {
				raw = bytes.Replace(raw, []byte(`"kid":"key-1"`), []byte(`"kid":"key-2"`), 1)
			} else {
				raw[len(raw)/2] ^= 1
			}
			parts[i] = base64url.EncodeToString(raw)
			if _, err := tryOpen(strings.Join(parts, "."), c.private, c.alg, c.enc); err == nil {
				t.Errorf("%s: opens with another %s", c, name)
			}
		}
		open(t, token, c.private, c.alg, c.enc) // untouched, it opens
	}
}

func TestOnlySignedTokensAreEnclosed(t *testing.T) {
	r := combination{alg: ECDHES, enc: A128GCM, private: testKeys.ec()["P-256"]}.recipient(t)
	for _, tc := range []struct{ name, text string }{
		{"nothing", ""},
		{"claims", `{"sub":"alice","iss":"https://login.example.com","v":"1.2"}`},
		{"one part", "eyJ9"},
		{"two parts", "eyJ9.eyJ9"},
		{"unsigned token", "eyJhbGciOiJub25lIn0.eyJ9."},
		{"no header", ".eyJ9.c2ln"},
		{"no payload", "eyJ9..c2ln"},
		{"encrypted token", "eyJ9.a.b.c.d"},
		{"dots", ".."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			token, err := r.Encrypt([]byte(tc.text))
			if !errors.Is(err, ErrNotSigned) || token != "" {
				t.Errorf("Encrypt = %q, %v; want ErrNotSigned", token, err)
			}
			if err != nil && tc.text != "" && strings.Contains(err.Error(), tc.text) {
				t.Errorf("the error holds the token: %v", err)
			}
			dst, err := r.AppendEncrypt([]byte("as it was"), []byte(tc.text))
			if !errors.Is(err, ErrNotSigned) || string(dst) != "as it was" {
				t.Errorf("AppendEncrypt = %q, %v; want ErrNotSigned", dst, err)
			}
		})
	}
}

func TestAppendEncryptAppends(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		jws := signedToken(943)
		for _, room := range []int{0, 10, 8192} {
			dst := append(make([]byte, 0, len("before ")+room), "before "...)
			got, err := r.AppendEncrypt(dst, jws)
			if err != nil {
				t.Fatalf("%s: %v", c, err)
			}
			token, found := strings.CutPrefix(string(got), "before ")
			if !found {
				t.Fatalf("%s: what was there is lost: %q", c, got)
			}
			if opened := open(t, token, c.private, c.alg, c.enc); !bytes.Equal(opened, jws) {
				t.Errorf("%s: opened to %q", c, opened)
			}
			if room > 4096 && &got[0] != &dst[0] {
				t.Errorf("%s: a buffer with room was moved", c)
			}
		}
		if !bytes.Equal(jws, signedToken(943)) {
			t.Errorf("%s: the plaintext was changed", c)
		}
	}
}

func TestTokenIsWrittenWithoutMovingIt(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		for _, length := range []int{40, 48, 943} {
			got := must(r.AppendEncrypt(nil, signedToken(length)))
			// One allocation's size class, not the doubling of append.
			if grown := slices.Grow([]byte(nil), len(got)+24); cap(got) > cap(grown) {
				t.Errorf("%s: a token of %d bytes in a buffer of %d, want at most %d", c, len(got), cap(got), cap(grown))
			}
		}
	}
}

// observedEntropy remembers what it gave out.
type observedEntropy struct {
	systemEntropy
	drawn [][]byte
}

func (o *observedEntropy) fill(b []byte) {
	o.systemEntropy.fill(b)
	o.drawn = append(o.drawn, bytes.Clone(b))
}

func TestNoTwoTokensShareASecret(t *testing.T) {
	const tokens = 20
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		fresh := &observedEntropy{}
		w := &workspace{entropy: fresh}
		seen := map[string]string{}
		once := func(what, value string) {
			if before, ok := seen[value]; ok {
				t.Errorf("%s: %s was used before, as %s", c, what, before)
			}
			seen[value] = what
		}
		for range tokens {
			token := string(must(r.appendToken(nil, signedToken(100), w, nil)))
			parts := strings.Split(token, ".")
			once("IV", parts[2])
			once("ciphertext", parts[3])
			once("tag", parts[4])
			if parts[1] != "" {
				once("encrypted key", parts[1])
			}
			if c.alg != Dir {
				once("CEK", string(w.cek))
			}
			header := protectedHeader(t, token)
			if epk, ok := header["epk"].(map[string]any); ok {
				once("epk", epk["x"].(string))
			}
			if iv, ok := header["iv"].(string); ok {
				once("IV of the encrypted key", iv)
			}
			if string(w.iv) != string(unbase64(t, parts[2])) {
				t.Errorf("%s: IV of the token is not the one drawn", c)
			}
		}
		draws := 1 // CEK and IV
		if c.size == "X25519" || c.size == "X448" || strings.HasSuffix(string(c.alg), "GCMKW") {
			draws = 2 // and an ephemeral key, or the IV of the encrypted key
		}
		if len(fresh.drawn) != draws*tokens {
			t.Fatalf("%s: %d draws for %d tokens, want %d each", c, len(fresh.drawn), tokens, draws)
		}
		for i, drawn := range fresh.drawn {
			if allZero(drawn) || len(drawn) < 12 {
				t.Errorf("%s: draw %d is %x", c, i, drawn)
			}
		}
		if c.alg != ECDHES && c.alg != Dir && !bytes.HasPrefix(fresh.drawn[draws*(tokens-1)], w.cek) {
			t.Errorf("%s: the CEK is not the one drawn", c)
		}
	}
}

func TestWorkspaceKeepsNoKeys(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		w := &workspace{entropy: systemEntropy{}}
		jws := signedToken(943)
		must(c.recipient(t).appendToken(nil, jws, w, nil))
		cek := bytes.Clone(w.cek)
		w.release()
		for _, buffer := range [][]byte{w.random[:], w.private[:], w.shared[:], w.kek[:]} {
			if !allZero(buffer) {
				t.Errorf("%s: a key is left in the workspace", c)
			}
		}
		for _, buffer := range [][]byte{w.sealed[:cap(w.sealed)], w.header[:cap(w.header)], w.wrapped[:]} {
			if bytes.Contains(buffer, cek[:16]) || bytes.Contains(buffer, jws[:16]) || bytes.Contains(buffer, jws[len(jws)-8:]) {
				t.Errorf("%s: key or plaintext is left in the workspace", c)
			}
		}
	}
}

func TestLargeBuffersAreNotKept(t *testing.T) {
	w := &workspace{entropy: systemEntropy{}}
	w.token = make([]byte, maxKeptBuffer+1)
	w.sealed = make([]byte, maxKeptBuffer+1)
	w.release()
	if w.token != nil || w.sealed != nil {
		t.Error("a large buffer stays in the pool")
	}
	c := combination{alg: ECDHES, enc: A256CBCHS512, private: testKeys.ec()["P-256"]}
	jws := signedToken(1 << 20)
	token := must(c.recipient(t).Encrypt(jws))
	if !bytes.Equal(open(t, token, c.private, c.alg, c.enc), jws) {
		t.Error("a token of 1 MiB does not open to what it was")
	}
}

func TestRecipientServesManyGoroutines(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		var group sync.WaitGroup
		tokens := make([]string, 8)
		for i := range tokens {
			group.Go(func() {
				for range 3 {
					tokens[i] = must(r.Encrypt(signedToken(100 + i)))
				}
			})
		}
		group.Wait()
		for i, token := range tokens {
			if got := open(t, token, c.private, c.alg, c.enc); !bytes.Equal(got, signedToken(100+i)) {
				t.Errorf("%s: goroutine %d's token opens to %q", c, i, got)
			}
		}
	}
}

// TestStagesAreTold: once for each token, between its two halves.
func TestStagesAreTold(t *testing.T) {
	for _, c := range combinations(t, oneOfEach...) {
		r := c.recipient(t)
		told := 0
		token, err := r.EncryptStaged(signedToken(943), func() { told++ })
		if err != nil || told != 1 {
			t.Fatalf("%s: told %d times, %v; want once", c, told, err)
		}
		if got := open(t, token, c.private, c.alg, c.enc); !bytes.Equal(got, signedToken(943)) {
			t.Errorf("%s: opened to %q", c, got)
		}
		w := &workspace{entropy: systemEntropy{}}
		must(r.appendToken(nil, signedToken(943), w, func() {
			if allZero(w.cek) || len(w.header) == 0 || w.header[len(w.header)-1] != '}' {
				t.Errorf("%s: told before the key management was done", c)
			}
			if len(w.sealed) != 0 {
				t.Errorf("%s: told when the content was encrypted already", c)
			}
		}))
	}
	r := combination{alg: ECDHES, enc: A128GCM, private: testKeys.ec()["P-256"]}.recipient(t)
	if _, err := r.EncryptStaged([]byte("claims"), func() { t.Error("told of what was not signed") }); !errors.Is(err, ErrNotSigned) {
		t.Errorf("got %v, want ErrNotSigned", err)
	}
}
