package records

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/envelope"
)

// The form in which Export writes a store and Import reads it: lines of JSON.
//
//	{"bulla_registry":1}
//	{"kind":"datakey","key":["dk-1"],"record":{…}}
//	{"kind":"ring","key":["main","ES256"],"data_key":"dk-1","mac":"…","record":{…}}
//	{"kind":"registration","key":["main","app"],"data_key":"dk-1","mac":"…","record":{…}}
//	{"kind":"keyset","key":["https://client.example/jwks"],"data_key":"dk-1","mac":"…","record":{…}}
//	{"end":{"data_keys":1,"rings":1,"registrations":1,"tombstones":0,"key_sets":1},"sha256":"…"}
//
// The kinds come in this order, and the rows of a kind in that of their keys.
// What is in a row is what the store has of it, byte for byte, so that its MAC
// holds in another store that has the same data keys and wrapping key; nothing
// that is sealed or wrapped is opened. The last line has what was written, and
// SHA-256 of all lines before it, which tells a file that was damaged on its way
// from a whole one; against somebody who wrote to it there are the MACs.

// formatVersion is the version of the form.
const formatVersion = 1

// maxLine is how long a line can be. The longest record there can be is a key
// set or a registration with a JWK Set of 128 KiB in base64.
const maxLine = 2 << 20

// kindDataKey is the kind of a data key's line. The others are those of package
// envelope.
const kindDataKey = "datakey"

// order has the kinds in the order of the lines, with the number of parts that
// the keys of their rows have.
var order = []struct {
	kind  string
	parts int
}{{kindDataKey, 1}, {string(envelope.Ring), 2}, {string(envelope.Registration), 2}, {string(envelope.KeySet), 1}}

// Counts says what an export has, and what came of it or of its import.
type Counts struct {
	DataKeys      int `json:"data_keys"`
	Rings         int `json:"rings"`
	Registrations int `json:"registrations"` // of live clients
	Tombstones    int `json:"tombstones"`    // of deleted ones
	KeySets       int `json:"key_sets"`

	// LeftOut is how many rows Export has left out, since nothing uses them as
	// they are: fetched key sets that fail their authentication, and data keys
	// that cannot be read. The log has their names.
	LeftOut int `json:"-"`
	// Written is how many rows Import has written: those that were not there.
	Written int `json:"-"`
	// There is how many rows Import has found there, the same as it would have
	// written them. Key sets that no client names are neither written nor there.
	There int `json:"-"`
}

// Errors of Export and Import, beside registry.ErrUnavailable and those of the
// reader and the writer.
var (
	// ErrFile: what is to be imported is not as an export wrote it. The text
	// has the line. Take a sound copy.
	ErrFile = errors.New("not an export as it was written")

	// ErrDiffers: the store has something else than what is to be imported. An
	// import is for an empty store, before the first start of the service.
	ErrDiffers = errors.New("the store holds something else; import into an empty store, before the service is started on it for the first time")

	// ErrExport: the store has a row that cannot be exported. The text names
	// it, and says what to do.
	ErrExport = errors.New("cannot be exported")
)

// line is a line between the first and the last.
type line struct {
	Kind    string   `json:"kind"`
	Key     []string `json:"key"`
	DataKey string   `json:"data_key,omitempty"`
	MAC     []byte   `json:"mac,omitempty"`
	// Record is written and read apart from the rest: encoding/json would write
	// it in its own way.
	Record json.RawMessage `json:"-"`
}

// appendTo appends the line to b, with its end.
func (l *line) appendTo(b []byte) ([]byte, error) {
	head, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	b = append(b, head[:len(head)-1]...)
	b = append(b, `,"record":`...)
	b = append(b, l.Record...)
	return append(b, '}', '\n'), nil
}

// lastLine is the last line.
type lastLine struct {
	End    Counts `json:"end"`
	SHA256 string `json:"sha256"`
}

func marshalLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEncoding, err)
	}
	return append(b, '\n'), nil
}

func firstLine() []byte { return fmt.Appendf(nil, "{\"bulla_registry\":%d}\n", formatVersion) }

// parsed is a line after the first.
type parsed struct {
	line
	last *lastLine // nil but for the last one
}

// parse reads a line after the first. It takes only what Export would write.
func parse(text []byte) (*parsed, error) {
	var both struct {
		Kind    *string         `json:"kind"`
		Key     []string        `json:"key"`
		DataKey string          `json:"data_key"`
		MAC     []byte          `json:"mac"`
		Record  json.RawMessage `json:"record"`
		lastLine
	}
	if err := json.Unmarshal(text, &both); err != nil {
		return nil, fmt.Errorf("it is no JSON of an export (%w)", err)
	}
	p := &parsed{}
	var again []byte
	var err error
	if both.Kind == nil {
		p.last = &both.lastLine
		again, err = marshalLine(p.last)
	} else {
		p.line = line{*both.Kind, both.Key, both.DataKey, both.MAC, both.Record}
		again, err = p.appendTo(nil)
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, again) {
		return nil, errors.New("it has another form than an export")
	}
	return p, nil
}

// place is where the line stands in the order of lines.
func (l *line) place() (rank int, key []byte, err error) {
	for i, o := range order {
		if o.kind != l.Kind {
			continue
		}
		key := envelope.Key(l.Key...)
		if len(l.Key) != o.parts || bytes.Count(key, []byte{0}) != o.parts-1 {
			return 0, nil, fmt.Errorf("its key is none of a %s", l.Kind)
		}
		return i, key, nil
	}
	return 0, nil, fmt.Errorf("it is of an unknown kind %.40q", l.Kind)
}

// value is the row of the line as a store has it, and its place.
func (l *line) value(key []byte) (envelope.Row, []byte, error) {
	value, ok := envelope.Pieces{KeyID: l.DataKey, MAC: l.MAC, Record: l.Record}.Value()
	if !ok {
		return envelope.Row{}, nil, errors.New("its MAC is none")
	}
	return envelope.Row{Kind: envelope.Kind(l.Kind), Key: key}, value, nil
}

// dataKey is the data key of the line.
func (l *line) dataKey() (datakey.Record, error) {
	var r datakey.Record
	if l.DataKey != "" || l.MAC != nil {
		return r, errors.New("a data key has no MAC")
	}
	if err := json.Unmarshal(l.Record, &r); err != nil || r.ID != l.Key[0] {
		return r, errors.New("it has no data key of that id")
	}
	if again, err := json.Marshal(r); err != nil || !bytes.Equal(again, l.Record) {
		return r, errors.New("it has another form than a data key")
	}
	return r, nil
}

// rowLine is the line of an authenticated row.
func rowLine(r stored) (*line, error) {
	p, ok := envelope.Apart(r.value)
	if !ok {
		return nil, fmt.Errorf("%w: it has not the form of a record", envelope.ErrTampered)
	}
	return &line{string(r.Kind), strings.Split(string(r.Key), "\x00"), p.KeyID, p.MAC, p.Record}, nil
}
