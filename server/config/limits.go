package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bulla-project/bulla/server/authz"
)

// Admission says how many signatures are asked of each backend at once, and how
// many calls wait for that (see package admit).
type Admission struct {
	// Queue is how many calls may wait for each backend, 1 to 65536. Default: 64.
	Queue int `yaml:"queue"`
	// Backends are those for which the default is not right, by name. Default:
	// none.
	Backends map[string]AdmissionBackend `yaml:"backends"`
}

// AdmissionBackend says how many signatures are asked of a backend at once.
type AdmissionBackend struct {
	// InFlight is that number, 1 to 4096. Default: for pkcs11 the number of its
	// sessions, for awskms a tenth of its rate, for local the number of CPUs.
	InFlight int `yaml:"in_flight"`
}

// Limits bound, on each replica, what each caller may ask for. Rates are by the
// second; a burst may be ten times as much, and a fraction is for less than one.
type Limits struct {
	// Tokens is how many tokens a caller may ask for. Default: 0, which is no
	// limit.
	Tokens float64 `yaml:"tokens"`
	// InFlight is how many tokens of a caller may be under way at once. Default:
	// 0, which is no limit.
	InFlight int `yaml:"in_flight"`
	// Registrations is how many registrations a caller may make. Default: 100.
	Registrations float64 `yaml:"registrations"`
	// FirstFetches is how many URLs that were never fetched a caller may have
	// fetched. Default: 20.
	FirstFetches float64 `yaml:"first_fetches"`
	// FirstFetchesPerHost is how many of them, of all callers together, may go
	// to one host, or to others of the same domain. Default: 5.
	FirstFetchesPerHost float64 `yaml:"first_fetches_per_host"`
	// Callers are those with limits of their own. Default: none.
	Callers []CallerLimits `yaml:"callers"`
}

// CallerLimits are those of one caller. What is not given is as for all.
type CallerLimits struct {
	// Caller is one that a grant names. Required.
	Caller string `yaml:"caller"`
	// Tokens and InFlight are as in Limits; 0 is no limit.
	Tokens   *float64 `yaml:"tokens"`
	InFlight *int     `yaml:"in_flight"`
	// Registrations and FirstFetches are as in Limits; 0 is as for all.
	Registrations float64 `yaml:"registrations"`
	FirstFetches  float64 `yaml:"first_fetches"`
}

func (a *Admission) setDefaults() { a.Queue = 64 }
func (l *Limits) setDefaults()    { *l = defaultLimits() }

func defaultLimits() Limits {
	return Limits{Registrations: 100, FirstFetches: 20, FirstFetchesPerHost: 5}
}

// The most that can be written: more is no limit.
const (
	maxRate     = 1_000_000
	maxInFlight = 4096
	maxQueue    = 65536
)

// admission checks how many signatures are asked for at once.
func (v *validator) admission() {
	if q := v.c.Admission.Queue; q < 1 || q > maxQueue {
		v.add("admission.queue", fmt.Sprintf("a queue of %d cannot be", q), fmt.Sprintf("write 1 to %d, or remove the line for the default, 64", maxQueue))
	}
	known := slices.Sorted(maps.Keys(v.c.Backends))
	for name, b := range v.c.Admission.Backends {
		path := join("admission.backends", clean(name))
		if !v.bad["backends"] && !slices.Contains(known, name) {
			v.add(path, fmt.Sprintf("there is no backend %s", quote(name)), suggest(name, known))
			continue
		}
		at := join(path, "in_flight")
		if b.InFlight < 1 || b.InFlight > maxInFlight {
			v.add(at, fmt.Sprintf("%d in flight cannot be", b.InFlight), fmt.Sprintf("write 1 to %d, or remove the backend from here for its default", maxInFlight))
		} else if p := v.c.Backends[name].PKCS11; p != nil && p.Sessions > 0 && b.InFlight > p.Sessions {
			v.add(at, fmt.Sprintf("the backend has %d sessions, and each signature needs one", p.Sessions), "write as many or fewer, or raise backends."+clean(name)+".pkcs11.sessions")
		}
	}
}

// limits checks the limits, and fills in those that are 0. It comes after the
// grants, which say who the callers are.
func (v *validator) limits() {
	l, d := &v.c.Limits, defaultLimits()
	v.rate("limits.tokens", l.Tokens, "no limit")
	v.inFlight("limits.in_flight", l.InFlight)
	for _, limit := range []struct {
		name     string
		value    *float64
		standard float64
	}{
		{"registrations", &l.Registrations, d.Registrations},
		{"first_fetches", &l.FirstFetches, d.FirstFetches},
		{"first_fetches_per_host", &l.FirstFetchesPerHost, d.FirstFetchesPerHost},
	} {
		v.rate(join("limits", limit.name), *limit.value, fmt.Sprintf("the default, %v", limit.standard))
		if *limit.value == 0 {
			*limit.value = limit.standard
		}
	}
	var known []string
	if v.c.Plaintext() && v.c.Development {
		known = []string{authz.DevelopmentCaller}
	} else {
		for _, g := range v.c.Grants {
			if !slices.Contains(known, g.Caller) {
				known = append(known, g.Caller)
			}
		}
	}
	first := make(map[string]string)
	for i, c := range l.Callers {
		v.callerLimits(index("limits.callers", i), c, known, first)
	}
}

// callerLimits checks those of one caller, who must be known and have no others:
// first is where each was seen first.
func (v *validator) callerLimits(path string, c CallerLimits, known []string, first map[string]string) {
	at := join(path, "caller")
	switch {
	case !v.required(at, c.Caller, "write the caller as its grant does"):
	case first[authz.Canonical(c.Caller)] != "":
		v.add(at, first[authz.Canonical(c.Caller)]+" is this caller too", "write all limits of a caller in one entry")
	case !slices.Contains(known, c.Caller) && !v.bad["grants"]:
		advice := "grant it something first, or remove its limits"
		if meant := nearest(c.Caller, known); meant != "" {
			advice = fmt.Sprintf("did you mean %s?", quote(meant))
		}
		v.add(at, fmt.Sprintf("no grant names the caller %s", quote(c.Caller)), advice)
	default:
		first[authz.Canonical(c.Caller)] = path
	}
	if c.Tokens != nil {
		v.rate(join(path, "tokens"), *c.Tokens, "no limit")
	}
	if c.InFlight != nil {
		v.inFlight(join(path, "in_flight"), *c.InFlight)
	}
	v.rate(join(path, "registrations"), c.Registrations, "what all may")
	v.rate(join(path, "first_fetches"), c.FirstFetches, "what all may")
	if c.Tokens == nil && c.InFlight == nil && c.Registrations == 0 && c.FirstFetches == 0 {
		v.add(path, "these are no limits", "write one or more of: tokens, in_flight, registrations, first_fetches; or remove the entry")
	}
}

// rate notes a number that is no rate. zero is what 0 stands for.
func (v *validator) rate(path string, value float64, zero string) {
	if value < 0 || value > maxRate {
		v.add(path, fmt.Sprintf("%v a second cannot be", value), fmt.Sprintf("write a number up to %d, or 0 for %s", maxRate, zero))
	}
}

func (v *validator) inFlight(path string, value int) {
	if value < 0 || value > maxRate {
		v.add(path, fmt.Sprintf("%d under way at once cannot be", value), fmt.Sprintf("write a number up to %d, or 0 for no limit", maxRate))
	}
}
