package harness

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// M is a mapping of the configuration file.
type M = map[string]any

// Patience is how long the harness waits for what ought to happen at once. It
// is long because machines that test are busy.
const Patience = 60 * time.Second

// Names that configurations of the harness use.
const (
	Issuer    = "main"
	IssuerURL = "https://login.example.com"
	// Admin is the caller that has every permission.
	Admin = "spiffe://example.com/admin"
)

// Config is what a Service is made of.
type Config struct {
	// Token is the SoftHSM token, backend "hsm". Its keys are named by
	// KeyLabel. Default: no such backend.
	Token *softhsmtest.Token
	// Algorithms are those of Issuer's signing keys. Default: ES256.
	Algorithms []kms.Algorithm
	// CA issues the service's certificate and those of Caller. Default: a new
	// one.
	CA *CA
	// Host is a host to fetch from; its address, port and CA are let through.
	// Default: none.
	Host *Host
	// Fetch is the configuration's fetch section, over what Host asks for.
	Fetch M
	// Issuers and Grants are added to the configuration's, which has Issuer
	// (where there is a Token), and Admin, who may do everything.
	Issuers, Grants []M
	// Wrapping says where the wrapping key is. Default: on Token.
	Wrapping M
	// Store is the configuration's store section. Default: a file in Dir.
	Store M
	// Plaintext is the development mode, without TLS.
	Plaintext bool
	// Env is added to the service's environment.
	Env []string
	// WorkersCrash says that crashes in the log are those of workers, which the
	// service outlives.
	WorkersCrash bool
	// Edit has the last word on the configuration.
	Edit func(M)
}

// KeyLabel is the label of the key for alg on a token.
func KeyLabel(alg kms.Algorithm) string { return "sign-" + strings.ToLower(string(alg)) }

// WrappingLabel is the label of the wrapping key on a token.
const WrappingLabel = "wrap"

// NewToken makes a SoftHSM token with a wrapping key and a key for each
// algorithm.
func NewToken(t testing.TB, label string, algorithms ...kms.Algorithm) *softhsmtest.Token {
	t.Helper()
	token := PrepareToken(t, label)
	token.Init()
	AddWrappingKey(token)
	AddKeys(token, algorithms...)
	return token
}

// PrepareToken is NewToken before there is a token: its Init makes it.
func PrepareToken(t testing.TB, label string) *softhsmtest.Token {
	t.Helper()
	return softhsmtest.Prepare(noSetenv{t}, label)
}

// noSetenv keeps the environment of the test's process as it is: the services
// have their own, and so their tests may run in parallel.
type noSetenv struct{ testing.TB }

func (noSetenv) Setenv(string, string) {}

// AddWrappingKey makes the wrapping key on a token.
func AddWrappingKey(token *softhsmtest.Token) { token.GenerateWrappingKey(WrappingLabel, "f0") }

// AuditLabel is the label of the key that signs audit logs.
const AuditLabel = "audit"

// AddAuditKey makes an ES256 key on a token that signs audit logs.
func AddAuditKey(token *softhsmtest.Token) { token.GenerateKey(AuditLabel, "f1", kms.ES256) }

// AddKeys makes a key on the token for each algorithm.
func AddKeys(token *softhsmtest.Token, algorithms ...kms.Algorithm) {
	for i, alg := range algorithms {
		token.GenerateKey(KeyLabel(alg), fmt.Sprintf("%02x", i+1), alg)
	}
}

// SigningKeys is the signing_keys of an issuer with a key on the token "hsm"
// for each algorithm.
func SigningKeys(algorithms ...kms.Algorithm) []M {
	var keys []M
	for _, alg := range algorithms {
		keys = append(keys, M{"algorithm": string(alg), "keys": []string{"hsm:object=" + KeyLabel(alg)}})
	}
	return keys
}

// Service is the binary, run as a service on files of its own.
type Service struct {
	// CA is that of the service and its callers.
	CA *CA
	// ConfigFile is its configuration, in its folder Dir.
	Dir, ConfigFile string
	// GRPC, HTTP and Ops are its listeners' addresses.
	GRPC, HTTP, Ops string

	binary    string
	env       []string
	plaintext bool
	crashes   bool   // of workers are no failure
	audit     string // the file, or "-"
	config    M

	mu      sync.Mutex // guards what follows
	output  bytes.Buffer
	stdout  bytes.Buffer
	process *process
}

