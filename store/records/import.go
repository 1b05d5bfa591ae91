package records

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms/datakey"
	"github.com/bulla-project/bulla/store/envelope"
)

// maxDataKeys is how many data keys are held in memory for an import. A service
// makes 32.
const maxDataKeys = 1024

// Import writes what Export has written, into a store that is empty, or that has
// nothing but rows of the same, as an import that was broken off leaves it. It is
// for a store on which no service runs yet.
//
// Each row is verified, under the data keys that the export has, before it is
// written, and one that is there already has to be the same. The data keys are
// written last, when the whole has been read and found to be sound, and until
// then no row counts: a store whose import was broken off holds nothing that is
// authentic, and the import can be done again. The wrapping key has to be that
// of the store that was exported, by its configured name, current or former.
//
// Errors are ErrFile, ErrDiffers, registry.ErrUnavailable, those of r, or the
// context's; their text has the line, and what was written.
func (s *Store) Import(ctx context.Context, r io.Reader) (Counts, error) {
	i := &importing{Store: s, r: bufio.NewReaderSize(r, 64<<10), hash: sha256.New()}
	err := i.run(ctx)
	if err == nil {
		return i.counts, nil
	}
	if i.started {
		held := "none of them counts before an import has been completed; repeat it, or begin with an empty store"
		if i.live {
			held = "the store has the data keys of this export, so that they count"
		}
		err = fmt.Errorf("%w (at line %d; %d rows were written before; %s)", err, i.number, i.counts.Written, held)
	} else {
		err = fmt.Errorf("%w (at line %d; nothing was written)", err, i.number)
	}
	return i.counts, err
}

// importing is one run of Import.
type importing struct {
	*Store
	r      *bufio.Reader
	hash   hash.Hash // of the lines before the last
	number int       // of the line that was read last
	long   []byte    // a line that does not fit r's buffer

	rank int    // of the kind of the line before
	last []byte // its key

	records []datakey.Record // those of the file
	keys    *datakey.Keys    // opened from records
	live    bool             // the store had them all from the beginning
	started bool             // rows may have been written

	floor  []byte     // where the rows of the kind begin that were not looked at
	batch  []incoming // verified, of one kind
	size   int        // of batch in bytes
	seen   Counts     // what the file has
	counts Counts     // what has become of it
}

// incoming is a row to be written.
type incoming struct {
	stored
	uris    []string // that a live registration names, or one that waits
	waiting *Row     // of a change that waits, in its index; nil for none
	deleted bool
}

func (i *importing) run(ctx context.Context) error {
	if err := i.first(); err != nil {
		return err
	}
	for {
		text, err := i.next()
		if err != nil {
			return err
		}
		p, err := parse(text)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFile, err)
		}
		if p.last != nil {
			return i.finish(ctx, p.last)
		}
		i.hash.Write(text)
		if err := i.take(ctx, &p.line); err != nil {
			return err
		}
	}
}

// first reads the first line.
func (i *importing) first() error {
	text, err := i.next()
	if err != nil {
		return err
	}
	if bytes.Equal(text, firstLine()) {
		i.hash.Write(text)
		return nil
	}
	var head struct {
		Version int `json:"bulla_registry"`
	}
	if json.Unmarshal(text, &head) == nil && head.Version > formatVersion {
		return fmt.Errorf("%w: it has version %d of the form and this version knows %d; import with the version that wrote it", ErrFile, head.Version, formatVersion)
	}
	return fmt.Errorf("%w: it does not begin as one", ErrFile)
}

// next reads a line with its end. It is good until the next call.
func (i *importing) next() ([]byte, error) {
	i.number++
	i.long = i.long[:0]
	for {
		text, err := i.r.ReadSlice('\n')
		switch {
		case err == nil && len(i.long) == 0:
			return text, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("reading the export: %w", err)
		case len(i.long)+len(text) > maxLine:
			return nil, fmt.Errorf("%w: the line is longer than %d bytes", ErrFile, maxLine)
		}
		i.long = append(i.long, text...)
		switch {
		case err == nil:
			return i.long, nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: it is cut short", ErrFile)
		}
	}
}

