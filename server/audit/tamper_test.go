//go:build unix

package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/signer"
)

// signedLog is a log of eight events with checkpoints after the fourth and at
// its end: opened e1 e2 e3 e4 checkpoint e5 e6 e7 e8 checkpoint.
func signedLog(t testing.TB, key *softKey, client string) (path string, lines []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	for range 2 {
		stop := checkpointed(t, l, CheckpointConfig{Open: key.open, Every: time.Hour})
		for i := range 4 {
			record(t, l, fmt.Sprint(client, i))
		}
		stop()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path, linesOf(t, path)
}

// rechain computes the chain of lines anew from the one with the index from on,
// as somebody can who has no key.
func rechain(lines []string, from int) []string {
	out := slices.Clone(lines)
	first, _ := parseChained([]byte(strings.TrimSuffix(lines[0], "\n")))
	end := head{chain: first.chain}
	for i, line := range out {
		c, ok := parseChained([]byte(strings.TrimSuffix(line, "\n")))
		if i >= from || !ok {
			bare, _, _ := strings.Cut(line, `,"chain":"`)
			out[i] = string(end.link(nil, []byte(bare+"}\n")))
			continue
		}
		end = c.head()
	}
	return out
}

func kept(t testing.TB, line string) *SignedCheckpoint {
	t.Helper()
	_, rest, _ := strings.Cut(line, `"checkpoint":"`)
	jws, _, _ := strings.Cut(rest, `"`)
	k, err := ParseCheckpoint(jws)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTamperingIsFound(t *testing.T) {
	key, foreignKey := newKey(t), newKey(t)
	path, lines := signedLog(t, key, "c")
	_, others := signedLog(t, key, "o")
	_, forged := signedLog(t, foreignKey, "f")
	mustBeGood(t, verified(t, VerifyOptions{Keys: key.keys()}, path), 11)
	mustBeGood(t, verified(t, VerifyOptions{Keys: key.keys(), Kept: []*SignedCheckpoint{kept(t, lines[5]), kept(t, lines[10])}}, path), 11)

	edit := func(f func([]string) []string) []string { return f(slices.Clone(lines)) }
	put := func(i int, line string) []string { return slices.Insert(slices.Clone(lines), i, line) }
	move := func(from, to int) []string {
		return edit(func(l []string) []string { return slices.Insert(slices.Delete(l, from, from+1), to, lines[from]) })
	}
	inserted := rechain(put(3, lines[2]), 3)[3]
	for name, tc := range map[string]struct {
		lines []string
		want  string // with the place
		alone bool   // it is found without key and kept checkpoint
	}{
		"changed byte":    {edit(func(l []string) []string { l[3] = strings.Replace(l[3], "issued", "denied", 1); return l }), ":4: this line was changed: the next, ", true},
		"changed prev":    {edit(func(l []string) []string { l[3] = changePrev(l[3]); return l }), ":4: this line was changed: neither", true},
		"changed number":  {edit(func(l []string) []string { l[3] = strings.Replace(l[3], `"seq":4`, `"seq":7`, 1); return l }), ":4: this line follows", true},
		"lost form":       {edit(func(l []string) []string { l[3] = strings.Replace(l[3], `"seq"`, `"sEq"`, 1); return l }), ":4: 1 line of no chain", true},
		"lost line feed":  {edit(func(l []string) []string { l[3] = strings.TrimSuffix(l[3], "\n"); return l }), ":4: ", true},
		"removed line":    {edit(func(l []string) []string { return slices.Delete(l, 3, 4) }), ":4: 1 line is missing", true},
		"removed lines":   {edit(func(l []string) []string { return slices.Delete(l, 2, 5) }), ":3: 3 lines are missing", true},
		"swapped lines":   {move(3, 4), ":4: 1 line is missing", true},
		"moved line":      {move(2, 7), ":8: this line has the number 3 and stands behind number 8", true},
		"repeated line":   {put(4, lines[3]), ":5: this line stands here a second time", true},
		"inserted line":   {put(3, inserted), ":4: this line has the number 4, as ", true},
		"inserted junk":   {put(3, "{}\n"), ":4: 1 line of no chain", true},
		"inserted event":  {put(3, `{"v":1,"time":"2026-01-01T00:00:00.000000Z","outcome":"issued"}`+"\n"), ":4: 1 line of no chain", true},
		"chain from here": {rechain(edit(func(l []string) []string { l[3] = strings.Replace(l[3], "issued", "denied", 1); return l }), 3), "6: this checkpoint was signed over another line 5", true},
		"line of another": {edit(func(l []string) []string { l[3] = others[3]; return l }), "is missing", true},
		"two names":       {rechain(edit(func(l []string) []string { l[3] = strings.Replace(l[3], `{"v":1,`, `{"v":1,"v":1,`, 1); return l }), 3), ":4: this is no JSON object with each name once", true},

		"whole chain, other key":      {forged, "signed by key", false},
		"whole chain, no checkpoints": {rechain(slices.Concat(lines[:5], lines[6:10]), 0), "has no checkpoint by a key that was given", false},
		"checkpoint of another": {rechain(edit(func(l []string) []string {
			l[5] = others[5]
			return l
		}), 0), ":6: this checkpoint is of another chain", true},
		"signature": {rechain(edit(func(l []string) []string {
			k := kept(t, l[5])
			l[5] = strings.Replace(l[5], k.JWS, k.JWS[:len(k.JWS)-4]+"AAAA", 1)
			return l
		}), 5), ":6: the signature of this checkpoint does not verify", true}, // for the checkpoint after it
		"broken checkpoint": {rechain(edit(func(l []string) []string {
			k := kept(t, l[5])
			l[5] = strings.Replace(l[5], k.JWS, "x.y", 1)
			return l
		}), 5), ":6: this checkpoint cannot be read", true},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, filepath.Join(t.TempDir(), "audit.log"), tc.lines...)
			r := verified(t, VerifyOptions{Keys: key.keys()}, file)
			if r.Good {
				t.Error("it is good")
			}
			mustHave(t, "problem", r.Problems, tc.want)
			if r = verified(t, VerifyOptions{}, file); r.Good == tc.alone {
				t.Errorf("without a key: good is %v: %v", r.Good, r.Problems)
			}
		})
	}
}

