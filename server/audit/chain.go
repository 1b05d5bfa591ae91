package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
)

// Every line ends with three members that make it a link of a chain:
//
//	,"chain":"HyTf0mXq2bRZ9w1a","seq":17,"prev":"47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"}
//
// chain is the random name of the chain, seq the number of the line in it, and
// prev the base64url of the SHA-256 of the line before, as it stands in the
// file without its line feed. The first line of a chain has the number 1 and a
// prev of zeros. The form is fixed, to the byte: no quote in the text of an
// event is written without a backslash, so nothing in an event can look like
// it.

// chainIDSize is the length of a chain's name: 12 random bytes in base64url.
const chainIDSize = 16

// prevSize is the length of a hash in base64url.
const prevSize = 43

// maxSeq is the largest number that every reader of JSON takes exactly.
const maxSeq = 1<<53 - 1

// maxLine bounds what is read as a line. No line that Bulla writes comes near
// it: the texts of an event are bounded.
const maxLine = 256 << 10

// head is the end of a chain.
type head struct {
	chain string   // its name
	seq   uint64   // the number of its last line, 0 if it has none
	hash  [32]byte // the hash of that line, zero if there is none
}

// newChain is a chain without lines.
func newChain() head {
	id := make([]byte, chainIDSize/4*3)
	_, _ = rand.Read(id) // never fails
	return head{chain: base64.RawURLEncoding.EncodeToString(id)}
}

// link appends line, a JSON object with its line feed, as the next of the
// chain.
func (h *head) link(dst, line []byte) []byte {
	start := len(dst)
	dst = append(dst, line[:len(line)-len("}\n")]...)
	dst = append(dst, `,"chain":"`...)
	dst = append(dst, h.chain...)
	dst = append(dst, `","seq":`...)
	dst = strconv.AppendUint(dst, h.seq+1, 10)
	dst = append(dst, `,"prev":"`...)
	dst = base64.RawURLEncoding.AppendEncode(dst, h.hash[:])
	dst = append(dst, `"}`...)
	h.seq++
	h.hash = sha256.Sum256(dst[start:])
	return append(dst, '\n')
}

// pass moves the end of the chain over a line that link has written.
func (h *head) pass(line []byte) {
	h.seq++
	h.hash = sha256.Sum256(line)
}

// chained is a line that has the form of a link.
type chained struct {
	chain string
	seq   uint64
	prev  [32]byte
	hash  [32]byte // of the line itself
}

// head is the end of a chain that ends with the line.
func (c chained) head() head { return head{c.chain, c.seq, c.hash} }

// linePrefix begins every line of a log.
const linePrefix = `{"v":`

// parseChained reads a line without its line feed. ok is false if it has not
// the form of a link. Whether the rest of it is JSON is not looked at.
func parseChained(line []byte) (c chained, ok bool) {
	if len(line) > maxLine || !bytes.HasPrefix(line, []byte(linePrefix)) {
		return c, false
	}
	rest, ok := bytes.CutSuffix(line, []byte(`"}`))
	if !ok || len(rest) < prevSize {
		return c, false
	}
	prev := rest[len(rest)-prevSize:]
	if n, err := base64.RawURLEncoding.Strict().Decode(c.prev[:], prev); err != nil || n != len(c.prev) {
		return c, false
	}
	if rest, ok = bytes.CutSuffix(rest[:len(rest)-prevSize], []byte(`,"prev":"`)); !ok {
		return c, false
	}
	digits := len(rest)
	for digits > 0 && '0' <= rest[digits-1] && rest[digits-1] <= '9' && len(rest)-digits < 17 {
		digits--
	}
	number := rest[digits:]
	if len(number) == 0 || number[0] == '0' {
		return c, false
	}
	seq, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil || seq > maxSeq {
		return c, false
	}
	if rest, ok = bytes.CutSuffix(rest[:digits], []byte(`","seq":`)); !ok || len(rest) < chainIDSize {
		return c, false
	}
	id := rest[len(rest)-chainIDSize:]
	if !isChainID(id) || !bytes.HasSuffix(rest[:len(rest)-chainIDSize], []byte(`,"chain":"`)) {
		return c, false
	}
	c.chain, c.seq, c.hash = string(id), seq, sha256.Sum256(line)
	return c, true
}

// isChainID reports whether id can be the name of a chain. Such a name can be
// shown on a terminal, whoever has written it.
func isChainID[T string | []byte](id T) bool {
	for i := range len(id) {
		if !isBase64URL(id[i]) {
			return false
		}
	}
	return len(id) == chainIDSize
}

func isBase64URL(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-' || b == '_'
}
