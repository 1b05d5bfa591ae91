// Package seal is the way of one token. Everything that issues goes through
// it, in this order:
//
//	authorize   may this caller issue this kind of token for this client?
//	quota       does it not ask for more than it may?
//	recipient   the client's setting and key, from memory. It comes before any
//	            work of the HSM: none is spent on a client that cannot be
//	            encrypted to.
//	prepare     the claims, checked and completed, and held against the claim
//	            policy of the caller's grants
//	queue       a place at the backend, which who asks for too much does not get
//	sign        by the issuer's active key, and verified
//	wrap        a content encryption key for the client (RSA, key agreement)
//	encrypt     the signed token with that key
//	audit       one line, written before the token is handed out
//
// A denial and a failure leave a line as well. An audit log that cannot be
// written denies the call: what is not on record has not left the service.
package seal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
)

// Errors of the way of a token, beside those of the packages it leads through.
var (
	// ErrEncryptionRequired: the client is not registered for unencrypted
	// tokens of this kind. The caller asks for an encrypted one, or the
	// client's registration is changed.
	ErrEncryptionRequired = errors.New("this client's tokens of this kind must be encrypted")

	// ErrSignedOnly: tokens of this kind are not encrypted. The caller asks
	// for a signed one.
	ErrSignedOnly = errors.New("tokens of this kind are only signed")
)

// Authorizer decides what a caller may do: authz.Live.
type Authorizer interface {
	// Authorize returns the Terms of a request that is allowed. The token keeps
	// them, whatever becomes of the caller's grants meanwhile.
	Authorize(caller string, r authz.Request) (authz.Terms, error)
}

// Recipients knows the clients: keycache.Cache.
type Recipients interface {
	Recipient(ctx context.Context, issuer, clientID string, kind registry.TokenKind) (keycache.Recipient, error)
	Setting(ctx context.Context, issuer, clientID string, kind registry.TokenKind) (registry.Setting, error)
	SigningSecret(ctx context.Context, issuer, clientID string) ([]byte, error)
	RegistryStale() bool
}

// Keys knows the issuers' active signing keys: keyring.Keyring.
type Keys interface {
	Key(issuer string, alg kms.Algorithm) (*signer.SigningKey, error)
}

// Auditor writes the audit log: audit.Log.
type Auditor interface {
	Record(ctx context.Context, e audit.Event) error
}

// Observer is told of each stage of a token that is done, or that failed, and of
// each token that was made with a legacy algorithm. It may be a Tracker too.
type Observer interface {
	Stage(ctx context.Context, t Timing)
	Legacy(issuer, alg, enc string)
}

// Stage is a step on the way of a token.
type Stage string

// The stages that are measured.
const (
	StageRecipient Stage = "recipient"
	StagePrepare   Stage = "prepare"
	StageQueue     Stage = "queue" // also of those who did not have to wait
	StageSign      Stage = "sign"
	StageWrap      Stage = "wrap"
	StageEncrypt   Stage = "encrypt"
	StageAudit     Stage = "audit"
)

// Timing is when a stage was and how long it took. Backend and Algorithm are
// empty where the stage has none: Backend is that which signed, Algorithm the
// JWS alg, the JWE alg of StageWrap, or the enc of StageEncrypt.
type Timing struct {
	Stage     Stage
	Backend   string
	Algorithm string
	Began     time.Time
	Took      time.Duration
	// Reason is why the stage failed, by Config.Reason; empty if it went well.
	Reason string
}

// Config is what a Sealer is made of. All fields are required but what has a
// default.
type Config struct {
	Issuers    *issuer.Directory
	Authorizer Authorizer
	Recipients Recipients
	Keys       Keys
	Auditor    Auditor
	Observer   Observer
	// Reason names an error for the audit log, as the API does.
	Reason func(error) string
	// Admission has calls wait for their turn at a backend. Default: none has to.
	Admission Admission
	// Quota bounds what each caller may ask for. Default: none does.
	Quota Quota
	// Logger gets what an operator should look at. Default: none.
	Logger *slog.Logger
}

// Sealer issues tokens.
type Sealer struct {
	cfg       Config
	tracker   Tracker // nil for none
	legacyLog rate.Sometimes

	issued, refused atomic.Uint64
}

