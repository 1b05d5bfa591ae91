package postgres

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms/datakey/datakeytest"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
	"github.com/bulla-project/bulla/store/records"
)

func TestDSNOutsideTheMachineNeedsTLSThatChecks(t *testing.T) {
	for dsn, ok := range map[string]bool{
		"postgres://u@db.example.com/d":                                             false, // prefer
		"postgres://u@db.example.com/d?sslmode=disable":                             false,
		"postgres://u@db.example.com/d?sslmode=require":                             false,
		"postgres://u@db.example.com/d?sslmode=verify-ca":                           false,
		"postgres://u@db.example.com/d?sslmode=verify-full":                         true,
		"postgres://u@10.0.0.7/d?sslmode=require":                                   false,
		"postgres://u@[fe80::1]/d?sslmode=prefer":                                   false,
		"host=db.example.com sslmode=verify-full":                                   true,
		"host=/run/postgresql,db.example.com sslmode=prefer":                        false, // the second
		"postgres://u@localhost,db.example.com/d":                                   false,
		"postgres://u@a.example.com,b.example.com/d?sslmode=verify-full":            true,
		"postgres://u@127.0.0.1/d":                                                  true,
		"postgres://u@127.8.8.8/d?sslmode=disable":                                  true,
		"postgres://u@[::1]/d?sslmode=disable":                                      true,
		"postgres://u@localhost/d?sslmode=disable":                                  true,
		"postgres://u@localhost.example.com/d?sslmode=disable":                      false,
		"host=/run/postgresql dbname=d":                                             true,
		"postgres:///d?host=/run/postgresql":                                        true,
		"postgres://u@db.example.com/d?sslmode=verify-full&search_path=a,b":         false,
		"postgres://u@db.example.com/d?sslmode=verify-full&search_path=%22$user%22": false,
		"": false,
	} {
		_, err := parse("DSN", dsn)
		if (err == nil) != ok {
			t.Errorf("%s: got %v, want it to be good: %t", dsn, err, ok)
		}
		if err != nil && !errors.Is(err, ErrDSN) {
			t.Errorf("%s: %v is no ErrDSN", dsn, err)
		}
		if err != nil && !strings.Contains(err.Error(), "sslmode=verify-full") && !strings.Contains(err.Error(), "search_path") {
			t.Errorf("%s: %v does not say what to write", dsn, err)
		}
	}
}

