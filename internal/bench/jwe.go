//go:build linux && cgo

package main

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/internal/bench/measure"
)

// jweCase is one combination of algorithms and key.
type jweCase struct {
	alg  encrypter.KeyAlgorithm
	enc  encrypter.ContentEncryption
	size string // curve, bits of the RSA modulus, or "oct"
}

func (c jweCase) String() string {
	if c.size == secret {
		return fmt.Sprintf("%s %s", c.alg, c.enc)
	}
	return fmt.Sprintf("%s %s %s", c.alg, c.size, c.enc)
}

// secret is the size of a key that is shared, which the algorithms decide.
const secret = "oct"

// usualJWEs are those that stand for the others.
var usualJWEs = []jweCase{
	{encrypter.RSAOAEP256, encrypter.A256GCM, "2048"},
	{encrypter.RSAOAEP256, encrypter.A128CBCHS256, "2048"},
	{encrypter.RSAOAEP, encrypter.A256CBCHS512, "2048"},
	{encrypter.RSAOAEP256, encrypter.A256GCM, "3072"},
	{encrypter.ECDHES, encrypter.A256GCM, "P-256"},
	{encrypter.ECDHESA128KW, encrypter.A128CBCHS256, "P-256"},
	{encrypter.ECDHESA256KW, encrypter.A256GCM, "P-384"},
	{encrypter.ECDHESA256KW, encrypter.A256GCM, "P-521"},
	{encrypter.ECDHESA128KW, encrypter.A128CBCHS256, "X25519"},
	{encrypter.ECDHESA256KW, encrypter.A256GCM, "X448"},
	{encrypter.A128KW, encrypter.A128CBCHS256, secret},
	{encrypter.A256KW, encrypter.A256GCM, secret},
	{encrypter.A256GCMKW, encrypter.A256GCM, secret},
	{encrypter.Dir, encrypter.A256GCM, secret},
}

// everyJWE is every alg with every enc, and with every size of key that it
// takes; or only with those sizes that are named.
func everyJWE(sizes ...string) []jweCase {
	var all []jweCase
	for _, alg := range encrypter.KeyAlgorithms() {
		takes := alg.Curves()
		switch {
		case slices.Contains(alg.KeyTypes(), "RSA"):
			takes = []string{"2048", "3072"}
		case alg.Symmetric():
			takes = []string{secret}
		}
		for _, size := range takes {
			if len(sizes) > 0 && !slices.Contains(sizes, size) {
				continue
			}
			for _, enc := range encrypter.ContentEncryptions() {
				if encrypter.CheckPair(alg, enc) == nil {
					all = append(all, jweCase{alg, enc, size})
				}
			}
		}
	}
	return all
}

// The goals, as ratios of processor time to the floor's, and in allocations
// beyond the floor's.
const (
	goalJWE          = 1.10
	goalSymmetricJWE = 1.50 // where the floor is a few µs
	goalJWEAllocs    = 30
	goalSignature    = 1.05
	goalService      = 1.15
)

// benchJWE sets the JWE writer against its primitives and against go-jose with
// an encrypter that is kept. The usual combinations are measured as long as
// anything here; every alg with every enc in spells that are shorter by a
// factor, which takes two minutes.
func (b *bench) benchJWE() error {
	every := everyJWE("2048", "P-256", secret)
	if b.all {
		every = everyJWE()
	}
	keys := make(map[string]crypto.PublicKey)
	for _, section := range []struct {
		title string
		cases []jweCase
		spell time.Duration
	}{
		{"JWE: a signed token of 943 bytes encrypted, against the primitives and go-jose", usualJWEs, b.spell / 2},
		{"JWE: every alg with every enc, in shorter spells", every, b.spell / 8},
	} {
		b.report.section(section.title)
		for _, c := range section.cases {
			row, err := b.jweRow(c, keys, section.spell)
			if err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			b.report.add(row)
		}
	}
	return b.benchX25519()
}

func (b *bench) jweRow(c jweCase, keys map[string]crypto.PublicKey, spell time.Duration) (Row, error) {
	key, err := c.key(keys)
	if err != nil {
		return Row{}, err
	}
	jws := signedToken(943)
	floor, err := jweFloor(c.alg, c.enc, key, jws)
	if err != nil {
		return Row{}, err
	}
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{Key: key, KeyID: "key-1", Algorithm: c.alg, ContentEncryption: c.enc})
	if err != nil {
		return Row{}, err
	}
	ours := func() error { _, err := recipient.Encrypt(jws); return err }
	theirs, err := joseJWE(c, key, jws)
	if err != nil {
		return Row{}, err
	}

	in := &contestant{name: "ours", caller: always(ours)}
	at := &contestant{name: "floor", caller: always(floor)}
	turns := []*contestant{in, at}
	peer := &contestant{name: "go-jose", caller: always(theirs)}
	if theirs != nil {
		turns = append(turns, peer)
	}
	if err := interleave(b.rounds, spell, turns...); err != nil {
		return Row{}, err
	}
	goal := goalJWE
	if c.alg.Symmetric() {
		goal = goalSymmetricJWE
	}
	row := newRow(c.String(), goal, in, at)
	if theirs != nil {
		row.Peer, row.PeerMicros, row.PeerRatio = "go-jose", peer.micros(), measure.Median(peer.ratios(at))
		row.Slower = measure.Median(in.ratios(peer)) >= 1
	}
	if row.Allocs, err = allocations(ours, floor, theirs); err != nil {
		return Row{}, err
	}
	row.Allocs.Goal = goalJWEAllocs
	return row, nil
}

