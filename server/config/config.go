// Package config reads the one file that configures the service. It exists so
// that what an operator must edit fails the start, with every mistake named at
// once, by file and line and with what to do about it; and so that nothing in
// the file is ever without effect in silence.
//
// The file is YAML 1.2 with strict rules: unknown fields, fields given twice,
// values of the wrong type, empty values, anchors, aliases, merge keys, tags
// and second documents are refused.
//
// Paths in the file are relative to the file's folder; they are made absolute
// here. Secrets are only ever named as files, and this package never reads
// one: Config.CheckFiles looks whether they are there and can be read, which
// is apart from Load so that a file can be checked on another machine.
//
// Which fields there are is said by the types in types.go, with the default of
// each; how they must fit together is in validate.go. What a key reference
// means to its backend, and whether a key fits its algorithm, is left to the
// backends.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Load reads the file at path and checks it, without touching the files it
// names. If anything is wrong the error is of type Problems.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, unreadable(path, err)
	}
	return Parse(path, data)
}

func unreadable(path string, err error) error {
	var inner *os.PathError
	if errors.As(err, &inner) {
		err = inner.Err // the path is in the problem already
	}
	return Problems{{File: path, Message: fmt.Sprintf("the configuration cannot be read (%v)", err), Advice: "name an existing file that this user may read"}}
}

// Parse is Load for a file that has been read already. The name is used in
// messages, and its folder is what relative paths start from.
func Parse(name string, data []byte) (*Config, error) {
	if len(data) > MaxSize {
		return nil, Problems{{File: name, Message: fmt.Sprintf("the file is larger than %d bytes", MaxSize), Advice: "check that it is the configuration"}}
	}
	folder, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		return nil, unreadable(name, err)
	}
	root, problem := document(name, data)
	if problem != nil {
		return nil, Problems{*problem}
	}
	d := newDecoder(name, folder)
	c := new(Config)
	d.decode(root, c)
	if !d.full() {
		validate(c, d)
	}
	if len(d.problems) > 0 {
		problems := d.problems.sorted()
		if d.more {
			problems = append(problems, Problem{File: name, Message: "there are more problems", Advice: "mend these first"})
		}
		return nil, problems
	}
	c.name, c.at = name, d.at
	return c, nil
}

// document returns the root of the one YAML document in data.
func document(name string, data []byte) (*yaml.Node, *Problem) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &Problem{File: name, Line: 1, Message: "the file is empty", Advice: "write at least backends, wrapping and issuers"}
		}
		return nil, syntaxProblem(name, err)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &Problem{File: name, Line: second.Line, Column: second.Column, Message: "a second YAML document begins here", Advice: `keep one document: remove the "---" and what follows it`}
	case !errors.Is(err, io.EOF):
		return nil, syntaxProblem(name, err)
	}
	return doc.Content[0], nil
}

// syntaxProblem takes the line out of the YAML parser's message ("yaml: line
// 3: did not find expected key").
func syntaxProblem(name string, err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := &Problem{File: name, Line: 1, Advice: "check indentation, colons, brackets and quotes at this line and the one before"}
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		number, rest, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			p.Line, text = n, rest
		}
	}
	p.Message = "not YAML: " + clean(text)
	return p
}
