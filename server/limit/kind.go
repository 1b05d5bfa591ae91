package limit

import "time"

// kind is one of the limits.
type kind int

const (
	tokenRate kind = iota
	tokensInFlight
	registrations
	firstFetches
	firstFetchesPerHost
	fetchesInFlight
	kinds // how many there are
)

// name is what metrics, and the configuration where it has it, call a limit, and
// what tells the caller which one it is.
func (k kind) name() (name, what string) {
	switch k {
	case tokenRate:
		return "tokens", "the caller asks for tokens faster than it may"
	case tokensInFlight:
		return "in_flight", "the caller has as many tokens under way at once as it may"
	case registrations:
		return "registrations", "the caller registers clients faster than it may"
	case firstFetches:
		return "first_fetches", "the caller registers jwks_uris faster than it may"
	case firstFetchesPerHost:
		return "first_fetches_per_host", "jwks_uris of this host are registered faster than they may be"
	default:
		return "fetches_in_flight", "the hosts of the caller's jwks_uris keep too many fetches waiting"
	}
}

// exceed counts and returns that a limit is exceeded.
func (l *Limits) exceed(k kind, wait time.Duration) error {
	l.exceeded[k].Add(1)
	_, what := k.name()
	return &ExceededError{What: what, RetryAfter: max(wait, leastPause)}
}

// Names are the names of the limits.
func Names() []string {
	names := make([]string, kinds)
	for k := range kinds {
		names[k], _ = k.name()
	}
	return names
}

// Exceeded is how often a limit has been exceeded.
func (l *Limits) Exceeded(limit string) uint64 {
	for k := range kinds {
		if name, _ := k.name(); name == limit {
			return l.exceeded[k].Load()
		}
	}
	return 0
}
