package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// statement is one statement with its parameters. It is parsed by the database
// each time it is sent, so that it needs no session.
type statement struct {
	sql    string
	values [][]byte
	types  []uint32
	forms  []int16
}

// stmt makes a statement. Arguments are []byte for bytea (nil is empty, never
// NULL), int64 for bigint, string for text.
func stmt(sql string, args ...any) statement {
	s := statement{sql: sql}
	for _, arg := range args {
		switch a := arg.(type) {
		case []byte:
			if a == nil {
				a = []byte{}
			}
			s.add(pgtype.ByteaOID, 1, a)
		case int64:
			s.add(pgtype.Int8OID, 0, strconv.AppendInt(nil, a, 10))
		case string:
			s.add(pgtype.TextOID, 0, []byte(a))
		default:
			panic(fmt.Sprintf("postgres: no type for %T", arg)) // a mistake of this package
		}
	}
	return s
}

func (s *statement) add(oid uint32, form int16, value []byte) {
	s.types, s.forms, s.values = append(s.types, oid), append(s.forms, form), append(s.values, value)
}

// result is what a statement returned, in the binary form of its types.
type result struct {
	rows [][][]byte
	tag  string
}

// send has statements run in one round trip, in one transaction unless they
// speak of transactions themselves.
func send(ctx context.Context, conn *pgconn.PgConn, list []statement) ([]result, error) {
	batch := new(pgconn.Batch)
	for _, s := range list {
		batch.ExecParams(s.sql, s.values, s.types, s.forms, []int16{1})
	}
	read, err := conn.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return nil, err
	}
	results := make([]result, len(read))
	for i, r := range read {
		results[i] = result{rows: r.Rows, tag: r.CommandTag.String()}
	}
	return results, nil
}

// errNotOne: somebody has changed the tables.
var errNotOne = errors.New("PostgreSQL: there is not one row where there always is; restore the tables from a backup")

// one returns the only row.
func (r result) one() ([][]byte, error) {
	if len(r.rows) != 1 {
		return nil, fmt.Errorf("%w: got %d", errNotOne, len(r.rows))
	}
	return r.rows[0], nil
}

// Columns in their binary form; NULL is zero.

func integer(column []byte) int64 {
	switch len(column) {
	case 4:
		return int64(int32(binary.BigEndian.Uint32(column))) //nolint:gosec // two's complement
	case 8:
		return int64(binary.BigEndian.Uint64(column)) //nolint:gosec // two's complement
	}
	return 0
}

func boolean(column []byte) bool { return len(column) == 1 && column[0] != 0 }
