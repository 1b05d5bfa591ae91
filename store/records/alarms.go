package records

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/bulla-project/bulla/store/envelope"
)

// maxBad bounds the memory of rows that were alarmed. Beyond it they are
// alarmed again.
const maxBad = 10_000

// alarms tells the log of rows that fail their authentication: once for each
// row while it stays so.
type alarms struct {
	log   *slog.Logger
	count atomic.Uint64
	any   atomic.Bool // whether bad has any, so that sound need not lock

	mu  sync.Mutex
	bad map[string]struct{} // rows that were told; guarded by mu
}

// Tampered counts the rows that failed their authentication since the store
// was opened, each once for as long as it stays so. Anything but 0 is for an
// operator to look at: the log has the names of the rows.
func (s *Store) Tampered() uint64 { return s.alarms.count.Load() }

func (a *alarms) tampered(row envelope.Row, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := rowName(row)
	if _, told := a.bad[name]; told {
		return
	}
	if a.bad == nil || len(a.bad) >= maxBad {
		a.bad = map[string]struct{}{}
	}
	a.bad[name] = struct{}{}
	a.any.Store(true)
	a.count.Add(1)
	a.log.Error("stored record fails its authentication and is not used: somebody changed the store", append(attributes(row), "error", why)...)
}

func (a *alarms) sound(row envelope.Row) {
	if !a.any.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	name := rowName(row)
	if _, told := a.bad[name]; !told {
		return
	}
	delete(a.bad, name)
	a.any.Store(len(a.bad) > 0)
	a.log.Info("stored record that failed its authentication is sound again", attributes(row)...)
}

func rowName(row envelope.Row) string { return string(row.Kind) + "\x00" + string(row.Key) }

// spoken names a row in an error.
func spoken(row envelope.Row) string {
	list := attributes(row)
	text := string(row.Kind)
	for i := 2; i < len(list); i += 2 {
		text += fmt.Sprintf(" %s %q", list[i], list[i+1])
	}
	return text
}

// attributes names a row in the log. Its key may be anything.
func attributes(row envelope.Row) []any {
	names := map[envelope.Kind][]string{
		envelope.Registration: {"issuer", "client_id"},
		envelope.KeySet:       {"jwks_uri"},
		envelope.Ring:         {"issuer", "algorithm"},
	}[row.Kind]
	list := []any{"table", string(TableOf(row.Kind))}
	parts := bytes.SplitN(row.Key, []byte{0}, len(names))
	for i, part := range parts {
		list = append(list, names[i], fmt.Sprintf("%.300s", part))
	}
	return list
}
