package authz

import (
	"errors"
	"fmt"
	"strings"
)

// patterns matches names that are listed exactly, or by a prefix with one "*"
// behind it.
type patterns struct {
	exact    map[string]struct{}
	prefixes []string
}

// newPatterns takes patterns that have been checked.
func newPatterns(list []string) patterns {
	p := patterns{exact: make(map[string]struct{})}
	for _, pattern := range list {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			p.prefixes = append(p.prefixes, prefix)
		} else {
			p.exact[pattern] = struct{}{}
		}
	}
	return p
}

// match reports whether a pattern covers name. No name at all is covered by "*"
// alone.
func (p *patterns) match(name string) bool {
	if _, ok := p.exact[name]; ok {
		return true
	}
	for _, prefix := range p.prefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// any reports whether there is a pattern.
func (p *patterns) any() bool { return len(p.exact) > 0 || len(p.prefixes) > 0 }

// CheckClientPattern reports what is wrong with a client pattern of a grant.
func CheckClientPattern(pattern string) error {
	return checkPattern("a client pattern", pattern, `write a client_id, a prefix such as "app-*", or "*"`)
}

// CheckAudiencePattern reports what is wrong with an audience of a claim policy.
func CheckAudiencePattern(pattern string) error {
	return checkPattern("an audience", pattern, `write one such as "https://api.example.com", a prefix such as "https://api.example.com/*", or "*"`)
}

func checkPattern(what, pattern, advice string) error {
	switch i := strings.IndexByte(pattern, '*'); {
	case pattern == "":
		return errors.New(what + " is empty: " + advice)
	case i >= 0 && i != len(pattern)-1:
		return fmt.Errorf(`%s, %q, has a "*" before its end: only the last character may be one`, what, pattern)
	}
	return nil
}
