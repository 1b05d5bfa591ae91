package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/go-jose/go-jose/v4"
	strict "github.com/go-jose/go-jose/v4/json" // refuses duplicate names and inexact case

	"github.com/bulla-project/bulla/kms"
)

// maxFile is the largest file that is read, in bytes: some hundred keys.
const maxFile = 1 << 20

// set is a checked JWK Set file.
type set struct {
	keys map[string]jose.JSONWebKey // signing and wrapping keys by kid

	// What the file says, for writing it again: members that mean nothing
	// here are kept.
	members map[string]json.RawMessage
	raw     []json.RawMessage // the elements of "keys"
}

// readSet reads and checks the file at path. Its errors never quote the file.
func readSet(path string) (*set, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("local keys: %w: create the file with a first key, or correct the path", err)
	}
	if err != nil {
		return nil, fmt.Errorf("local keys: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only

	// The open file is examined, not the path, which may be another file by
	// now.
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("local keys: %w", err)
	}
	if err := checkMode(path, info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("local keys: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("local keys: %s has more than %d bytes: this is no file of a few keys", path, maxFile)
	}
	s, err := parseSet(data)
	if err != nil {
		return nil, fmt.Errorf("local keys: %s: %w", path, err)
	}
	return s, nil
}

// checkMode refuses what others than the owner could read or write.
func checkMode(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("local keys: %s is not a regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("local keys: %s has mode %04o, so other accounts can reach private keys: run \"chmod 600 %s\", and replace the keys if anyone else was on this machine", path, perm, path)
	}
	return nil
}

// parseSet reads a private JWK Set. Every key must have a "kid" of its own and
// be a signing key (see checkSigningKey) or a wrapping key (see
// checkWrappingKey).
func parseSet(data []byte) (*set, error) {
	s := &set{keys: map[string]jose.JSONWebKey{}}
	if err := strict.Unmarshal(data, &s.members); err != nil || s.members == nil {
		return nil, errors.New("not a JSON object: a JWK Set looks like {\"keys\":[…]}")
	}
	keys, ok := s.members["keys"]
	if !ok {
		return nil, errors.New("no \"keys\": a JWK Set looks like {\"keys\":[…]}")
	}
	if err := strict.Unmarshal(keys, &s.raw); err != nil {
		return nil, errors.New("\"keys\" is not an array of keys")
	}
	for i, raw := range s.raw {
		// The decoder's errors are not passed on: they may quote what it read.
		var k jose.JSONWebKey
		if err := strict.Unmarshal(raw, &k); err != nil {
			return nil, fmt.Errorf("key %d is not a valid JWK of type RSA, EC, OKP (Ed25519) or oct", i)
		}
		if k.KeyID == "" {
			return nil, fmt.Errorf("key %d has no \"kid\": give it a name to refer to it by", i)
		}
		if _, twice := s.keys[k.KeyID]; twice {
			return nil, fmt.Errorf("two keys have the kid %q: give each its own", k.KeyID)
		}
		check := checkSigningKey
		if _, symmetric := k.Key.([]byte); symmetric {
			check = checkWrappingKey
		}
		if err := check(k); err != nil {
			return nil, fmt.Errorf("key %q %w", k.KeyID, err)
		}
		s.keys[k.KeyID] = k
	}
	return s, nil
}

// checkSigningKey wants a private RSA, EC or Ed25519 key. "alg" and "use" may
// be absent.
func checkSigningKey(k jose.JSONWebKey) error {
	if _, private := signerOf(k); !private || !k.Valid() {
		return errors.New("is not a private RSA, EC or Ed25519 key: this file holds private signing keys, and wrapping keys of type oct")
	}
	if k.Use != "" && k.Use != "sig" {
		return fmt.Errorf("has the use %q: a signing key has \"sig\"", k.Use)
	}
	if alg := kms.Algorithm(k.Algorithm); alg != "" && !slices.Contains(kms.Algorithms(), alg) {
		return fmt.Errorf("has the alg %q, which is not one of %v", k.Algorithm, kms.Algorithms())
	}
	return nil
}

// checkWrappingKey wants a symmetric key that says what it is for: one meant to
// sign HS256 tokens, say, must not wrap by mistake.
func checkWrappingKey(k jose.JSONWebKey) error {
	if _, ok := wrappingKeyOf(k); !ok {
		return fmt.Errorf("is a symmetric key of another length than %d bytes: a wrapping key has that", wrappingKeySize)
	}
	if k.Use != "enc" || k.Algorithm != wrappingAlgorithm {
		return fmt.Errorf("is a symmetric key with the use %q and the alg %q: a wrapping key has \"enc\" and %q", k.Use, k.Algorithm, wrappingAlgorithm)
	}
	return nil
}
