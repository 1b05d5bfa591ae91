package harness

import "testing"

func TestPartsOfAPageLeaveEachOtherAlone(t *testing.T) {
	const (
		one = "<!-- part: one -->\n1\n<!-- end of part: one -->\n"
		two = "<!-- part: two -->\n2\n<!-- end of part: two -->\n"
	)
	for _, test := range []struct{ doc, name, content, want string }{
		{"", "one", "1", one},
		{"", "one", "1\n", one},
		{"text", "one", "1\n", "text\n\n" + one},
		{one, "two", "2\n", one + "\n" + two},
		{"a\n" + one + "b\n" + two + "c\n", "two", "new\n", "a\n" + one + "b\n<!-- part: two -->\nnew\n<!-- end of part: two -->\nc\n"},
		{"a\n" + two + one, "two", "2\n", "a\n" + two + one},
	} {
		if got, err := replacePart(test.doc, test.name, test.content); err != nil || got != test.want {
			t.Errorf("%q in %q: got %q, %v, want %q", test.name, test.doc, got, err, test.want)
		}
	}
	if got, err := replacePart("<!-- part: one -->\n1\n"+two, "one", "new"); err == nil {
		t.Errorf("a part without an end: got %q", got)
	}
}
