package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
)

// ClientKeys knows the keys of registered clients: keycache.Cache.
type ClientKeys interface {
	Check(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Status(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Explain(ctx context.Context, reg *registry.Registration, kind registry.TokenKind) (*keycache.Explanation, error)
	Refresh(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Keep(ctx context.Context, uri string) error
	Invalidate(issuer, clientID string)
}

// clientKeyService is ClientKeyService.
//
// A change is put on record before it is stored, and a store that then fails
// leaves a second line that says so: a change without a line cannot happen.
type clientKeyService struct {
	bullav1.UnsafeClientKeyServiceServer
	issuers    *issuer.Directory
	authorizer Authorizer
	store      registry.Store
	keys       ClientKeys
	auditor    Auditor
	// checkURI decides from a jwks_uri's text alone: fetch.Client.
	checkURI func(uri string) error
}

var _ bullav1.ClientKeyServiceServer = (*clientKeyService)(nil)

// subject is the client a call is about.
type subject struct {
	issuer   *issuer.Issuer
	clientID string
	event    audit.Event
}

// subject resolves the names in a request. A caller that no grant names does
// not learn which issuers there are.
func (s *clientKeyService) subject(ctx context.Context, issuerName, clientID string, needsClient bool) (*subject, error) {
	var c checker
	c.name("issuer", issuerName, false)
	c.name("client_id", clientID, needsClient)
	if err := c.err(); err != nil {
		return nil, err
	}
	call := callOf(ctx)
	found, err := findIssuer(s.issuers, s.authorizer, call.caller, issuerName)
	if err != nil {
		return nil, err
	}
	return &subject{
		issuer: found, clientID: clientID,
		event: audit.Event{RPC: call.rpc, Caller: call.caller, Issuer: found.Name(), ClientID: clientID},
	}, nil
}

// allow asks for a permission and puts a denial on record.
func (s *clientKeyService) allow(ctx context.Context, sub *subject, permission authz.Permission) error {
	err := s.may(sub, permission)
	if err == nil {
		return nil
	}
	return s.deny(ctx, sub, err)
}

func (s *clientKeyService) may(sub *subject, permission authz.Permission) error {
	return s.authorizer.Allow(sub.event.Caller, authz.Request{
		Permission: permission, Issuer: sub.issuer.Name(), ClientID: sub.clientID,
	})
}

func (s *clientKeyService) deny(ctx context.Context, sub *subject, cause error) error {
	event := sub.event
	event.Outcome, event.Reason = audit.Denied, Reason(cause)
	if err := s.auditor.Record(ctx, event); err != nil {
		return err
	}
	return cause
}

func (s *clientKeyService) RegisterClientKey(ctx context.Context, req *bullav1.RegisterClientKeyRequest) (*bullav1.RegisterClientKeyResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	// Which of the two it needs depends on what is stored, and what is stored
	// is not for those who have neither.
	if denied := s.may(sub, authz.CreateClientKey); denied != nil && s.may(sub, authz.ReplaceClientKey) != nil {
		return nil, s.deny(ctx, sub, denied)
	}
	want, revision, err := s.registration(sub, req)
	if err != nil {
		return nil, err
	}
	stored, err := s.register(ctx, sub, want, revision, req.GetAllowUnfetched())
	if errors.Is(err, registry.ErrRevision) && revision == 0 {
		// Somebody else changed the client between our look and our write. The
		// caller named no revision, so what it asked for is decided anew.
		stored, err = s.register(ctx, sub, want, revision, req.GetAllowUnfetched())
	}
	if err != nil {
		return nil, err
	}
	status, err := s.keys.Status(ctx, stored)
	if err != nil {
		return nil, err
	}
	return &bullav1.RegisterClientKeyResponse{ClientKey: clientKey(stored, status)}, nil
}

// register decides what a registration does to what is stored, tries it out,
// and does it.
func (s *clientKeyService) register(ctx context.Context, sub *subject, want registry.Registration, revision uint64, allowUnfetched bool) (*registry.Registration, error) {
	current, err := s.current(ctx, sub)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	decision, err := registry.Decide(current, want, revision)
	if err != nil {
		return nil, err
	}
	switch decision.Change {
	case registry.Unchanged:
		return current, s.keep(ctx, current)
	case registry.Replace:
		err = s.allow(ctx, sub, authz.ReplaceClientKey)
	default:
		err = s.allow(ctx, sub, authz.CreateClientKey)
	}
	if err != nil {
		return nil, err
	}
	status, err := s.keys.Check(ctx, &decision.Record)
	if errors.Is(err, keycache.ErrUnavailable) && allowUnfetched {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return s.change(ctx, sub, current, decision, status)
}

// keep stores the key set behind a registration, so that a restart needs no
// fetch.
func (s *clientKeyService) keep(ctx context.Context, reg *registry.Registration) error {
	if reg.Source.JWKSURI == "" {
		return nil
	}
	return s.keys.Keep(ctx, reg.Source.JWKSURI)
}

// current is the stored record of the client, tombstones included.
func (s *clientKeyService) current(ctx context.Context, sub *subject) (*registry.Registration, error) {
	return s.store.Get(ctx, sub.issuer.Name(), sub.clientID)
}

// live is the stored record of a client that is registered.
func (s *clientKeyService) live(ctx context.Context, sub *subject) (*registry.Registration, error) {
	reg, err := s.current(ctx, sub)
	if err == nil && reg.Deleted {
		err = registry.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return reg, nil
}

// change puts a decision on record, stores it, and makes it take effect.
// status is that of the new keys; nil if there are none.
func (s *clientKeyService) change(ctx context.Context, sub *subject, before *registry.Registration, d registry.Decision, status *keycache.Status) (*registry.Registration, error) {
	event := sub.event
	event.Outcome, event.Revision = audit.Changed, d.Expect+1
	event.NewThumbprint = thumbprint(status)
	if before != nil && !before.Deleted {
		old, err := s.keys.Status(ctx, before)
		if err != nil {
			return nil, err
		}
		event.OldThumbprint = thumbprint(old)
	}
	if err := s.auditor.Record(ctx, event); err != nil {
		return nil, err
	}
	stored, err := s.store.Put(ctx, d.Record, d.Expect)
	if err != nil {
		event.Outcome, event.Reason = audit.Failed, Reason(err)
		return nil, errors.Join(err, s.auditor.Record(ctx, event))
	}
	s.keys.Invalidate(sub.issuer.Name(), sub.clientID)
	// If this fails the client is registered all the same, and a repeat of the
	// call tries it again.
	return stored, s.keep(ctx, stored)
}

// thumbprint is that of the first key in use; most clients have one.
func thumbprint(status *keycache.Status) string {
	if status == nil || len(status.Recipients) == 0 {
		return ""
	}
	return status.Recipients[0].Thumbprint
}

// registration reads a request into the record it asks for, and holds it
// against what this issuer allows.
func (s *clientKeyService) registration(sub *subject, req *bullav1.RegisterClientKeyRequest) (registry.Registration, uint64, error) {
	var c checker
	want := registry.Registration{Issuer: sub.issuer.Name(), ClientID: sub.clientID}
	switch source := req.GetKeySource().(type) {
	case nil:
	case *bullav1.RegisterClientKeyRequest_Jwks:
		want.Source.JWKS = source.Jwks
	case *bullav1.RegisterClientKeyRequest_JwksUri:
		if err := s.checkURI(source.JwksUri); err != nil {
			return want, 0, err
		}
		want.Source.JWKSURI = source.JwksUri
	case *bullav1.RegisterClientKeyRequest_PublicKeyPem:
		return want, 0, unavailableSource("public_key_pem")
	case *bullav1.RegisterClientKeyRequest_ClientSecret:
		return want, 0, unavailableSource("client_secret")
	case *bullav1.RegisterClientKeyRequest_ClientMetadata:
		return want, 0, unavailableSource("client_metadata")
	}
	if req.GetLegacy() {
		return want, 0, fmt.Errorf("%w: legacy algorithms; leave legacy out and register RSA-OAEP-256 or ECDH-ES", errUnimplemented)
	}
	if req.GetX5T() {
		return want, 0, fmt.Errorf("%w: the x5t header; leave x5t out, x5t#S256 is sent for a key with a certificate", errUnimplemented)
	}
	revision, err := parseRevision(req.GetRevision())
	if err != nil {
		c.wrong("revision", "is none that this service gave: send it as you received it")
	}
	for i, setting := range req.GetSettings() {
		field := fmt.Sprintf("settings[%d].", i)
		kind := c.kind(field+"token_kind", setting.GetTokenKind())
		if setting.GetTokenKind() == bullav1.TokenKind_TOKEN_KIND_UNSPECIFIED {
			c.wrong(field+"token_kind", "is required")
		}
		if kind == string(signer.AccessToken) {
			c.wrong(field+"token_kind", "access tokens are only signed, and need no registration")
		}
		want.Settings = append(want.Settings, registry.Setting{
			Kind:                registry.TokenKind(kind),
			SigningAlgorithm:    setting.GetSigningAlgorithm(),
			EncryptionAlgorithm: setting.GetEncryptionAlgorithm(),
			ContentEncryption:   setting.GetContentEncryption(),
			KeyID:               setting.GetKeyId(),
		})
	}
	if err := c.err(); err != nil {
		return want, 0, err
	}
	for _, setting := range want.Settings {
		if err := allowedSetting(sub.issuer, setting.Normalize()); err != nil {
			return want, 0, err
		}
	}
	return want, revision, nil
}

// allowedSetting holds a setting against the issuer's policy.
func allowedSetting(i *issuer.Issuer, setting registry.Setting) error {
	if err := signer.TokenKind(setting.Kind).Check(); err != nil {
		return err
	}
	if alg := setting.SigningAlgorithm; alg != "" {
		if err := i.CheckSigning(kms.Algorithm(alg)); err != nil {
			return fmt.Errorf("%s: %w", setting.Kind, err)
		}
	}
	if setting.EncryptionAlgorithm == "" {
		return nil
	}
	err := i.CheckEncryption(encrypter.KeyAlgorithm(setting.EncryptionAlgorithm), encrypter.ContentEncryption(setting.ContentEncryption))
	if err != nil {
		return fmt.Errorf("%s: %w", setting.Kind, err)
	}
	return nil
}

func unavailableSource(name string) error {
	return fmt.Errorf("%w: the key source %s; register a jwks or a jwks_uri", errUnimplemented, name)
}

func (s *clientKeyService) GetClientKey(ctx context.Context, req *bullav1.GetClientKeyRequest) (*bullav1.GetClientKeyResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, sub, authz.ReadClientKeys); err != nil {
		return nil, err
	}
	reg, err := s.live(ctx, sub)
	if err != nil {
		return nil, err
	}
	status, err := s.keys.Status(ctx, reg)
	if err != nil {
		return nil, err
	}
	return &bullav1.GetClientKeyResponse{ClientKey: clientKey(reg, status)}, nil
}

// Bounds of a page of ListClientKeys.
const (
	defaultPage = 100
	maxPage     = 1000
)

func (s *clientKeyService) ListClientKeys(ctx context.Context, req *bullav1.ListClientKeysRequest) (*bullav1.ListClientKeysResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), "", false)
	if err != nil {
		return nil, err
	}
	if err := s.authorizer.AllowSome(sub.event.Caller, authz.ReadClientKeys, sub.issuer.Name()); err != nil {
		return nil, s.deny(ctx, sub, err)
	}
	var c checker
	after, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil {
		c.wrong("page_token", "is none that this service gave: send the last next_page_token")
	}
	if req.GetPageSize() < 0 {
		c.wrong("page_size", "is negative")
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	page, err := s.store.List(ctx, sub.issuer.Name(), string(after), min(size, maxPage))
	if err != nil {
		return nil, err
	}
	res := &bullav1.ListClientKeysResponse{}
	for _, reg := range page {
		one := *sub
		one.clientID = reg.ClientID
		if s.may(&one, authz.ReadClientKeys) != nil {
			continue
		}
		status, err := s.keys.Status(ctx, reg)
		if err != nil {
			return nil, err
		}
		if want := req.GetState(); want == bullav1.ClientKeyState_CLIENT_KEY_STATE_UNSPECIFIED || want == stateOf(status.State) {
			res.ClientKeys = append(res.ClientKeys, clientKey(reg, status))
		}
	}
	if len(page) == min(size, maxPage) {
		res.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(page[len(page)-1].ClientID))
	}
	return res, nil
}

func (s *clientKeyService) DeleteClientKey(ctx context.Context, req *bullav1.DeleteClientKeyRequest) (*bullav1.DeleteClientKeyResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, sub, authz.DeleteClientKey); err != nil {
		return nil, err
	}
	revision, err := parseRevision(req.GetRevision())
	if err != nil {
		var c checker
		c.wrong("revision", "is none that this service gave: send it as you received it")
		return nil, c.err()
	}
	current, err := s.current(ctx, sub)
	if err != nil {
		return nil, err
	}
	decision, err := registry.DecideDelete(current, revision)
	if err != nil {
		return nil, err
	}
	if _, err := s.change(ctx, sub, current, decision, nil); err != nil {
		return nil, err
	}
	return &bullav1.DeleteClientKeyResponse{}, nil
}

func (s *clientKeyService) RefreshClientKey(ctx context.Context, req *bullav1.RefreshClientKeyRequest) (*bullav1.RefreshClientKeyResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, sub, authz.RefreshClientKey); err != nil {
		return nil, err
	}
	reg, err := s.live(ctx, sub)
	if err != nil {
		return nil, err
	}
	old, err := s.keys.Status(ctx, reg)
	if err != nil {
		return nil, err
	}
	status, err := s.keys.Refresh(ctx, reg)
	if err != nil {
		return nil, err
	}
	event := sub.event
	event.Outcome, event.Revision = audit.Changed, reg.Revision
	event.OldThumbprint, event.NewThumbprint = thumbprint(old), thumbprint(status)
	if err := s.auditor.Record(ctx, event); err != nil {
		return nil, err
	}
	return &bullav1.RefreshClientKeyResponse{ClientKey: clientKey(reg, status)}, nil
}