// take takes a line with a row.
func (i *importing) take(ctx context.Context, l *line) error {
	rank, key, err := l.place()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	if rank < i.rank || rank == i.rank && i.last != nil && bytes.Compare(key, i.last) <= 0 {
		return fmt.Errorf("%w: the lines are not in their order", ErrFile)
	}
	if err := i.advance(ctx, rank); err != nil {
		return err
	}
	i.last = key
	if l.Kind == kindDataKey {
		return i.takeDataKey(l)
	}
	return i.takeRow(ctx, l, key)
}

// advance ends the kinds before the one of a rank.
func (i *importing) advance(ctx context.Context, rank int) error {
	for ; i.rank < rank; i.rank++ {
		if order[i.rank].kind == kindDataKey {
			if err := i.open(ctx); err != nil {
				return err
			}
			continue
		}
		if err := i.flush(ctx); err != nil {
			return err
		}
		kind := envelope.Kind(order[i.rank].kind)
		rows, _, err := i.Store.batch(ctx, kind, nil, i.floor, 1)
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
		if len(rows) > 0 {
			return other(rows[0].Row)
		}
		i.floor = nil
	}
	return nil
}

// other is the refusal of a store that has a row of its own.
func other(row envelope.Row) error {
	return fmt.Errorf("%w: it has %s, and the export has not", ErrDiffers, spoken(row))
}

func (i *importing) takeDataKey(l *line) error {
	r, err := l.dataKey()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	if len(i.records) >= maxDataKeys {
		return fmt.Errorf("%w: it has more than %d data keys", ErrFile, maxDataKeys)
	}
	i.records = append(i.records, r)
	i.seen.DataKeys++
	return nil
}

// open holds the data keys of the file against the store, and makes them ready
// to verify rows.
func (i *importing) open(ctx context.Context) error {
	have, err := i.dataKeyRows(ctx)
	if err != nil {
		return unavailable(registry.ErrUnavailable, err)
	}
	held := map[string]bool{}
	for _, r := range have {
		held[string(r.Key)] = true
	}
	mine := 0
	for _, r := range i.records {
		if !held[r.ID] {
			continue
		}
		mine++
		if err := i.sameDataKey(have, r); err != nil {
			return err
		}
	}
	if mine != len(have) {
		return fmt.Errorf("%w: it has data keys of its own", ErrDiffers)
	}
	i.live = mine == len(i.records)
	cfg := i.dataKeys
	cfg.Store = fileKeys(i.records)
	i.keys, err = datakey.New(ctx, cfg)
	return err
}

// sameDataKey returns nil if what a store has under the id of a data key is that
// data key.
func (i *importing) sameDataKey(have []Row, want datakey.Record) error {
	for _, r := range have {
		if string(r.Key) != want.ID {
			continue
		}
		dk, ok := decodeDataKey(r.Key, r.Value)
		if ok && dk.WrappedBy == want.WrappedBy && bytes.Equal(dk.Wrapped, want.Wrapped) && dk.CreatedAt.Equal(want.CreatedAt) {
			return nil
		}
	}
	return fmt.Errorf("%w: its data key %s is another one", ErrDiffers, want.ID)
}

// takeRow verifies a row and adds it to the batch.
func (i *importing) takeRow(ctx context.Context, l *line, key []byte) error {
	row, value, err := l.value(key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	record, err := envelope.Open(ctx, i.keys, row, value)
	if errors.Is(err, envelope.ErrTampered) {
		return fmt.Errorf("%w: %s: %w", ErrFile, spoken(row), err)
	}
	if err != nil {
		return unavailable(registry.ErrUnavailable, err)
	}
	in := incoming{stored: stored{row, value}}
	if row.Kind == envelope.Registration {
		reg, err := decode[registry.Registration](record)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrFile, spoken(row), err)
		}
		in.uris, in.waiting, in.deleted = namedURIs(reg), waitingRow(reg), reg.Deleted
	}
	i.seen.add(row.Kind, in.deleted)
	i.batch = append(i.batch, in)
	i.size += len(key) + len(value)
	if len(i.batch) >= BatchRows || i.size >= BatchBytes {
		return i.flush(ctx)
	}
	return nil
}

