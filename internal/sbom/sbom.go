// Package sbom writes the software bill of materials of a Go binary: the modules
// that it was linked from, each with its version and the checksum that go.sum
// holds it to.
//
// It is made from what the Go linker left in the binary, not from go.mod, which
// also names what only tests need. So it is of exactly one binary, and the binary
// can print it itself (bulla version --sbom). Two bills of the same binary are
// the same bytes: there is no time in them, and the serial number follows from
// the contents.
//
// The form is CycloneDX 1.6 in JSON (ECMA-424), the names of packages are package
// URLs (purl, type golang). What is not known is left out and not guessed: which
// module needs which, their licenses, and the C library that the system's loader
// brings in.
package sbom

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"runtime/debug"
	"strings"
)

// Binary is what a bill is written of.
type Binary struct {
	// Info is the build information of the binary. Required.
	Info *debug.BuildInfo
	// Version is the version of the main module. The build information has it
	// only of a module that was fetched. Default: "", and none is told.
	Version string
	// Revision is the commit. Default: "", and none is told.
	Revision string
	// License is the SPDX identifier of the main module's license. Default: "",
	// and none is told.
	License string
}

// document and the types below are the part of CycloneDX 1.6 that is used, in the
// order of the specification.
type document struct {
	Schema       string      `json:"$schema"`
	Format       string      `json:"bomFormat"`
	SpecVersion  string      `json:"specVersion"`
	SerialNumber string      `json:"serialNumber,omitempty"`
	Version      int         `json:"version"`
	Metadata     metadata    `json:"metadata"`
	Components   []component `json:"components"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Licenses   []license  `json:"licenses,omitempty"`
	PURL       string     `json:"purl"`
	Properties []property `json:"properties,omitempty"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// The properties of components. CycloneDX leaves names with a prefix to whoever
// makes the bill.
const (
	// propertySum is the line of go.sum, "h1:…": SHA-256 over the names and
	// SHA-256 sums of a module's files. It stands as a property, for the hash of
	// a component is one over an archive, and this is not.
	propertySum      = "bulla:go.sum"
	propertyRevision = "bulla:vcs.revision"
	// propertyBuild is followed by the name of a build setting.
	propertyBuild = "bulla:build."
)

// settings are the build settings that are told: those that change what is in
// the binary. None of them holds a path.
var settings = []string{"-buildmode", "-tags", "-trimpath", "CGO_ENABLED", "GOARCH", "GOOS", "GOAMD64", "GOARM64", "GOFIPS140"}

// Write writes the bill of a binary.
func Write(w io.Writer, b Binary) error {
	doc := document{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata:   metadata{Component: application(b)},
		Components: []component{standardLibrary(b.Info.GoVersion)},
	}
	for _, m := range b.Info.Deps {
		doc.Components = append(doc.Components, library(m))
	}
	contents, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	doc.SerialNumber = serialNumber(contents)

	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	return nil
}

// application is the main module.
func application(b Binary) component {
	c := module("application", b.Info.Main.Path, b.Version)
	if b.License != "" {
		c.Licenses = make([]license, 1)
		c.Licenses[0].License.ID = b.License
	}
	if b.Revision != "" {
		c.Properties = append(c.Properties, property{propertyRevision, b.Revision})
	}
	for _, name := range settings {
		for _, s := range b.Info.Settings {
			if s.Key == name {
				c.Properties = append(c.Properties, property{propertyBuild + strings.TrimPrefix(name, "-"), s.Value})
			}
		}
	}
	return c
}

// standardLibrary is Go's own, in the name under which its vulnerabilities are
// published.
func standardLibrary(goVersion string) component {
	// "go1.26.8 X:experiment" where there are experiments
	number, _, _ := strings.Cut(strings.TrimPrefix(goVersion, "go"), " ")
	return module("library", "stdlib", number)
}

// library is a module that the main one needs, or what replaces it.
func library(m *debug.Module) component {
	for m.Replace != nil {
		m = m.Replace
	}
	c := module("library", m.Path, m.Version)
	if m.Sum != "" {
		c.Properties = []property{{propertySum, m.Sum}}
	}
	return c
}

func module(kind, path, version string) component {
	purl := packageURL(path, version)
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

// packageURL is the purl of a module: its path in lower case, as the type golang
// asks for, and every part escaped.
func packageURL(path, version string) string {
	parts := strings.Split(strings.ToLower(path), "/")
	for i, part := range parts {
		parts[i] = url.QueryEscape(part) // escapes "+", which PathEscape leaves
	}
	purl := "pkg:golang/" + strings.Join(parts, "/")
	if version != "" {
		purl += "@" + url.QueryEscape(version)
	}
	return purl
}

// serialNumber is a UUID made from the contents (RFC 9562, section 5.8: version 8,
// whose bits are the maker's own).
func serialNumber(contents []byte) string {
	u := sha256.Sum256(contents)
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