func changePrev(line string) string {
	at := strings.Index(line, `,"prev":"`) + len(`,"prev":"`)
	letter := "A"
	if line[at] == 'A' {
		letter = "B"
	}
	return line[:at] + letter + line[at+1:]
}

func TestOnlyAKeptCheckpointShowsACutTail(t *testing.T) {
	key := newKey(t)
	path, lines := signedLog(t, key, "c")
	o := VerifyOptions{Keys: key.keys()}
	for n := 6; n < len(lines); n++ {
		write(t, path, lines[:n]...)
		if r := verified(t, o, path); !r.Good {
			t.Errorf("%d lines: %v", n, r.Problems)
		}
		with := o
		with.Kept = []*SignedCheckpoint{kept(t, lines[10])}
		if r := verified(t, with, path); n < 10 {
			mustHave(t, "problem", r.Problems, "the end is missing")
		} else if !r.Good {
			t.Errorf("%d lines: %v", n, r.Problems)
		}
	}
	// Whoever rewrites all without checkpoints, and has them made anew by the
	// service, is caught by one that was kept, and by what is uncovered.
	write(t, path, rechain(slices.Concat(lines[:1], lines[2:5]), 0)...)
	l := open(t, Config{Path: path})
	stop := checkpointed(t, l, CheckpointConfig{Open: key.open})
	for range 10 {
		record(t, l, "new")
	}
	stop()
	r := verified(t, o, path)
	if !r.Good || len(r.Chains) != 1 || !slices.Equal(r.Chains[0].Uncovered, []Range{{1, 4}}) {
		t.Errorf("got %+v, want the lines 1 to 4 uncovered", r)
	}
	o.Kept = []*SignedCheckpoint{kept(t, lines[10])}
	mustHave(t, "problem", verified(t, o, path).Problems, "is not the one that the kept checkpoint speaks of")
}

