package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/bulla-project/bulla/kms"
)

// CheckpointType is the typ of a checkpoint's protected header (RFC 7515,
// section 4.1.9). It keeps a checkpoint from being taken for a token, as do
// its key, which is in no JWK Set of an issuer, and its payload, which has no
// claim of a token.
const CheckpointType = "bulla-audit-checkpoint+jws"

// Checkpoint is a statement about a chain, signed as a JWS in the compact form
// (RFC 7515): this was the hash of the line with this number, and from Since on
// the process that signs has written the chain itself.
type Checkpoint struct {
	// Chain is the name of the chain.
	Chain string `json:"chain"`
	// Seq is the number of the line; as lines are counted from 1, also how
	// many there were.
	Seq uint64 `json:"seq"`
	// Hash is the base64url of that line's SHA-256.
	Hash string `json:"hash"`
	// Since is the number of the first line that the process wrote. Those
	// before it were in the file when it started.
	Since uint64 `json:"since"`
	// Time is when it was signed (RFC 3339).
	Time time.Time `json:"time"`
	// Host is the machine's name, if it is known.
	Host string `json:"host,omitempty"`
}

// checkpointHeader is the protected header of a checkpoint.
type checkpointHeader struct {
	Algorithm kms.Algorithm `json:"alg"`
	KeyID     string        `json:"kid"`
	Type      string        `json:"typ"`
}

// SignedCheckpoint is a checkpoint as it was found. Nothing of it is proven
// before Verify.
type SignedCheckpoint struct {
	Checkpoint
	// KeyID is the RFC 7638 thumbprint of the key that signed it.
	KeyID string
	// JWS is the whole, in the compact form.
	JWS string

	algorithm kms.Algorithm
	signature []byte
	hash      [32]byte
}

// maxCheckpoint is the longest checkpoint that is read, in bytes.
const maxCheckpoint = 8 << 10

// signingInput is what is signed (RFC 7515, section 5.1).
func (c Checkpoint) signingInput(alg kms.Algorithm, kid string) (string, error) {
	header, err := json.Marshal(checkpointHeader{alg, kid, CheckpointType})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload), nil
}

// ParseCheckpoint reads a checkpoint and verifies nothing.
func ParseCheckpoint(jws string) (*SignedCheckpoint, error) {
	if len(jws) > maxCheckpoint {
		return nil, errors.New("it is too long for a checkpoint")
	}
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is no JWS in the compact form")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return nil, errors.New("it is no JWS in the compact form: its base64url is broken")
		}
	}
	var h checkpointHeader
	if err := strictObject(decoded[0], &h); err != nil {
		return nil, fmt.Errorf("its header %w", err)
	}
	if h.Type != CheckpointType {
		return nil, fmt.Errorf("it is something else: its typ is not %s", CheckpointType)
	}
	s := &SignedCheckpoint{KeyID: h.KeyID, JWS: jws, algorithm: h.Algorithm, signature: decoded[2]}
	if err := strictObject(decoded[1], &s.Checkpoint); err != nil {
		return nil, fmt.Errorf("its payload %w", err)
	}
	hash, err := base64.RawURLEncoding.Strict().DecodeString(s.Hash)
	if err != nil || len(hash) != len(s.hash) || s.Seq == 0 || s.Seq > maxSeq || s.Since == 0 || s.Since > s.Seq || !isChainID(s.Chain) {
		return nil, errors.New("its payload is not that of a checkpoint")
	}
	copy(s.hash[:], hash)
	return s, nil
}

// strictObject reads a JSON object with no name twice.
func strictObject(data []byte, into any) error {
	if !jsontext.Value(data).IsValid() || !bytes.HasPrefix(data, []byte("{")) {
		return errors.New("is no JSON object")
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errors.New("has members of other types than it should")
	}
	return nil
}

// errUnknownKey: a checkpoint is of a key that was not given.
var errUnknownKey = errors.New("no key of that thumbprint was given")

// Verify verifies the signature by one of keys.
func (s *SignedCheckpoint) Verify(keys Keys) error {
	public, ok := keys[s.KeyID]
	if !ok {
		return errUnknownKey
	}
	input := s.JWS[:strings.LastIndexByte(s.JWS, '.')]
	return kms.Verify(s.algorithm, public, []byte(input), s.signature)
}

// LastCheckpoint reads the checkpoint with the highest number of all that are
// in files, and verifies nothing; nil if there is none. Of several chains it is
// one of the chain that was seen last. It need not be the one that stands last:
// an earlier one, written down again, would else take its place.
func LastCheckpoint(ctx context.Context, files []string) (*SignedCheckpoint, error) {
	order, err := inOrder(files)
	if err != nil {
		return nil, err
	}
	// The last file that has one has the last: read from the end.
	for _, name := range slices.Backward(order) {
		last, err := lastCheckpointOf(ctx, name)
		if err != nil || last != nil {
			return last, err
		}
	}
	return nil, nil //nolint:nilnil // there is none, and that is no error
}

func lastCheckpointOf(ctx context.Context, name string) (last *SignedCheckpoint, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	for lines, read := newPieces(f), 1; ; read++ {
		p, err := lines.next()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if read%1000 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !p.whole || kindOf(p.line()) != logCheckpoint {
			continue
		}
		c, ok := parseChained(p.line())
		if !ok {
			continue
		}
		k, err := checkpointIn(p.line())
		if err == nil && k.Chain == c.chain && (last == nil || k.Chain != last.Chain || k.Seq > last.Seq) {
			last = k
		}
	}
}

// checkpointIn reads the checkpoint of a line.
func checkpointIn(line []byte) (*SignedCheckpoint, error) {
	var says struct {
		Checkpoint string `json:"checkpoint"`
	}
	if err := json.Unmarshal(line, &says); err != nil {
		return nil, errors.New("its line is no JSON object")
	}
	return ParseCheckpoint(says.Checkpoint)
}

// isCheckpointLine reports whether a line is what writes a checkpoint down, to
// the byte, and holds nothing beside it.
func isCheckpointLine(c chained, line []byte, jws string) bool {
	at, err := time.Parse(timeFormat, timeOf(line))
	if err != nil {
		return false
	}
	before := head{chain: c.chain, seq: c.seq - 1, hash: c.prev}
	want := before.link(nil, appendCheckpoint(nil, at, jws))
	return bytes.Equal(line, want[:len(want)-1])
}
