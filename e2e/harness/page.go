package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// WritePart replaces a part of a page that several tests write: what stands
// between two comments with its name. Where there are none, the part is put at
// the end. What is outside stays.
func WritePart(t testing.TB, page, name, content string) {
	t.Helper()
	doc, err := os.ReadFile(page)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	changed, err := replacePart(string(doc), name, content)
	if err != nil {
		t.Fatalf("%s: %v", page, err)
	}
	if err := os.WriteFile(page, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

func replacePart(doc, name, content string) (string, error) {
	begin, end := "<!-- part: "+name+" -->\n", "<!-- end of part: "+name+" -->\n"
	part := begin + strings.TrimSuffix(content, "\n") + "\n" + end
	before, rest, found := strings.Cut(doc, begin)
	if !found {
		if doc != "" {
			doc = strings.TrimRight(doc, "\n") + "\n\n"
		}
		return doc + part, nil
	}
	_, after, found := strings.Cut(rest, end)
	if !found {
		return "", fmt.Errorf("%q begins and does not end", name)
	}
	return before + part + after, nil
}