func TestKeptCheckpointIsHeldAgainstItsLine(t *testing.T) {
	key := newKey(t)
	path, lines := signedLog(t, key, "c")
	_, others := signedLog(t, key, "o")
	rewritten := rechain(slices.Concat([]string{lines[0]}, lines[2:5], lines[6:]), 1) // keeps the name of the chain
	for i := range rewritten {
		rewritten[i] = strings.Replace(rewritten[i], "old", "new", 1)
	}
	for name, tc := range map[string]struct {
		kept  *SignedCheckpoint
		lines []string
		keys  Keys
		want  string
	}{
		"of another chain": {kept(t, others[5]), lines, key.keys(), "of another log, or all of it was replaced"},
		"of another key":   {kept(t, lines[5]), lines, newKey(t).keys(), "the kept checkpoint for line 5 of chain "},
		"line rewritten":   {kept(t, lines[5]), withChain(rewritten, kept(t, lines[5]).Chain), nil, "is not the one that the kept checkpoint speaks of"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, path, tc.lines...)
			r := verified(t, VerifyOptions{Keys: tc.keys, Kept: []*SignedCheckpoint{tc.kept}}, path)
			mustHave(t, "problem", r.Problems, tc.want)
		})
	}
}

// withChain computes lines anew, as a chain of a name.
func withChain(lines []string, name string) []string {
	end := head{chain: name}
	var out []string
	for _, line := range lines {
		bare, _, _ := strings.Cut(line, `,"chain":"`)
		out = append(out, string(end.link(nil, []byte(bare+"}\n"))))
	}
	return out
}

// TestEveryChangedByteIsFound changes each byte of a log, but for those of its
// last line, which nothing stands behind.
func TestEveryChangedByteIsFound(t *testing.T) {
	t.Parallel()
	lines, keys := fixedLog(t)
	data := []byte(strings.Join(lines, ""))
	for i := range len(data) - len(lines[5]) {
		changed := bytes.Clone(data)
		changed[i] ^= 1
		r, err := Verify(t.Context(), []string{"-"}, VerifyOptions{Keys: keys, Stdin: bytes.NewReader(changed)})
		if err != nil {
			t.Fatal(err)
		}
		if r.Good {
			t.Fatalf("byte %d changed in %q is not found", i, changed[max(0, i-20):i+20])
		}
	}
}

