package envelope

import "bytes"

// Pieces are a value taken apart, for those that carry it in another form than
// a store does.
type Pieces struct {
	KeyID       string
	MAC, Record []byte
}

// Apart takes a value apart. It is false if the value has not the form of an
// envelope. Nothing is verified, and the pieces are parts of value.
func Apart(value []byte) (Pieces, bool) {
	p, err := split(value)
	return Pieces{p.keyID, p.mac, p.record}, err == nil
}

// Value puts the pieces together as they were. It is false if they are not those
// of a value.
func (p Pieces) Value() ([]byte, bool) {
	if len(p.KeyID) > maxKeyID || len(p.MAC) != macSize {
		return nil, false
	}
	return bytes.Join([][]byte{{version, byte(len(p.KeyID))}, []byte(p.KeyID), p.MAC, p.Record}, nil), true //nolint:gosec // at most maxKeyID
}
