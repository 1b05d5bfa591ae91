package config

import (
	"fmt"
	"time"
)

// Bounds of Audit.
const (
	minRotateSize      Size = 64 << 10
	maxFlushEvery           = 10 * time.Second
	maxCheckpointLines      = 50_000
)

func (v *validator) audit() {
	a := v.c.Audit
	if v.required("audit.path", a.Path, `name the file, or "-" for the standard output`) && a.Path == v.c.Store.Bolt.Path {
		v.add("audit.path", "this is the file of store.bolt too", "give each its own")
	}
	v.oneOf("audit.on_failure", a.OnFailure, OnFailureDeny, OnFailureContinue)
	if v.oneOf("audit.sync", a.Sync, SyncGroup, SyncAlways) && a.Sync == SyncAlways && a.Path == "-" {
		v.add("audit.sync", "the standard output cannot be synced", "write sync: group, or name a file")
	}
	if v.atLeast("audit.flush_every", a.FlushEvery, time.Millisecond) && a.FlushEvery > maxFlushEvery {
		v.add("audit.flush_every", fmt.Sprintf("%v is too long: a loss of power would cost the lines of that time", a.FlushEvery), fmt.Sprintf("write %v or less", maxFlushEvery))
	}
	switch {
	case a.RotateSize == 0:
	case a.Path == "-":
		v.add("audit.rotate_size", "the standard output is no file that could be renamed", "remove it, or name a file in audit.path")
	case a.RotateSize < minRotateSize:
		v.add("audit.rotate_size", fmt.Sprintf("%v is too little", a.RotateSize), fmt.Sprintf(`write %v or more, or "" for no bound`, minRotateSize))
	}
}

// checkpoint checks the key of the audit log, once those of the issuers are
// known.
func (v *validator) checkpoint() {
	c := v.c.Audit.Checkpoint
	if c == nil {
		return
	}
	const path = "audit.checkpoint"
	if v.required(join(path, "algorithm"), string(c.Algorithm), "write the JWS algorithm of the key, such as ES256") {
		v.signing(join(path, "algorithm"), c.Algorithm)
	}
	if c.EveryLines < 1 || c.EveryLines > maxCheckpointLines {
		v.add(join(path, "every_lines"), fmt.Sprintf("%d lines cannot be", c.EveryLines), fmt.Sprintf("write 1 to %d", maxCheckpointLines))
	}
	v.atLeast(join(path, "every"), c.Every, time.Second)

	at := join(path, "key")
	if !v.required(at, c.Location, `name a key made for this alone, such as "hsm:object=audit-1"`) {
		return
	}
	ref, problem := parseKeyRef(c.Location, v.c.Backends)
	if problem != nil {
		if !v.bad["backends"] && !v.bad[join("backends", backendPart(c.Location))] {
			v.add(at, problem.message, problem.advice)
		}
		return
	}
	c.Key = ref
	const advice = "make a key that does nothing but sign the audit log, and name it here"
	if v.wraps(ref) {
		v.add(at, "this is the wrapping key", advice)
	}
	for i, is := range v.c.Issuers {
		for j, k := range is.SigningKeys {
			for _, other := range k.Keys {
				if other != (KeyRef{}) && v.same(ref, other) {
					v.add(at, fmt.Sprintf("this is a signing key of tokens too: %s", index(join(index("issuers", i), "signing_keys"), j)), advice)
					return
				}
			}
		}
	}
}
