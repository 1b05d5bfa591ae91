package postgres

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/bulla-project/bulla/store/records"
)

// channel is what LISTEN and NOTIFY name; the payload is the schema, so that
// two stores in one database do not wake each other.
const channel = "bulla_feed"

// marksKept is how many numbers a follower can be behind and still be told row
// by row.
const marksKept = 10_000

// pageRows is how many changed rows are read at once.
const pageRows = 1000

// queries are all statements, with the tables of a schema. They are what
// PostgreSQL 14 knows.
type queries struct {
	schema string

	get, scan, scanTo, put, del map[records.Table]string

	version string

	begin, lock, move string // of an Update
	hold              string // of an Update that reads a key set, and of its holder

	claim, claimed, putClaimed, release string // of leases

	where, page string // of the feed
}

func newQueries(schema string) queries {
	q := queries{
		schema: schema,
		get:    map[records.Table]string{}, scan: map[records.Table]string{}, scanTo: map[records.Table]string{},
		put: map[records.Table]string{}, del: map[records.Table]string{},
	}
	name := q.name
	feed, marks, keysets, uris := name("feed"), name("feed_marks"), name(string(records.KeySets)), name(string(records.URIs))

	for _, t := range records.Tables() {
		table := name(string(t))
		// A row of keysets without a value is none.
		q.get[t] = "SELECT value FROM " + table + " WHERE key = $1 AND value IS NOT NULL"
		// As many as asked for, and no more after the one that makes them too
		// long. The length of a value is known without reading it.
		scan := func(to string) string {
			return fmt.Sprintf(`SELECT key, value, total FROM (
				SELECT key, value, count(*) OVER () AS total, row_number() OVER k AS n,
					sum(length(key) + length(value)) OVER (ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
				FROM (SELECT key, value FROM %s WHERE key >= $1 %s AND value IS NOT NULL ORDER BY key LIMIT $2 + 1) AS r
				WINDOW k AS (ORDER BY key)
			) AS c WHERE n <= $2 AND coalesce(before, 0) < %d ORDER BY key`, table, to, records.BatchBytes)
		}
		q.scan[t], q.scanTo[t] = scan(""), scan("AND key < $3")
		insert, set := "(key, value) VALUES ($1, $2)", "value = EXCLUDED.value"
		if t.Announced() {
			// The number that the feed gets at the end of the transaction.
			insert = "(key, value, change) VALUES ($1, $2, (SELECT number + 1 FROM " + feed + " WHERE one))"
			set += ", change = EXCLUDED.change"
		}
		if t == records.KeySets {
			set += ", lease_id = NULL, lease_until = NULL"
		}
		q.put[t] = "INSERT INTO " + table + " " + insert + " ON CONFLICT (key) DO UPDATE SET " + set
		q.del[t] = "DELETE FROM " + table + " WHERE key = $1"
	}

	q.version = "SELECT version, minimum FROM " + name("schema_version") + " WHERE one"

	// The database must not let go of an acknowledged write; whoever sets
	// synchronous_commit to off for the role gets it all the same.
	q.begin = fmt.Sprintf(`SELECT set_config('lock_timeout', '%d', true), set_config('statement_timeout', '%d', true),
		set_config('idle_in_transaction_session_timeout', '%d', true),
		CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END`,
		lockLimit.Milliseconds(), answerLimit.Milliseconds(), idleLimit.Milliseconds())
	// Where one, so that the planner knows that there is one.
	q.lock = "SELECT version, minimum FROM " + feed + " AS f JOIN " + name("schema_version") + " AS s ON s.one WHERE f.one FOR UPDATE OF f"
	// Also where there is no row yet that could be locked.
	q.hold = "SELECT pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), hashtextextended($2, 0)))"
	q.move = fmt.Sprintf(`WITH moved AS (UPDATE %[1]s SET number = number + 1 WHERE one RETURNING number),
		pruned AS (DELETE FROM %[2]s WHERE number <= (SELECT number FROM moved) - %[3]d),
		marked AS (INSERT INTO %[2]s (number) SELECT number FROM moved ON CONFLICT (number) DO UPDATE SET mark = EXCLUDED.mark)
		SELECT pg_notify('%[4]s', $1)`, feed, marks, marksKept, channel)

	// The row of the index is held, so that it and the key set's cannot go
	// between the question and the lease. A lease that ends later than any given
	// now would is none.
	q.claim = fmt.Sprintf(`WITH named AS (SELECT 1 FROM %[2]s WHERE key >= $2 AND key < $3 ORDER BY key LIMIT 1 FOR SHARE)
		INSERT INTO %[1]s AS k (key, lease_id, lease_until)
		SELECT $1, $4, clock_timestamp() + $5 * interval '1 microsecond' FROM named
		ON CONFLICT (key) DO UPDATE SET lease_id = EXCLUDED.lease_id, lease_until = EXCLUDED.lease_until
		WHERE k.lease_id IS NULL OR k.lease_until IS NULL OR k.lease_id = $4
			OR k.lease_until <= clock_timestamp() OR k.lease_until > clock_timestamp() + %[3]d * interval '1 microsecond'`,
		keysets, uris, records.MaxLease.Microseconds())
	q.claimed = fmt.Sprintf(`SELECT n.named, k.value, coalesce(k.lease_id = $4, false),
			coalesce(extract(epoch FROM k.lease_until - clock_timestamp()) * 1000000, 0)::bigint
		FROM (SELECT EXISTS (SELECT 1 FROM %[2]s WHERE key >= $2 AND key < $3) AS named) AS n
		LEFT JOIN %[1]s AS k ON k.key = $1`, keysets, uris)
	q.putClaimed = fmt.Sprintf(`WITH guard AS (%%s),
		written AS (
			UPDATE %[1]s SET value = $2, lease_id = NULL, lease_until = NULL %%s
			WHERE key = $1 AND lease_id = $3 AND lease_until > clock_timestamp() AND EXISTS (SELECT 1 FROM guard)
			RETURNING 1)
		SELECT EXISTS (SELECT 1 FROM guard), EXISTS (SELECT 1 FROM written)`, keysets)
	q.release = "UPDATE " + keysets + " SET lease_id = NULL, lease_until = NULL WHERE key = $1 AND lease_id = $2"

	q.where = fmt.Sprintf(`SELECT number, (SELECT mark FROM %[2]s AS m WHERE m.number = $1), (SELECT mark FROM %[2]s AS m WHERE m.number = f.number)
		FROM %[1]s AS f WHERE f.one`, feed, marks)
	// All rows of the last number are with it, so that the next page can begin
	// after it.
	var changed []string
	for _, t := range records.Tables() {
		if t.Announced() {
			changed = append(changed, fmt.Sprintf(`(SELECT '%s' AS kind, key, change FROM %s WHERE change > $1 AND change <= $2
				ORDER BY change FETCH FIRST %d ROWS WITH TIES)`, t, name(string(t)), pageRows))
		}
	}
	q.page = fmt.Sprintf("SELECT kind, key, change FROM (%s) AS c ORDER BY change FETCH FIRST %d ROWS WITH TIES",
		strings.Join(changed, " UNION ALL "), pageRows)
	return q
}

