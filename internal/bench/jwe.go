//go:build linux && cgo

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/encrypter"
)

// jweCase is one combination of algorithms and key.
type jweCase struct {
	alg  encrypter.KeyAlgorithm
	enc  encrypter.ContentEncryption
	size string // curve, or bits of the RSA modulus
}

func (c jweCase) String() string { return fmt.Sprintf("%s %s %s", c.alg, c.size, c.enc) }

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
}

// allJWEs is every combination there is.
func allJWEs() []jweCase {
	var all []jweCase
	for _, alg := range encrypter.KeyAlgorithms() {
		sizes := alg.Curves()
		if slices.Contains(alg.KeyTypes(), "RSA") {
			sizes = append(sizes, "2048", "3072")
		}
		for _, size := range sizes {
			for _, enc := range encrypter.ContentEncryptions() {
				all = append(all, jweCase{alg, enc, size})
			}
		}
	}
	return all
}

// The goals, as ratios of processor time to the floor's, and in allocations
// beyond the floor's.
const (
	goalJWE       = 1.10
	goalJWEAllocs = 30
	goalSignature = 1.05
	goalService   = 1.15
)

// benchJWE sets the JWE writer against its primitives and against go-jose with
// an encrypter that is kept.
func (b *bench) benchJWE() error {
	cases := usualJWEs
	if b.all {
		cases = allJWEs()
	}
	b.report.section("JWE: a signed token of 943 bytes encrypted, against the primitives and go-jose")
	jws := signedToken(943)
	keys := make(map[string]crypto.PublicKey)
	for _, c := range cases {
		if keys[c.size] == nil {
			key, err := newClientKey(c.size)
			if err != nil {
				return err
			}
			keys[c.size] = key.Public()
		}
		row, err := b.jweRow(c, keys[c.size], jws)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		b.report.add(row)
	}
	return nil
}

func (b *bench) jweRow(c jweCase, public crypto.PublicKey, jws []byte) (Row, error) {
	floor, err := jweFloor(c.alg, c.enc, public, jws)
	if err != nil {
		return Row{}, err
	}
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{Key: public, KeyID: "key-1", Algorithm: c.alg, ContentEncryption: c.enc})
	if err != nil {
		return Row{}, err
	}
	ours := func() error { _, err := recipient.Encrypt(jws); return err }
	joses, err := jose.NewEncrypter(jose.ContentEncryption(c.enc), jose.Recipient{
		Algorithm: jose.KeyAlgorithm(c.alg), Key: public, KeyID: "key-1",
	}, (&jose.EncrypterOptions{}).WithContentType("JWT"))
	if err != nil {
		return Row{}, err
	}
	theirs := func() error {
		object, err := joses.Encrypt(jws)
		if err == nil {
			_, err = object.CompactSerialize()
		}
		return err
	}

	in := &contestant{name: "ours", caller: always(ours)}
	at := &contestant{name: "floor", caller: always(floor)}
	peer := &contestant{name: "go-jose", caller: always(theirs)}
	if err := interleave(b.rounds, b.spell/2, in, at, peer); err != nil {
		return Row{}, err
	}
	row := newRow(c.String(), goalJWE, in, at)
	row.Peer, row.PeerMicros, row.PeerRatio = "go-jose", peer.micros(), median(peer.ratios(at))
	if row.Allocs, err = allocations(ours, floor, theirs); err != nil {
		return Row{}, err
	}
	row.Allocs.Goal = goalJWEAllocs
	return row, nil
}

// allocations of one operation.
func allocations(ours, floor, peer func() error) (*Allocs, error) {
	const n = 20
	a := new(Allocs)
	var err error
	for _, m := range []struct {
		f  func() error
		to *float64
	}{{ours, &a.Ours}, {floor, &a.Floor}, {peer, &a.Peer}} {
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

// newClientKey makes a key pair: size is a curve, or the bits of an RSA
// modulus.
func newClientKey(size string) (crypto.Signer, error) {
	switch size {
	case "2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "P-256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	return nil, errors.New("no such key: " + size)
}

// signedToken has the shape of a JWS and the given length.
func signedToken(length int) []byte {
	const header, signature = "eyJhbGciOiJFUzI1NiJ9.", ".c2lnbmF0dXJl"
	return []byte(header + strings.Repeat("x", length-len(header)-len(signature)) + signature)
}
