package config

import (
	"fmt"
	"time"
)

// Bounds of issuers[].key_change_delay, beside 0. What waits for longer than a
// month nobody remembers.
const (
	minKeyChangeDelay = time.Second
	maxKeyChangeDelay = 30 * 24 * time.Hour
)

func (v *validator) keyChangeDelay(path string, delay time.Duration) {
	if delay == 0 || !v.atLeast(path, delay, minKeyChangeDelay) {
		return
	}
	if delay > maxKeyChangeDelay {
		v.add(path, fmt.Sprintf("%v is too long", delay), fmt.Sprintf("write %v or less, or leave it out to have changes take effect at once", maxKeyChangeDelay))
	}
}
