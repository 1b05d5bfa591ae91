package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// KeyRef says where a signing key is: a backend by name, and the key in that
// backend's own notation. For a key given as a PKCS#11 URI, Ref is the URI.
type KeyRef struct {
	Backend string
	Ref     string
}

// String is the reference as the file could have it.
func (r KeyRef) String() string {
	if isPKCS11URI(r.Ref) {
		return r.Ref
	}
	return r.Backend + ":" + r.Ref
}

// refProblem is what is wrong with a reference. It does not repeat the
// reference: a PIN could be in it.
type refProblem struct{ message, advice string }

func isPKCS11URI(s string) bool {
	return len(s) >= 7 && strings.EqualFold(s[:7], "pkcs11:")
}

// parseKeyRef reads "backend:ref", or a PKCS#11 URI (RFC 7512), which belongs
// to the only pkcs11 backend or, of several, to the one whose token it names.
func parseKeyRef(text string, backends map[string]Backend) (KeyRef, *refProblem) {
	if isPKCS11URI(text) {
		return parseURIRef(text, backends)
	}
	name, ref, ok := strings.Cut(text, ":")
	if !ok || name == "" || ref == "" {
		return KeyRef{}, &refProblem{"this is no key location", `write backend:key, such as "hsm:object=login-es256", or a pkcs11: URI`}
	}
	if _, ok := backends[name]; !ok {
		return KeyRef{}, &refProblem{fmt.Sprintf("there is no backend %s", quote(name)), suggest(name, backendNames(backends))}
	}
	if backends[name].PKCS11 != nil {
		if _, p := pkcs11Attributes(ref); p != nil {
			return KeyRef{}, p
		}
	}
	return KeyRef{Backend: name, Ref: ref}, nil
}

func backendNames(backends map[string]Backend) []string {
	var names []string
	for name := range backends {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func parseURIRef(uri string, backends map[string]Backend) (KeyRef, *refProblem) {
	attributes, problem := pkcs11Attributes(uri[len("pkcs11:"):])
	if problem != nil {
		return KeyRef{}, problem
	}
	var all, fit []string
	for name, b := range backends {
		if b.PKCS11 == nil {
			continue
		}
		all = append(all, name)
		token, serial := attributes["token"], attributes["serial"]
		if (token == "" || b.PKCS11.Token == "" || token == b.PKCS11.Token) &&
			(serial == "" || b.PKCS11.Serial == "" || serial == b.PKCS11.Serial) {
			fit = append(fit, name)
		}
	}
	slices.Sort(all)
	slices.Sort(fit)
	switch {
	case len(all) == 0:
		return KeyRef{}, &refProblem{"a pkcs11: URI needs a pkcs11 backend, and there is none", "add one under backends"}
	case len(fit) == 0:
		return KeyRef{}, &refProblem{"the URI names another token than any pkcs11 backend has", "correct its token or serial, or add a backend for that token"}
	case len(fit) > 1:
		return KeyRef{}, &refProblem{fmt.Sprintf("the URI fits several backends: %s", strings.Join(fit, ", ")), "write backend:key instead, or name the token in the URI and in each backend"}
	}
	return KeyRef{Backend: fit[0], Ref: uri}, nil
}

// pkcs11Attributes reads the path attributes of a PKCS#11 URI, as far as they
// matter here: to find the backend, and to keep PINs and modules out. The rest
// is read by the backend.
func pkcs11Attributes(ref string) (map[string]string, *refProblem) {
	if isPKCS11URI(ref) {
		ref = ref[len("pkcs11:"):]
	}
	attributes := make(map[string]string)
	path, query, _ := strings.Cut(ref, "?")
	for _, part := range append(strings.Split(path, ";"), strings.Split(query, "&")...) {
		name, raw, _ := strings.Cut(part, "=")
		switch name {
		case "pin-value", "pin-source":
			return nil, &refProblem{"a PIN does not belong into a key location", "write it into a file and name that in the backend's pin_file"}
		case "module-path", "module-name":
			return nil, &refProblem{"a module does not belong into a key location", "name it in the backend's module"}
		}
		value, err := url.PathUnescape(raw)
		if err != nil {
			return nil, &refProblem{"the percent-encoding is broken", "write % as %25"}
		}
		attributes[name] = value
	}
	if attributes["object"] == "" && attributes["id"] == "" {
		return nil, &refProblem{"the key location names no key", "write object=LABEL or id=%01 with the key's CKA_LABEL or CKA_ID"}
	}
	return attributes, nil
}
