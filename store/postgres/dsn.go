package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// example is how a DSN is written.
const example = "postgres://bulla:PASSWORD@db.example.com:5432/bulla?sslmode=verify-full&sslrootcert=/etc/bulla/db-ca.crt" //nolint:gosec // there is no such password

// maxConns is the default of the DSN's pool_max_conns. Warm calls need no
// connection, and eight answer thousands of cold ones in a second; ten replicas
// then stay below the hundred that PostgreSQL takes by default.
const maxConns = 8

// target is a DSN that was read and found good.
type target struct {
	pool   *pgxpool.Config
	schema string
}

// conn is the configuration of a connection outside of the pool.
func (t target) conn() *pgx.ConnConfig { return t.pool.ConnConfig }

// ErrDSN: a connection string cannot be used, and will not be as it stands: it
// has to be corrected. The text says what is wrong, without the string.
var ErrDSN = errors.New("the connection string cannot be used")

// dsnError is an ErrDSN.
type dsnError struct {
	what string
	err  error
}

func (e *dsnError) Error() string { return e.what + ": " + e.err.Error() }

func (e *dsnError) Unwrap() []error { return []error{ErrDSN, e.err} }

// parse reads a DSN. what names it in errors, which hold nothing of it that
// could be a secret, and are ErrDSN.
func parse(what, dsn string) (target, error) {
	t, err := parseDSN(dsn)
	if err != nil {
		return target{}, &dsnError{what, err}
	}
	return t, nil
}

func parseDSN(dsn string) (target, error) {
	if dsn == "" {
		return target{}, fmt.Errorf("it is empty; write it as %s", example)
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return target{}, fmt.Errorf("%s; write it as %s", parseProblem(err), example)
	}
	if err := checkTLS(cfg.ConnConfig); err != nil {
		return target{}, err
	}
	schema, err := schemaOf(cfg.ConnConfig)
	if err != nil {
		return target{}, err
	}
	c := cfg.ConnConfig
	if c.ValidateConnect == nil && severalHosts(c) {
		// A standby knows less than was acknowledged.
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	// Behind a pooler there is no session in which a statement could be kept.
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.StatementCacheCapacity, c.DescriptionCacheCapacity = 0, 0
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "bulla"
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = connectLimit
	}
	// A peer that has gone without a word is noticed within half a minute.
	c.DialFunc = (&net.Dialer{
		Timeout:         c.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4},
	}).DialContext

	if !poolParam(dsn, "pool_max_conns") {
		cfg.MaxConns = maxConns
	}
	if !poolParam(dsn, "pool_max_conn_idle_time") {
		cfg.MaxConnIdleTime = 5 * time.Minute
	}
	if !poolParam(dsn, "pool_max_conn_lifetime") {
		cfg.MaxConnLifetime, cfg.MaxConnLifetimeJitter = 30*time.Minute, 5*time.Minute
	}
	// A broken connection is noticed when it is used, and costs no question
	// before.
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	return target{pool: cfg, schema: schema}, nil
}

// poolParam reports whether a DSN sets a parameter of the pool. ParseConfig of
// the pool takes them away, and that of a connection leaves them.
func poolParam(dsn, name string) bool {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return false
	}
	_, ok := cfg.RuntimeParams[name]
	return ok
}

// staticText is what the driver says of a DSN before it quotes anything of it.
var staticText = regexp.MustCompile(`^(failed to [a-zA-Z/ ]+|invalid [a-z_]+|could not match \d+ port numbers to \d+ hosts|unknown [a-z_]+|cannot parse pool_[a-z_]+|pool_[a-z_]+ too small|min_protocol_version cannot[a-z_ ]+)`)

// parseProblem says what is wrong with a DSN. The driver's own text quotes the
// DSN, and leaves out what it takes for a password; nothing of that is kept but
// the name of a file that could not be read.
func parseProblem(err error) string {
	problem := "it cannot be read"
	text := err.Error()
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		if static := staticText.FindString(text[i+len("`: "):]); static != "" {
			problem += ": " + static
		}
	}
	file := new(fs.PathError)
	if errors.As(err, &file) {
		problem += ": " + file.Error()
	}
	return problem
}

// checkTLS refuses a way to the database on which somebody else could read or
// answer.
func checkTLS(c *pgx.ConnConfig) error {
	type way struct {
		host   string
		secure bool
	}
	ways := []way{{c.Host, c.TLSConfig != nil && !c.TLSConfig.InsecureSkipVerify}}
	for _, f := range c.Fallbacks {
		ways = append(ways, way{f.Host, f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify})
	}
	for _, w := range ways {
		if !w.secure && !local(w.host) {
			return fmt.Errorf("the connection to %s has to be by TLS that checks who answers: write sslmode=verify-full, and sslrootcert=FILE with the authority of the server's certificate unless the system knows it", w.host)
		}
	}
	return nil
}

func severalHosts(c *pgx.ConnConfig) bool {
	for _, f := range c.Fallbacks {
		if f.Host != c.Host || f.Port != c.Port {
			return true
		}
	}
	return false
}

// local reports whether what is sent to a host stays on the machine.
func local(host string) bool {
	if filepath.IsAbs(host) || host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// schemaOf takes the schema out of the parameters that a connection starts
// with: poolers refuse them. Statements name it instead.
func schemaOf(c *pgx.ConnConfig) (string, error) {
	path, ok := c.RuntimeParams["search_path"]
	if !ok {
		return "public", nil
	}
	delete(c.RuntimeParams, "search_path")
	name := strings.TrimSpace(path)
	if quoted, ok := strings.CutPrefix(name, `"`); ok {
		name = strings.TrimSuffix(quoted, `"`)
	}
	if name == "" || len(name) > 63 || strings.ContainsAny(name, "\",$\x00") {
		return "", errors.New("its search_path has to be the name of one schema, in which the tables of Bulla are")
	}
	return name, nil
}
