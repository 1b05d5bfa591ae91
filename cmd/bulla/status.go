package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

func statusCommand() *cobra.Command {
	var conn connection
	sample := time.Second
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how replicas are: issuers, keys, backends, clients, throughput",
		Long: `Show how replicas are: issuers, keys, backends, clients, throughput.

With several addresses in --addr, separated by commas, each replica is asked and
shown. A replica that does not answer is shown as such; the exit code is 1 if one
did not, or cannot issue tokens. It needs the permission read_status.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sample <= 0 || sample > time.Minute {
				return errors.New("--sample: give a time of up to a minute, such as 1s")
			}
			fleet, err := askReplicas(cmd.Context(), conn, sample)
			if err != nil {
				return err
			}
			if conn.output == "json" {
				err = fleet.json(cmd.OutOrStdout())
			} else {
				err = fleet.text(cmd.OutOrStdout())
			}
			return errors.Join(err, fleet.trouble())
		},
	}
	conn.register(cmd)
	cmd.Flags().DurationVar(&sample, "sample", sample, "for how long the throughput is measured")
	return cmd
}

// replicaStatus is what a replica answered, or why it did not.
type replicaStatus struct {
	address string
	err     error
	*bullav1.GetStatusResponse
	// perSecond and refusedPerSecond are tokens between two answers.
	perSecond, refusedPerSecond float64
}

// fleetStatus is the replicas in the order in which they were named.
type fleetStatus []*replicaStatus

// askReplicas asks all replicas at once.
func askReplicas(ctx context.Context, conn connection, sample time.Duration) (fleetStatus, error) {
	var fleet fleetStatus
	var asking sync.WaitGroup
	for address := range strings.SplitSeq(conn.config.Address, ",") {
		one := conn.config
		one.Address, one.Attempts = address, 1
		service, err := client.Dial(one)
		if err != nil {
			return nil, err
		}
		defer service.Close() //nolint:errcheck // nothing is lost: the answer is here
		r := &replicaStatus{address: address}
		fleet = append(fleet, r)
		asking.Go(func() { r.ask(ctx, service, conn.timeout, sample) })
	}
	asking.Wait()
	return fleet, ctx.Err()
}

// ask asks twice, and takes the throughput from what lies between.
func (r *replicaStatus) ask(ctx context.Context, service *client.Client, timeout, sample time.Duration) {
	get := func() (*bullav1.GetStatusResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return service.Status.GetStatus(ctx, &bullav1.GetStatusRequest{})
	}
	first, err := get()
	if err != nil {
		r.err = err
		return
	}
	select {
	case <-time.After(sample):
	case <-ctx.Done():
		r.err = ctx.Err()
		return
	}
	if r.GetStatusResponse, r.err = get(); r.err != nil {
		return
	}
	if took := r.GetAt().AsTime().Sub(first.GetAt().AsTime()).Seconds(); took > 0 && r.GetStartedAt().AsTime().Equal(first.GetStartedAt().AsTime()) {
		r.perSecond = float64(r.GetTokensIssued()-first.GetTokensIssued()) / took
		r.refusedPerSecond = float64(r.GetTokensRefused()-first.GetTokensRefused()) / took
	}
}

// trouble is an error if a replica needs to be looked at. If one alone was asked
// and did not answer, it is its answer, which says what to do.
func (f fleetStatus) trouble() error {
	if len(f) == 1 && f[0].err != nil {
		return f[0].err
	}
	var sick []string
	for _, r := range f {
		if r.err != nil || r.GetNotReady() != "" {
			sick = append(sick, r.address)
		}
	}
	if len(sick) == 0 {
		return nil
	}
	return fmt.Errorf("%s: does not issue tokens, or did not answer", strings.Join(sick, ", "))
}

// answered are the replicas that did.
func (f fleetStatus) answered() fleetStatus {
	return slices.DeleteFunc(slices.Clone(f), func(r *replicaStatus) bool { return r.err != nil })
}

func (f fleetStatus) json(w io.Writer) error {
	type replica struct {
		Address          string          `json:"address"`
		Error            string          `json:"error,omitempty"`
		Status           json.RawMessage `json:"status,omitempty"`
		TokensPerSecond  float64         `json:"tokens_per_second"`
		RefusedPerSecond float64         `json:"refused_per_second"`
	}
	var all []replica
	for _, r := range f {
		one := replica{Address: r.address, TokensPerSecond: r.perSecond, RefusedPerSecond: r.refusedPerSecond}
		if r.err != nil {
			one.Error = status.Convert(r.err).Message()
		} else {
			doc, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(r.GetStatusResponse)
			if err != nil {
				return err
			}
			one.Status = doc
		}
		all = append(all, one)
	}
	encoder := json.NewEncoder(w)
	return encoder.Encode(map[string]any{"replicas": all})
}

// text is one screen: the replicas, what they share, and what each has.
func (f fleetStatus) text(w io.Writer) error {
	var err error
	for _, part := range []func(io.Writer){f.replicas, f.keys, f.backends, f.clients} {
		err = errors.Join(err, table(w, part))
	}
	return err
}

func (f fleetStatus) replicas(w io.Writer) {
	row(w, "REPLICA", "VERSION", "UP FOR", "STATE", "TOKENS/S", "REFUSED/S", "ISSUED", "STORE", "LAG")
	for _, r := range f {
		if r.err != nil {
			row(w, r.address, "-", "-", "NO ANSWER: "+status.Convert(r.err).Message())
			continue
		}
		state := "ready"
		switch {
		case r.GetNotReady() != "":
			state = "NOT READY"
		case r.GetDegraded() != "":
			state = "degraded"
		}
		store := r.GetStore().GetKind()
		if !r.GetStore().GetUp() {
			store += " DOWN"
		}
		row(w, r.address, r.GetVersion(), since(r.GetAt(), r.GetStartedAt()), state,
			fmt.Sprintf("%.1f", r.perSecond), fmt.Sprintf("%.1f", r.refusedPerSecond), strconv.FormatUint(r.GetTokensIssued(), 10),
			store, r.GetStore().GetLag().AsDuration().Round(100*time.Millisecond).String())
	}
}

// keys shows each key once, with the number of replicas on which it works.
func (f fleetStatus) keys(w io.Writer) {
	type line struct {
		key          *bullav1.SigningKey
		at           *timestamppb.Timestamp
		works, knows int
	}
	lines := make(map[string]*line)
	signs := make(map[string]int)
	asked := f.answered()
	for _, r := range asked {
		for _, i := range r.GetIssuers() {
			signs[i.GetName()] += number(i.GetSigns())
			for n, k := range i.GetSigningKeys() {
				id := fmt.Sprintf("%s\x00%s\x00%d\x00%s", i.GetName(), k.GetAlgorithm(), n, k.GetKeyId())
				if lines[id] == nil {
					lines[id] = &line{key: k, at: r.GetAt()}
				}
				lines[id].knows++
				lines[id].works += number(k.GetAvailable())
			}
		}
	}
	if len(asked) == 0 {
		return
	}
	row(w, "")
	row(w, "ISSUER", "SIGNS", "KEY", "ALG", "STATE", "WORKS", "AGE", "NEXT CHANGE", "BACKENDS")
	for _, name := range slices.Sorted(maps.Keys(signs)) {
		shown := false
		for _, id := range slices.Sorted(maps.Keys(lines)) {
			l := lines[id]
			if l.key.GetIssuer() != name {
				continue
			}
			row(w, name, of(signs[name], len(asked)), shortened(l.key.GetKeyId(), 13), l.key.GetAlgorithm(),
				strings.TrimPrefix(l.key.GetState().String(), "SIGNING_KEY_STATE_"), of(l.works, len(asked)),
				since(l.at, l.key.GetPublishAt()), nextChange(l.key, l.at), strings.Join(l.key.GetBackends(), ","))
			shown = true
		}
		if !shown {
			row(w, name, of(signs[name], len(asked)), "(its keys are not known yet)")
		}
	}
}

// nextChange is what becomes of a key, and when.
func nextChange(k *bullav1.SigningKey, now *timestamppb.Timestamp) string {
	for _, change := range []struct {
		what string
		at   *timestamppb.Timestamp
	}{{"signs in ", k.GetActivateAt()}, {"retires in ", k.GetRetireAt()}, {"removed in ", k.GetRemoveAt()}} {
		if change.at != nil && change.at.AsTime().After(now.AsTime()) {
			return change.what + since(change.at, now)
		}
	}
	return "-"
}

func (f fleetStatus) backends(w io.Writer) {
	if len(f.answered()) == 0 {
		return
	}
	row(w, "")
	row(w, "REPLICA", "BACKEND", "KIND", "STATE", "FOR", "IN USE", "WAITING")
	for _, r := range f.answered() {
		for _, b := range r.GetBackends() {
			state, use := "up", "-"
			if !b.GetUp() {
				state = "DOWN"
			}
			if b.GetLimit() > 0 {
				use = fmt.Sprintf("%d of %d", b.GetInUse(), b.GetLimit())
			}
			row(w, r.address, b.GetName(), b.GetKind(), state, since(r.GetAt(), b.GetSince()), use, strconv.FormatUint(b.GetWaiting(), 10))
		}
	}
}

func (f fleetStatus) clients(w io.Writer) {
	asked := f.answered()
	if len(asked) == 0 {
		return
	}
	row(w, "")
	header := []string{"CLIENTS IN MEMORY"}
	for _, c := range asked[0].GetClients() {
		header = append(header, strings.TrimPrefix(c.GetState().String(), "CLIENT_KEY_STATE_"))
	}
	row(w, header...)
	for _, r := range asked {
		cells := []string{r.address}
		for _, c := range r.GetClients() {
			cells = append(cells, strconv.FormatUint(c.GetClients(), 10))
		}
		row(w, cells...)
	}
}

// since is the time from then to now, in two units at most; "-" if one of them
// is not known.
func since(now, then *timestamppb.Timestamp) string {
	if now == nil || then == nil {
		return "-"
	}
	const day = 24 * time.Hour
	d := now.AsTime().Sub(then.AsTime())
	switch {
	case d < 0:
		return "-"
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.Round(time.Second).String()
}

// of is n of all, or yes and no where there is but one.
func of(n, all int) string {
	if all == 1 {
		return map[bool]string{true: "yes", false: "NO"}[n == 1]
	}
	return fmt.Sprintf("%d/%d", n, all)
}

// number counts what is so.
func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
