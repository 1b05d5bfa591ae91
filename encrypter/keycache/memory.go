package keycache

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"math"
	"sync"

	"github.com/maypok86/otter/v2"

	"github.com/bulla-project/bulla/encrypter"
)

// All that a cache holds has one bound in bytes, Config.MaxMemory. Key sets take
// what they need of it, with all that is chosen from them, up to three quarters,
// and the clients have the rest. What follows are estimates: a test holds them
// against what the allocator gives away.

// forSources is the most that key sets may take of so many bytes.
func forSources(all int64) int64 { return all / 4 * 3 }

// Sizes in bytes: what there is of each entry besides its texts and keys.
const (
	// sizeOfClient is a client with its demand, and what otter needs for it.
	sizeOfClient = 340
	// sizeOfUpcoming is what a client becomes, besides that itself.
	sizeOfUpcoming = 96
	// sizeOfSetting is one setting of a demand, sizeOfPick its empty pick.
	sizeOfSetting = 40
	sizeOfPick    = 48
	// sizeOfSecret is what is kept beside the derived keys.
	sizeOfSecret = 96
	// sizeOfSealed is a secret that has not been opened, besides its sealed form
	// and the settings.
	sizeOfSealed = 320
	// sizeOfStoredSetting is one setting of that, with its texts.
	sizeOfStoredSetting = 160
	// sizeOfSource is a source with its state and its places in memory.
	sizeOfSource = 340
	// sizeOfVariant is what is chosen from a set for one demand, besides the
	// picks.
	sizeOfVariant = 64
	// sizeOfHandout is a recipient with its key management, besides the key.
	sizeOfHandout = 112
)

// sizeOfRecipient is about how many bytes a recipient of cfg takes.
func sizeOfRecipient(cfg encrypter.RecipientConfig) uint32 {
	n := sizeOfHandout + len(cfg.KeyID) + sizeOfHeader(cfg)
	switch key := cfg.Key.(type) {
	case *rsa.PublicKey:
		n += 64 + key.N.BitLen()/8
	case *ecdsa.PublicKey, *ecdh.PublicKey:
		n += 400
	case encrypter.X448PublicKey:
		n += 64
	case encrypter.SecretKey:
		switch cfg.Algorithm {
		case encrypter.Dir:
			n += len(key)
		case encrypter.A128GCMKW, encrypter.A192GCMKW, encrypter.A256GCMKW:
			n += 768 // AES, and the tables of GHASH
		default:
			n += 512
		}
	}
	return uint32(n) //nolint:gosec // every part of it has a bound
}

// sizeOfHeader is about how many bytes the encoded header of cfg takes.
func sizeOfHeader(cfg encrypter.RecipientConfig) int {
	const names = 96
	values := len(cfg.Algorithm) + len(cfg.ContentEncryption) + len(cfg.KeyID) + len(cfg.X5T) + len(cfg.X5TS256) + len(cfg.Issuer)
	return names + values*4/3
}

// sizeOfPicks is about how many bytes picks take.
func sizeOfPicks(picks []pick) int {
	n := 0
	for _, p := range picks {
		n += sizeOfPick + int(p.size) + len(p.thumbprint)
		if p.failed != nil {
			n += 160 + len(p.failed.err.Error())*9/8 // as the allocator rounds
		}
	}
	return n
}

// weightOfClient is about how many bytes a client takes, with what it becomes.
func weightOfClient(key clientKey, cl *client) uint32 {
	n := sizeOfEntry(key, cl)
	if next := cl.next; next != nil {
		n += sizeOfUpcoming + sizeOfEntry(key, next.client)
	}
	return clamp(n)
}

func sizeOfEntry(key clientKey, cl *client) int {
	n := sizeOfClient + len(key.issuer) + len(key.clientID) + len(cl.demand.settings)*sizeOfSetting
	for _, s := range cl.demand.settings {
		n += len(s.keyID)
	}
	n += sizeOfPicks(cl.fixed)
	if s := cl.secret; s != nil {
		n += sizeOfSecret
		if o := s.opened.Load(); o != nil {
			n += sizeOfPicks(o.picks) + len(o.signing)
		}
		if sealed := s.sealed.Load(); sealed != nil {
			n += sizeOfSealed + len(sealed.Source.Secret.Sealed) + len(sealed.Settings)*sizeOfStoredSetting
		}
	}
	if own := cl.own.Load(); own != nil {
		n += sizeOfVariant + sizeOfPicks(own.picks)
	}
	if l := cl.logout.Load(); l != nil {
		n += sizeOfVariant + int(l.pick.size)
		if cl.uri != "" {
			n += int(l.fromSize) // whose key it shares, and which may be out of use elsewhere
		}
		if l.pick.failed != nil {
			n += len(l.pick.failed.err.Error())
		}
	}
	return n
}

// clamp makes a weight of a number of bytes: weights have 32 bits.
func clamp(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }

// reweigh weighs a client anew that has grown since it was put in memory.
func (c *Cache) reweigh(key clientKey, cl *client) {
	c.clients.ComputeIfPresent(key, func(there *client) (*client, otter.ComputeOp) {
		if there != cl {
			return there, otter.CancelOp
		}
		return cl, otter.WriteOp
	})
}

// budget shares the memory out between the key sets and the clients.
type budget struct {
	all  int64 // bytes
	step int64 // in which the clients' share changes

	mu       sync.Mutex
	reserved int64 // for key sets, in whole steps; guarded by mu
}

// balance leaves the clients what the key sets do not take.
func (c *Cache) balance() {
	b := &c.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	need := c.sources.total()
	need = min((need+b.step-1)/b.step*b.step, forSources(b.all))
	if need == b.reserved {
		return
	}
	b.reserved = need
	c.clients.SetMaximum(uint64(b.all - need)) //nolint:gosec // not negative
}
