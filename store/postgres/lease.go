package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/store/records"
)

// Claim implements records.Shared. It is one message, a transaction: the lease,
// and then what there is. Sent again on another connection it gives the same
// lease.
func (e *engine) Claim(ctx context.Context, key []byte, d time.Duration) (records.Claim, error) {
	id := rand.Text()
	from, to := append(append([]byte{}, key...), 0), append(append([]byte{}, key...), 1)
	asked := time.Now()
	results, err := e.transact(ctx,
		stmt(e.sql.claim, key, from, to, id, d.Microseconds()),
		stmt(e.sql.claimed, key, from, to, id))
	if err != nil {
		return records.Claim{}, err
	}
	row, err := results[1].one()
	if err != nil {
		return records.Claim{}, err
	}
	c := records.Claim{Value: row[1]}
	left := time.Duration(integer(row[3])) * time.Microsecond
	switch {
	case !boolean(row[0]):
		c.Unnamed = true
	case boolean(row[2]):
		// Whoever has it takes the earlier of the times that it may be, and
		// whoever waits for its end the later.
		c.Lease, c.Until = id, asked.Add(left)
	default:
		c.Until = time.Now().Add(left)
	}
	return c, nil
}

// PutClaimed implements records.Shared. It is a transaction of two round trips,
// of which the first may be sent again on another connection.
func (e *engine) PutClaimed(ctx context.Context, key, value []byte, lease string, guard records.Guard, announce bool) error {
	if announce { // which takes the lock of Updates
		leave, err := e.queue(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	list := e.sql.opening()
	locked := len(list)
	if announce {
		list = append(list, stmt(e.sql.lock))
	}
	// What follows the locks sees all that was committed before them.
	list = append(list, e.sql.holdRow(key), e.sql.putGuarded(key, value, lease, guard, announce))
	results, conn, err := e.onAny(ctx, list)
	if err != nil {
		return err // not committed
	}
	t := &update{e: e, ctx: ctx, conn: conn, open: true, announced: announce}
	defer t.end()
	if announce {
		if err := e.locked(results[locked]); err != nil {
			return err
		}
	}
	row, err := results[len(results)-1].one()
	switch {
	case err != nil:
		return err
	case !boolean(row[0]):
		return records.ErrGuard
	case !boolean(row[1]):
		return records.ErrLeaseLost
	}
	return t.commit()
}

// putGuarded writes a key set if the lease is in force and the guard is as it
// was. The guard's row is held until the end of the transaction.
func (q *queries) putGuarded(key, value []byte, lease string, guard records.Guard, announce bool) statement {
	args := []any{key, value, lease}
	check := "SELECT 1"
	switch {
	case guard.Table == "":
	case guard.Value == nil:
		check = "SELECT 1 WHERE NOT EXISTS (" + q.guarded(guard.Table) + ")"
		args = append(args, guard.Key)
	default:
		check = q.guarded(guard.Table) + " AND value = $5 FOR SHARE"
		args = append(args, guard.Key, guard.Value)
	}
	change := ""
	if announce {
		change = ", change = (SELECT number + 1 FROM " + q.name("feed") + " WHERE one)"
	}
	return stmt(fmt.Sprintf(q.putClaimed, check, change), args...)
}

func (q *queries) guarded(t records.Table) string {
	return "SELECT 1 FROM " + q.name(string(t)) + " WHERE key = $4 AND value IS NOT NULL"
}

// Release implements records.Shared.
func (e *engine) Release(ctx context.Context, key []byte, lease string) error {
	_, err := e.transact(ctx, stmt(e.sql.release, key, lease))
	return err
}
