//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
)

// pool is the keys that clients have.
type pool struct {
	rsa, ec [][]byte // JWK Sets
}

func newPool(t *harness.Standalone, each int) *pool {
	p := &pool{}
	for i := range each {
		p.rsa = append(p.rsa, harness.JWKS(harness.NewClientKey(t, "", fmt.Sprintf("rsa-%d", i))))
		p.ec = append(p.ec, harness.JWKS(harness.NewClientKey(t, "P-256", fmt.Sprintf("ec-%d", i))))
	}
	return p
}

// population is the clients that are registered in a store.
type population struct {
	size int
	keys *pool
	// own, if set, is the jwks_uri of each client: all have one.
	own func(rank int) string
	// freshUntil is until when what was fetched is fresh.
	freshUntil time.Time
}

// kind is where a client's key comes from.
type kind int

const (
	rsaKey kind = iota
	ecKey
	sharedURI
	ownURI
	secret
)

// mix is a hash of a number that gives no two numbers the same (the finalizer
// of SplitMix64).
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// clientID is the name of the client of a rank.
func clientID(rank int) string { return fmt.Sprintf("app-%016x", mix(uint64(rank))) }

func (p *population) kind(rank int) kind {
	if p.own != nil {
		return ownURI
	}
	switch n := mix(mix(uint64(rank))) % 100; {
	case n < 45:
		return rsaKey
	case n < 80:
		return ecKey
	case n < 90:
		return sharedURI
	case n < 95:
		return ownURI
	}
	return secret
}

// uri is a client's jwks_uri. A tenth of the clients share URLs by ten.
func (p *population) uri(rank int) string {
	switch {
	case p.own != nil:
		return p.own(rank)
	case p.kind(rank) == ownURI:
		return "https://" + clientID(rank) + ".example.com/oauth/jwks.json"
	}
	urls := uint64(max(1, p.size/100))
	return fmt.Sprintf("https://tenant-%d.example.com/oauth/jwks.json", mix(uint64(rank)+1<<40)%urls)
}

// registration is that of the client of a rank.
func (p *population) registration(ctx context.Context, keeper *secrets.Keeper, rank int) (registry.Registration, error) {
	reg := registry.Registration{Issuer: harness.Issuer, ClientID: clientID(rank)}
	setting := registry.Setting{Kind: "ID_TOKEN", EncryptionAlgorithm: string(encrypter.RSAOAEP256), ContentEncryption: string(encrypter.A256GCM)}
	switch p.kind(rank) {
	case rsaKey:
		reg.Source.JWKS = p.keys.rsa[rank%len(p.keys.rsa)]
	case ecKey:
		reg.Source.JWKS = p.keys.ec[rank%len(p.keys.ec)]
		setting.EncryptionAlgorithm = string(encrypter.ECDHES)
	case sharedURI, ownURI:
		reg.Source.JWKSURI = p.uri(rank)
	case secret:
		setting.EncryptionAlgorithm = string(encrypter.A256KW)
		m, err := secrets.Derive("the secret of "+reg.ClientID, []registry.Setting{setting})
		if err != nil {
			return reg, err
		}
		if reg.Source.Secret, err = keeper.Seal(ctx, reg.Issuer, reg.ClientID, m, time.Time{}); err != nil {
			return reg, err
		}
	}
	reg.Settings = []registry.Setting{setting}
	return reg, nil
}

// keySet is what has been fetched from a client's jwks_uri.
func (p *population) keySet(uri string, rank int) registry.KeySet {
	fetched := time.Now().Add(-time.Minute)
	return registry.KeySet{
		URI: uri, Document: p.keys.rsa[rank%len(p.keys.rsa)], ETag: `"5f3c1e7a9b"`,
		FetchedAt: fetched, FreshUntil: p.freshUntil,
	}
}

// zipf draws ranks of the population by Zipf's law.
func (p *population) zipf(seed uint64) func() int {
	const s = 1.1
	z := rand.NewZipf(rand.New(rand.NewPCG(seed, 1)), s, 1, uint64(p.size-1))
	return func() int { return int(z.Uint64()) }
}

// uniform draws ranks that are all as likely.
func (p *population) uniform(seed uint64) func() int {
	r := rand.New(rand.NewPCG(seed, 2))
	return func() int { return r.IntN(p.size) }
}
