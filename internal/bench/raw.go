//go:build linux && cgo

package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	p11 "github.com/miekg/pkcs11"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
)

// rawKey is a signing key of the token, used as plainly as PKCS#11 can be: no
// check, no recovery, no bound.
type rawKey struct {
	module    *p11.Ctx
	slot      uint
	login     p11.SessionHandle
	object    p11.ObjectHandle
	mechanism []*p11.Mechanism
	prefix    []byte // of what is signed
}

// rawSession is one session, for one caller at a time.
type rawSession struct {
	key    *rawKey
	handle p11.SessionHandle
}

// sha256Info is the DER encoding of DigestInfo for SHA-256 (RFC 8017, section
// 9.2, note 1).
const sha256Info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"

// openRaw finds the token's key for alg, ES256 or RS256. It initializes the
// module and logs in unless the process has.
func openRaw(token *softhsmtest.Token, alg kms.Algorithm) (*rawKey, error) {
	k := &rawKey{module: p11.New(token.Module)}
	if k.module == nil {
		return nil, fmt.Errorf("the module %s cannot be loaded", token.Module)
	}
	switch alg {
	case kms.ES256:
		k.mechanism = []*p11.Mechanism{p11.NewMechanism(p11.CKM_ECDSA, nil)}
	case kms.RS256:
		k.mechanism, k.prefix = []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS, nil)}, []byte(sha256Info)
	default:
		return nil, fmt.Errorf("no raw signature is known for %s", alg)
	}
	if err := k.module.Initialize(); err != nil && !errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil, fmt.Errorf("C_Initialize: %w", err)
	}
	slots, err := k.module.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("C_GetSlotList: %w", err)
	}
	found := false
	for _, slot := range slots {
		if info, err := k.module.GetTokenInfo(slot); err == nil && strings.TrimRight(info.Label, " \x00") == token.Label {
			k.slot, found = slot, true
		}
	}
	if !found {
		return nil, fmt.Errorf("the module has no token %q", token.Label)
	}
	if k.login, err = k.module.OpenSession(k.slot, p11.CKF_SERIAL_SESSION); err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	pin, err := os.ReadFile(token.PINFile)
	if err != nil {
		return nil, err
	}
	err = k.module.Login(k.login, p11.CKU_USER, strings.TrimSpace(string(pin)))
	if err != nil && !errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil, fmt.Errorf("C_Login: %w", err)
	}
	return k, k.find(harness.KeyLabel(alg))
}

func (k *rawKey) find(label string) error {
	err := k.module.FindObjectsInit(k.login, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_LABEL, label),
	})
	if err != nil {
		return fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	objects, _, err := k.module.FindObjects(k.login, 2)
	if err != nil {
		return fmt.Errorf("C_FindObjects: %w", err)
	}
	if err := k.module.FindObjectsFinal(k.login); err != nil {
		return fmt.Errorf("C_FindObjectsFinal: %w", err)
	}
	if len(objects) != 1 {
		return fmt.Errorf("the token has %d private keys with the label %q, want 1", len(objects), label)
	}
	k.object = objects[0]
	return nil
}

// session opens one more session.
func (k *rawKey) session() (*rawSession, error) {
	h, err := k.module.OpenSession(k.slot, p11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	return &rawSession{k, h}, nil
}

// sign hashes and signs message.
func (s *rawSession) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	input := slices.Concat(s.key.prefix, digest[:])
	if err := s.key.module.SignInit(s.handle, s.key.mechanism, s.key.object); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	signature, err := s.key.module.Sign(s.handle, input)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	return signature, nil
}

// unboundedKey is a kms.Key on as many sessions as there are signatures in
// flight, which are kept for the next ones.
type unboundedKey struct {
	raw       *rawKey
	algorithm kms.Algorithm
	publicKey crypto.PublicKey

	mu   sync.Mutex
	idle []*rawSession // guarded by mu
}

func (k *unboundedKey) Algorithm() kms.Algorithm { return k.algorithm }

func (k *unboundedKey) Public() crypto.PublicKey { return k.publicKey }

func (k *unboundedKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	s, err := k.take()
	if err != nil {
		return nil, err
	}
	signature, err := s.sign(message)
	if err != nil {
		return nil, err // and let go of the session
	}
	k.mu.Lock()
	k.idle = append(k.idle, s)
	k.mu.Unlock()
	return signature, nil
}

func (k *unboundedKey) take() (*rawSession, error) {
	k.mu.Lock()
	if n := len(k.idle); n > 0 {
		s := k.idle[n-1]
		k.idle = k.idle[:n-1]
		k.mu.Unlock()
		return s, nil
	}
	k.mu.Unlock()
	return k.raw.session()
}
