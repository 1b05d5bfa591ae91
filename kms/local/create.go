package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/kms"
)

// ErrExists: the file has a key of that name already, which is left as it is.
// Use it, or choose another name.
var ErrExists = errors.New("local keys: a key of that name exists")

// Create generates a signing key for alg, adds it under name to the JWK Set at
// path, and returns the reference to open it by. The file is made if it is
// missing, with mode 0600; its folder must be there. RSA keys get 2048 bits.
//
// A crash leaves either the old file or the new one, whole and on disk.
// Creates in several processes wait for each other.
func Create(path string, alg kms.Algorithm, name string) (ref string, err error) {
	return createKey(path, kms.KeySpec{Algorithm: alg}, name)
}

// createKey is Create for a key of the given spec.
func createKey(path string, spec kms.KeySpec, name string) (ref string, err error) {
	if err := spec.Check(); err != nil {
		return "", fmt.Errorf("local keys: %w", err)
	}
	return add(path, name, func() (jose.JSONWebKey, error) {
		private, err := generate(spec)
		if err != nil {
			return jose.JSONWebKey{}, fmt.Errorf("generate a key for %s: %w", spec.Algorithm, err)
		}
		return jose.JSONWebKey{Key: private, KeyID: name, Algorithm: string(spec.Algorithm), Use: "sig"}, nil
	})
}

// CreateWrapping is Create for a wrapping key.
func CreateWrapping(path, name string) (ref string, err error) {
	return add(path, name, func() (jose.JSONWebKey, error) {
		secret := make([]byte, wrappingKeySize)
		_, _ = rand.Read(secret) // never fails
		return jose.JSONWebKey{Key: secret, KeyID: name, Algorithm: wrappingAlgorithm, Use: "enc"}, nil
	})
}

// add puts the key that generate returns into the file at path.
func add(path, name string, generate func() (jose.JSONWebKey, error)) (ref string, err error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("local keys: %w", err)
	}
	defer unlock()

	s, err := readForUpdate(path)
	if err != nil {
		return "", err
	}
	if _, ok := s.keys[name]; ok {
		return "", fmt.Errorf("%w: %q in %s", ErrExists, name, path)
	}
	k, err := generate()
	if err != nil {
		return "", fmt.Errorf("local keys: %w", err)
	}
	if err := s.add(k); err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(s.members, "", "  ")
	if err != nil {
		return "", fmt.Errorf("local keys: %w", err)
	}
	if err := replaceFile(path, append(data, '\n')); err != nil {
		return "", fmt.Errorf("local keys: %w", err)
	}
	return refPrefix + name, nil
}

// readForUpdate is readSet, with an empty set for a file that is not there.
func readForUpdate(path string) (*set, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return parseSet([]byte(`{"keys":[]}`))
	case err != nil:
		return nil, fmt.Errorf("local keys: %w", err)
	case info.Mode()&fs.ModeSymlink != 0:
		// It would be replaced by a file, and what it points to stay as it is.
		return nil, fmt.Errorf("local keys: %s is a symbolic link: name the file itself", path)
	}
	return readSet(path)
}

// add puts k into what is written; the checked keys stay as they were read.
func (s *set) add(k jose.JSONWebKey) error {
	raw, err := k.MarshalJSON()
	if err != nil {
		return fmt.Errorf("local keys: %w", err)
	}
	keys, err := json.Marshal(append(s.raw, raw))
	if err != nil {
		return fmt.Errorf("local keys: %w", err)
	}
	s.members["keys"] = keys
	return nil
}

func generate(spec kms.KeySpec) (crypto.Signer, error) {
	switch spec.Algorithm.KeyType() {
	case kms.RSA:
		return rsa.GenerateKey(rand.Reader, spec.Bits())
	case kms.EC:
		return ecdsa.GenerateKey(spec.Algorithm.Curve(), rand.Reader)
	default:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
}

// replaceFile puts data in the place of the file at path. Its caller holds the
// folder's lock, so that the temporary name is nobody else's: what is there
// was left by a process that was killed.
func replaceFile(path string, data []byte) (err error) {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	// The rename itself has to reach the disk too.
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
