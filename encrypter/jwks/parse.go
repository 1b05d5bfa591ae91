package jwks

import (
	"fmt"
	"slices"
)

// Parse reads and checks a JWK Set. An error wraps ErrRejected and means that
// the document as a whole must not be used. Otherwise the set holds every key
// of the document, each with its State; it may hold no usable one.
//
// The document is not kept.
func Parse(document []byte, limits Limits) (*Set, error) {
	limits = limits.withDefaults()
	raw, err := readSet(document, limits)
	if err != nil {
		return nil, err
	}
	set := &Set{keys: make([]*Key, 0, len(raw))}
	for i, m := range raw {
		set.keys = append(set.keys, newKey(i, m, limits.MaxRSABits))
	}
	if err := set.checkKeyIDs(); err != nil {
		return nil, err
	}
	return set, nil
}

// newKey checks one key. The order matters only for which of several reasons
// is told.
func newKey(index int, m members, maxRSABits int) *Key {
	k := &Key{
		Index:     index,
		Type:      m.texts["kty"],
		Curve:     m.texts["crv"],
		KeyID:     m.texts["kid"],
		Use:       m.texts["use"],
		Algorithm: m.texts["alg"],
		KeyOps:    m.lists["key_ops"],
	}
	k.setMaterial(m, maxRSABits)
	if k.State == Usable {
		k.checkMembers()
	}
	if k.State == Usable {
		k.checkCertificate(m)
	}
	if k.State != Usable {
		k.Public = nil
		return k
	}
	if k.Use == "" {
		k.warn(`it does not say what it is for: add "use": "enc"`)
	}
	if _, ok := m.texts["x5u"]; ok {
		k.warn(`its member "x5u" is ignored: no certificate is ever fetched; publish it as x5c`)
	}
	return k
}

// setMaterial sets Public and Thumbprint from the members of the key's type.
func (k *Key) setMaterial(m members, maxRSABits int) {
	_, hasType := m.texts["kty"]
	switch {
	case m.problem != "":
		k.reject("%s", m.problem)
	case !hasType:
		k.reject(`it has no member "kty": add it`)
	case k.Type == "RSA":
		k.setRSA(m, maxRSABits)
	case k.Type == "EC":
		k.setEC(m)
	case k.Type == "OKP":
		k.setOKP(m)
	default:
		k.skip("its kty %s is not one that tokens can be encrypted to here", quote(k.Type))
	}
}

// checkMembers checks the members that say what a key is for (RFC 7517,
// sections 4.2, 4.3 and 4.5).
func (k *Key) checkMembers() {
	var sealing, signing bool
	for i, op := range k.KeyOps {
		if slices.Contains(k.KeyOps[:i], op) {
			k.reject("its key_ops name %s twice: name each once", quote(op))
			return
		}
		switch op {
		case "encrypt", "decrypt", "wrapKey", "unwrapKey", "deriveKey", "deriveBits":
			sealing = true
		case "sign", "verify":
			signing = true
		}
	}
	switch {
	case k.Use == "enc" && signing, k.Use == "sig" && sealing:
		k.reject("its use %s contradicts its key_ops %s: leave key_ops out", quote(k.Use), quoteAll(k.KeyOps))
	case sealing && signing:
		k.warn("its key_ops %s allow both signing and encryption: use a key of its own for each", quoteAll(k.KeyOps))
	}
}

// checkKeyIDs refuses a set in which two keys cannot be told apart, and marks
// those that share no more than their kid.
func (s *Set) checkKeyIDs() error {
	type label struct{ kid, kty, alg, use string }
	labels := make(map[label]int, len(s.keys))
	kids := make(map[string][]*Key, len(s.keys))
	for _, k := range s.keys {
		if k.KeyID == "" {
			continue
		}
		l := label{k.KeyID, k.Type, k.Algorithm, k.Use}
		if first, ok := labels[l]; ok {
			return fmt.Errorf("%w: keys[%d] and keys[%d] have the same kid %s, kty, alg and use: give each key a kid of its own",
				ErrRejected, first, k.Index, quote(k.KeyID))
		}
		labels[l] = k.Index
		kids[k.KeyID] = append(kids[k.KeyID], k)
	}
	for _, same := range kids {
		for i, k := range same {
			if len(same) > 1 {
				other := same[(i+1)%len(same)]
				k.warn("it has the same kid as keys[%d], with another kty, alg or use: give each key a kid of its own", other.Index)
			}
		}
	}
	return nil
}
