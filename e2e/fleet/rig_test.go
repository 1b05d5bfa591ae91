package fleet

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms/pkcs11/softhsmtest"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/store/postgres/pgtest"
)

// full is a run at full length.
var full = os.Getenv("BULLA_SOAK") != ""

// raceFactor is by how much longer things may take in the quick pass with the
// race detector, when the machine runs other packages' tests as well.
const raceFactor = 3

// allowed is how long something may take in this pass that ought to take d.
func allowed(d time.Duration) time.Duration {
	if harness.RaceEnabled && !full {
		return raceFactor * d
	}
	return d
}

// inParallel is for tests that wait more than they work; at full length, figures
// count.
func inParallel(t *testing.T) {
	t.Helper()
	if !full {
		t.Parallel()
	}
}

// inForce is how soon after it was acknowledged a change is in force on every
// replica, and wellAgain how soon a replica is well when the cause of its
// trouble is gone.
const (
	inForce   = time.Second
	wellAgain = 5 * time.Second
)

// setup is what a fleet is made of. The zero value is two replicas on the
// shared cluster.
type setup struct {
	replicas int             // default: 2
	cluster  *pgtest.Cluster // default: that of world
	token    *softhsmtest.Token
	fetch    harness.M // over min_refresh: 1s
	store    harness.M // beside postgres
	// via is the address of PostgreSQL for a replica, where it is not the
	// server's own.
	via  map[int]string
	edit func(harness.M)
}

// fleet is replicas that share a database, a token and a host to fetch from.
type fleet struct {
	t        *testing.T
	set      setup
	db       *pgtest.Database
	host     *harness.Host
	leaf     *harness.Leaf // of harness.Admin
	replicas []*harness.Service

	mu      sync.Mutex       // guards clients
	clients []*client.Client // of each replica, without a second attempt
}

// newFleet starts a fleet, all replicas at once, and waits until all are ready.
// It ends with the test.
func newFleet(t *testing.T, set setup) *fleet {
	t.Helper()
	if set.replicas == 0 {
		set.replicas = 2
	}
	if set.cluster == nil {
		set.cluster = shared.cluster
	}
	if set.token == nil {
		set.token = shared.token
	}
	f := &fleet{t: t, set: set, host: harness.NewHost(t, shared.web)}
	f.db = set.cluster.NewDatabase(t)
	f.leaf = shared.ca.Issue(t, harness.LeafConfig{URI: harness.Admin})
	for i := range set.replicas {
		f.add(t, i)
	}
	for _, s := range f.replicas {
		s.Run(t)
	}
	for i, s := range f.replicas {
		s.WaitReady(t)
		s.WaitKeys(t, 1)
		f.waitServing(t, i)
	}
	return f
}

// waitServing waits until a replica says by gRPC what /readyz says at once:
// clients with several replicas go by it.
func (f *fleet) waitServing(t *testing.T, i int) {
	t.Helper()
	asked := healthpb.NewHealthClient(f.on(i).Conn())
	harness.Eventually(t, func() error {
		res, err := asked.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil && res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("health: %s", res.GetStatus())
		}
		return err
	})
}

