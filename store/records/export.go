package records

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"unicode/utf8"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/store/envelope"
)

// Export writes all that the store has, for Import into another store, or as a
// backup. Every record is verified first, so the backend of the data keys has to
// be there; what is sealed and wrapped stays so. It reads in batches while
// others write: what is written meanwhile may or may not be in it. To move
// a registry, stop those who write to it first.
//
// A registration or a key ring that fails its authentication ends it with
// ErrExport: without its row, a client would not be replaced but created, and
// nobody would publish the keys. A fetched key set that does is left out.
func (s *Store) Export(ctx context.Context, w io.Writer) (Counts, error) {
	buffered := bufio.NewWriterSize(w, 64<<10)
	e := &exporting{Store: s, w: buffered, hash: sha256.New(), keys: map[string]bool{}}
	err := e.run(ctx)
	if err == nil {
		if err = buffered.Flush(); err != nil {
			err = fmt.Errorf("writing the export: %w", err)
		}
	}
	return e.counts, err
}

// exporting is one run of Export.
type exporting struct {
	*Store
	w      io.Writer
	failed error     // of w
	hash   hash.Hash // of what was written
	counts Counts
	keys   map[string]bool // the ids of the data keys that were written
	buf    []byte
}

func (e *exporting) run(ctx context.Context) error {
	if err := e.write(firstLine()); err != nil {
		return err
	}
	if err := e.dataKeyLines(ctx); err != nil {
		return err
	}
	for _, kind := range []envelope.Kind{envelope.Ring, envelope.Registration, envelope.KeySet} {
		err := e.each(ctx, kind, func(row stored) error { return e.add(ctx, row) })
		if e.failed != nil {
			return e.failed
		}
		if err != nil {
			return unavailable(registry.ErrUnavailable, err)
		}
	}
	last, err := marshalLine(lastLine{e.counts, hex.EncodeToString(e.hash.Sum(nil))})
	if err != nil {
		return err
	}
	return e.write(last)
}

// write writes a line.
func (e *exporting) write(text []byte) error {
	e.hash.Write(text)
	if _, err := e.w.Write(text); err != nil {
		e.failed = fmt.Errorf("writing the export: %w", err)
	}
	return e.failed
}

// dataKeyLines writes the data keys, without the mark of one that is being
// retired: whoever retires it does so in this store.
func (e *exporting) dataKeyLines(ctx context.Context) error {
	rows, err := e.dataKeyRows(ctx)
	if err != nil {
		return unavailable(registry.ErrUnavailable, err)
	}
	for _, r := range rows {
		dk, ok := decodeDataKey(r.Key, r.Value)
		if !ok || !utf8.Valid(r.Key) {
			e.log.Warn("stored data key cannot be read and is left out of the export", "data_key", fmt.Sprintf("%.40q", r.Key))
			e.counts.LeftOut++
			continue
		}
		record, err := json.Marshal(dk.Record)
		if err != nil {
			return fmt.Errorf("%w: %w", errEncoding, err)
		}
		text, err := (&line{Kind: kindDataKey, Key: []string{dk.ID}, Record: record}).appendTo(nil)
		if err != nil {
			return err
		}
		if err := e.write(text); err != nil {
			return err
		}
		e.keys[dk.ID] = true
		e.counts.DataKeys++
	}
	return nil
}

// add verifies a row and writes its line.
func (e *exporting) add(ctx context.Context, row stored) error {
	record, err := e.verify(ctx, row.Row, row.value)
	switch {
	case errors.Is(err, envelope.ErrTampered) && row.Kind == envelope.KeySet:
		e.counts.LeftOut++ // as good as none, and alarmed
		return nil
	case errors.Is(err, envelope.ErrTampered):
		advice := "register the client anew or delete it first"
		if row.Kind == envelope.Ring {
			advice = "somebody changed the store; restore it from a backup"
		}
		return fmt.Errorf("%w: %s (%w); %s", ErrExport, spoken(row.Row), err, advice)
	case err != nil:
		return err
	}
	l, err := rowLine(row)
	if err != nil {
		return err
	}
	if !e.keys[l.DataKey] {
		return fmt.Errorf("%w: %s is under data key %s, which came into the store while the export ran; export again", ErrExport, spoken(row.Row), l.DataKey)
	}
	if e.buf, err = l.appendTo(e.buf[:0]); err != nil {
		return err
	}
	// What Import could not read must not be found out then.
	if _, err := parse(e.buf); err != nil || len(e.buf) > maxLine || !utf8.Valid(row.Key) {
		return fmt.Errorf("%w: %s has another form than this version writes", ErrExport, spoken(row.Row))
	}
	if err := e.count(row.Kind, record); err != nil {
		return err
	}
	return e.write(e.buf)
}

func (e *exporting) count(kind envelope.Kind, record []byte) error {
	if kind != envelope.Registration {
		e.counts.add(kind, false)
		return nil
	}
	reg, err := decode[registry.Registration](record)
	if err == nil {
		e.counts.add(kind, reg.Deleted)
	}
	return err
}

// add counts a row of a kind.
func (c *Counts) add(kind envelope.Kind, deleted bool) {
	switch {
	case kind == envelope.Ring:
		c.Rings++
	case kind == envelope.KeySet:
		c.KeySets++
	case deleted:
		c.Tombstones++
	default:
		c.Registrations++
	}
}