// flush writes the batch in one Update.
func (i *importing) flush(ctx context.Context) error {
	if len(i.batch) == 0 {
		return ctx.Err()
	}
	i.started = true
	written, there := 0, 0
	err := i.update(ctx, func(tx Tx) (err error) {
		written, there, err = i.writeBatch(tx)
		if err == nil && written == 0 {
			err = errNoChange
		}
		return err
	})
	if err != nil {
		return unavailable(registry.ErrUnavailable, err)
	}
	i.counts.Written += written
	i.counts.There += there
	i.floor = after(i.batch[len(i.batch)-1].Key)
	i.batch, i.size = i.batch[:0], 0
	return nil
}

func (i *importing) writeBatch(tx Tx) (written, there int, err error) {
	table := TableOf(i.batch[0].Kind)
	have, err := rowsAt(tx, i.floor, i.batch)
	if err != nil {
		return 0, 0, err
	}
	wanted := make([]bool, len(i.batch))
	for n := range wanted {
		wanted[n] = have[n] == nil
		if have[n] != nil && !bytes.Equal(have[n], i.batch[n].value) {
			return 0, 0, fmt.Errorf("%w: its %s is another one", ErrDiffers, spoken(i.batch[n].Row))
		}
		if !wanted[n] {
			there++
		}
	}
	if table == KeySets {
		if err := onlyNamed(tx, i.batch, wanted); err != nil {
			return 0, 0, err
		}
	}
	for n, in := range i.batch {
		if !wanted[n] {
			continue
		}
		if err := tx.Put(table, in.Key, in.value); err != nil {
			return 0, 0, err
		}
		written++
		for _, uri := range in.uris {
			entry := bytes.Join([][]byte{[]byte(uri), in.Key}, []byte{0})
			if err := tx.Put(URIs, entry, []byte{}); err != nil {
				return 0, 0, err
			}
		}
		if in.waiting != nil {
			if err := tx.Put(Waiting, in.waiting.Key, in.waiting.Value); err != nil {
				return 0, 0, err
			}
		}
	}
	return written, there, nil
}

// rowsAt returns the values of the rows that a batch has, in the order of their
// keys, nil for one that is not there. A row from floor on to the end of the batch
// that the batch has not is a refusal.
func rowsAt(tx Tx, floor []byte, batch []incoming) ([][]byte, error) {
	values := make([][]byte, len(batch))
	kind, n := batch[0].Kind, 0
	for more := true; more; {
		var rows []Row
		var err error
		rows, more, err = tx.Scan(TableOf(kind), nil, floor, BatchRows)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			for n < len(batch) && bytes.Compare(batch[n].Key, r.Key) < 0 {
				n++
			}
			if n == len(batch) {
				return values, nil
			}
			if !bytes.Equal(batch[n].Key, r.Key) {
				return nil, other(envelope.Row{Kind: kind, Key: r.Key})
			}
			values[n] = r.Value
			floor = after(r.Key)
		}
	}
	return values, nil
}