// process is one life of the service.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when err is set
	err  error
}

// Start makes a Service, starts it and waits until it is ready and all of
// Issuer's keys sign. (Ready is a service with the first of them.)
func Start(t testing.TB, cfg Config) *Service {
	t.Helper()
	s := New(t, cfg)
	s.Run(t)
	s.WaitReady(t)
	s.WaitKeys(t, max(1, len(cfg.Algorithms)))
	return s
}

// WaitKeys waits until Issuer has want signing keys and all of them sign.
func (s *Service) WaitKeys(t testing.TB, want int) {
	t.Helper()
	admin := s.Caller(t, Admin)
	Eventually(t, func() error {
		res, err := admin.SigningKeys.ListSigningKeys(t.Context(), &bullav1.ListSigningKeysRequest{Issuer: Issuer})
		if err != nil {
			return err
		}
		if got := len(res.GetSigningKeys()); got != want {
			return fmt.Errorf("%d of %d signing keys are there", got, want)
		}
		for _, k := range res.GetSigningKeys() {
			if !k.GetAvailable() {
				return fmt.Errorf("the key for %s does not sign yet", k.GetAlgorithm())
			}
		}
		return nil
	})
}

// New makes a Service and does not start it. It ends with the test.
func New(t testing.TB, cfg Config) *Service {
	t.Helper()
	if cfg.CA == nil {
		cfg.CA = NewCA(t, "callers and services")
	}
	ip := freeAddress(t)
	s := &Service{
		CA: cfg.CA, Dir: t.TempDir(), binary: Binary(t), env: os.Environ(), plaintext: cfg.Plaintext, crashes: cfg.WorkersCrash,
		GRPC: net.JoinHostPort(ip, "8443"), HTTP: net.JoinHostPort(ip, "8080"), Ops: net.JoinHostPort(ip, "9090"),
	}
	if cfg.Token != nil {
		s.env = cfg.Token.Env()
	}
	s.env = append(s.env, cfg.Env...)
	tree := s.tree(t, cfg, ip)
	if cfg.Edit != nil {
		cfg.Edit(tree)
	}
	if s.audit = tree["audit"].(M)["path"].(string); s.audit != "-" && !filepath.IsAbs(s.audit) {
		s.audit = filepath.Join(s.Dir, s.audit)
	}
	s.ConfigFile, s.config = filepath.Join(s.Dir, "bulla.yaml"), tree
	s.Reconfigure(t, func(M) {})
	if cfg.Token != nil {
		evidence.Secret("the PIN", softhsmtest.PIN)
	}
	t.Cleanup(func() {
		s.leave()
		s.stop()
		s.judge(t)
	})
	return s
}

// Reconfigure changes the configuration. It takes effect at the next start.
func (s *Service) Reconfigure(t testing.TB, edit func(M)) {
	t.Helper()
	edit(s.config)
	doc, err := yaml.Marshal(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.ConfigFile, doc, 0o600); err != nil {
		t.Fatal(err)
	}
}

// freeAddress is a loopback address that nobody else listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	// Not 127.0.x.y, where other things are.
	return net.IPv4(127, b[0]|1, b[1], b[2]|1).String()
}

