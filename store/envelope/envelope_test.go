package envelope

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// plain is an authenticator that lets a test see what is authenticated. Its
// MAC is always the same.
type plain struct{ seen [][]byte }

func (p *plain) MAC(_ context.Context, parts ...[]byte) (string, []byte, error) {
	p.seen = parts
	return "dk-1", bytes.Repeat([]byte{0xaa}, macSize), nil
}

func (p *plain) Verify(_ context.Context, keyID string, mac []byte, parts ...[]byte) error {
	p.seen = parts
	if keyID != "dk-1" || !bytes.Equal(mac, bytes.Repeat([]byte{0xaa}, macSize)) {
		return ErrTampered
	}
	return nil
}

// What is stored must open after any change of this code.
func TestFormIsFixed(t *testing.T) {
	a := &plain{}
	row := Row{Kind: Registration, Key: Key("main", "app")}
	value, err := Seal(t.Context(), a, row, []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "0204" + hex.EncodeToString([]byte("dk-1")) + strings.Repeat("aa", macSize) + hex.EncodeToString([]byte(`{"a":1}`)); hex.EncodeToString(value) != want {
		t.Errorf("got value %x, want %s", value, want)
	}
	want := "bulla stored record|\x02|registration|main\x00app|{\"a\":1}"
	if got := string(bytes.Join(a.seen, []byte("|"))); got != want {
		t.Errorf("Seal authenticates %q, want %q", got, want)
	}
	a.seen = nil
	record, err := Open(t.Context(), a, row, value)
	if err != nil || string(record) != `{"a":1}` {
		t.Errorf("Open: got %q, %v", record, err)
	}
	if got := string(bytes.Join(a.seen, []byte("|"))); got != want {
		t.Errorf("Open authenticates %q, want %q", got, want)
	}
	if KeyID(value) != "dk-1" || string(Claimed(value)) != `{"a":1}` {
		t.Errorf("got key id %q and claim %q", KeyID(value), Claimed(value))
	}
}

func TestWhatHasNotTheFormIsTampered(t *testing.T) {
	sound, err := Seal(t.Context(), &plain{}, Row{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{
		"nil": nil, "empty": {}, "version alone": {2}, "version 1": append([]byte{1}, sound[1:]...),
		"version 3": append([]byte{3}, sound[1:]...), "cut short": sound[:len(sound)-1],
		"id beyond the end": {2, 255, 1, 2, 3}, "JSON": []byte(`{"version":2,"record":{}}`),
	} {
		if _, err := Open(t.Context(), &plain{}, Row{}, value); !errors.Is(err, ErrTampered) {
			t.Errorf("%s: got %v, want ErrTampered", name, err)
		}
		if KeyID(value) != "" || Claimed(value) != nil {
			t.Errorf("%s: got key id %q and claim %q, want none", name, KeyID(value), Claimed(value))
		}
	}
}
