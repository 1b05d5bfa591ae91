package pkcs11

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
	"unsafe"
)

// The bounds on what is kept of refused PINs.
const (
	refusalRounds  = 200_000   // of PBKDF2 with HMAC-SHA-256, some 50 ms
	maxRounds      = 5_000_000 // that a record may ask for
	maxRefusals    = 8         // refused PINs that are remembered for a token
	maxRefusalSize = 64 << 10  // bytes of the file
	maxRecords     = 64        // tokens in it

	// These are waited for while inside the module, so that together they have to
	// be less than parkLimit.
	turnWait   = time.Second            // for another process's login
	folderWait = 500 * time.Millisecond // for another process to change the file
)

// errRefusedBefore is in the answer to a PIN that the records know as refused.
var errRefusedBefore = errors.New("it is in the record of refused PINs")

// errLoginElsewhere: another process is logging in to the token now.
var errLoginElsewhere = errors.New("another process is logging in to the token")

// errRecords: there is a file of records, and nobody knows what it says.
var errRecords = errors.New("the record of refused PINs is damaged")

// refusals are the records of refused PINs in Config.RefusalFile, so that one
// content of the PIN file costs one refused login, over any number of starts and
// by any number of processes. nil keeps none.
//
// A login is recorded before it is made, as a trial, and what became of it
// after; so a process that is killed in between does not lose it. A trial that
// was never settled counts as a login that was lost (see pinFile). While one
// process is in a login to a token, others with the same file wait for the
// outcome: the lock on a file beside, one for each token, says that, and the
// kernel takes it back from a process that dies.
//
// A PIN is recorded as a slow salted hash. That does not save a PIN of six
// digits from being found by who can read the file; but it is as private as the
// PIN file, in which such a reader finds the PIN itself.
//
// Where the file cannot be read or written, PINs are remembered in memory only,
// which is said once. A file that can be read and makes no sense may have been
// about this very PIN, so none is sent before somebody has looked.
type refusals struct {
	path     string
	reserved string // tells tokens of one name apart
	log      *slog.Logger

	// Of this process: the salt of records that it begins, and what it knows
	// hashes of PINs by. So it hashes a PIN slowly once, and not at each login
	// by which a token that was lost comes back.
	salt, secret [16]byte

	mu   sync.Mutex
	told string            // guarded by mu: the last thing that was warned of
	last [sha256.Size]byte // guarded by mu: the PIN that was hashed last, by the secret
	hash []byte            // guarded by mu: its slow hash, nil if there is none
}

func newRefusals(path, reserved string, log *slog.Logger) *refusals {
	if path == "" {
		return nil
	}
	r := &refusals{path: path, log: log}
	_, _ = rand.Read(r.salt[:])   // never fails
	_, _ = rand.Read(r.secret[:]) // likewise
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if reserved != "" {
		sum := sha256.Sum256([]byte(reserved))
		r.reserved = hex.EncodeToString(sum[:8])
	}
	return r
}

// forget is the advice that comes before "restart" to whoever wants a refused
// PIN to be sent again.
func (r *refusals) forget() string {
	if r == nil {
		return ""
	}
	return "delete " + r.path + " and "
}

// recordFile is the content of the file.
type recordFile struct {
	Version int      `json:"version"`
	Tokens  []record `json:"tokens"`
}

const recordVersion = 1

// record is what is kept of a token. Its PINs are hashed with one salt.
type record struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	InitReserved string `json:"init_reserved,omitempty"` // a short hash of it

	Salt    []byte    `json:"salt"`
	Rounds  int       `json:"rounds"`
	Refused []refusal `json:"refused,omitempty"` // the last one last
	Trial   *trial    `json:"trial,omitempty"`
}

// refusal is a PIN that was refused.
type refusal struct {
	Hash []byte    `json:"hash"`
	Time time.Time `json:"time"`
	Why  string    `json:"why"` // what the module said
}

// trial is a PIN that was sent, and of which nobody has told what became.
type trial struct {
	Hash  []byte    `json:"hash"`
	Time  time.Time `json:"time"`
	Times int       `json:"times"` // in how many logins
}

// same reports that r is about the token of o.
func (r record) same(o record) bool {
	return r.Label == o.Label && r.Serial == o.Serial && r.Manufacturer == o.Manufacturer && r.Model == o.Model && r.InitReserved == o.InitReserved
}

// sound reports that r can be worked with.
func (r record) sound() bool {
	whole := func(hash []byte) bool { return len(hash) == sha256.Size }
	if len(r.Salt) < 16 || len(r.Salt) > 64 || r.Rounds < 1 || r.Rounds > maxRounds || len(r.Refused) > maxRefusals {
		return false
	}
	for _, f := range r.Refused {
		if !whole(f.Hash) {
			return false
		}
	}
	return r.Trial == nil || whole(r.Trial.Hash) && r.Trial.Times > 0
}

// slow is r's hash of p, of which the last is remembered.
func (r *refusals) slow(of record, p *pin) ([]byte, error) {
	mac := hmac.New(sha256.New, r.secret[:])
	mac.Write([]byte{byte(len(of.Salt))}) //nolint:gosec // at most 64: sound
	mac.Write(of.Salt)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(of.Rounds))) //nolint:gosec // at most maxRounds
	mac.Write(p.bytes())
	var quick [sha256.Size]byte
	mac.Sum(quick[:0])
	r.mu.Lock()
	hash, same := r.hash, r.last == quick
	r.mu.Unlock()
	if same && hash != nil {
		return hash, nil
	}
	hash, err := of.hash(p)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.hash = quick, hash
	return hash, nil
}