// tree is the configuration.
func (s *Service) tree(t testing.TB, cfg Config, ip string) M {
	t.Helper()
	tree := M{
		"grpc": M{"listen": s.GRPC}, "http": M{"listen": s.HTTP}, "ops": M{"listen": s.Ops},
		"store": M{"bolt": M{"path": "bulla.db"}}, "audit": M{"path": "audit.log"},
	}
	if cfg.Store != nil {
		tree["store"] = maps.Clone(cfg.Store)
	}
	if cfg.Plaintext {
		tree["development"] = true
	} else {
		leaf := cfg.CA.Issue(t, LeafConfig{IPs: []net.IP{net.ParseIP(ip)}})
		tree["grpc"].(M)["tls"] = M{"cert_file": leaf.CertFile, "key_file": leaf.KeyFile, "client_ca_file": cfg.CA.File}
	}
	fetch := M{}
	if h := cfg.Host; h != nil {
		fetch = M{"ca_file": h.CA.File, "allow_cidrs": []string{HostAddress + "/32"}, "allow_ports": []int{443, h.Port()}}
	}
	maps.Copy(fetch, cfg.Fetch)
	if len(fetch) > 0 {
		tree["fetch"] = fetch
	}
	var issuers []M
	if cfg.Token != nil {
		tree["backends"] = M{"hsm": M{"pkcs11": M{"module": cfg.Token.Module, "token": cfg.Token.Label, "pin_file": cfg.Token.PINFile}}}
		algorithms := cfg.Algorithms
		if len(algorithms) == 0 {
			algorithms = []kms.Algorithm{kms.ES256}
		}
		issuers = append(issuers, M{"name": Issuer, "iss": IssuerURL, "signing_keys": SigningKeys(algorithms...)})
	}
	issuers = append(issuers, cfg.Issuers...)
	tree["issuers"] = issuers
	if cfg.Wrapping != nil {
		tree["wrapping"] = cfg.Wrapping
	} else {
		tree["wrapping"] = M{"backend": "hsm", "key": "object=" + WrappingLabel}
	}
	if !cfg.Plaintext {
		var names []string
		for _, i := range issuers {
			names = append(names, i["name"].(string))
		}
		all := M{
			"caller": Admin, "issuers": names, "clients": []string{"*"}, "token_kinds": []string{"ID_TOKEN", "LOGOUT_TOKEN", "USERINFO", "AUTHORIZATION_RESPONSE", "INTROSPECTION", "ACCESS_TOKEN"},
			"allow": []string{
				"issue", "sign_unencrypted", "read_client_keys", "create_client_key", "replace_client_key",
				"generate_client_key", "delete_client_key", "refresh_client_key", "read_signing_keys", "rotate_signing_keys", "read_status",
			},
		}
		tree["grants"] = append([]M{all}, cfg.Grants...)
	}
	return tree
}

// Run starts the service and does not wait for it.
func (s *Service) Run(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		t.Fatal("harness: the service runs already")
	}
	cmd := exec.Command(s.binary, "serve", "--config", s.ConfigFile)
	cmd.Env = s.env
	// By pipes, and not to files: a full disk or a file size limit is to hit
	// what the service writes by itself.
	cmd.Stderr = &locked{&s.mu, &s.output}
	cmd.Stdout = &locked{&s.mu, &s.stdout}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	s.process = p
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
}

// locked is a buffer and its lock.
type locked struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(p)
}

// PID is the process's.
func (s *Service) PID(t testing.TB) int { t.Helper(); return s.running(t).cmd.Process.Pid }

func (s *Service) running(t testing.TB) *process {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		t.Fatal("harness: the service does not run")
	}
	return s.process
}

// Signal sends the service a signal.
func (s *Service) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.running(t).cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the service as a power failure would: without a chance to do
// anything about it.
func (s *Service) Kill(t testing.TB) { t.Helper(); s.Signal(t, syscall.SIGKILL); s.Exit(t) }

// Terminate asks the service to end and returns its exit code.
func (s *Service) Terminate(t testing.TB) int {
	t.Helper()
	s.Signal(t, syscall.SIGTERM)
	return s.Exit(t)
}

// Exit waits for the end of the service and returns its exit code, -1 if a
// signal ended it.
func (s *Service) Exit(t testing.TB) int {
	t.Helper()
	p := s.running(t)
	select {
	case <-p.done:
	case <-time.After(Patience):
		t.Fatalf("the service did not end within %v\n%s", Patience, s.Log())
	}
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the service if it runs.
func (s *Service) stop() {
	s.mu.Lock()
	p := s.process
	s.process = nil
	s.mu.Unlock()
	if p != nil {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
	}
}

// leave keeps what the service has written so far, for SearchEvidence.
func (s *Service) leave() {
	s.mu.Lock()
	running := s.process != nil
	stdout := s.stdout.String()
	s.mu.Unlock()
	evidence.Written("the log", s.Log())
	evidence.Written("the standard output", stdout)
	if running {
		for _, path := range []string{"/metrics", "/readyz"} {
			if _, _, body, err := s.get(s.Ops, path); err == nil {
				evidence.Written(path, body)
			}
		}
	}
	files, _ := filepath.Glob(s.audit + "*") // the pattern is good, and there may be none
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			evidence.Written("the audit log", string(text))
		}
	}
}

