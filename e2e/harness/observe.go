package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// AuditLine is a line of the audit log.
type AuditLine struct {
	V                       int       `json:"v"`
	Time                    time.Time `json:"time"`
	Outcome                 string    `json:"outcome"`
	Reason                  string    `json:"reason"`
	Caller                  string    `json:"caller"`
	RPC                     string    `json:"rpc"`
	Permission              string    `json:"permission"`
	Issuer                  string    `json:"issuer"`
	ClientID                string    `json:"client_id"`
	TokenKind               string    `json:"token_kind"`
	SigningKeyID            string    `json:"signing_key_id"`
	SigningAlgorithm        string    `json:"signing_algorithm"`
	EncryptionKeyID         string    `json:"encryption_key_id"`
	EncryptionKeyThumbprint string    `json:"encryption_key_thumbprint"`
	EncryptionAlgorithm     string    `json:"encryption_algorithm"`
	ContentEncryption       string    `json:"content_encryption"`
	JTI                     string    `json:"jti"`
	TokenSHA256             string    `json:"token_sha256"`
	OldThumbprint           string    `json:"old_thumbprint"`
	NewThumbprint           string    `json:"new_thumbprint"`
	Settings                string    `json:"settings"`
	KeySource               string    `json:"key_source"`
	Revision                uint64    `json:"revision"`
	GrantsSHA256            string    `json:"grants_sha256"`
	EffectiveAt             time.Time `json:"effective_at"`
	DroppedThumbprint       string    `json:"dropped_thumbprint"`
}

// RawAudit is the audit log as it is.
func (s *Service) RawAudit(t testing.TB) []byte {
	t.Helper()
	if s.audit == "-" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return bytes.Clone(s.stdout.Bytes())
	}
	doc, err := os.ReadFile(s.audit)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// linkedLine is any line of the audit log: that of an event, or one that tells of
// the log itself.
type linkedLine struct {
	AuditLine

	Log           string `json:"log"`
	Host          string `json:"host"`
	SkippedBytes  int64  `json:"skipped_bytes"`
	SkippedSHA256 string `json:"skipped_sha256"`
	Checkpoint    string `json:"checkpoint"`
	Chain         string `json:"chain"`
	Seq           uint64 `json:"seq"`
	Prev          string `json:"prev"`
}

// Audit is the events of the audit log. Every line must be one JSON object with
// no other fields than those of AuditLine and linkedLine, and a link of a chain.
func (s *Service) Audit(t testing.TB) []AuditLine {
	t.Helper()
	var lines []AuditLine
	for raw := range bytes.Lines(s.RawAudit(t)) {
		var line linkedLine
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&line); err != nil {
			t.Fatalf("audit line %d: %v: %s", len(lines)+1, err, raw)
		}
		if line.Chain == "" || line.Seq == 0 || line.Prev == "" {
			t.Fatalf("an audit line is no link of a chain: %s", raw)
		}
		if line.Log == "" {
			lines = append(lines, line.AuditLine)
		}
	}
	return lines
}

// AuditOf is the lines of one client.
func (s *Service) AuditOf(t testing.TB, clientID string) []AuditLine {
	t.Helper()
	var lines []AuditLine
	for _, l := range s.Audit(t) {
		if l.ClientID == clientID {
			lines = append(lines, l)
		}
	}
	return lines
}

// WaitLog waits for a line of the log with text in it, and returns the first.
// The log comes through a pipe and may be behind the answers.
func (s *Service) WaitLog(t testing.TB, text string) (line string) {
	t.Helper()
	Eventually(t, func() error {
		for line = range strings.Lines(s.Log()) {
			if strings.Contains(line, text) {
				return nil
			}
		}
		return fmt.Errorf("the log has no %q", text)
	})
	return line
}

// Metrics is /metrics: the values of the samples by name and labels as they stand
// there.
func (s *Service) Metrics(t testing.TB) map[string]float64 {
	t.Helper()
	_, _, body := s.Get(t, s.Ops, "/metrics")
	samples := make(map[string]float64)
	for line := range strings.Lines(body) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
			if err != nil {
				t.Fatalf("metrics: %q: %v", line, err)
			}
			samples[line[:i]] = value
		}
	}
	return samples
}

// Metric is one of Metrics, which must be there.
func (s *Service) Metric(t testing.TB, sample string) float64 {
	t.Helper()
	value, ok := s.Metrics(t)[sample]
	if !ok {
		t.Fatalf("there is no metric %s", sample)
	}
	return value
}