func TestDSNSettings(t *testing.T) {
	read := func(dsn string) target {
		t.Helper()
		got, err := parse("DSN", dsn)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	d := read("host=/run/postgresql dbname=d")
	if d.schema != "public" || d.pool.MaxConns != maxConns || d.conn().ConnectTimeout != connectLimit || d.conn().RuntimeParams["application_name"] != "bulla" {
		t.Errorf("got defaults %s, %d, %v, %v", d.schema, d.pool.MaxConns, d.conn().ConnectTimeout, d.conn().RuntimeParams)
	}
	d = read(`postgres:///d?host=/run/postgresql&search_path="Own"&pool_max_conns=3&connect_timeout=7&application_name=x&pool_max_conn_lifetime=1m&pool_max_conn_idle_time=2m`)
	if d.schema != "Own" || d.pool.MaxConns != 3 || d.conn().ConnectTimeout != 7*time.Second || d.pool.MaxConnLifetime != time.Minute || d.pool.MaxConnIdleTime != 2*time.Minute {
		t.Errorf("got %s, %d, %v", d.schema, d.pool.MaxConns, d.conn().ConnectTimeout)
	}
	if fmt.Sprint(d.conn().RuntimeParams) != "map[application_name:x]" {
		t.Errorf("a pooler is sent %v", d.conn().RuntimeParams)
	}
	if read("postgres://localhost,127.0.0.1/d").conn().ValidateConnect == nil {
		t.Error("with several hosts it may be a standby that is asked")
	}
}

// secret is what must be in no error and no log.
const secret = "Tr0ub4dor&3"

func TestPasswordIsInNoError(t *testing.T) {
	esc := url.QueryEscape(secret)
	for _, dsn := range []string{
		"postgres://u:" + secret + "@[/d",
		"postgres://u:" + secret + "/x@db.example.com/d",
		"postgres://u:" + secret + "@db.example.com:port/d?sslmode=verify-full",
		"postgres://u:" + secret + "@db.example.com:99999999/d",
		"postgres://u:x:" + secret + "@h:1:" + secret + "/d",
		"postgres://u:" + esc + "@db.example.com/d?sslmode=disable",
		"postgres://u:" + esc + "@db.example.com/d?sslmode=" + esc,
		"postgres://u:" + esc + "@db.example.com/d?target_session_attrs=" + esc,
		"postgres://u:" + esc + "@db.example.com/d?sslmode=verify-full&sslrootcert=/nowhere/ca.crt",
		"postgres://u:" + esc + "@localhost/d?pool_max_conns=" + esc,
		"postgres://u:" + esc + "@localhost/d?min_protocol_version=" + esc,
		"postgres://u:" + esc + "@localhost/d?search_path=a," + esc,
		"host=db.example.com password=" + secret,
		"host=db.example.com password='" + secret,
		"host=db.example.com pasword " + secret,
		"host=db.example.com sslmode=verify-full sslkey=" + secret,
		secret,
		" postgres://u:" + secret + "@h/d",
	} {
		for what, open := range map[string]func() error{
			"DSN": func() error { _, err := newEngine(Config{DSN: dsn}, nil); return err },
			"ListenDSN": func() error {
				_, err := newEngine(Config{DSN: "host=/run/postgresql", ListenDSN: dsn}, nil)
				return err
			},
			"Migrate": func() error { _, _, err := Migrate(t.Context(), Config{DSN: dsn}); return err },
		} {
			err := open()
			if err == nil {
				t.Errorf("%s %q was taken", what, dsn)
				continue
			}
			if text := fmt.Sprintf("%v %+v %#v", err, err, err.Error()); strings.Contains(text, secret) || strings.Contains(text, esc) || strings.Contains(text, "r0ub4dor") {
				t.Errorf("%s %q: its error has the password: %s", what, dsn, text)
			}
		}
	}
	if _, err := parse("DSN", "postgres://u@db.example.com/d?sslmode=verify-full&sslrootcert=/nowhere/ca.crt"); err == nil || !strings.Contains(err.Error(), "/nowhere/ca.crt") {
		t.Errorf("got %v, want the file that is missing", err)
	}
}

func TestRefusedPasswordIsInNoErrorAndNoLog(t *testing.T) {
	d := cluster.NewDatabase(t)
	log := &lines{}
	s, err := Open(t.Context(), Config{DSN: d.As("nobody", secret, cluster.Addr()), DataKeys: datakeytest.Config(wrapper), Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, err = s.Get(t.Context(), "main", "app")
	if err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("got %v, want that the password was refused", err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", err, err, err), log.text()} {
		if strings.Contains(text, secret) || strings.Contains(text, url.QueryEscape(secret)) {
			t.Errorf("it has the password: %s", text)
		}
	}
	if log.count("28P01") != 1 {
		t.Errorf("want one line, got:\n%s", log.text())
	}
}

// certificates makes an authority and a server's certificate for a name.
func certificates(t *testing.T, name string) (ca, cert, key string) {
	t.Helper()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string) {
		t.Helper()
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = template, k
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, k, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	root, rootKey, ca := issue(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	_, k, cert := issue(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, KeyUsage: x509.KeyUsageDigitalSignature}, root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return ca, cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestVerifyFullChecksWhoAnswers(t *testing.T) {
	ca, cert, key := certificates(t, "localhost")
	other, _, _ := certificates(t, "localhost")
	c := pgtest.Start(t)
	d := c.NewDatabase(t)
	d.Exec(t, "ALTER SYSTEM SET ssl_cert_file = '"+c.File(t, "server.crt", cert)+"'")
	d.Exec(t, "ALTER SYSTEM SET ssl_key_file = '"+c.File(t, "server.key", key)+"'")
	d.Exec(t, "ALTER SYSTEM SET ssl = on")
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := func(ca string) string {
		return strings.Replace(d.TCP(), "sslmode=disable", "sslmode=verify-full&sslrootcert="+ca, 1)
	}
	e := engineOn(t, Config{DSN: full(file("ca.crt", ca)), Migrate: true})
	mustPut(t, e, records.Rings, "k", "v")
	var encrypted bool
	if err := d.Connect(t).QueryRow(t.Context(), "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'bulla'").Scan(&encrypted); err != nil || !encrypted {
		t.Errorf("got TLS %t, %v", encrypted, err)
	}
	wrong := engineOn(t, Config{DSN: full(file("other.crt", other))})
	if _, err := get(t.Context(), wrong, records.Rings, "k"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with another authority: got %v", err)
	}
}