// judge fails the test for what must never be in a log.
func (s *Service) judge(t testing.TB) {
	t.Helper()
	log := s.Log()
	never := []string{"WARNING: DATA RACE", `"msg":"panic"`}
	if !s.crashes {
		never = append(never, "fatal error:", "goroutine 1 [")
	}
	for _, bad := range never {
		if strings.Contains(log, bad) {
			t.Errorf("the log has %q:\n%s", bad, log)
			return
		}
	}
	if t.Failed() {
		t.Logf("the service's log (its end):\n%s", tail(log, 8<<10))
	}
}

func tail(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return "…" + text[len(text)-n:]
}

// WaitReady waits until /readyz answers with 200.
func (s *Service) WaitReady(t testing.TB) { t.Helper(); s.waitFor(t, "/readyz") }

// WaitLive waits until /livez answers with 200.
func (s *Service) WaitLive(t testing.TB) { t.Helper(); s.waitFor(t, "/livez") }

func (s *Service) waitFor(t testing.TB, path string) {
	t.Helper()
	p := s.running(t)
	last := ""
	Eventually(t, func() error {
		select {
		case <-p.done:
			t.Fatalf("the service ended (%v):\n%s", p.err, s.Log())
		default:
		}
		code, _, body, err := s.get(s.Ops, path)
		if err == nil && code == http.StatusOK {
			return nil
		}
		last = fmt.Sprintf("%s: %d %s (%v)", path, code, strings.TrimSpace(body), err)
		return errors.New(last)
	})
}

// Eventually tries until f returns nil, and fails the test with its last error
// after Patience.
func Eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %v", Patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Get is a GET from the ops listener (s.Ops) or that for verifiers (s.HTTP).
func (s *Service) Get(t testing.TB, address, path string) (code int, header http.Header, body string) {
	t.Helper()
	code, header, body, err := s.get(address, path)
	if err != nil {
		t.Fatal(err)
	}
	return code, header, body
}

var plain = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (s *Service) get(address, path string) (int, http.Header, string, error) {
	res, err := plain.Get("http://" + address + path)
	if err != nil {
		return 0, nil, "", err
	}
	defer func() { _ = res.Body.Close() }() // only read
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(body), err
}

// Log is what the service wrote to its standard error, in all its lives.
func (s *Service) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

// Leaf makes a certificate for a caller.
func (s *Service) Leaf(t testing.TB, caller string) *Leaf {
	t.Helper()
	return s.CA.Issue(t, LeafConfig{URI: caller})
}

// Caller connects with a certificate of the caller; without TLS, caller does
// not matter. The connection ends with the test.
func (s *Service) Caller(t testing.TB, caller string) *client.Client {
	t.Helper()
	if s.plaintext {
		return s.Dial(t, client.Config{Plaintext: true})
	}
	return s.CallerWith(t, s.Leaf(t, caller))
}

// CallerWith is Caller with a given certificate.
func (s *Service) CallerWith(t testing.TB, leaf *Leaf) *client.Client {
	t.Helper()
	return s.Dial(t, client.Config{CAFile: s.CA.File, CertFile: leaf.CertFile, KeyFile: leaf.KeyFile})
}

// Dial connects to the service. What fails is seen: no call is made again,
// unless cfg says so.
func (s *Service) Dial(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	if cfg.Address = s.GRPC; cfg.Attempts == 0 {
		cfg.Attempts = 1
	}
	cfg.Options = append(slices.Clip(cfg.Options), evidence.watched()...)
	c, err := client.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // nothing is lost by its errors
	return c
}

// Command is a run of the binary in the environment of the service. For a command
// that dials, add ConnectFlags.
func (s *Service) Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.binary, args...)
	cmd.Env = s.env
	return cmd
}

// ConnectFlags are the flags by which a command finds the service. leaf is not
// needed without TLS.
func (s *Service) ConnectFlags(leaf *Leaf) []string {
	if s.plaintext {
		return []string{"--addr", s.GRPC, "--plaintext"}
	}
	return []string{"--addr", s.GRPC, "--tls-ca", s.CA.File, "--tls-cert", leaf.CertFile, "--tls-key", leaf.KeyFile}
}
