package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/server/authz"
)

const callersPage = "docs/callers.md"

// hangUpAndWait does what the page does by hand: to the service of this script,
// and until it has read its configuration.
const hangUpAndWait = `read_before=$(grep -c 'configuration \(not \)\?reloaded' serve.log || true)
kill -HUP "$service"
until [ "$(grep -c 'configuration \(not \)\?reloaded' serve.log)" -gt "$read_before" ]; do sleep 0.1; kill -0 "$service"; done`

// TestCallersPageWorksAsWritten runs the commands of docs/callers.md after the
// first steps, and holds what they print against what the page shows.
func TestCallersPageWorksAsWritten(t *testing.T) {
	t.Parallel()
	ip := loopback(t)
	page := pageBlocks(t, callersPage, ip)
	commands, hangups := texts(pageBlocks(t, firstSteps, ip), "sh"), 0
	for _, block := range texts(page, "sh") {
		const byHand = `kill -HUP "$(pidof bulla)"`
		hangups += strings.Count(block, byHand)
		commands = append(commands, strings.ReplaceAll(block, byHand, hangUpAndWait))
	}
	if hangups != 2 {
		t.Errorf("the page sends SIGHUP %d times, want 2", hangups)
	}
	checkShown(t, runAsWritten(t, ip, commands), texts(page, "text"))
}

// TestCallersPageKnowsAllPermissions: and how each is measured.
func TestCallersPageKnowsAllPermissions(t *testing.T) {
	doc, err := os.ReadFile("../" + callersPage)
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for line := range strings.Lines(string(doc)) {
		if cells := strings.Split(line, "|"); len(cells) == 5 {
			rows[strings.Trim(cells[1], " `")] = strings.TrimSpace(cells[3])
		}
	}
	for _, p := range authz.Permissions() {
		want := ""
		switch {
		case p.NeedsTokenKinds():
			want = "`token_kinds`, `clients`"
		case p.NeedsClients():
			want = "`clients`"
		}
		if got, ok := rows[string(p)]; !ok || got != want {
			t.Errorf("the page has %s measured by %q (there: %v), want %q", p, got, ok, want)
		}
	}
}
