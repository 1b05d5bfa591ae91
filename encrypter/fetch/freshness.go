package fetch

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxFreshness is the longest time a header can state: 2^31 seconds stand
// for everything above (RFC 9111, section 1.2.2).
const maxFreshness = (1 << 31) * time.Second

// Freshness is what an answer says of how long it may be used.
type Freshness struct {
	// For is how long from now; zero if it says that it is stale already or
	// must not be kept.
	For time.Duration
	// Stated is false if the answer says nothing, and For means nothing.
	Stated bool
}

// freshness reads the cache headers of a 200 or 304 received at now (RFC
// 9111, section 4.2): max-age less Age, else Expires less Date and Age.
// no-store and no-cache state that there is no freshness; so does a value
// that cannot be read, as section 4.2.1 advises.
//
// s-maxage is passed over: it is for caches shared by many users, and says
// nothing of how soon a host wants to be asked about its own keys.
func freshness(h http.Header, now time.Time) Freshness {
	var (
		lifetime = time.Duration(-1)
		none     bool
	)
	for name, value := range directives(h.Values("Cache-Control")) {
		switch name {
		case "no-store", "no-cache":
			none = true
		case "max-age":
			d, ok := seconds(value)
			if !ok {
				d = 0
			}
			// Of several the shortest counts.
			if lifetime < 0 || d < lifetime {
				lifetime = d
			}
		}
	}
	switch {
	case none:
		return Freshness{Stated: true}
	case lifetime >= 0:
	case h.Get("Expires") != "":
		expires, err := http.ParseTime(h.Get("Expires"))
		if err != nil {
			return Freshness{Stated: true} // "0" is common, and means: expired
		}
		date, err := http.ParseTime(h.Get("Date"))
		if err != nil {
			date = now
		}
		lifetime = min(max(expires.Sub(date), 0), maxFreshness)
	default:
		return Freshness{}
	}
	if age, ok := seconds(h.Get("Age")); ok {
		lifetime -= age
	}
	return Freshness{For: max(lifetime, 0), Stated: true}
}

// directives yields the directives of Cache-Control fields (RFC 9111,
// section 5.2): the name in lower case, the argument without quotes. A comma
// inside a quoted argument parts nothing.
func directives(fields []string) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for _, field := range fields {
			for field != "" {
				var d string
				d, field = cutDirective(field)
				name, value, _ := strings.Cut(d, "=")
				name = strings.ToLower(strings.Trim(name, " \t"))
				value = strings.Trim(value, " \t")
				if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
					value = value[1 : len(value)-1]
				}
				if name != "" && !yield(name, value) {
					return
				}
			}
		}
	}
}

// cutDirective returns the text before the first comma outside quotes, and
// what follows it.
func cutDirective(s string) (first, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// seconds reads delta-seconds: digits and nothing else (RFC 9111, section
// 1.2.2).
func seconds(s string) (time.Duration, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > 1<<31 {
		return maxFreshness, true
	}
	return time.Duration(n) * time.Second, true
}
