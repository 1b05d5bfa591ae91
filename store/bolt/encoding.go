package bolt

import (
	"encoding/json"
	"errors"
	"fmt"
)

// recordVersion is the version of the records that this code writes.
const recordVersion = 1

// envelope is the form of every value in the file.
type envelope struct {
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
}

// errEncoding is a record that has no JSON form: a mistake of the caller.
var errEncoding = errors.New("record cannot be encoded")

func encode(record any) ([]byte, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	return json.Marshal(envelope{Version: recordVersion, Record: raw})
}

// decode reads value into a new T. It keeps nothing of value, which belongs
// to the transaction.
func decode[T any](key, value []byte) (*T, error) {
	var env envelope
	if err := json.Unmarshal(value, &env); err != nil {
		return nil, fmt.Errorf("the record %q is damaged; restore the store from a backup: %w", key, err)
	}
	if env.Version != recordVersion {
		return nil, fmt.Errorf("the record %q has version %d and this version of Bulla knows %d; run the newer one", key, env.Version, recordVersion)
	}
	record := new(T)
	if err := json.Unmarshal(env.Record, record); err != nil {
		return nil, fmt.Errorf("the record %q is damaged; restore the store from a backup: %w", key, err)
	}
	return record, nil
}

// key joins parts by NUL. No part that is stored contains one, so a key with
// the right number of NULs has been joined of these parts and no others.
func key(parts ...string) []byte {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	k := make([]byte, 0, n)
	for i, p := range parts {
		if i > 0 {
			k = append(k, 0)
		}
		k = append(k, p...)
	}
	return k
}