// add makes a replica that does not run yet.
func (f *fleet) add(t *testing.T, i int) *harness.Service {
	t.Helper()
	dsn := f.db.TCP()
	if addr, ok := f.set.via[i]; ok {
		dsn = f.db.Via(addr)
	}
	file := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(file, []byte(dsn+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := harness.M{"postgres": harness.M{"dsn_file": file}}
	maps.Copy(store, f.set.store)
	fetch := harness.M{"min_refresh": "1s"}
	maps.Copy(fetch, f.set.fetch)
	s := harness.New(t, harness.Config{
		Token: f.set.token, CA: shared.ca, Host: f.host, Fetch: fetch, Store: store, Edit: f.set.edit,
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas = append(f.replicas, s)
	f.clients = append(f.clients, f.dial(t, s))
	return s
}

func (f *fleet) dial(t *testing.T, s *harness.Service) *client.Client {
	t.Helper()
	return s.CallerWith(t, f.leaf)
}

// on is a connection to a replica, by which each failure is seen.
func (f *fleet) on(i int) *client.Client {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clients[i]
}

// redial makes a new connection to a replica: one that waits before it tries
// again would say nothing about the replica.
func (f *fleet) redial(t *testing.T, i int) {
	t.Helper()
	c := f.dial(t, f.replicas[i])
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients[i] = c
}

// addresses are those of all replicas, for a client.Config.
func (f *fleet) addresses() string {
	var all []string
	for _, s := range f.replicas {
		all = append(all, s.GRPC)
	}
	return strings.Join(all, ",")
}

// readyz is what a replica says of itself.
func (f *fleet) readyz(t *testing.T, i int) (code int, body string) {
	t.Helper()
	code, _, body = f.replicas[i].Get(t, f.replicas[i].Ops, "/readyz")
	return code, strings.TrimSpace(body)
}

// signers is the JWK Set of the issuer, as verifiers fetch it from a replica.
func (f *fleet) signers(t *testing.T, i int) []byte {
	t.Helper()
	s := f.replicas[i]
	code, _, doc := s.Get(t, s.HTTP, "/jwks/"+harness.Issuer)
	if code != 200 {
		t.Fatalf("jwks: %d %s", code, doc)
	}
	return []byte(doc)
}

const subject = "alice"

// ask asks for an ID token.
func ask(id string) *bullav1.SignAndEncryptRequest {
	return &bullav1.SignAndEncryptRequest{Issuer: harness.Issuer, ClientId: id, Claims: []byte(`{"sub":"` + subject + `"}`)}
}

// setting is that of ID tokens.
func setting() []*bullav1.ResponseSetting {
	return []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES", ContentEncryption: "A128GCM"}}
}

func withJWKS(id string, key harness.ClientKey) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: id, Settings: setting(),
		KeySource: &bullav1.RegisterClientKeyRequest_Jwks{Jwks: harness.JWKS(key)},
	}
}

func withURI(id, uri string) *bullav1.RegisterClientKeyRequest {
	return &bullav1.RegisterClientKeyRequest{
		Issuer: harness.Issuer, ClientId: id, Settings: setting(),
		KeySource: &bullav1.RegisterClientKeyRequest_JwksUri{JwksUri: uri},
	}
}

func deletion(id string) *bullav1.DeleteClientKeyRequest {
	return &bullav1.DeleteClientKeyRequest{Issuer: harness.Issuer, ClientId: id}
}

func refresh(id string) *bullav1.RefreshClientKeyRequest {
	return &bullav1.RefreshClientKeyRequest{Issuer: harness.Issuer, ClientId: id}
}

func mustRegister(t *testing.T, c *client.Client, req *bullav1.RegisterClientKeyRequest) *bullav1.ClientKey {
	t.Helper()
	res, err := c.ClientKeys.RegisterClientKey(t.Context(), req)
	if err != nil {
		t.Fatalf("register %s: %v", req.GetClientId(), err)
	}
	return res.GetClientKey()
}

func mustRefresh(t *testing.T, c *client.Client, id string) {
	t.Helper()
	if _, err := c.ClientKeys.RefreshClientKey(t.Context(), refresh(id)); err != nil {
		t.Fatalf("refresh %s: %v", id, err)
	}
}

func mustDelete(t *testing.T, c *client.Client, id string) {
	t.Helper()
	if _, err := c.ClientKeys.DeleteClientKey(t.Context(), deletion(id)); err != nil {
		t.Fatalf("delete %s: %v", id, err)
	}
}

// mustIssue issues a token to the key with that kid, and returns the answer.
func mustIssue(t *testing.T, c *client.Client, id, kid string) *bullav1.SignAndEncryptResponse {
	t.Helper()
	res, err := c.Tokens.SignAndEncrypt(t.Context(), ask(id))
	if err != nil {
		t.Fatalf("issue for %s: %v", id, err)
	}
	if got := res.GetEncryptionKeyId(); got != kid {
		t.Fatalf("issue for %s: encrypted to %q, want %q", id, got, kid)
	}
	return res
}

// reasonOf is the reason that the service gave, else the gRPC code.
func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return st.Code().String()
}

// retryOf is how long the service asked to wait, 0 if it did not.
func retryOf(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// Reasons that tests ask for.
const (
	notRegistered       = "CLIENT_NOT_REGISTERED"
	registryUnavailable = "REGISTRY_UNAVAILABLE"
	refreshLimited      = "REFRESH_LIMITED"
)

// mustBeUnavailable holds an error against REGISTRY_UNAVAILABLE with its code
// and its RetryInfo.
func mustBeUnavailable(t *testing.T, what string, err error) {
	t.Helper()
	if got := reasonOf(err); got != registryUnavailable || status.Code(err) != codes.Unavailable || retryOf(err) <= 0 {
		t.Errorf("%s: got %v (%s, retry %v), want %s with RetryInfo", what, err, got, retryOf(err), registryUnavailable)
	}
}

// until tries every few milliseconds until f returns nil, and returns how long
// that took since from. It fails the test after limit.
func until(t *testing.T, from time.Time, limit time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	for {
		began := time.Now()
		err := f()
		if err == nil {
			return began.Sub(from)
		}
		if began.Sub(from) > limit {
			t.Errorf("%s: not so after %v: %v", what, limit, err)
			return began.Sub(from)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// encryptedTo is nil if a replica makes tokens of a kind for the key with that
// kid; without one, if it makes none as the client is not registered.
func (f *fleet) encryptedTo(i int, req *bullav1.SignAndEncryptRequest, kid string) error {
	res, err := f.on(i).Tokens.SignAndEncrypt(f.t.Context(), req)
	switch {
	case kid == "" && reasonOf(err) == notRegistered:
		return nil
	case err != nil:
		return err
	case kid == "":
		return fmt.Errorf("it is still served")
	case res.GetEncryptionKeyId() != kid:
		return fmt.Errorf("encrypted to %s, want %s", res.GetEncryptionKeyId(), kid)
	}
	return nil
}

// keys makes P-256 keys with names of their own.
type keys struct {
	t testing.TB
	n int
}

func (k *keys) next() harness.ClientKey {
	k.n++
	return harness.NewClientKey(k.t, "P-256", k.t.Name()+"-"+strconv.Itoa(k.n))
}
