package client

import (
	"fmt"
	"io"
	"log/slog"
)

// Format prints how many keys and secrets the configuration has, with any verb, and
// none of them. Package fmt does not ask it for an OpenConfig in an unexported field of
// another struct: who keeps one there must not print that.
func (c OpenConfig) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, c.summary())
}

// LogValue has slog do as Format does.
func (c OpenConfig) LogValue() slog.Value { return slog.StringValue(c.summary()) }

func (c OpenConfig) summary() string {
	return fmt.Sprintf("OpenConfig{Keys: %d, ClientSecrets: %d, Signers: %d, Kind: %q, Issuer: %q, Audience: %q}",
		len(c.Keys), len(c.ClientSecrets), len(c.Signers), string(c.Kind), c.Issuer, c.Audience)
}
