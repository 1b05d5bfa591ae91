package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer/keyring"
)

// KeyRings knows the issuers' signing keys: keyring.Keyring.
type KeyRings interface {
	List(issuer string) ([]keyring.KeyInfo, error)
	Rotations(issuer string) ([]keyring.RotationInfo, error)
}

// SigningKeys registers what there is to tell of issuers' signing keys. The rings
// say which algorithms there are, so this is read when the metrics are. Nobody is
// asked for it: the rings are in memory.
func (m *Metrics) SigningKeys(rings KeyRings, issuers []string) error {
	labels := []string{"issuer", "algorithm"}
	return m.reg.Register(&signingKeys{
		rings: rings, issuers: issuers, clock: time.Now,
		count: prometheus.NewDesc("bulla_signing_keys", "Signing keys by state.", append(labels, "state"), nil),
		age:   prometheus.NewDesc("bulla_signing_key_age_seconds", "For how long the key that signs has been signing.", labels, nil),
		next:  prometheus.NewDesc("bulla_signing_key_next_rotation_timestamp_seconds", "When the next key begins to sign, in Unix time; 0 if that is not planned.", labels, nil),
	})
}

// signingKeys is a prometheus.Collector.
type signingKeys struct {
	rings            KeyRings
	issuers          []string
	clock            func() time.Time
	count, age, next *prometheus.Desc
}

// Describe is of prometheus.Collector.
func (s *signingKeys) Describe(to chan<- *prometheus.Desc) {
	to <- s.count
	to <- s.age
	to <- s.next
}

// keyStates are the values of the label state.
var keyStates = map[keyring.State]string{
	keyring.Next: "next", keyring.Active: "active", keyring.Retiring: "retiring", keyring.Retired: "retired",
}

// Collect is of prometheus.Collector. Before the rings have been read from the
// store nothing is known, and nothing told.
func (s *signingKeys) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, issuer := range s.issuers {
		keys, unread := s.rings.List(issuer)
		rotations, alsoUnread := s.rings.Rotations(issuer)
		if unread != nil || alsoUnread != nil {
			continue
		}
		for _, r := range rotations {
			alg := string(r.Algorithm)
			count, since := tally(keys, r.Algorithm)
			for state, name := range keyStates {
				gauge(s.count, float64(count[state]), issuer, alg, name)
			}
			if !since.IsZero() {
				gauge(s.age, max(0, s.clock().Sub(since).Seconds()), issuer, alg)
			}
			due := 0.0
			if !r.DueAt.IsZero() {
				due = float64(r.DueAt.Unix())
			}
			gauge(s.next, due, issuer, alg)
		}
	}
}

// tally counts the keys of an algorithm by state, and says since when the one
// that signs does; zero if none does.
func tally(keys []keyring.KeyInfo, alg kms.Algorithm) (count map[keyring.State]int, since time.Time) {
	count = make(map[keyring.State]int, len(keyStates))
	for _, k := range keys {
		if k.Algorithm != alg {
			continue
		}
		count[k.State]++
		// Of several active keys the one activated last signs.
		if k.State == keyring.Active && k.ActivateAt.After(since) {
			since = k.ActivateAt
		}
	}
	return count, since
}
