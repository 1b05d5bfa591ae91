// Package strictjson reads JSON documents that come from outside, token by
// token, so that no limit is checked after the work that it should prevent. A
// document is refused for a member that is named twice, for what is not UTF-8,
// for too many levels and for anything behind its end; and no error repeats more
// of it than a position, since it may hold secrets.
//
// What the members mean, and how an error is wrapped, is for the caller.
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// Reader reads one document.
type Reader struct {
	dec      *jsontext.Decoder
	document []byte
	maxDepth int
}

// NewReader returns a Reader of document, in which objects and arrays may nest
// maxDepth levels deep.
func NewReader(document []byte, maxDepth int) *Reader {
	return &Reader{dec: jsontext.NewDecoder(bytes.NewBuffer(document)), document: document, maxDepth: maxDepth}
}

// Is reports whether the next value is of that kind. It also does if there is no
// value because the document is malformed: then reading it returns the error.
func (r *Reader) Is(kind jsontext.Kind) bool {
	next := r.dec.PeekKind()
	return next == kind || next == jsontext.KindInvalid
}

func (r *Reader) next() (jsontext.Token, error) {
	token, err := r.dec.ReadToken()
	if err != nil {
		return token, problem(err)
	}
	if r.dec.StackDepth() > r.maxDepth {
		return token, fmt.Errorf("it nests deeper than %d levels: leave out what is not needed", r.maxDepth)
	}
	return token, nil
}

// Text reads the next value, a string.
func (r *Reader) Text() (string, error) {
	token, err := r.next()
	if err != nil {
		return "", err
	}
	return token.String(), nil
}

// Skip passes over the next value.
func (r *Reader) Skip() error {
	depth := r.dec.StackDepth()
	for {
		if _, err := r.next(); err != nil {
			return err
		}
		if r.dec.StackDepth() <= depth {
			return nil
		}
	}
}

// Raw reads the next value, which a member of an object has, and returns a copy
// of it as it stands in the document.
func (r *Reader) Raw() ([]byte, error) {
	start := r.dec.InputOffset() // after the name
	if err := r.Skip(); err != nil {
		return nil, err
	}
	return bytes.Clone(bytes.TrimLeft(r.document[start:r.dec.InputOffset()], ": \t\r\n")), nil
}

// Object reads the next value, an object: it calls member for each member, and
// member reads the value.
func (r *Reader) Object(member func(name string) error) error {
	return r.each(jsontext.KindEndObject, func() error {
		name, err := r.Text()
		if err != nil {
			return err
		}
		return member(name)
	})
}

// Array reads the next value, an array: it calls element for each element, and
// element reads it.
func (r *Reader) Array(element func() error) error {
	return r.each(jsontext.KindEndArray, element)
}

func (r *Reader) each(end jsontext.Kind, read func() error) error {
	if _, err := r.next(); err != nil {
		return err
	}
	for r.dec.PeekKind() != end {
		if err := read(); err != nil {
			return err
		}
	}
	_, err := r.next()
	return err
}

// End makes sure that nothing but white space is left.
func (r *Reader) End() error {
	switch _, err := r.dec.ReadToken(); {
	case err == nil:
		return errors.New("there is more after the JSON object: give the object alone")
	case !errors.Is(err, io.EOF):
		return problem(err)
	}
	return nil
}

// problem puts a decoder's error into words that hold no more of the document
// than a position.
func problem(err error) error {
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON ends too early: give the whole document")
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return fmt.Errorf("an object names a member twice, at byte %d: name each once", syntax.ByteOffset)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not valid JSON in UTF-8, at byte %d: correct it there", syntax.ByteOffset)
	}
	return errors.New("it cannot be read as JSON: give a JSON object")
}
