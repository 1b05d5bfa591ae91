package strictjson

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestEveryFaultIsToldWithoutTheDocument(t *testing.T) {
	const secret = "s3cr3t"
	for _, tt := range []struct{ document, want string }{
		{``, "ends too early"},
		{`{"` + secret + `":"` + secret, "ends too early"},
		{`{"` + secret + `":1,"` + secret + `":2}`, "twice, at byte"},
		{`{"a":{"` + secret + `":1,"\u00733cr3t":2}}`, "twice, at byte"},
		{`{"a":"` + secret + "\xff" + `"}`, "not valid JSON in UTF-8, at byte"},
		{`{"a":"` + secret + `\ud800"}`, "not valid JSON in UTF-8, at byte"},
		{secret, "not valid JSON"},
		{`{"a":[[[1]]]}`, "deeper than 3 levels"},
		{`{"a":[[1]]} {"` + secret + `":1}`, "more after"},
		{`{"a":[[1]]} ` + secret, "not valid JSON"},
	} {
		r := NewReader([]byte(tt.document), 3)
		err := r.Object(func(string) error { return r.Skip() })
		if err == nil {
			err = r.End()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %v, want %q and nothing of the document", tt.document, err, tt.want)
		}
	}
}

func TestValuesAreReadInOrder(t *testing.T) {
	document := []byte(` {"a" : "\u0062", "list":["c", "d"], "raw" :  {"e": 1.0e0} , "ext":[{}]} `)
	r := NewReader(document, 4)
	var got []string
	text := func() error {
		if !r.Is(jsontext.KindString) || r.Is(jsontext.KindNumber) {
			t.Error("a string is not known for one")
		}
		s, err := r.Text()
		got = append(got, s)
		return err
	}
	err := r.Object(func(name string) error {
		got = append(got, name)
		switch name {
		case "a":
			return text()
		case "list":
			return r.Array(text)
		case "raw":
			raw, err := r.Raw()
			clear(document[:40]) // the result is a copy
			got = append(got, string(raw))
			return err
		}
		return r.Skip()
	})
	if err == nil {
		err = r.End()
	}
	if want := `a b list c d raw {"e": 1.0e0} ext`; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %q, %v, want %s", got, err, want)
	}
}