// onlyNamed unsets wanted for the key sets whose URIs no live registration
// names.
func onlyNamed(tx Tx, batch []incoming, wanted []bool) error {
	for n := 0; n < len(batch); {
		rows, more, err := tx.Scan(URIs, nil, prefixOf(batch[n].Key), BatchRows)
		if err != nil {
			return err
		}
		for _, r := range rows {
			// An entry after the place of a URI's entries, and none of them.
			for n < len(batch) && !bytes.HasPrefix(r.Key, prefixOf(batch[n].Key)) && bytes.Compare(prefixOf(batch[n].Key), r.Key) < 0 {
				wanted[n] = false
				n++
			}
			if n < len(batch) && bytes.HasPrefix(r.Key, prefixOf(batch[n].Key)) {
				n++
			}
		}
		if !more {
			for ; n < len(batch); n++ {
				wanted[n] = false
			}
		}
	}
	return nil
}

// prefixOf is what the keys of a URI's entries in the index begin with.
func prefixOf(uri []byte) []byte { return append(bytes.Clone(uri), 0) }

// finish checks the last line, and writes the data keys, with which all that was
// written begins to count.
func (i *importing) finish(ctx context.Context, l *lastLine) error {
	switch sum := hex.EncodeToString(i.hash.Sum(nil)); {
	case l.End != i.seen:
		return fmt.Errorf("%w: lines are missing or too many: its last line counts %+v, and it has %+v", ErrFile, l.End, i.seen)
	case l.SHA256 != sum:
		return fmt.Errorf("%w: it was damaged: its last line has SHA-256 %.64q, and it is %s", ErrFile, l.SHA256, sum)
	}
	if _, err := i.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return fmt.Errorf("reading the export: %w", err)
		}
		return fmt.Errorf("%w: something follows its last line", ErrFile)
	}
	if err := i.advance(ctx, len(order)); err != nil {
		return err
	}
	written := 0
	err := i.update(ctx, func(tx Tx) (err error) {
		written, err = i.writeDataKeys(tx)
		if err == nil && written == 0 {
			err = errNoChange
		}
		return err
	})
	if err != nil {
		return unavailable(registry.ErrUnavailable, err)
	}
	before := i.counts
	i.counts = i.seen
	i.counts.Written, i.counts.There = before.Written+written, before.There+len(i.records)-written
	return nil
}

func (i *importing) writeDataKeys(tx Tx) (written int, err error) {
	for _, r := range i.records {
		have, err := tx.Get(DataKeys, []byte(r.ID))
		if err != nil {
			return 0, err
		}
		if have != nil {
			// It may have come while the rows were written.
			if err := i.sameDataKey([]Row{{[]byte(r.ID), have}}, r); err != nil {
				return 0, err
			}
			continue
		}
		if _, err := putDataKey(tx, dataKey{Record: r}); err != nil {
			return 0, err
		}
		written++
	}
	return written, nil
}

// ImportBrokenOff reports whether the store has rows and no data key at all. A
// service writes none before it has a data key, so that it was an Import that has
// not come to its end. It looks at no more than a row of each kind.
func (s *Store) ImportBrokenOff(ctx context.Context) (bool, error) {
	broken := false
	err := s.engine.View(ctx, func(tx Tx) error {
		broken = false
		for _, t := range []Table{Registrations, KeySets, Rings} {
			rows, _, err := tx.Scan(t, nil, nil, 1)
			if err != nil {
				return err
			}
			broken = broken || len(rows) > 0
		}
		if !broken {
			return nil
		}
		// Looked for after the rows: the first may be written right now.
		keys, _, err := tx.Scan(DataKeys, nil, nil, 1)
		broken = len(keys) == 0
		return err
	})
	return broken && err == nil, unavailable(registry.ErrUnavailable, err)
}

// fileKeys are the data keys of an export, as a datakey.Store to open them from.
type fileKeys []datakey.Record

// errFileKeys is what nobody asks of the data keys of an export.
var errFileKeys = errors.New("the data keys of an export do not change")

func (k fileKeys) DataKeys(ctx context.Context) ([]datakey.Record, error) { return k, ctx.Err() }

func (k fileKeys) AddDataKey(context.Context, datakey.Record) error { return errFileKeys }

func (k fileKeys) RetireDataKey(context.Context, string) error { return errFileKeys }