// joseJWE returns a function that makes the token with go-jose; nil if that has
// not got the algorithms.
func joseJWE(c jweCase, key crypto.PublicKey, jws []byte) (func() error, error) {
	if c.alg == encrypter.RSAOAEP384 || c.alg == encrypter.RSAOAEP512 || c.enc == encrypter.A128CBCPlusHS256 || c.size == "X25519" || c.size == "X448" {
		return nil, nil
	}
	if k, ok := key.(encrypter.SecretKey); ok {
		key = []byte(k)
	}
	kept, err := jose.NewEncrypter(jose.ContentEncryption(c.enc), jose.Recipient{
		Algorithm: jose.KeyAlgorithm(c.alg), Key: key, KeyID: "key-1",
	}, (&jose.EncrypterOptions{}).WithContentType("JWT"))
	if err != nil {
		return nil, err
	}
	return func() error {
		object, err := kept.Encrypt(jws)
		if err == nil {
			_, err = object.CompactSerialize()
		}
		return err
	}, nil
}

// benchX25519 is what decides whose X25519 the encrypter uses: it is circl's for
// as long as that is faster.
func (b *bench) benchX25519() error {
	b.report.section("X25519: a key pair and an agreement by circl, which the encrypter uses, against crypto/ecdh for a floor")
	key, err := newClientKey("X25519")
	if err != nil {
		return err
	}
	exchange, err := exchangeFloor(key)
	if err != nil {
		return err
	}
	stdlib := stdlibExchange(key.(*ecdh.PublicKey))
	circls := &contestant{name: "circl", caller: always(func() error { _, err := exchange(); return err })}
	stdlibs := &contestant{name: "crypto/ecdh", caller: always(func() error { _, err := stdlib(); return err })}
	if err := interleave(b.rounds, b.spell/2, circls, stdlibs); err != nil {
		return err
	}
	b.report.add(newRow("X25519", 1, circls, stdlibs))
	return nil
}

// allocations of one operation. There may be no peer.
func allocations(ours, floor, peer func() error) (*Allocs, error) {
	const n = 20
	a := new(Allocs)
	var err error
	for _, m := range []struct {
		f  func() error
		to *float64
	}{{ours, &a.Ours}, {floor, &a.Floor}, {peer, &a.Peer}} {
		if m.f == nil {
			continue
		}
		if *m.to, err = mallocs(n, m.f); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// always is the caller of a contestant that works alone.
func always(f func() error) func() (func() error, error) {
	return func() (func() error, error) { return f, nil }
}

// key returns a key of the case's size: the one in keys, or a new one, which it
// puts there.
func (c jweCase) key(keys map[string]crypto.PublicKey) (crypto.PublicKey, error) {
	if c.size == secret {
		return encrypter.DeriveSecretKey("a client secret of some length", c.alg.SecretSize(c.enc))
	}
	if keys[c.size] == nil {
		key, err := newClientKey(c.size)
		if err != nil {
			return nil, err
		}
		keys[c.size] = key
	}
	return keys[c.size], nil
}

// newClientKey makes the public key of a new key pair: size is a curve, or the
// bits of an RSA modulus.
func newClientKey(size string) (crypto.PublicKey, error) {
	var private interface{ Public() crypto.PublicKey }
	var err error
	switch size {
	case "2048":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "3072":
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	case "P-256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "X25519":
		private, err = ecdh.X25519().GenerateKey(rand.Reader)
	case "X448":
		var own, public x448.Key
		_, err = rand.Read(own[:])
		x448.KeyGen(&public, &own)
		return encrypter.X448PublicKey(public), err
	default:
		return nil, errors.New("no such key: " + size)
	}
	if err != nil {
		return nil, err
	}
	return private.Public(), nil
}

// signedToken has the shape of a JWS and the given length.
func signedToken(length int) []byte {
	const header, signature = "eyJhbGciOiJFUzI1NiJ9.", ".c2lnbmF0dXJl"
	return []byte(header + strings.Repeat("x", length-len(header)-len(signature)) + signature)
}
