package server

import (
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// bareClientKey is a registration as the API shows it, without its status.
func bareClientKey(reg *registry.Registration) *bullav1.ClientKey {
	key := &bullav1.ClientKey{
		Issuer:    reg.Issuer,
		ClientId:  reg.ClientID,
		Source:    sourceOf(reg.Source),
		JwksUri:   reg.Source.JWKSURI,
		Revision:  formatRevision(reg.Revision),
		CreatedAt: timestamp(reg.CreatedAt),
		UpdatedAt: timestamp(reg.UpdatedAt),
		Legacy:    reg.Legacy,
		X5T:       reg.X5T,
	}
	key.Settings = responseSettings(reg.Settings)
	key.PendingChange = barePendingChange(reg)
	return key
}

// clientKey is a registration and its status as the API shows them, without the
// status of what waits.
func clientKey(reg *registry.Registration, status *keycache.Status) *bullav1.ClientKey {
	key := bareClientKey(reg)
	key.State, key.StateReason, key.StateSince = stateOf(status.State), status.Reason, timestamp(status.Since)
	key.FetchedAt, key.NextRefreshAt = timestamp(status.FetchedAt), timestamp(status.NextRefreshAt)
	key.ExpiresAt, key.Warnings = timestamp(status.ExpiresAt), status.Warnings
	key.ChosenKeys = chosenKeys(status)
	return key
}

func chosenKeys(status *keycache.Status) []*bullav1.ChosenKey {
	var list []*bullav1.ChosenKey
	for _, r := range status.Recipients {
		list = append(list, &bullav1.ChosenKey{
			TokenKind:           kindOf(string(r.Setting.Kind)),
			KeyId:               r.KeyID(),
			Thumbprint:          r.Thumbprint,
			EncryptionAlgorithm: string(r.Algorithm()),
			ContentEncryption:   string(r.ContentEncryption()),
		})
	}
	return list
}

func responseSettings(settings []registry.Setting) []*bullav1.ResponseSetting {
	var list []*bullav1.ResponseSetting
	for _, s := range settings {
		list = append(list, responseSetting(s))
	}
	return list
}

func responseSetting(s registry.Setting) *bullav1.ResponseSetting {
	return &bullav1.ResponseSetting{
		TokenKind:           kindOf(string(s.Kind)),
		SigningAlgorithm:    s.SigningAlgorithm,
		EncryptionAlgorithm: s.EncryptionAlgorithm,
		ContentEncryption:   s.ContentEncryption,
		KeyId:               s.KeyID,
	}
}

// sourceOf names where a client's keys come from. A secret that stands beside
// keys of the client's own is not shown.
func sourceOf(source registry.Source) bullav1.KeySource {
	switch {
	case source.JWKSURI != "":
		return bullav1.KeySource_KEY_SOURCE_JWKS_URI
	case source.Generated:
		return bullav1.KeySource_KEY_SOURCE_GENERATED
	case len(source.JWKS) > 0:
		return bullav1.KeySource_KEY_SOURCE_JWKS
	case len(source.PEM) > 0:
		return bullav1.KeySource_KEY_SOURCE_PUBLIC_KEY_PEM
	case source.Secret != nil:
		return bullav1.KeySource_KEY_SOURCE_CLIENT_SECRET
	}
	return bullav1.KeySource_KEY_SOURCE_UNSPECIFIED
}

func stateOf(state keycache.State) bullav1.ClientKeyState {
	switch state {
	case keycache.Ready:
		return bullav1.ClientKeyState_CLIENT_KEY_STATE_READY
	case keycache.Stale:
		return bullav1.ClientKeyState_CLIENT_KEY_STATE_STALE
	case keycache.Expired:
		return bullav1.ClientKeyState_CLIENT_KEY_STATE_EXPIRED
	case keycache.Failing:
		return bullav1.ClientKeyState_CLIENT_KEY_STATE_FAILING
	case keycache.NoUsableKey:
		return bullav1.ClientKeyState_CLIENT_KEY_STATE_NO_USABLE_KEY
	}
	return bullav1.ClientKeyState_CLIENT_KEY_STATE_UNSPECIFIED
}

func keyVerdicts(e *keycache.Explanation) []*bullav1.KeyVerdict {
	var list []*bullav1.KeyVerdict
	for _, v := range e.Verdicts {
		list = append(list, keyVerdict(v))
	}
	return list
}

func keyVerdict(v jwks.Verdict) *bullav1.KeyVerdict {
	return &bullav1.KeyVerdict{
		Index:      int32(v.Key.Index), //nolint:gosec // a set holds at most a few hundred keys
		KeyId:      v.Key.KeyID,
		KeyType:    v.Key.Type,
		Curve:      v.Key.Curve,
		Use:        v.Key.Use,
		Algorithm:  v.Key.Algorithm,
		Thumbprint: v.Key.Thumbprint,
		Chosen:     v.Outcome == jwks.Chosen,
		Reason:     v.Reason,
	}
}
