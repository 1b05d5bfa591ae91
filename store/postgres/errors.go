package postgres

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrSchema: the tables are not those that this version needs. The error says
// which version there is, and what to run.
var ErrSchema = errors.New("the database cannot be used by this version")

// errNoFeed: nothing can be written, and no process hears of what another
// writes. The last mark says what the row has said.
var errNoFeed = errors.New("the row of the table feed is gone, without which nothing can be written: put it back by INSERT INTO feed (number) SELECT max(number) FROM feed_marks, or restore the tables from a backup")

// errClosed is what every call answers after Close.
var errClosed = errors.New("the store has been closed")

// failure is an error of the database, or of the way to it. It wraps nothing:
// the driver's errors hold the configuration with its password, and the end of
// a context of ours must not be taken for that of the caller's.
type failure struct {
	text string
	code string // SQLSTATE, "" if the database did not answer
}

func (f *failure) Error() string { return f.text }

// newFailure keeps of a driver's error what may be told.
func newFailure(err error) *failure {
	f := &failure{text: "PostgreSQL: " + oneLine(err)}
	pg := new(pgconn.PgError)
	connect := new(pgconn.ConnectError)
	switch {
	case errors.As(err, &connect):
		f.text = "PostgreSQL cannot be reached: " + oneLine(err)
	case errors.As(err, &pg):
	case timeout(err):
		f.text = "PostgreSQL does not answer: " + oneLine(err)
	default:
		f.text = "the connection to PostgreSQL is lost: " + oneLine(err)
	}
	if errors.As(err, &pg) {
		f.code = pg.Code
	}
	return f
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func timeout(err error) bool {
	var n net.Error
	return pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// SQLSTATEs that say what to do.
const (
	lockNotAvailable      = "55P03"
	undefinedTable        = "42P01"
	undefinedColumn       = "42703"
	invalidSchemaName     = "3F000"
	insufficientPrivilege = "42501"
	invalidCatalogName    = "3D000"
	tooManyConnections    = "53300"
)

// wrongTables reports whether an error may come from tables that are not those
// that were found when they were last looked at.
func (f *failure) wrongTables() bool {
	switch f.code {
	case undefinedTable, undefinedColumn, invalidSchemaName, insufficientPrivilege:
		return true
	}
	return false
}

// refused reports whether the database is there and does not let us in.
func (f *failure) refused() bool {
	return strings.HasPrefix(f.code, "28") || f.code == invalidCatalogName
}

// Bounds of time, besides those of the callers' contexts.
const (
	// connectLimit is the default of the DSN's connect_timeout, for each
	// address.
	connectLimit = 2 * time.Second
	// acquireLimit is how long a call waits for a connection.
	acquireLimit = 5 * time.Second
	// answerLimit is how long the database may take for one message.
	answerLimit = 3 * time.Second
	// lockLimit is how long an Update waits for the others at the database. It
	// is longer than idleLimit, so that a holder who died stops nobody.
	lockLimit = 2500 * time.Millisecond
	// idleLimit is how long the database waits for the next statement of an
	// Update.
	idleLimit = 2 * time.Second
)
