package main

import (
	"io"
	"strings"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// pendingFields show what waits of a client, in full.
func pendingFields(w io.Writer, k *bullav1.ClientKey) {
	p := k.GetPendingChange()
	if p == nil {
		return
	}
	field(w, "change waits", "until "+when(p.GetEffectiveAt())+", asked for at "+when(p.GetRequestedAt()))
	next := &bullav1.ClientKey{Source: p.GetSource(), ChosenKeys: p.GetChosenKeys(), State: p.GetState()}
	field(w, "  source", sourceName(next))
	field(w, "  jwks_uri", p.GetJwksUri())
	for _, s := range p.GetSettings() {
		field(w, "  "+kindName(s.GetTokenKind()), describeSetting(next, s))
	}
	if p.GetState() != bullav1.ClientKeyState_CLIENT_KEY_STATE_READY {
		field(w, "  state", strings.TrimSpace(stateName(next)+" "+p.GetStateReason()))
	}
}

// reasonAndPending is why a client's state is what it is, and in a few words what
// waits.
func reasonAndPending(k *bullav1.ClientKey) string {
	p := k.GetPendingChange()
	if p == nil {
		return k.GetStateReason()
	}
	text := "changes at " + when(p.GetEffectiveAt())
	if keys := chosenNames(p.GetChosenKeys()); keys != "" {
		text += " to " + keys
	}
	if reason := k.GetStateReason(); reason != "" {
		return reason + "; " + text
	}
	return text
}

// chosenNames names the keys in use for each kind of token.
func chosenNames(chosen []*bullav1.ChosenKey) string {
	var keys []string
	for _, c := range chosen {
		// Not even a hash is shown of what is derived from a secret.
		id := "(secret)"
		switch {
		case c.GetKeyId() != "":
			id = c.GetKeyId()
		case c.GetThumbprint() != "":
			id = c.GetThumbprint()
		}
		keys = append(keys, kindName(c.GetTokenKind())+"="+id)
	}
	return strings.Join(keys, ",")
}
