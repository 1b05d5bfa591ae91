package main

import "github.com/bulla-project/bulla/server/telemetry"

// registerKeyChanges adds how many changes of clients wait.
func registerKeyChanges(m *telemetry.Metrics, waiting func() int) error {
	return m.Gauge("bulla_client_key_changes_pending", "Changes of clients' keys that wait for their time, of all clients; 10000 at most.", nil, func() float64 { return float64(waiting()) })
}
