package main

import (
	"errors"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/server/telemetry"
	"github.com/bulla-project/bulla/signer/keyring"
)

// registerStats adds what the parts count of themselves to the metrics.
func registerStats(m *telemetry.Metrics, b *backends, store *openedStore, looking *storeWatch, cache *keycache.Cache, log *audit.Log, issuers *issuer.Directory, keys *keyring.Keyring) error {
	var all error
	gauge := func(name, help string, labels map[string]string, value func() float64) {
		all = errors.Join(all, m.Gauge(name, help, labels, value))
	}
	counter := func(name, help string, labels map[string]string, value func() float64) {
		all = errors.Join(all, m.Counter(name, help, labels, value))
	}
	for name, token := range b.tokens {
		backend := map[string]string{"backend": name}
		gauge("bulla_pkcs11_up", "1 while the token can be used.", backend, func() float64 { return boolean(token.Stats().Up) })
		gauge("bulla_pkcs11_sessions_limit", "Sessions that may sign at once.", backend, func() float64 { return float64(token.Stats().Limit) })
		gauge("bulla_pkcs11_sessions_open", "Sessions of the pool that are open.", backend, func() float64 { return float64(token.Stats().Open) })
		gauge("bulla_pkcs11_sessions_in_use", "Sessions that sign now.", backend, func() float64 { return float64(token.Stats().InUse) })
		gauge("bulla_pkcs11_waiting", "Signatures that wait for a session.", backend, func() float64 { return float64(token.Stats().Waiting) })
		gauge("bulla_pkcs11_stuck", "Calls that have not come out of the module for seconds.", backend, func() float64 { return float64(token.Stats().Stuck) })
		counter("bulla_pkcs11_waits_total", "Signatures that had to wait for a session.", backend, func() float64 { return float64(token.Stats().Waits) })
		counter("bulla_pkcs11_wait_seconds_total", "Time that they waited, all together.", backend, func() float64 { return token.Stats().WaitSeconds })
		counter("bulla_pkcs11_worker_restarts_total", "Times the module's process was started again.", backend, func() float64 { return float64(token.Stats().WorkerRestarts) })
		counter("bulla_pkcs11_logins_total", "Logins, good or bad.", backend, func() float64 { return float64(token.Stats().Logins) })
		counter("bulla_pkcs11_renewals_total", "Signatures made once more on a new session.", backend, func() float64 { return float64(token.Stats().Renewals) })
		counter("bulla_pkcs11_restarts_total", "Times the module was initialized again.", backend, func() float64 { return float64(token.Stats().Restarts) })
	}
	for _, i := range issuers.All() {
		gauge("bulla_signing_key_rotations_failing", "Keys of the issuer that are due to be replaced and cannot be: readyz and the log say why.", map[string]string{"issuer": i.Name()}, func() float64 {
			rotations, _ := keys.Rotations(i.Name()) // of a configured issuer
			failing := 0
			for _, r := range rotations {
				if r.Problem != "" {
					failing++
				}
			}
			return float64(failing)
		})
		gauge("bulla_signing_key_orphans", "Keys that were made for the issuer and that nobody needs: the log says what to do.", map[string]string{"issuer": i.Name()}, func() float64 {
			orphans, _ := keys.Orphans(i.Name()) // of a configured issuer
			return float64(len(orphans))
		})
		gauge("bulla_issuer_signs", "1 while the issuer's default key signs.", map[string]string{"issuer": i.Name()}, func() float64 {
			ok, _ := keys.Healthy(i.Name())
			return boolean(ok)
		})
	}
	gauge("bulla_clients_in_memory", "Clients kept ready.", nil, func() float64 { return float64(cache.Stats().Clients) })
	gauge("bulla_key_sets_in_memory", "Fetched key sets kept ready.", nil, func() float64 { return float64(cache.Stats().KeySets) })
	for state, name := range map[keycache.State]string{
		keycache.Ready: "READY", keycache.Stale: "STALE", keycache.Expired: "EXPIRED", keycache.Failing: "FAILING", keycache.NoUsableKey: "NO_USABLE_KEY",
	} {
		gauge("bulla_client_keys", "Clients in memory by the state of their keys.", map[string]string{"state": name}, func() float64 { return float64(cache.States()[state]) })
	}
	gauge("bulla_store_up", "1 while the store answers.", nil, func() float64 { return boolean(looking.up()) })
	gauge("bulla_store_lag_seconds", "For how long changes of other replicas may have been missed; 0 where there are no others.", nil, func() float64 { return looking.lag().Seconds() })
	if stats := store.database; stats != nil {
		in := func(state string) map[string]string { return map[string]string{"state": state} }
		gauge("bulla_store_connections", "Connections of the pool to the database.", in("in_use"), func() float64 { return float64(stats().InUse) })
		gauge("bulla_store_connections", "Connections of the pool to the database.", in("idle"), func() float64 { return float64(stats().Idle) })
		gauge("bulla_store_connections_limit", "Connections that the pool may have.", nil, func() float64 { return float64(stats().Max) })
		gauge("bulla_store_listening", "1 while changes of other replicas are heard of by notices, and not only by asking.", nil, func() float64 { return boolean(stats().Listening) })
	}
	counter("bulla_store_tampered_rows_total", "Stored records that failed their authentication: somebody changed the store.", nil, func() float64 { return float64(store.Tampered()) })
	counter("bulla_audit_records_total", "Audit lines written.", nil, func() float64 { return float64(log.Stats().Records) })
	counter("bulla_audit_failures_total", "Audit lines that could not be written.", nil, func() float64 { return float64(log.Stats().Failures) })
	counter("bulla_audit_rotations_total", "Times another file was begun for the audit log.", nil, func() float64 { return float64(log.Stats().Rotations) })
	counter("bulla_audit_checkpoints_total", "Signatures over the audit log.", nil, func() float64 { return float64(log.Stats().Checkpoints) })
	counter("bulla_audit_checkpoint_failures_total", "Attempts to sign the audit log that failed; the log goes on without.", nil, func() float64 { return float64(log.Stats().CheckpointFailures) })
	gauge("bulla_audit_last_checkpoint_timestamp_seconds", "When the audit log was signed last by this process, 0 if it was not.", nil, func() float64 {
		if at := log.Stats().LastCheckpoint; !at.IsZero() {
			return float64(at.UnixMilli()) / 1000
		}
		return 0
	})
	return all
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
