package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// decoder fills the types of types.go from YAML nodes. It is written against
// nodes, and not left to the YAML package, to keep the line of every value and
// to go on after a mistake.
//
// Fields are named by their tag `yaml`. Strings tagged `is:"path"` are made
// absolute, as are those tagged `is:"path or -"` unless they are "-", and those
// tagged `is:"path of a DSN"`, which must not be the DSN itself. A Size tagged
// `is:"size or nothing"` may be "".
type decoder struct {
	file, folder string
	problems     Problems
	more         bool                // there were more than maxProblems
	at           map[string]position // where each path of the file was given
	bad          map[string]bool     // paths whose value could not be taken
}

// maxProblems is how many problems are told at once. More than that are not
// read, and come of one cause.
const maxProblems = 100

// maxEntries is how long a list may be.
const maxEntries = 10_000

// note keeps a problem, or only that there are more.
func (d *decoder) note(p Problem) {
	if d.full() {
		d.more = true
		return
	}
	d.problems = append(d.problems, p)
}

func (d *decoder) full() bool { return len(d.problems) >= maxProblems }

type position struct{ line, column int }

// defaulter is a type of types.go with defaults other than zero.
type defaulter interface{ setDefaults() }

func newDecoder(file, folder string) *decoder {
	return &decoder{file: file, folder: folder, at: make(map[string]position), bad: make(map[string]bool)}
}

func (d *decoder) decode(root *yaml.Node, into any) {
	d.value(root, "", reflect.ValueOf(into).Elem(), "")
}

// add notes a problem with the value at path, unless that value could not even
// be read, which was noted before.
func (d *decoder) add(path, message, advice string) {
	if d.full() {
		d.more = true
		return
	}
	p := path
	for {
		if d.bad[p] {
			return
		}
		if p == "" {
			break
		}
		p = parent(p)
	}
	pos := d.position(path)
	d.note(Problem{File: d.file, Line: pos.line, Column: pos.column, Path: path, Message: message, Advice: advice})
}

// reject notes a problem with the node itself and marks its path, so that
// nothing is said of what would have been there.
func (d *decoder) reject(n *yaml.Node, path, message, advice string) {
	d.bad[path] = true
	d.note(Problem{File: d.file, Line: n.Line, Column: n.Column, Path: path, Message: message, Advice: advice})
}

// given reports whether the file has a value at path.
func (d *decoder) given(path string) bool { _, ok := d.at[path]; return ok }

// position is where path was given, or the nearest thing around it that was.
func (d *decoder) position(path string) position { return positionIn(d.at, path) }

func positionIn(at map[string]position, path string) position {
	for {
		if p, ok := at[path]; ok || path == "" {
			return p
		}
		path = parent(path)
	}
}

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// value fills v from n, or with defaults if n is nil.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value, is string) {
	if n != nil {
		d.at[path] = position{n.Line, n.Column}
		if !d.plain(n, path) {
			return
		}
	}
	switch v.Type() {
	case reflect.TypeFor[time.Duration]():
		d.duration(n, path, v)
		return
	case reflect.TypeFor[Size]():
		d.size(n, path, v, is)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, path, v)
	case reflect.Pointer: // an optional part: absent unless given
		if n != nil {
			v.Set(reflect.New(v.Type().Elem()))
			d.value(n, path, v.Elem(), is)
		}
	case reflect.Slice:
		d.list(n, path, v, is)
	case reflect.Map:
		d.names(n, path, v)
	default:
		d.scalar(n, path, v, is)
	}
}

// plain refuses what would make a file mean more than it shows.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.reject(n, path, "anchors (&) and aliases (*) are not allowed", "write the value out where it belongs, in quotes if it begins with & or *")
	case n.Style&yaml.TaggedStyle != 0:
		d.reject(n, path, "tags (!) are not allowed", "write the plain value, in quotes if it begins with !")
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		d.reject(n, path, "there is no value", "write one, or remove the line for the default")
	default:
		return true
	}
	return false
}

// structure fills a struct: its defaults first, then the fields that are given.
func (d *decoder) structure(n *yaml.Node, path string, v reflect.Value) {
	if def, ok := v.Addr().Interface().(defaulter); ok {
		def.setDefaults()
	}
	var given map[string]*yaml.Node
	if n != nil {
		if n.Kind != yaml.MappingNode {
			d.reject(n, path, "fields are needed here, not "+describe(n), "write one or more of: "+strings.Join(fieldNames(v.Type()), ", "))
			return
		}
		known := fieldNames(v.Type())
		given = d.fields(n, path, func(name string, key *yaml.Node) {
			if d.full() {
				d.more = true
				return
			}
			d.reject(key, join(path, clean(name)), "there is no such field", suggest(name, known))
			if meant := nearest(name, known); meant != "" {
				d.bad[join(path, meant)] = true // that it is missing need not be said
			}
		}, known)
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if name, ok := f.Tag.Lookup("yaml"); ok {
			d.value(given[name], join(path, name), v.Field(i), f.Tag.Get("is"))
		}
	}
}