// Totals are the tokens that were handed out since New, and those that were
// asked for and refused or failed.
func (s *Sealer) Totals() (issued, refused uint64) { return s.issued.Load(), s.refused.Load() }

// New makes a Sealer.
func New(cfg Config) (*Sealer, error) {
	if cfg.Issuers == nil || cfg.Authorizer == nil || cfg.Recipients == nil || cfg.Keys == nil ||
		cfg.Auditor == nil || cfg.Observer == nil || cfg.Reason == nil {
		return nil, errors.New("seal: a required field of Config is missing")
	}
	if cfg.Admission == nil {
		cfg.Admission = openDoor{}
	}
	if cfg.Quota == nil {
		cfg.Quota = openDoor{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tracker, _ := cfg.Observer.(Tracker)
	return &Sealer{cfg: cfg, tracker: tracker, legacyLog: rate.Sometimes{First: 1, Interval: time.Second}}, nil
}

// Request asks for one token.
type Request struct {
	// RPC and Caller say who asks, by which method.
	RPC, Caller string
	// Issuer may be empty if only one is configured.
	Issuer   string
	ClientID string
	Kind     signer.TokenKind
	Claims   []byte
	// Lifetime is nil if the request does not say.
	Lifetime *time.Duration
	// SigningAlgorithm is empty if the request does not say.
	SigningAlgorithm kms.Algorithm
	// AccessToken, Code and State are the inputs of the hash claims.
	AccessToken, Code, State string
	// AllowUnencrypted asks Sign for a token that is only signed although the
	// client registered encryption.
	AllowUnencrypted bool
}

// Result is one token and how it was made.
type Result struct {
	Token            string
	SigningKeyID     string
	SigningAlgorithm kms.Algorithm
	// RegistryStale says that the client may have been changed on another replica
	// without this one having heard of it.
	RegistryStale bool

	// The rest is empty for a token that is only signed.
	EncryptionKeyID     string
	EncryptionAlgorithm encrypter.KeyAlgorithm
	ContentEncryption   encrypter.ContentEncryption
	// ClientKeysStale and ClientKeysFetchedAt tell the age of the client's
	// keys; the time is zero for keys that were registered as they are.
	ClientKeysStale     bool
	ClientKeysFetchedAt time.Time
}

// SignAndEncrypt issues a nested JWT. Errors are those of the packages on its
// way: issuer, authz, registry, keycache, signer, keyring, kms, audit and this
// one.
func (s *Sealer) SignAndEncrypt(ctx context.Context, req Request) (*Result, error) {
	return s.issue(ctx, req, authz.Issue, s.signAndEncrypt)
}

// Sign issues a signed JWT. Errors are as those of SignAndEncrypt, and
// ErrEncryptionRequired.
func (s *Sealer) Sign(ctx context.Context, req Request) (*Result, error) {
	permission := authz.Issue
	if req.AllowUnencrypted {
		permission = authz.SignUnencrypted
	}
	return s.issue(ctx, req, permission, s.sign)
}

// token is a token on its way.
type token struct {
	Request
	permission authz.Permission
	terms      authz.Terms
	issuer     *issuer.Issuer
	event      audit.Event
	result     Result
}

// issue walks the way, tells of it and counts it.
func (s *Sealer) issue(ctx context.Context, req Request, permission authz.Permission, step func(context.Context, *token) error) (*Result, error) {
	t := &token{Request: req, permission: permission}
	ctx = s.begin(ctx)
	result, err := s.walk(ctx, t, step)
	s.end(ctx, t, err)
	if err == nil {
		s.issued.Add(1)
	} else {
		s.refused.Add(1)
	}
	return result, err
}

// walk walks the way, and puts on record how it ended.
func (s *Sealer) walk(ctx context.Context, t *token, step func(context.Context, *token) error) (*Result, error) {
	req, permission := &t.Request, t.permission
	t.event = audit.Event{
		RPC: req.RPC, Caller: req.Caller, Permission: string(permission),
		Issuer: req.Issuer, ClientID: req.ClientID, TokenKind: string(req.Kind),
	}
	done, err := s.enter(t)
	if err == nil {
		defer done()
	}
	if err != nil {
		t.event.Outcome = audit.Denied
	} else if err = step(ctx, t); err != nil {
		t.event.Outcome = audit.Failed
		if errors.Is(err, authz.ErrClaimsNotAllowed) {
			t.event.Outcome = audit.Denied
		}
	} else {
		t.event.Outcome = audit.Issued
		t.event.TokenSHA256 = sha256.Sum256([]byte(t.result.Token))
	}
	if err != nil {
		t.event.Reason = s.cfg.Reason(err)
	}
	began := time.Now()
	failed := s.cfg.Auditor.Record(ctx, t.event)
	s.stage(ctx, Timing{Stage: StageAudit, Began: began}, failed)
	if failed != nil {
		if err != nil {
			// The caller learns why its call failed; that the log failed too
			// is the operator's concern, who hears of it from the log itself.
			return nil, err
		}
		return nil, failed
	}
	if err != nil {
		return nil, err
	}
	return &t.result, nil
}

// authorize finds the issuer and asks for permission. A caller that no grant
// names does not learn which issuers there are.
func (s *Sealer) authorize(t *token) error {
	found, unknown := s.cfg.Issuers.Find(t.Issuer)
	if unknown == nil {
		t.issuer = found
		t.event.Issuer = found.Name()
	}
	terms, err := s.cfg.Authorizer.Authorize(t.Caller, authz.Request{
		Permission: t.permission, Issuer: t.event.Issuer, TokenKind: string(t.Kind), ClientID: t.ClientID,
	})
	t.terms = terms
	if unknown != nil && !errors.Is(err, authz.ErrCallerUnknown) {
		return unknown
	}
	return err
}

func (s *Sealer) signAndEncrypt(ctx context.Context, t *token) error {
	if err := t.Kind.Check(); err != nil {
		return err
	}
	if !t.Kind.ClientBound() {
		return fmt.Errorf("%w: ask Sign for a token of kind %s", ErrSignedOnly, t.Kind)
	}
	began := time.Now()
	to, err := s.cfg.Recipients.Recipient(ctx, t.issuer.Name(), t.ClientID, registry.TokenKind(t.Kind))
	s.stage(ctx, Timing{Stage: StageRecipient, Began: began}, err)
	if err != nil {
		return err
	}
	if to.Recipient == nil {
		return fmt.Errorf("%w: its registration names no encryption algorithm for %s; register one, or ask Sign for a signed token", keycache.ErrNoSetting, t.Kind)
	}
	// The policy may have become stricter since the client was registered.
	// Whether the client is registered as legacy was looked at then.
	if err := t.issuer.CheckEncryption(to.Algorithm(), to.ContentEncryption(), true); err != nil {
		return err
	}
	jws, err := s.jws(ctx, t, to.Setting)
	if err != nil {
		return err
	}
	jwe, err := s.encrypt(ctx, to.Recipient, jws)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	if to.Algorithm().Legacy() || to.ContentEncryption().Legacy() {
		s.legacy(ctx, t, to)
	}

	t.result.Token = jwe
	t.result.EncryptionKeyID = to.KeyID()
	t.result.EncryptionAlgorithm = to.Algorithm()
	t.result.ContentEncryption = to.ContentEncryption()
	t.result.ClientKeysStale = to.Stale
	t.result.ClientKeysFetchedAt = to.FetchedAt
	t.result.RegistryStale = to.RegistryStale

	t.event.EncryptionKeyID = to.KeyID()
	t.event.EncryptionKeyThumbprint = to.Thumbprint
	t.event.EncryptionAlgorithm = string(to.Algorithm())
	t.event.ContentEncryption = string(to.ContentEncryption())
	return nil
}

// legacy counts a token for which a legacy algorithm was used. The log has one
// such client a second at most; the audit log has all.
func (s *Sealer) legacy(ctx context.Context, t *token, to keycache.Recipient) {
	alg, enc := string(to.Algorithm()), string(to.ContentEncryption())
	s.cfg.Observer.Legacy(t.issuer.Name(), alg, enc)
	s.legacyLog.Do(func() {
		s.cfg.Logger.WarnContext(ctx, "legacy algorithm in use: have the client register RSA-OAEP-256 and a standard enc",
			"issuer", t.issuer.Name(), "client_id", t.ClientID, "token_kind", t.Kind, "alg", alg, "enc", enc)
	})
}

// sign is the way of a token that is only signed. For a client-bound kind the
// client must be known and must want it so: a client that is unknown, deleted
// or cannot be looked up never gets plaintext.
func (s *Sealer) sign(ctx context.Context, t *token) error {
	if err := t.Kind.Check(); err != nil {
		return err
	}
	var setting registry.Setting
	if t.Kind.ClientBound() {
		t.result.RegistryStale = s.cfg.Recipients.RegistryStale()
		var err error
		setting, err = s.cfg.Recipients.Setting(ctx, t.issuer.Name(), t.ClientID, registry.TokenKind(t.Kind))
		switch silent := errors.Is(err, keycache.ErrNoSetting); {
		case err != nil && !silent:
			return err
		case (silent || setting.EncryptionAlgorithm != "") && !t.AllowUnencrypted:
			return fmt.Errorf("%w: ask SignAndEncrypt, or register the client with a setting for %s without encryption", ErrEncryptionRequired, t.Kind)
		}
	}
	jws, err := s.jws(ctx, t, setting)
	if err != nil {
		return err
	}
	t.result.Token = string(jws)
	return nil
}

// jws prepares the claims and has them signed.
func (s *Sealer) jws(ctx context.Context, t *token, setting registry.Setting) ([]byte, error) {
	alg, err := algorithm(t, setting)
	if err != nil {
		return nil, err
	}
	key, err := s.signingKey(ctx, t, alg)
	if err != nil {
		return nil, err
	}
	// Who would be turned away later is turned away now: it should cost as little
	// as it can.
	if err := s.cfg.Admission.Refuses(ctx, key.Backend(), t.Caller); err != nil {
		return nil, err
	}
	began := time.Now()
	payload, err := signer.Prepare(signer.Request{
		Kind: t.Kind, Issuer: t.issuer.Token(), ClientID: t.ClientID,
		Claims: t.Claims, Lifetime: t.Lifetime,
		AccessToken: t.AccessToken, Code: t.Code, State: t.State,
	}, alg, began)
	if err == nil {
		err = allowClaims(t, payload)
	}
	s.stage(ctx, Timing{Stage: StagePrepare, Began: began}, err)
	if err != nil {
		return nil, err
	}
	jws, err := s.admitAndSign(ctx, t.Caller, key, payload)
	if err != nil {
		return nil, err
	}

	t.result.SigningKeyID, t.result.SigningAlgorithm = key.KeyID(), alg
	t.event.SigningKeyID, t.event.SigningAlgorithm = key.KeyID(), string(alg)
	t.event.JTI = payload.ID()
	return jws, nil
}

// signingKey is the issuer's, or the client's secret where the client registered
// that its tokens are signed with it.
func (s *Sealer) signingKey(ctx context.Context, t *token, alg kms.Algorithm) (*signer.SigningKey, error) {
	if !alg.Symmetric() {
		return s.cfg.Keys.Key(t.issuer.Name(), alg)
	}
	secret, err := s.cfg.Recipients.SigningSecret(ctx, t.issuer.Name(), t.ClientID)
	if err != nil {
		return nil, err
	}
	return signer.NewSecretKey(alg, secret)
}

func asymmetric(list []kms.Algorithm) []kms.Algorithm {
	return slices.DeleteFunc(list, kms.Algorithm.Symmetric)
}

// algorithm is the one the client registered, else the request's, else the
// issuer's default.
func algorithm(t *token, setting registry.Setting) (kms.Algorithm, error) {
	alg := kms.Algorithm(setting.SigningAlgorithm)
	switch {
	case alg == "":
		alg = t.SigningAlgorithm
	case t.SigningAlgorithm != "" && t.SigningAlgorithm != alg:
		return "", fmt.Errorf("%w: the client registered %s for %s and the request asks for %q; leave it empty or change the registration",
			issuer.ErrAlgorithm, alg, t.Kind, string(t.SigningAlgorithm))
	}
	if alg == "" {
		alg = t.issuer.DefaultAlgorithm()
	}
	if alg.Symmetric() && setting.SigningAlgorithm == "" {
		return "", fmt.Errorf("%w: %s signs with the client's secret, and the client did not register it for %s; register it, or ask for one of %v",
			issuer.ErrAlgorithm, alg, t.Kind, asymmetric(t.issuer.Signing()))
	}
	return alg, t.issuer.CheckSigning(alg)
}