func (q *queries) name(table string) string { return pgx.Identifier{q.schema, table}.Sanitize() }

// opening begins a transaction. Its isolation is not the role's default: what
// follows a lock has to see what was committed before it.
func (q *queries) opening() []statement {
	return []statement{stmt("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"), stmt(q.begin)}
}

// getHeld reads a row in a transaction, in which it stays as it was read. What
// the last statement returns is for valueOf.
func (q *queries) getHeld(t records.Table, key []byte) []statement {
	if t == records.KeySets {
		return []statement{q.holdRow(key), q.getRow(t, key)}
	}
	return []statement{q.getRow(t, key)}
}

func (q *queries) getRow(t records.Table, key []byte) statement { return stmt(q.get[t], key) }

// valueOf is the value in the result of getRow.
func valueOf(r result) []byte {
	if len(r.rows) == 0 {
		return nil
	}
	return r.rows[0][0]
}

// holdRow has a key set stay as it is until the end of the transaction, but for
// its lease and what the transaction does to it.
func (q *queries) holdRow(key []byte) statement { return stmt(q.hold, key, "bulla keysets "+q.schema) }

func (q *queries) scanRows(t records.Table, prefix, seek []byte, limit int) statement {
	if bytes.Compare(seek, prefix) < 0 {
		seek = prefix
	}
	// One at least, to know whether there are more.
	n := int64(min(max(limit, 1), records.BatchRows))
	if end := beyond(prefix); end != nil {
		return stmt(q.scanTo[t], seek, n, end)
	}
	return stmt(q.scan[t], seek, n)
}

// rowsOf are the rows in the result of scanRows.
func rowsOf(r result, limit int) (rows []records.Row, more bool) {
	if len(r.rows) == 0 {
		return nil, false
	}
	if limit < 1 {
		return nil, true
	}
	for _, row := range r.rows {
		rows = append(rows, records.Row{Key: row[0], Value: row[1]})
	}
	return rows, integer(r.rows[0][2]) > int64(len(rows))
}

// beyond is the first key after all that begin with prefix, nil if there is
// none.
func beyond(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for len(end) > 0 {
		last := len(end) - 1
		if end[last] < 0xff {
			end[last]++
			return end
		}
		end = end[:last]
	}
	return nil
}
