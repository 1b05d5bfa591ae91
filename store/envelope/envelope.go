// Package envelope is the form in which every store keeps a value: the record
// with a MAC that says who wrote it, and for which place.
//
// The MAC is made under a data key (package kms/datakey), over the kind of the
// record, the key of its row, and its bytes. So a record that was changed, was
// moved to another row or another table, or was written by somebody else does
// not open. The revision and the times of a record lie in its bytes.
//
// What no MAC can tell is whether a row is the newest: one that was replaced
// can be put back in its own place, and one that was deleted can be missed by
// nobody. Whoever can write the store can do both; that is the limit of what is
// promised here.
//
// The form is: a byte with the version, 2; a byte with the length of the data
// key's id; the id; 32 bytes of MAC; the record, which is JSON.
package envelope

import (
	"context"
	"fmt"
	"strings"

	"github.com/bulla-project/bulla/kms/datakey"
)

// ErrTampered: the value is not as this service wrote it for this row. Do not
// use it; an operator has to look at the store.
var ErrTampered = datakey.ErrTampered

const (
	version   = 2 // 1 had no MAC and was never released
	macSize   = 32
	maxKeyID  = 255
	nameOfMAC = "bulla stored record"
)

// Kind is the kind of a record. A MAC for one kind is none for another.
type Kind string

// The kinds. A store has a bucket or a table for each.
const (
	Registration Kind = "registration" // row key: issuer, client_id
	KeySet       Kind = "keyset"       // row key: jwks_uri
	Ring         Kind = "ring"         // row key: issuer, algorithm
)

// Row is the place of a record.
type Row struct {
	Kind Kind
	// Key is the row's key as Key joins it, whatever columns a store has.
	Key []byte
}

// Key joins the parts of a row's key by NUL. No part that is stored contains
// one, so a key with the right number of NULs has been joined of these parts
// and no others.
func Key(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

// Authenticator makes and checks MACs; *datakey.Keys is one. Its errors are
// those of datakey.Keys.
type Authenticator interface {
	// MAC authenticates parts, each with its length, under the current data
	// key, and returns that key's id and 32 bytes.
	MAC(ctx context.Context, parts ...[]byte) (keyID string, mac []byte, err error)
	// Verify returns nil if mac is that of parts under the data key.
	Verify(ctx context.Context, keyID string, mac []byte, parts ...[]byte) error
}

// Seal returns record in its envelope, for row.
func Seal(ctx context.Context, a Authenticator, row Row, record []byte) ([]byte, error) {
	id, mac, err := a.MAC(ctx, parts(row, record)...)
	if err != nil {
		return nil, err
	}
	if len(id) > maxKeyID || len(mac) != macSize {
		return nil, fmt.Errorf("envelope: the authenticator gave a key id of %d and a MAC of %d bytes", len(id), len(mac))
	}
	value := make([]byte, 0, 2+len(id)+macSize+len(record))
	value = append(value, version, byte(len(id))) //nolint:gosec // at most maxKeyID
	value = append(value, id...)
	value = append(value, mac...)
	return append(value, record...), nil
}

// Open returns the record in a value that was sealed for row. It is a part of
// value. Errors are ErrTampered, datakey.ErrUnavailable, or the context's.
func Open(ctx context.Context, a Authenticator, row Row, value []byte) (record []byte, err error) {
	p, err := split(value)
	if err != nil {
		return nil, err
	}
	if err := a.Verify(ctx, p.keyID, p.mac, parts(row, p.record)...); err != nil {
		return nil, err
	}
	return p.record, nil
}

// Claimed returns the record in a value that was not verified: what somebody
// says it is. It is nil if the value has not the form of an envelope.
func Claimed(value []byte) []byte {
	p, _ := split(value)
	return p.record
}

// KeyID returns the id of the data key that a value names, "" if it has not
// the form of an envelope. Nothing is verified.
func KeyID(value []byte) string {
	p, _ := split(value)
	return p.keyID
}

type pieces struct {
	keyID       string
	mac, record []byte
}

func split(value []byte) (pieces, error) {
	if len(value) < 2 || value[0] != version {
		return pieces{}, fmt.Errorf("%w: it has not the form of a record of this version", ErrTampered)
	}
	n := int(value[1])
	rest := value[2:]
	if len(rest) < n+macSize {
		return pieces{}, fmt.Errorf("%w: it is cut short", ErrTampered)
	}
	return pieces{keyID: string(rest[:n]), mac: rest[n : n+macSize], record: rest[n+macSize:]}, nil
}

func parts(row Row, record []byte) [][]byte {
	return [][]byte{[]byte(nameOfMAC), {version}, []byte(row.Kind), row.Key, record}
}