func TestMixedLinesAreLetBe(t *testing.T) {
	_, lines := signedLog(t, newKey(t), "c")
	stream := strings.Join(slices.Concat([]string{"starting\n"}, lines[:3], []string{"\n", `{"level":"INFO"}` + "\n", strings.Repeat("x", 3*maxLine) + "\n"}, lines[3:]), "")
	read := func(mixed bool, stream string) *Report {
		t.Helper()
		r, err := Verify(t.Context(), []string{"-"}, VerifyOptions{Mixed: mixed, Stdin: strings.NewReader(stream)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := read(true, stream)
	mustBeGood(t, r, 11)
	if r.OtherLines != 4 {
		t.Errorf("%d other lines, want 4", r.OtherLines)
	}
	mustHave(t, "problem", read(false, stream).Problems, "-:1: 1 line of no chain")
	// What looks like a line of the log is none of the others.
	forged := strings.Replace(stream, "starting\n", `{"v":1,"outcome":"issued"}`+"\n", 1)
	mustHave(t, "problem", read(true, forged).Problems, "-:1: 1 line of no chain")
	if _, err := Verify(t.Context(), []string{"-", "x"}, VerifyOptions{}); err == nil {
		t.Error("the standard input beside a file was taken")
	}
}

func TestLogsOfSeveralReplicasInOneStream(t *testing.T) {
	key := newKey(t)
	_, a := signedLog(t, key, "a")
	_, b := signedLog(t, key, "b")
	var stream []string
	for i := range a {
		stream = append(stream, a[i], b[i])
	}
	path := write(t, filepath.Join(t.TempDir(), "all.log"), stream...)
	r := verified(t, VerifyOptions{Keys: key.keys()}, path)
	if !r.Good || len(r.Chains) != 2 || r.Chains[0].Lines != 11 || r.Chains[1].Lines != 11 || r.Checkpoints.Verified != 4 {
		t.Errorf("got %+v", r)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	for range 1200 {
		record(t, l, "a")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, []string{path}, VerifyOptions{}); err == nil {
		t.Error("it went on")
	}
	if _, err := Verify(t.Context(), []string{path + ".missing"}, VerifyOptions{}); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestManyProblemsAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, Config{Path: path})
	for range 500 {
		record(t, l, "a")
	}
	lines := linesOf(t, path)
	slices.Reverse(lines)
	write(t, path, lines...)
	if r := verified(t, VerifyOptions{}, path); len(r.Problems) != maxListed || r.MoreProblems != 400 {
		t.Errorf("%d problems and %d more", len(r.Problems), r.MoreProblems)
	}
}

// TestNumbersThatAreMadeUpCostNoMemory has two lines of each of many chains, far
// apart by their numbers, again and again.
func TestNumbersThatAreMadeUpCostNoMemory(t *testing.T) {
	var log bytes.Buffer
	lines := 0
	for round := range uint64(10) {
		for n := range maxRemembering + 1 {
			end := head{chain: fmt.Sprintf("chain-%010d", n), seq: round * maxRecent}
			for range 2 {
				log.Write(end.link(nil, []byte("{\"v\":1}\n")))
				end.seq += maxRecent/2 - 1
				lines++
			}
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := Verify(t.Context(), []string{"-"}, VerifyOptions{Stdin: &log})
	runtime.ReadMemStats(&after)
	if err != nil || r.Lines != lines {
		t.Fatalf("%d lines of %d, %v", r.Lines, lines, err)
	}
	if each := (after.TotalAlloc - before.TotalAlloc) / uint64(lines); each > 64<<10 {
		t.Errorf("a line takes %d bytes", each)
	}
}

// TestCheckpointFarBehindItsLines has as many lines between a checkpoint and
// the line that it speaks of as can be.
func TestCheckpointFarBehindItsLines(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	end := newChain()
	var log bytes.Buffer
	log.Write(end.link(nil, appendBeginning(nil, logOpened, "", &foreign{})))
	at := end
	for range maxBehind {
		log.Write(end.link(nil, []byte("{\"v\":1,\"time\":\"2026-01-01T00:00:00.000000Z\"}\n")))
	}
	c := &checkpoints{cfg: CheckpointConfig{Open: key.open}}
	jws, err := c.sign(t.Context(), Checkpoint{Chain: at.chain, Seq: at.seq, Hash: base64.RawURLEncoding.EncodeToString(at.hash[:]), Since: 1, Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	log.Write(end.link(nil, appendCheckpoint(nil, time.Now(), jws)))
	r, err := Verify(t.Context(), []string{"-"}, VerifyOptions{Keys: key.keys(), Stdin: &log})
	if err != nil || !r.Good || r.Checkpoints.Verified != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	// One that comes later still is not written.
	l := open(t, Config{})
	record(t, l, "a")
	l.writing.Lock()
	l.end.seq += maxBehind
	l.writing.Unlock()
	if err := l.writeCheckpoint(jws, 1, 1); err == nil {
		t.Error("a checkpoint was written that nobody could hold against its line")
	}
}

// fixedLog is a log that is the same in every process: opened e e checkpoint e
// checkpoint.
func fixedLog(t testing.TB) (lines []string, keys Keys) {
	t.Helper()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	kid, err := signer.Thumbprint(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	end := head{chain: "fixed-for-fuzzing"[:chainIDSize]}
	const event = `{"v":1,"time":"2026-01-01T00:00:00.000000Z","outcome":"issued","client_id":"app-1"}`
	add := func(object string) { lines = append(lines, string(end.link(nil, []byte(object+"\n")))) }
	sign := func() {
		input, err := Checkpoint{
			Chain: end.chain, Seq: end.seq, Hash: base64.RawURLEncoding.EncodeToString(end.hash[:]), Since: 1, Time: time.Unix(0, 0).UTC(),
		}.signingInput(kms.EdDSA, kid)
		if err != nil {
			t.Fatal(err)
		}
		jws := input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input)))
		add(`{"v":1,"time":"2026-01-01T00:00:00.000000Z","log":"checkpoint","checkpoint":"` + jws + `"}`)
	}
	add(`{"v":1,"time":"2026-01-01T00:00:00.000000Z","log":"opened"}`)
	add(event)
	add(event)
	sign()
	add(event)
	sign()
	return lines, Keys{kid: private.Public()}
}

// FuzzVerify: whatever stands in a file, reading it ends, stays within its
// bounds, and does not take for good what is not the log that was written.
func FuzzVerify(f *testing.F) {
	lines, keys := fixedLog(f)
	whole := strings.Join(lines, "")
	if r, err := Verify(f.Context(), []string{"-"}, VerifyOptions{Stdin: strings.NewReader(whole), Keys: keys}); err != nil || !r.Good || r.Checkpoints.Verified != 2 {
		f.Fatalf("the log is not good: %+v, %v", r, err)
	}
	f.Add([]byte(whole), false)
	f.Add([]byte(whole[:len(whole)-30]), true)
	f.Add([]byte(strings.Join(rechain(lines[:3], 1), "")), false)
	f.Add([]byte(strings.Replace(whole, `"seq":3`, `"seq":9007199254740991`, 1)), true)
	f.Add([]byte(strings.Replace(whole, lines[2], lines[2][:60]+"\n"+lines[2], 1)), true)
	f.Add([]byte(`{"v":1,"time":"","log":"torn","skipped_bytes":-1,"skipped_sha256":""}`), false)
	f.Fuzz(func(t *testing.T, data []byte, mixed bool) {
		o := VerifyOptions{Mixed: mixed, Stdin: bytes.NewReader(data), Keys: keys}
		r, err := Verify(context.Background(), []string{"-"}, o)
		if err != nil {
			return
		}
		n := bytes.Count(data, []byte{'\n'}) + 1
		for _, found := range slices.Concat(r.Problems, r.Notes) {
			if found.Line > n {
				t.Errorf("a finding in line %d of %d: %s", found.Line, n, found)
			}
		}
		if r.Lines+r.OtherLines > n {
			t.Errorf("%d and %d lines of %d", r.Lines, r.OtherLines, n)
		}
		// What checkpoints that verify cover is as it was.
		for _, c := range r.Chains {
			if r.Good && !mixed && len(r.Chains) == 1 && len(r.Notes) == 0 && !bytes.HasPrefix(data, []byte(strings.Join(lines[:c.CoveredTo], ""))) {
				t.Errorf("good, and not what was written: %q", data)
			}
		}
		quick, err := readTail(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		slow, err := readWhole(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if quick.end != slow.end || quick.found.bytes != slow.found.bytes || quick.found.open != slow.found.open {
			t.Errorf("the end is %+v read quickly, %+v read whole", quick, slow)
		}
	})
}

// FuzzChained: what is read of a line is what was written.
func FuzzChained(f *testing.F) {
	f.Add(`{"v":1,"x":"y"}`, uint64(0))
	f.Add(`{"v":1,"chain":"HyTf0mXq2bRZ9w1a","seq":1,"prev":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, uint64(maxSeq-1))
	f.Fuzz(func(t *testing.T, object string, seq uint64) {
		if !strings.HasPrefix(object, linePrefix) || !strings.HasSuffix(object, "}") || strings.ContainsAny(object, "\n") || seq >= maxSeq || len(object) > maxLine/2 {
			return
		}
		end := newChain()
		end.seq, end.hash = seq, sha256.Sum256([]byte(object))
		before := end
		line := end.link(nil, []byte(object+"\n"))
		c, ok := parseChained(line[:len(line)-1])
		if !ok || c.head() != end || c.prev != before.hash {
			t.Fatalf("got %+v %v, want %+v", c, ok, end)
		}
	})
}

// TestACheckpointLineProvesNothingBesideItself: while no process runs, somebody
// without the key writes an event into a line that has a genuine checkpoint too,
// or repeats one. The service then goes on from there, and signs.
func TestACheckpointLineProvesNothingBesideItself(t *testing.T) {
	const event = `,"outcome":"issued","caller":"spiffe://example.com/idp","client_id":"app-1"`
	for name, tc := range map[string]struct {
		forge func(lines []string) []string
		want  []Range // uncovered
	}{
		"nothing was done": {func(l []string) []string { return l }, nil},
		"an event beside a repeated checkpoint": {func(l []string) []string {
			return append(l, strings.Replace(l[10], `,"chain":"`, event+`,"chain":"`, 1))
		}, []Range{{12, 12}}},
		"an event in the place of its time": {func(l []string) []string {
			at := strings.Index(l[10], `,"time":"`) + len(`,"time":"`)
			return append(l, l[10][:at]+`","outcome":"issued","x":"a`+l[10][at+len(timeFormat):])
		}, []Range{{12, 12}}},
		"an event in the last checkpoint": {func(l []string) []string {
			l[10] = strings.Replace(l[10], `,"chain":"`, event+`,"chain":"`, 1)
			return l
		}, []Range{{11, 11}}},
		"a checkpoint again": {func(l []string) []string { return append(l, l[10]) }, []Range{{12, 12}}},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			path, lines := signedLog(t, key, "c")
			lines = rechain(tc.forge(lines), 10)
			write(t, path, lines...)
			l := open(t, Config{Path: path})
			stop := checkpointed(t, l, CheckpointConfig{Open: key.open, Every: time.Hour})
			record(t, l, "after")
			stop()
			r := verified(t, VerifyOptions{Keys: key.keys()}, path)
			if got := r.Chains[0].Uncovered; !r.Good || !slices.Equal(got, tc.want) {
				t.Errorf("good %t, uncovered %v, want %v; %v", r.Good, got, tc.want, r.Problems)
			}
		})
	}
}

// TestTheFirstLineGivenHasToFollowTheOneSigned: of a log whose first files are
// gone, a checkpoint over the line before those that are left.
func TestTheFirstLineGivenHasToFollowTheOneSigned(t *testing.T) {
	key := newKey(t)
	path, lines := signedLog(t, key, "c")
	write(t, path, lines[5:]...)
	mustBeGood(t, verified(t, VerifyOptions{Keys: key.keys()}, path), 6)
	// Written anew behind a line that never was.
	end := head{chain: kept(t, lines[5]).Chain, seq: 5, hash: sha256.Sum256([]byte("none"))}
	var out []string
	for _, line := range lines[5:10] {
		bare, _, _ := strings.Cut(line, `,"chain":"`)
		out = append(out, string(end.link(nil, []byte(bare+"}\n"))))
	}
	write(t, path, out...)
	mustHave(t, "problem", verified(t, VerifyOptions{Keys: key.keys()}, path).Problems, "over another line 5 than the first that was given, 6, follows")
}

// TestAnEarlierCheckpointDoesNotPassForTheLast: who has the last one collected,
// to be kept, does not get one that somebody has written down again.
func TestAnEarlierCheckpointDoesNotPassForTheLast(t *testing.T) {
	key := newKey(t)
	path, lines := signedLog(t, key, "c")
	_, others := signedLog(t, key, "o")
	name := kept(t, lines[10]).Chain
	foreign := withChain(append(slices.Clone(lines), others[10]), name) // a checkpoint of another chain
	for what, all := range map[string][]string{
		"as it is":         lines,
		"an earlier again": rechain(append(slices.Clone(lines), lines[5]), 11),
		"of another chain": foreign,
	} {
		write(t, path, all...)
		last, err := LastCheckpoint(t.Context(), []string{path})
		if err != nil || last.Chain != name || last.Seq != 10 {
			t.Errorf("%s: got %+v, %v, want that for line 10 of chain %s", what, last, err, name)
		}
	}
}

// TestFindingsHoldNothingThatATerminalObeys: the name of a chain in a checkpoint
// is whatever somebody has written there, until its signature is verified.
func TestFindingsHoldNothingThatATerminalObeys(t *testing.T) {
	_, lines := signedLog(t, newKey(t), "c")
	k := kept(t, lines[10])
	k.Chain = "\x1b[2J\x1b[H\x1b[8m good"[:chainIDSize]
	input, err := k.signingInput(kms.ES256, k.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	forged := input + ".AAAA"
	if got, err := ParseCheckpoint(forged); err == nil {
		t.Errorf("got a checkpoint of chain %q", got.Chain)
	}
	path := filepath.Join(t.TempDir(), "audit.log\x1b[1A\x1b[2K")
	write(t, path, rechain(append(lines[:10:10], strings.Replace(lines[10], k.JWS, forged, 1)), 10)...)
	r := verified(t, VerifyOptions{}, path)
	mustHave(t, "problem", r.Problems, "this checkpoint cannot be read")
	for _, p := range r.Problems {
		if strings.ContainsRune(p.String(), 0x1b) {
			t.Errorf("a finding has an escape: %q", p)
		}
	}
}
