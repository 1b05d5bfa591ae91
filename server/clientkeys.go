package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/keycache"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/limit"
	"github.com/bulla-project/bulla/server/watch"
)

// ClientKeys knows the keys of registered clients: keycache.Cache.
type ClientKeys interface {
	Check(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Status(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Upcoming(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Prepare(ctx context.Context, reg *registry.Registration) error
	Explain(ctx context.Context, reg *registry.Registration, kind registry.TokenKind) (*keycache.Explanation, error)
	Refresh(ctx context.Context, reg *registry.Registration) (*keycache.Status, error)
	Keep(ctx context.Context, uri string) error
	Invalidate(issuer, clientID string)
}

// Secrets seals what is kept of clients' secrets: secrets.Keeper.
type Secrets interface {
	Seal(ctx context.Context, issuer, clientID string, m *secrets.Material, expiresAt time.Time) (*registry.Secret, error)
	Open(ctx context.Context, reg *registry.Registration) (*secrets.Material, error)
}

// clientKeyService is ClientKeyService.
//
// A change is put on record before it takes effect, and a failure after that
// leaves a second line that says so: a change without a line cannot happen. One
// that waits has a third when it takes effect: see keyChanges.
type clientKeyService struct {
	bullav1.UnsafeClientKeyServiceServer
	gate    gate
	store   registry.Store
	keys    ClientKeys
	secrets Secrets
	watches *watch.Hub
	changes *keyChanges // nil for none
	looks   looks       // of those who watch
	// generating holds a token for each RSA key pair that is being made.
	generating chan struct{}
	// checkURI decides from a jwks_uri's text alone: fetch.Client.
	checkURI func(uri string) error
	limits   *limit.Limits
	log      *slog.Logger
}

var _ bullav1.ClientKeyServiceServer = (*clientKeyService)(nil)

func (s *clientKeyService) RegisterClientKey(ctx context.Context, req *bullav1.RegisterClientKeyRequest) (*bullav1.RegisterClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	// Which of the two it needs depends on what is stored, and what is stored
	// is not for those who have neither.
	if e.may(authz.ReplaceClientKey) != nil {
		if err := e.allow(ctx, authz.CreateClientKey); err != nil {
			return nil, err
		}
	}
	if err := s.count(ctx, e); err != nil {
		return nil, err
	}
	w, err := s.wish(e, req)
	if err != nil {
		return nil, err
	}
	stored, err := s.registerAnew(ctx, e, w)
	if err != nil {
		return nil, err
	}
	key, err := s.shown(ctx, stored)
	if err != nil {
		return nil, err
	}
	key.Warnings = append(append(key.Warnings, w.warnings...), waits(key)...)
	return &bullav1.RegisterClientKeyResponse{ClientKey: key}, nil
}

// registerAnew registers a wish, and decides once more if somebody else changed
// the client between our look and our write: a caller that named no revision
// has asked for no particular one.
func (s *clientKeyService) registerAnew(ctx context.Context, e *entry, w *wish) (*registry.Registration, error) {
	stored, err := s.register(ctx, e, w)
	if errors.Is(err, registry.ErrRevision) && w.revision == 0 {
		return s.register(ctx, e, w)
	}
	return stored, err
}

// register decides what a registration does to what is stored, tries it out,
// and does it.
func (s *clientKeyService) register(ctx context.Context, e *entry, w *wish) (*registry.Registration, error) {
	current, err := s.current(ctx, e)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	want := w.record
	if want.Source.Secret, err = s.sealed(ctx, current, w); err != nil {
		return nil, err
	}
	decision, err := registry.Decide(current, want, w.revision)
	if errors.Is(err, registry.ErrExists) || decision.Change == registry.Unchanged {
		if failed := e.recordGuess(ctx, w, current, err); failed != nil {
			return nil, failed
		}
	}
	if err != nil {
		return nil, err
	}
	if decision.Change == registry.Unchanged {
		s.keep(ctx, current)
		return current, nil
	}
	if err := e.allowChange(ctx, w, decision.Change); err != nil {
		return nil, err
	}
	status, err := s.tryOut(ctx, e, w, decision)
	if err != nil {
		return nil, err
	}
	return s.change(ctx, e, current, decision, status)
}

// tryOut tries out what is to be registered. What is in force is not tried out
// again to take back what would follow on it: that must work while a client's host
// is down.
func (s *clientKeyService) tryOut(ctx context.Context, e *entry, w *wish, d registry.Decision) (*keycache.Status, error) {
	if d.Change == registry.Cancel {
		return s.keys.Status(ctx, &d.Record)
	}
	status, err := s.check(ctx, e, &d.Record)
	if errors.Is(err, keycache.ErrUnavailable) && w.allowUnfetched {
		return status, nil
	}
	return status, err
}

// count counts a registration. One that is refused later counts too: to read it
// and look at what is stored is most of what it costs.
func (s *clientKeyService) count(ctx context.Context, e *entry) error {
	if err := s.limits.Registration(e.event.Caller); err != nil {
		return e.deny(ctx, err)
	}
	return nil
}

// check tries a registration out. One that names a URL has it fetched, whether
// or not a set of it is known, and each of these fetches counts: else one good
// set would open its host to as many as there can be registrations.
func (s *clientKeyService) check(ctx context.Context, e *entry, record *registry.Registration) (*keycache.Status, error) {
	if uri := record.Source.JWKSURI; uri != "" {
		done, err := s.limits.FirstFetch(ctx, e.event.Caller, uri)
		switch {
		case errors.Is(err, limit.ErrExceeded):
			return nil, e.deny(ctx, err)
		case err != nil:
			return nil, err
		}
		defer done()
	}
	return s.keys.Check(ctx, record)
}

// allowChange asks for the permissions that a change takes.
func (e *entry) allowChange(ctx context.Context, w *wish, change registry.Change) error {
	for _, permission := range w.permissions(change) {
		if err := e.allow(ctx, permission); err != nil {
			return err
		}
	}
	return nil
}

// current is the stored record of the client, tombstones included, and what
// stands for one that was tampered with.
func (s *clientKeyService) current(ctx context.Context, e *entry) (*registry.Registration, error) {
	reg, err := s.store.Get(ctx, e.issuer.Name(), e.clientID)
	if unreadable := registry.Unreadable(e.issuer.Name(), e.clientID, err); unreadable != nil {
		return unreadable, nil
	}
	return reg, err
}

// live is the stored record of a client that is registered.
func (s *clientKeyService) live(ctx context.Context, e *entry) (*registry.Registration, error) {
	reg, err := s.store.Get(ctx, e.issuer.Name(), e.clientID)
	if err == nil {
		err = reg.Missing()
	}
	if err != nil {
		return nil, err
	}
	return reg, nil
}

// known is live, or a client that was deleted and whose registration anew waits.
func (s *clientKeyService) known(ctx context.Context, e *entry) (*registry.Registration, error) {
	reg, err := s.store.Get(ctx, e.issuer.Name(), e.clientID)
	if err == nil && reg.Deleted && reg.Pending == nil {
		err = registry.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return reg, nil
}

// change puts a decision on record, stores it, and makes it take effect, or wait.
// status is that of the new keys; nil if there are none.
func (s *clientKeyService) change(ctx context.Context, e *entry, before *registry.Registration, d registry.Decision, status *keycache.Status) (*registry.Registration, error) {
	if delay := e.issuer.KeyChangeDelay(); delay > 0 {
		d.Postpone(before, time.Now().Add(delay))
	}
	event := e.event
	event.Outcome, event.Revision = audit.Changed, d.Expect+1
	becomes := &d.Record
	if d.Record.Pending != nil {
		becomes, event.EffectiveAt = d.Record.Successor(), d.Record.Pending.EffectiveAt
	}
	event.NewThumbprint, event.KeySource = thumbprints(becomes, status), keySource(becomes)
	event.Settings = settingsOf(becomes)
	if err := s.recordBefore(ctx, &event, before); err != nil {
		return nil, err
	}
	if err := e.auditor.Record(ctx, event); err != nil {
		return nil, err
	}
	stored, err := s.store.Put(ctx, d.Record, d.Expect)
	// Also after an error: the write may have happened all the same.
	s.keys.Invalidate(e.issuer.Name(), e.clientID)
	s.watches.ClientChanged(e.issuer.Name(), e.clientID)
	s.changes.ClientChanged(e.issuer.Name(), e.clientID)
	if err != nil {
		event.Outcome, event.Reason = audit.Failed, Reason(err)
		return nil, errors.Join(err, e.auditor.Record(ctx, event))
	}
	s.keep(ctx, stored)
	return stored, nil
}

// recordBefore notes the keys that were in use before a change, and those that
// were to follow on them.
func (s *clientKeyService) recordBefore(ctx context.Context, event *audit.Event, before *registry.Registration) error {
	if before == nil || before.Tampered {
		return nil
	}
	if !before.Deleted {
		old, err := s.inUse(ctx, before)
		if err != nil {
			return err
		}
		event.OldThumbprint = old
	}
	if before.Pending == nil {
		return nil
	}
	dropped, err := s.keys.Upcoming(ctx, before)
	if err != nil {
		return err
	}
	event.DroppedThumbprint = thumbprints(before.Successor(), dropped)
	return nil
}

// keep stores the key sets behind a registration, and behind what waits, so that
// a restart needs no fetch. Without them the registration is in force all the
// same.
func (s *clientKeyService) keep(ctx context.Context, reg *registry.Registration) {
	uris := []string{reg.Source.JWKSURI}
	if reg.Pending != nil {
		uris = append(uris, reg.Pending.Source.JWKSURI)
	}
	for _, uri := range uris {
		if uri == "" {
			continue
		}
		if err := s.keys.Keep(ctx, uri); err != nil {
			s.log.WarnContext(ctx, "key set not stored", "issuer", reg.Issuer, "client_id", reg.ClientID, "error", err)
		}
	}
}

// thumbprints lists the key in use for each kind of token, for the record. A
// key that comes from a secret is called that: a hash of it would help to guess
// the secret.
func thumbprints(reg *registry.Registration, status *keycache.Status) string {
	var list []string
	for _, setting := range reg.Settings {
		chosen := "none"
		switch {
		case encrypter.KeyAlgorithm(setting.EncryptionAlgorithm).Symmetric():
			chosen = "secret"
		case setting.EncryptionAlgorithm != "":
			chosen = "unknown"
		}
		if status != nil {
			for _, r := range status.Recipients {
				if r.Setting.Kind == setting.Kind && r.Thumbprint != "" {
					chosen = r.Thumbprint
				}
			}
		}
		list = append(list, string(setting.Kind)+"="+chosen)
	}
	return strings.Join(list, ",")
}

// settingsOf says how tokens are made for a client, for the record.
func settingsOf(reg *registry.Registration) string {
	var list []string
	for _, s := range reg.Settings {
		text := string(s.Kind) + "=" + cmp.Or(s.SigningAlgorithm, "default")
		if s.EncryptionAlgorithm != "" {
			text += "/" + s.EncryptionAlgorithm + "/" + s.ContentEncryption
		}
		list = append(list, text)
	}
	if reg.Legacy {
		list = append(list, "legacy")
	}
	if reg.X5T {
		list = append(list, "x5t")
	}
	return strings.Join(list, ",")
}

// keySource is where a client's keys come from, for the record.
func keySource(reg *registry.Registration) string {
	var list []string
	source := reg.Source
	switch {
	case source.JWKSURI != "":
		// Its query may hold what is not for the record.
		uri, _, _ := strings.Cut(source.JWKSURI, "?")
		list = append(list, uri)
	case source.Generated:
		list = append(list, "generated")
	case len(source.JWKS) > 0:
		list = append(list, "jwks")
	case len(source.PEM) > 0:
		list = append(list, "public_key_pem")
	}
	if source.Secret != nil {
		list = append(list, "client_secret")
	}
	return strings.Join(list, ",")
}

func (s *clientKeyService) GetClientKey(ctx context.Context, req *bullav1.GetClientKeyRequest) (*bullav1.GetClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := e.allow(ctx, authz.ReadClientKeys); err != nil {
		return nil, err
	}
	reg, err := s.known(ctx, e)
	if err != nil {
		return nil, err
	}
	key, err := s.shown(ctx, reg)
	if err != nil {
		return nil, err
	}
	return &bullav1.GetClientKeyResponse{ClientKey: key}, nil
}

// Bounds of a page of ListClientKeys.
const (
	defaultPage = 100
	maxPage     = 1000
	// pagePatience is how long a page goes on: large key sets that nobody has
	// looked at yet take a while to read.
	pagePatience = 500 * time.Millisecond
)

func (s *clientKeyService) ListClientKeys(ctx context.Context, req *bullav1.ListClientKeysRequest) (*bullav1.ListClientKeysResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), "", false)
	if err != nil {
		return nil, err
	}
	if err := e.allowSome(ctx, authz.ReadClientKeys); err != nil {
		return nil, err
	}
	var c checker
	last, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil {
		c.wrong("page_token", "is none that this service gave: send the last next_page_token")
	}
	if req.GetPageSize() < 0 {
		c.wrong("page_size", "is negative")
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	size := min(int(req.GetPageSize()), maxPage)
	if size == 0 {
		size = defaultPage
	}
	from := ""
	if len(last) > 0 {
		from = registry.After(string(last))
	}
	page, err := s.readable(ctx, e, from, size)
	if err != nil {
		return nil, err
	}
	res := &bullav1.ListClientKeysResponse{}
	more := len(page) == size
	for i, began := 0, time.Now(); i < len(page); i++ {
		reg := page[i]
		if i > 0 && time.Since(began) > pagePatience {
			page, more = page[:i], true
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		status, err := s.keys.Status(ctx, reg)
		if err != nil {
			return nil, err
		}
		if want := req.GetState(); want == bullav1.ClientKeyState_CLIENT_KEY_STATE_UNSPECIFIED || want == stateOf(status.State) {
			key, err := s.shownWith(ctx, reg, status)
			if err != nil {
				return nil, err
			}
			res.ClientKeys = append(res.ClientKeys, key)
		}
	}
	if more {
		// A name that the caller may read, for the token tells it.
		res.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(page[len(page)-1].ClientID))
	}
	return res, nil
}

// readable is a page of the clients that the caller may read, from a name on.
func (s *clientKeyService) readable(ctx context.Context, e *entry, from string, size int) ([]*registry.Registration, error) {
	var page []*registry.Registration
	for len(page) < size {
		next, ok := e.authorizer.NextClient(e.event.Caller, authz.ReadClientKeys, e.issuer.Name(), from)
		if !ok {
			break
		}
		want := size - len(page)
		list, err := s.store.List(ctx, e.issuer.Name(), next, want)
		if err != nil {
			return nil, err
		}
		last := len(list) < want
		for _, reg := range list {
			from = registry.After(reg.ClientID)
			one := *e
			one.clientID = reg.ClientID
			if one.may(authz.ReadClientKeys) != nil {
				last = false // seek the next that may be read
				break
			}
			page = append(page, reg)
		}
		if last {
			break
		}
	}
	return page, nil
}

func (s *clientKeyService) DeleteClientKey(ctx context.Context, req *bullav1.DeleteClientKeyRequest) (*bullav1.DeleteClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := e.allow(ctx, authz.DeleteClientKey); err != nil {
		return nil, err
	}
	var c checker
	revision := c.revision(req.GetRevision())
	if err := c.err(); err != nil {
		return nil, err
	}
	current, err := s.current(ctx, e)
	if err != nil {
		return nil, err
	}
	decision, err := registry.DecideDelete(current, revision)
	if err != nil {
		return nil, err
	}
	if _, err := s.change(ctx, e, current, decision, nil); err != nil {
		return nil, err
	}
	return &bullav1.DeleteClientKeyResponse{}, nil
}

func (s *clientKeyService) RefreshClientKey(ctx context.Context, req *bullav1.RefreshClientKeyRequest) (*bullav1.RefreshClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := e.allow(ctx, authz.RefreshClientKey); err != nil {
		return nil, err
	}
	reg, err := s.live(ctx, e)
	if err != nil {
		return nil, err
	}
	event := e.event
	event.Outcome, event.Revision, event.KeySource = audit.Changed, reg.Revision, keySource(reg)
	if event.OldThumbprint, err = s.inUse(ctx, reg); err != nil {
		return nil, err
	}
	status, err := s.keys.Refresh(ctx, reg)
	s.watches.KeySetChanged(reg.Source.JWKSURI) // also after an error: that changes the state too
	if err != nil {
		event.Outcome, event.Reason = audit.Failed, Reason(err)
		return nil, errors.Join(err, e.auditor.Record(ctx, event))
	}
	// What the host says now is in force whether or not it is on record: a
	// refresh in the background would have brought it too.
	event.NewThumbprint = thumbprints(reg, status)
	if err := e.auditor.Record(ctx, event); err != nil {
		return nil, err
	}
	key, err := s.shownWith(ctx, reg, status)
	if err != nil {
		return nil, err
	}
	return &bullav1.RefreshClientKeyResponse{ClientKey: key}, nil
}

// inUse lists the keys in use of a registered client, for the record.
func (s *clientKeyService) inUse(ctx context.Context, reg *registry.Registration) (string, error) {
	status, err := s.keys.Status(ctx, reg)
	if err != nil {
		return "", err
	}
	return thumbprints(reg, status), nil
}

func (s *clientKeyService) ExplainClientKey(ctx context.Context, req *bullav1.ExplainClientKeyRequest) (*bullav1.ExplainClientKeyResponse, error) {
	e, err := s.gate.enter(ctx, req.GetIssuer(), req.GetClientId(), true)
	if err != nil {
		return nil, err
	}
	if err := e.allow(ctx, authz.ReadClientKeys); err != nil {
		return nil, err
	}
	var c checker
	kind := c.kind("token_kind", req.GetTokenKind())
	if err := c.err(); err != nil {
		return nil, err
	}
	reg, err := s.known(ctx, e)
	if err != nil {
		return nil, err
	}
	res := &bullav1.ExplainClientKeyResponse{}
	if !reg.Deleted {
		explained, err := s.keys.Explain(ctx, reg, registry.TokenKind(kind))
		if err != nil {
			return nil, err
		}
		res.Setting, res.FetchedAt, res.Keys = responseSetting(explained.Setting), timestamp(explained.FetchedAt), keyVerdicts(explained)
	}
	res.Pending, err = s.explainPending(ctx, reg, registry.TokenKind(kind))
	return res, err
}
