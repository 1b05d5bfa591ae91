package fetch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestEveryClassIsOnThePage holds docs/fetch.md, which tells operators what to do
// about each class of failure, against the constants.
func TestEveryClassIsOnThePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/fetch.md")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	classes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Class") {
			return true
		}
		name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		classes++
		if !strings.Contains(string(page), "\n| `"+name+"` |") {
			t.Errorf("docs/fetch.md does not say what %s means", name)
		}
		return true
	})
	if classes < 10 {
		t.Errorf("found %d classes in errors.go, want all of them", classes)
	}
}