func (s *clientKeyService) ExplainClientKey(ctx context.Context, req *bullav1.ExplainClientKeyRequest) (*bullav1.ExplainClientKeyResponse, error) {
	sub, err := s.subject(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, sub, authz.ReadClientKeys); err != nil {
		return nil, err
	}
	var c checker
	kind := c.kind("token_kind", req.GetTokenKind())
	if err := c.err(); err != nil {
		return nil, err
	}
	reg, err := s.live(ctx, sub)
	if err != nil {
		return nil, err
	}
	explained, err := s.keys.Explain(ctx, reg, registry.TokenKind(kind))
	if err != nil {
		return nil, err
	}
	res := &bullav1.ExplainClientKeyResponse{
		Setting:   responseSetting(explained.Setting),
		FetchedAt: timestamp(explained.FetchedAt),
	}
	for _, v := range explained.Verdicts {
		res.Keys = append(res.Keys, keyVerdict(v))
	}
	return res, nil
}

func (s *clientKeyService) GenerateClientKey(context.Context, *bullav1.GenerateClientKeyRequest) (*bullav1.GenerateClientKeyResponse, error) {
	return nil, fmt.Errorf("%w: GenerateClientKey; register a jwks or a jwks_uri", errUnimplemented)
}

func (s *clientKeyService) WatchClientKeys(*bullav1.WatchClientKeysRequest, grpc.ServerStreamingServer[bullav1.WatchClientKeysResponse]) error {
	return fmt.Errorf("%w: WatchClientKeys; poll ListClientKeys", errUnimplemented)
}

// parseRevision reads a revision as formatRevision writes it; 0 for none.
func parseRevision(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	revision, err := strconv.ParseUint(text, 10, 64)
	if err == nil && revision == 0 {
		err = errors.New("revisions begin at 1")
	}
	return revision, err
}

func formatRevision(revision uint64) string { return strconv.FormatUint(revision, 10) }
