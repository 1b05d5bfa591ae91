package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/config"
	"github.com/bulla-project/bulla/server/telemetry"
)

// reload reads the configuration again while the service runs. A few sections can
// be swapped then; what else has changed needs a restart, and is only said.
//
// It is all or nothing. The file is read and checked as at a start, each section
// that has changed is prepared, and the change is put on record. If any of that
// fails nothing has changed. After it nothing can fail.
type reload struct {
	started *config.Config // what the service was started with
	swaps   []*swap
	audit   auditor
	log     *slog.Logger

	taken, refused atomic.Int64
	last           atomic.Int64 // when a file was taken, in Unix seconds
}

// auditor writes the audit log: audit.Log.
type auditor interface {
	Record(ctx context.Context, e audit.Event) error
}

// swap is a section of the configuration that can be swapped.
type swap struct {
	section string
	// prepare makes of a configuration what is to be in force, and changes
	// nothing. What it returns puts that in force, and cannot fail.
	prepare func(next *config.Config) (apply func(), err error)
	// event says what is put on record of the change; nil for nothing.
	event func(next *config.Config) audit.Event

	from *config.Config // whose section is in force
}

// newReload is called with what has just been started, and all that can be
// swapped of it.
func newReload(cfg *config.Config, auditLog auditor, log *slog.Logger, swaps ...*swap) *reload {
	r := &reload{started: cfg, swaps: swaps, audit: auditLog, log: log}
	for _, s := range swaps {
		s.from = cfg
	}
	r.last.Store(time.Now().Unix())
	return r
}

// again reads the file. It is called by one at a time.
func (r *reload) again(ctx context.Context) {
	swapped, err := r.take(ctx)
	if err != nil {
		r.refused.Add(1)
		r.log.ErrorContext(ctx, "configuration not reloaded: nothing has changed", "file", r.started.File(), "problems", problemsOf(err))
		return
	}
	r.taken.Add(1)
	r.last.Store(time.Now().Unix())
	r.log.InfoContext(ctx, "configuration reloaded", "file", r.started.File(), "changed", swapped)
}

// take returns the sections that it has swapped.
func (r *reload) take(ctx context.Context) (swapped []string, err error) {
	next, err := config.Load(r.started.File())
	if err != nil {
		return nil, err
	}
	var changed []*swap
	var apply []func()
	for _, s := range r.swaps {
		if !slices.Contains(s.from.Changed(next), s.section) {
			continue
		}
		put, err := s.prepare(next)
		if err != nil {
			return nil, err
		}
		changed, apply = append(changed, s), append(apply, put)
	}
	for _, s := range changed {
		if s.event == nil {
			continue
		}
		if err := r.audit.Record(ctx, s.event(next)); err != nil {
			return nil, fmt.Errorf("the change of %s cannot be put on record: %w", s.section, err)
		}
	}
	for i, s := range changed {
		apply[i]()
		s.from = next
		swapped = append(swapped, s.section)
	}
	if fixed := r.fixed(next); len(fixed) > 0 {
		r.log.WarnContext(ctx, "the configuration has changes that need a restart: they have no effect until then", "file", next.File(), "sections", fixed)
	}
	return swapped, nil
}

// fixed names the sections that differ from those the service was started with
// and cannot be swapped.
func (r *reload) fixed(next *config.Config) []string {
	return slices.DeleteFunc(r.started.Changed(next), func(section string) bool {
		return slices.ContainsFunc(r.swaps, func(s *swap) bool { return s.section == section })
	})
}

// problemsOf has one text for each thing that is wrong.
func problemsOf(err error) []string {
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		return []string{err.Error()}
	}
	var list []string
	for _, p := range problems {
		list = append(list, p.String())
	}
	return list
}

// register adds what has become of reloads to the metrics.
func (r *reload) register(m *telemetry.Metrics) error {
	const name, help = "bulla_config_reloads_total", "Times the configuration was read again by SIGHUP, and was taken (ok) or, for what is wrong with it, not (refused)."
	return errors.Join(
		m.Counter(name, help, map[string]string{"result": "ok"}, func() float64 { return float64(r.taken.Load()) }),
		m.Counter(name, help, map[string]string{"result": "refused"}, func() float64 { return float64(r.refused.Load()) }),
		m.Gauge("bulla_config_last_reload_timestamp_seconds", "When the configuration was read last and taken: at the start or by SIGHUP.", nil, func() float64 { return float64(r.last.Load()) }),
	)
}

// swapGrants swaps who may do what.
func swapGrants(started *config.Config, live *authz.Live) *swap {
	s := &swap{section: "grants"}
	s.prepare = func(next *config.Config) (func(), error) {
		if next.Plaintext() != started.Plaintext() {
			return nil, config.Problems{problemIn(next, "grpc.tls", "whether callers are known by certificates cannot change while the service runs, and what grants mean depends on it", "restart it")}
		}
		if err := runs(started, next); err != nil {
			return nil, err
		}
		policy, err := newPolicy(next)
		if err != nil {
			return nil, err
		}
		return func() { live.Replace(policy) }, nil
	}
	if !started.Plaintext() { // else grants are not used
		s.event = func(next *config.Config) audit.Event {
			return audit.Event{Outcome: audit.Changed, KeySource: "configuration", GrantsSHA256: next.GrantsSHA256()}
		}
	}
	return s
}

// runs refuses grants for an issuer that the service was started without: they
// would have no effect, and nobody would be told.
func runs(started, next *config.Config) error {
	var problems config.Problems
	for i, g := range next.Grants {
		for j, name := range g.Issuers {
			if !slices.ContainsFunc(started.Issuers, func(is config.Issuer) bool { return is.Name == name }) {
				problems = append(problems, problemIn(next, fmt.Sprintf("grants[%d].issuers[%d]", i, j), fmt.Sprintf("this process was started without the issuer %q", name), "restart it, or take the name out until then"))
			}
		}
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

func problemIn(c *config.Config, path, message, advice string) config.Problem {
	return config.Problem{File: c.File(), Line: c.Line(path), Path: path, Message: message, Advice: advice}
}

// hashOfGrants is by which the log and the audit log know the grants in force.
func hashOfGrants(c *config.Config) string {
	sum := c.GrantsSHA256()
	return hex.EncodeToString(sum[:])
}