func (r record) hash(p *pin) ([]byte, error) {
	text := unsafe.String(unsafe.SliceData(p.bytes()), p.size) //nolint:gosec // not kept
	return pbkdf2.Key(sha256.New, text, r.Salt, r.Rounds, sha256.Size)
}

// claim is a trial that is recorded, with the right to settle it. nil is one
// that is not; its methods then do nothing.
type claim struct {
	of     *refusals
	record record // as it is in the file
	before int    // lost logins before this one
	unlock func()
}

// try records that p is about to be sent to a token, unless the records say that
// it must not be: the error then is a *problem, or the context's. known says
// that the PIN was accepted before, so that a trial of it that is left means
// nothing.
func (r *refusals) try(ctx context.Context, pinPath string, p *pin, known bool, q pinQuestion) (*claim, error) {
	if r == nil {
		return nil, nil
	}
	name := record{
		Label: q.token.label, Serial: q.token.serial, Manufacturer: q.token.manufacturer, Model: q.token.model,
		InitReserved: r.reserved,
	}
	unlock, err := r.turn(ctx, name)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errLoginElsewhere):
		return nil, &problem{
			stage: StepLogin, text: fmt.Sprintf("another process has been logging in to token %q for more than %v", name.Label, turnWait), err: err,
			advice: "it is tried again; if that stays, the module hangs in another process that uses " + r.path,
		}
	case err != nil:
		r.warn(err)
		return nil, nil
	}
	c, err := r.tryAlone(pinPath, p, known, q, name)
	if c == nil {
		unlock()
		return nil, err
	}
	c.unlock = unlock
	return c, nil
}

// tryAlone is try for who has the turn.
func (r *refusals) tryAlone(pinPath string, p *pin, known bool, q pinQuestion, name record) (*claim, error) {
	fail := func(text, advice string, err error) (*claim, error) {
		return nil, &problem{stage: StepLogin, text: text, advice: advice, err: err}
	}
	content, err := r.read()
	switch {
	case errors.Is(err, errRecords):
		return fail("the record of refused PINs at "+r.path+" cannot be understood, so the PIN may have been refused before and is not sent",
			"make sure that the right PIN is in "+pinPath+", then delete "+r.path, err)
	case err != nil:
		r.warn(err)
		return nil, nil
	}
	rec := name
	if i := slices.IndexFunc(content.Tokens, name.same); i >= 0 {
		rec = content.Tokens[i]
	} else {
		rec.Salt, rec.Rounds = bytes.Clone(r.salt[:]), refusalRounds
	}
	hash, err := r.slow(rec, p)
	if err != nil {
		r.warn(err)
		return nil, nil
	}
	if i := slices.IndexFunc(rec.Refused, func(f refusal) bool { return bytes.Equal(f.Hash, hash) }); i >= 0 {
		f := rec.Refused[i]
		return fail(fmt.Sprintf("the PIN in %s was refused by token %q on %s (%s) and is not sent again", pinPath, name.Label, f.Time.Format(time.RFC3339), f.Why),
			"put the right PIN into the file (a change of its content is noticed), or delete "+r.path+" and restart if the token was given this PIN since", errRefusedBefore)
	}
	lapses := 0
	if rec.Trial != nil && bytes.Equal(rec.Trial.Hash, hash) && !known {
		lapses = rec.Trial.Times
	}
	switch {
	case lapses >= maxLapses:
		return fail(fmt.Sprintf("nobody knows what became of %d logins to token %q with the PIN in %s, because the process died in each or its record could not be written, so the PIN is not sent again", lapses, name.Label, pinPath),
			"log in once by hand to see that the PIN is right and the module survives it; then delete "+r.path+" and restart, or put the right PIN into the file (a change of its content is noticed)", errRefusedBefore)
	case lapses > 0 && q.warning != "":
		return fail(fmt.Sprintf("nobody knows what became of the last login with the PIN in %s, and the token reports wrong PINs (%s), so it may have been refused and is not sent again", pinPath, q.warning),
			"log in once by hand with the right PIN, which takes the warning away, and put it into the file", nil)
	}
	rec.Trial = &trial{Hash: hash, Time: time.Now().UTC().Truncate(time.Second), Times: lapses + 1}
	if err := r.write(rec); err != nil {
		r.warn(err)
		return nil, nil
	}
	return &claim{of: r, record: rec, before: lapses}, nil
}

// settle writes what became of the trial. If it cannot be written the trial
// stays, and counts as lost.
func (c *claim) settle(change func(*record)) {
	if c == nil {
		return
	}
	defer c.unlock()
	change(&c.record)
	if err := c.of.write(c.record); err != nil {
		c.of.warn(err)
	}
}

func (c *claim) accepted() {
	c.settle(func(r *record) { r.Trial, r.Refused = nil, nil })
}

func (c *claim) refused(why error) {
	c.settle(func(r *record) {
		text := ""
		if code := ckr(0); errors.As(why, &code) {
			text = code.Error()
		}
		r.Refused = append(r.Refused, refusal{Hash: r.Trial.Hash, Time: r.Trial.Time, Why: text})
		if n := len(r.Refused) - maxRefusals; n > 0 {
			r.Refused = r.Refused[n:]
		}
		r.Trial = nil
	})
}

func (c *claim) undecided() {
	c.settle(func(r *record) {
		if r.Trial.Times = c.before; c.before == 0 {
			r.Trial = nil
		}
	})
}

// lost leaves the trial as it is: it counts.
func (c *claim) lost() {
	if c != nil {
		c.unlock()
	}
}

// warn says that PINs are remembered in memory only, once for each reason.
func (r *refusals) warn(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told == err.Error() {
		return
	}
	r.told = err.Error()
	r.log.Warn("a refused PIN cannot be recorded, and would be sent once more after a restart; let this process write the file and its folder", "file", r.path, "why", err)
}