// fields returns the values of a mapping by name. Names given twice are
// refused, and those that are not known handed to unknown; if known is nil
// every name is.
func (d *decoder) fields(n *yaml.Node, path string, unknown func(string, *yaml.Node), known []string) map[string]*yaml.Node {
	given := make(map[string]*yaml.Node, len(n.Content)/2)
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		switch name := key.Value; {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 || key.Tag == "!!merge":
			d.reject(key, path, "a name is needed before the colon, without anchors, aliases, merge keys and tags", "write the name of a field")
		case first[name] > 0:
			d.reject(key, join(path, clean(name)), fmt.Sprintf("this is given twice, first in line %d", first[name]), "keep one of the two")
		default:
			first[name] = key.Line
			if known != nil && !slices.Contains(known, name) {
				unknown(name, key)
				continue
			}
			given[name] = val
		}
	}
	return given
}

// fieldNames lists the names that a struct knows, in its order.
func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if name, ok := t.Field(i).Tag.Lookup("yaml"); ok {
			names = append(names, name)
		}
	}
	return names
}

// list fills a slice. A given list replaces the default.
func (d *decoder) list(n *yaml.Node, path string, v reflect.Value, is string) {
	if n == nil {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.reject(n, path, "a list is needed here, not "+describe(n), "write [a, b], or one entry a line after dashes")
		return
	}
	if len(n.Content) > maxEntries {
		d.reject(n, path, fmt.Sprintf("the list has %d entries", len(n.Content)), fmt.Sprintf("keep it to %d; clients can be covered by a prefix", maxEntries))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.value(item, index(path, i), v.Index(i), is)
	}
}

// names fills a map from names to structs.
func (d *decoder) names(n *yaml.Node, path string, v reflect.Value) {
	if n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.reject(n, path, "names are needed here, each with its fields, not "+describe(n), "write name: {…}")
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for name, val := range d.fields(n, path, nil, nil) {
		entry := reflect.New(v.Type().Elem()).Elem()
		d.value(val, join(path, clean(name)), entry, "")
		v.SetMapIndex(reflect.ValueOf(name), entry)
	}
}

// isDSNPath is the tag of a path to a file with a connection string.
const isDSNPath = "path of a DSN"

// holdsDSN finds what no name of a file has, and a connection string may have:
// such a text is a secret, which no message may repeat.
var holdsDSN = regexp.MustCompile(`(?i)://|password\s*=`)

func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value, is string) {
	if n == nil {
		if is != "" {
			v.SetString(d.absolute(v.String(), is))
		}
		return
	}
	wrong := func(want, advice string) {
		d.reject(n, path, fmt.Sprintf("%s is needed here, not %s", want, describe(n)), advice)
	}
	switch v.Kind() {
	case reflect.String:
		switch {
		case n.Kind != yaml.ScalarNode:
			wrong("text", "write one value")
		case n.Tag != "!!str" && is != "":
			wrong("text", "name a file, in quotes if it looks like something else")
		case n.Tag != "!!str":
			wrong("text", "put it in quotes")
		case is == isDSNPath && holdsDSN.MatchString(n.Value):
			d.reject(n, path, "the name of a file is needed here, not the connection string itself", "write that into a file that only this user can read, and name the file here; if others could read it here, change the password")
		case strings.ContainsFunc(n.Value, unicode.IsControl):
			d.reject(n, path, "the text has line breaks or control characters", "write it on one line; secrets and certificates are named as files, not written here")
		default:
			v.SetString(d.absolute(n.Value, is))
		}
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			wrong("true or false", "write true or false, without quotes")
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil {
			wrong("a whole number", "write decimal digits, without quotes")
			return
		}
		v.SetInt(int64(i))
	case reflect.Float64:
		const advice = "write decimal digits, such as 10 or 0.5, without quotes"
		if n.Kind != yaml.ScalarNode || (n.Tag != "!!int" && n.Tag != "!!float") {
			wrong("a number", advice)
			return
		}
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || strings.Trim(n.Value, "-0123456789.") != "" {
			d.reject(n, path, quote(n.Value)+" is no decimal number", advice)
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("config: field %s has type %s, which the decoder does not know", path, v.Type()))
	}
}

func (d *decoder) absolute(path, is string) string {
	if is == "" || path == "" || filepath.IsAbs(path) || (is == "path or -" && path == "-") {
		return path
	}
	return filepath.Join(d.folder, path)
}

func (d *decoder) duration(n *yaml.Node, path string, v reflect.Value) {
	if n == nil {
		return
	}
	t, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || (n.Tag != "!!str" && n.Value != "0"):
		d.reject(n, path, "a time span is needed here, not "+describe(n), "write a number with its unit: 30s, 5m or 24h")
	case err != nil:
		d.reject(n, path, quote(n.Value)+" is no time span", "write a number with its unit: 30s, 5m or 24h")
	default:
		v.SetInt(int64(t))
	}
}

// orNothing is the tag of a size that can be "".
const orNothing = "size or nothing"

func (d *decoder) size(n *yaml.Node, path string, v reflect.Value, is string) {
	if n == nil || is == orNothing && n.Kind == yaml.ScalarNode && n.Tag == "!!str" && n.Value == "" {
		return
	}
	size, ok := parseSize(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		d.reject(n, path, "a size is needed here, not "+describe(n), sizeAdvice)
	case !ok:
		d.reject(n, path, quote(n.Value)+" is no size", sizeAdvice)
	default:
		v.SetInt(int64(size))
	}
}

// describe says what n is, without repeating it: it might be a secret in the
// wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "fields"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
	default:
		return "this"
	}
	switch n.Tag {
	case "!!str":
		return "text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	}
	return "this"
}
