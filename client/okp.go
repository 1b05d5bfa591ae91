package client

import (
	"bytes"
	"crypto/ecdh"
	"encoding/json"
	"errors"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json/jsontext"
)

// errNoJWK stands for the errors of go-jose and encoding/json, which repeat what the
// document says, at any length.
var errNoJWK = errors.New("not a valid JWK of its kty")

// unmarshalKey makes a key of a JWK: those for agreement on X25519 and X448 here, all
// others by go-jose. Its errors are jose.ErrUnsupportedKeyType and fixed texts.
func unmarshalKey(raw jsontext.Value, members map[string]jsontext.Value) (jose.JSONWebKey, error) {
	kty, _ := stringValue(members["kty"])
	crv, _ := stringValue(members["crv"])
	if kty != "OKP" || crv != "X25519" && crv != "X448" {
		var key jose.JSONWebKey
		err := json.Unmarshal(raw, &key)
		switch {
		case err == nil:
			return key, nil
		case errors.Is(err, jose.ErrUnsupportedKeyType):
			return key, jose.ErrUnsupportedKeyType
		case kty == "RSA" && has(members, "d") && (!has(members, "p") || !has(members, "q")):
			return key, errors.New("p and q are missing, without which an RSA key is not used here")
		}
		return key, errNoJWK
	}
	var key jose.JSONWebKey
	for _, member := range []struct {
		name string
		into *string
	}{{"kid", &key.KeyID}, {"alg", &key.Algorithm}, {"use", &key.Use}} {
		if v, ok := members[member.name]; ok {
			if *member.into, ok = stringValue(v); !ok {
				return key, errors.New(member.name + " is not a string")
			}
		}
	}
	x, err := stringBytes(members["x"])
	if err != nil {
		return key, errors.New("x is not base64url")
	}
	if _, ok := members["d"]; !ok {
		return key, errors.New("d is missing: it is a public key, and the private one is needed to decrypt")
	}
	d, err := stringBytes(members["d"])
	if err != nil {
		return key, errors.New("d is not base64url")
	}
	var public []byte
	if key.Key, public, err = newOKP(crv, d); err != nil {
		return key, err
	}
	if !bytes.Equal(public, x) {
		return key, errors.New("d does not belong to x")
	}
	return key, nil
}

func has(members map[string]jsontext.Value, name string) bool {
	_, ok := members[name]
	return ok
}

// newOKP makes the private key of a curve from its bytes (RFC 8037, section 2), and
// tells the public one's.
func newOKP(crv string, d []byte) (private any, public []byte, err error) {
	if crv == "X448" {
		k, err := NewX448PrivateKey(d)
		if err != nil {
			return nil, nil, err
		}
		return k, k.public[:], nil
	}
	k, err := ecdh.X25519().NewPrivateKey(d)
	if err != nil {
		return nil, nil, errors.New("an X25519 key has 32 bytes")
	}
	return k, k.PublicKey().Bytes(), nil
}
