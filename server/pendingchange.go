package server

import (
	"context"
	"errors"
	"time"

	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// shown is a client as the API shows it: what is in force, and what waits.
func (s *clientKeyService) shown(ctx context.Context, reg *registry.Registration) (*bullav1.ClientKey, error) {
	status, err := s.keys.Status(ctx, reg)
	if err != nil {
		return nil, err
	}
	return s.shownWith(ctx, reg, status)
}

// shownWith is shown, given the status of what is in force.
func (s *clientKeyService) shownWith(ctx context.Context, reg *registry.Registration, status *keycache.Status) (*bullav1.ClientKey, error) {
	key := clientKey(reg, status)
	next, err := s.keys.Upcoming(ctx, reg)
	if err != nil {
		return nil, err
	}
	if p := key.GetPendingChange(); p != nil && next != nil {
		p.State, p.StateReason, p.ChosenKeys = stateOf(next.State), next.Reason, chosenKeys(next)
	}
	return key, nil
}

// barePendingChange is what waits as the API shows it, without its status; nil if
// nothing does.
func barePendingChange(reg *registry.Registration) *bullav1.PendingChange {
	next := reg.Successor()
	if next == nil {
		return nil
	}
	return &bullav1.PendingChange{
		EffectiveAt: timestamp(reg.Pending.EffectiveAt),
		// A record is written for nothing else while a change waits.
		RequestedAt: timestamp(reg.UpdatedAt),
		Source:      sourceOf(next.Source),
		JwksUri:     next.Source.JWKSURI,
		Settings:    responseSettings(next.Settings),
		Legacy:      next.Legacy,
		X5T:         next.X5T,
	}
}

// waits is what somebody who has changed a client should know if nothing has
// changed yet.
func waits(key *bullav1.ClientKey) []string {
	p := key.GetPendingChange()
	if p == nil {
		return nil
	}
	return []string{"a change of this client waits until " + p.GetEffectiveAt().AsTime().Format(time.RFC3339) + ": until then it stands as before"}
}

// explainPending goes through the keys of what waits, nil if nothing does. That
// they are not known now is part of the answer.
func (s *clientKeyService) explainPending(ctx context.Context, reg *registry.Registration, kind registry.TokenKind) (*bullav1.PendingExplanation, error) {
	next := reg.Successor()
	if next == nil {
		return nil, nil //nolint:nilnil // as the comment says
	}
	p := &bullav1.PendingExplanation{EffectiveAt: timestamp(reg.Pending.EffectiveAt)}
	if setting, ok := next.Setting(kind); ok {
		p.Setting = responseSetting(setting)
	}
	explained, err := s.keys.Explain(ctx, next, kind)
	switch {
	case errors.Is(err, keycache.ErrNoSetting), errors.Is(err, keycache.ErrUnusable), errors.Is(err, keycache.ErrUnavailable):
		p.Reason = err.Error()
	case err != nil:
		return nil, err
	default:
		p.FetchedAt, p.Keys = timestamp(explained.FetchedAt), keyVerdicts(explained)
	}
	return p, nil
}
