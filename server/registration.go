package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/encrypter/jwks"
	"github.com/bulla-project/bulla/encrypter/metadata"
	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/encrypter/secrets"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
)

// wish is what a caller wants to have registered. It is never logged: it holds
// the client's secret in the clear.
type wish struct {
	// record is all that is wanted but what is kept of the secret.
	record   registry.Registration
	revision uint64
	// secret is the client's secret, empty for none, and expires when it goes
	// out of use, zero for never.
	secret  string
	expires time.Time
	// generated says that Bulla made the key pair: its private half goes to the
	// caller.
	generated      bool
	allowUnfetched bool
	// rs256ByDefault has the kinds of token that client metadata leave to be
	// signed with the standard's default.
	rs256ByDefault []registry.TokenKind
	// warnings are what the caller should know of how the request was read.
	warnings []string
}

// permissions are those that it takes to do the change. Whoever gets the
// private half of a client's new key can read its tokens, as can whoever
// replaces a key; who does both needs both permissions.
func (w *wish) permissions(change registry.Change) []authz.Permission {
	var list []authz.Permission
	if w.generated {
		list = append(list, authz.GenerateClientKey)
	}
	switch {
	case change != registry.Create:
		list = append(list, authz.ReplaceClientKey)
	case !w.generated:
		list = append(list, authz.CreateClientKey)
	}
	return list
}

// sealed is what is to be kept of the secret of a wish. An unchanged secret
// stays as it is stored, so that a repeated registration changes nothing.
func (s *clientKeyService) sealed(ctx context.Context, current *registry.Registration, w *wish) (*registry.Secret, error) {
	if w.secret == "" {
		return nil, nil
	}
	material, err := secrets.Derive(w.secret, w.record.Settings)
	if err != nil || material.Empty() {
		return nil, err
	}
	kept, err := s.keptSecret(ctx, current, w, material)
	if err != nil || kept != nil {
		return kept, err
	}
	return s.secrets.Seal(ctx, w.record.Issuer, w.record.ClientID, material, w.expires)
}

// keptSecret is what is stored of a client's secret already, in force or with a
// change that waits, if it holds just that material; nil if not.
func (s *clientKeyService) keptSecret(ctx context.Context, current *registry.Registration, w *wish, material *secrets.Material) (*registry.Secret, error) {
	if current == nil {
		return nil, nil //nolint:nilnil // as the comment says
	}
	var found *registry.Secret
	for _, stored := range []*registry.Registration{current, current.Successor()} {
		if stored == nil || stored.Source.Secret == nil || !stored.Source.Secret.ExpiresAt.Equal(w.expires) {
			continue
		}
		kept, err := s.secrets.Open(ctx, stored)
		switch {
		case errors.Is(err, registry.ErrTampered): // to be replaced
			continue
		case err != nil:
			return nil, err
		case !kept.Equal(material):
			continue
		}
		// Both may hold it, sealed apart. Then it is that of the registration
		// that is wanted.
		want := w.record
		want.Source.Secret = stored.Source.Secret
		if found == nil || registry.Same(stored, &want) {
			found = stored.Source.Secret
		}
	}
	return found, nil
}

// keepsSecret reports whether something is stored of a client's secret.
func keepsSecret(reg *registry.Registration) bool {
	return reg.Source.Secret != nil || reg.Pending != nil && reg.Pending.Source.Secret != nil
}

// recordGuess puts on record that a secret was held against the one that a
// client has, which changed nothing. A registration may be repeated, so that
// whoever may create clients can ask whether a guess is right: neither answer
// goes unseen, and none is given that cannot be recorded.
func (e *entry) recordGuess(ctx context.Context, w *wish, current *registry.Registration, decided error) error {
	if w.secret == "" || !keepsSecret(current) {
		return nil
	}
	event := e.event
	event.KeySource, event.Revision, event.Outcome = keySource(current), current.Revision, audit.Unchanged
	if decided != nil {
		event.Outcome, event.Reason = audit.Failed, Reason(decided)
	}
	return e.auditor.Record(ctx, event)
}

// wish reads a request, and holds it against what this issuer allows.
func (s *clientKeyService) wish(e *entry, req *bullav1.RegisterClientKeyRequest) (*wish, error) {
	var c checker
	w := &wish{
		record: registry.Registration{
			Issuer: e.issuer.Name(), ClientID: e.clientID, Legacy: req.GetLegacy(), X5T: req.GetX5T(),
		},
		allowUnfetched: req.GetAllowUnfetched(),
		revision:       c.revision(req.GetRevision()),
	}
	if err := s.readSource(&c, e, w, req); err != nil {
		return nil, err
	}
	own, err := readSettings(&c, req.GetSettings())
	if err != nil {
		return nil, err
	}
	w.record.Settings = overlay(w.record.Settings, own)
	w.signByDefault(e.issuer)
	c.needKeys(w)
	if err := c.err(); err != nil {
		return nil, err
	}
	if w.secret != "" {
		w.warnings = append(w.warnings, secrets.Warnings(w.secret, w.record.Settings)...)
	}
	return w, allowed(e.issuer, w)
}

// readSource takes the key source over. What the metadata of a client says of
// its tokens becomes its settings.
func (s *clientKeyService) readSource(c *checker, e *entry, w *wish, req *bullav1.RegisterClientKeyRequest) error {
	source := &w.record.Source
	switch given := req.GetKeySource().(type) {
	case nil:
		return nil
	case *bullav1.RegisterClientKeyRequest_Jwks:
		source.JWKS = given.Jwks
		if len(source.JWKS) == 0 {
			c.wrong("jwks", "is empty: send a JWK Set")
		}
	case *bullav1.RegisterClientKeyRequest_JwksUri:
		source.JWKSURI = given.JwksUri
		return s.checkURI(source.JWKSURI)
	case *bullav1.RegisterClientKeyRequest_PublicKeyPem:
		source.PEM = []byte(given.PublicKeyPem)
		if len(source.PEM) == 0 {
			c.wrong("public_key_pem", "is empty: send a public key or a certificate in PEM")
		}
	case *bullav1.RegisterClientKeyRequest_ClientSecret:
		w.secret = given.ClientSecret
		if w.secret == "" {
			c.wrong("client_secret", "is empty: send the client's secret")
		}
	case *bullav1.RegisterClientKeyRequest_ClientMetadata:
		return s.readMetadata(c, e, w, given.ClientMetadata)
	}
	if n := len(source.JWKS); n > registry.MaxJWKS {
		return fmt.Errorf("%w: it has %d bytes, and at most %d are allowed: leave out the keys that are not for encryption", jwks.ErrRejected, n, registry.MaxJWKS)
	}
	return nil
}

// readMetadata takes over the registration that a provider received.
func (s *clientKeyService) readMetadata(c *checker, e *entry, w *wish, text []byte) error {
	client, err := metadata.Parse(text)
	if err != nil {
		return err
	}
	if client.ClientID != "" && client.ClientID != e.clientID {
		c.wrong("client_metadata.client_id", "names another client than client_id")
	}
	source := &w.record.Source
	source.JWKS, source.JWKSURI = bytes.Clone(client.JWKS), client.JWKSURI
	w.secret, w.expires = client.Secret(), client.SecretExpiresAt
	w.warnings = append(w.warnings, client.Warnings...)
	w.record.Settings, w.rs256ByDefault = client.Settings, client.RS256ByDefault
	if !w.expires.IsZero() && !w.expires.After(time.Now()) {
		c.wrong("client_metadata.client_secret_expires_at", "is in the past: give the client a new secret")
	}
	if source.JWKSURI != "" {
		return s.checkURI(source.JWKSURI)
	}
	return nil
}

// signByDefault fills in the algorithm of the kinds of token for which neither
// the metadata nor the request names one: RS256 (OpenID Connect Dynamic Client
// Registration 1.0, section 2), unless the issuer has no such key.
func (w *wish) signByDefault(i *issuer.Issuer) {
	alg := kms.RS256
	if i.CheckSigning(alg) != nil {
		alg = i.DefaultAlgorithm()
	}
	for n := range w.record.Settings {
		setting := &w.record.Settings[n]
		if setting.SigningAlgorithm != "" || !slices.Contains(w.rs256ByDefault, setting.Kind) {
			continue
		}
		setting.SigningAlgorithm = string(alg)
		if alg != kms.RS256 {
			w.warnings = append(w.warnings, fmt.Sprintf("%s: the metadata names no signing algorithm, which means RS256; this issuer does not sign with it, so the client gets %s: tell the client, or register the algorithm", setting.Kind, alg))
		}
	}
}

// readSettings reads the settings of a request.
func readSettings(c *checker, settings []*bullav1.ResponseSetting) ([]registry.Setting, error) {
	if n := len(settings); n > registry.MaxSettings {
		c.wrong("settings", "there are %d; at most %d are allowed", n, registry.MaxSettings)
		return nil, c.err()
	}
	var list []registry.Setting
	for i, setting := range settings {
		field := fmt.Sprintf("settings[%d].", i)
		kind := c.kind(field+"token_kind", setting.GetTokenKind())
		switch {
		case setting.GetTokenKind() == bullav1.TokenKind_TOKEN_KIND_UNSPECIFIED:
			c.wrong(field+"token_kind", "is required")
		case kind == string(signer.AccessToken):
			c.wrong(field+"token_kind", "access tokens are only signed, and need no registration")
		}
		list = append(list, registry.Setting{
			Kind:                registry.TokenKind(kind),
			SigningAlgorithm:    setting.GetSigningAlgorithm(),
			EncryptionAlgorithm: setting.GetEncryptionAlgorithm(),
			ContentEncryption:   setting.GetContentEncryption(),
			KeyID:               setting.GetKeyId(),
		})
	}
	return list, nil
}

// overlay returns the settings of the request, and where these leave something
// out what the metadata says.
func overlay(base, own []registry.Setting) []registry.Setting {
	list := slices.Clone(own)
	for _, b := range base {
		i := slices.IndexFunc(own, func(o registry.Setting) bool { return o.Kind == b.Kind })
		if i < 0 {
			list = append(list, b)
			continue
		}
		o := &list[i]
		o.SigningAlgorithm = cmp.Or(o.SigningAlgorithm, b.SigningAlgorithm)
		if o.EncryptionAlgorithm == "" || o.EncryptionAlgorithm == b.EncryptionAlgorithm {
			o.ContentEncryption = cmp.Or(o.ContentEncryption, b.ContentEncryption)
		}
		o.EncryptionAlgorithm = cmp.Or(o.EncryptionAlgorithm, b.EncryptionAlgorithm)
		o.KeyID = cmp.Or(o.KeyID, b.KeyID)
	}
	return list
}

// needKeys notes settings that take a secret where there is none, or a public
// key where there is only a secret.
func (c *checker) needKeys(w *wish) {
	for i, setting := range w.record.Settings {
		field := fmt.Sprintf("settings[%d].", i)
		alg := encrypter.KeyAlgorithm(setting.EncryptionAlgorithm)
		switch {
		case w.secret == "" && alg.Symmetric():
			c.wrong(field+"encryption_algorithm", "%s takes its key from the client's secret: register it as client_secret, or within client_metadata", alg)
		case w.secret != "" && !w.hasKeys() && alg.Known() && !alg.Symmetric():
			c.wrong(field+"encryption_algorithm", "%s encrypts to a public key, and there is only a client secret: choose A256KW or dir, or register client_metadata that has both", alg)
		}
		if w.secret == "" && kms.Algorithm(setting.SigningAlgorithm).Symmetric() {
			c.wrong(field+"signing_algorithm", "%s signs with the client's secret: register it as client_secret, or within client_metadata", setting.SigningAlgorithm)
		}
	}
}

// hasKeys reports whether public keys are registered, from wherever they come.
func (w *wish) hasKeys() bool {
	source := w.record.Source
	return w.generated || len(source.JWKS) > 0 || source.JWKSURI != "" || len(source.PEM) > 0
}

// allowed holds the settings of a wish against the issuer's policy.
func allowed(i *issuer.Issuer, w *wish) error {
	for _, setting := range w.record.Settings {
		if err := allowedSetting(i, setting.Normalize(), w.record.Legacy); err != nil {
			return fmt.Errorf("%s: %w", setting.Kind, err)
		}
	}
	return nil
}

func allowedSetting(i *issuer.Issuer, setting registry.Setting, legacy bool) error {
	if err := signer.TokenKind(setting.Kind).Check(); err != nil {
		return err
	}
	if alg := setting.SigningAlgorithm; alg != "" {
		if err := i.CheckSigning(kms.Algorithm(alg)); err != nil {
			return err
		}
	}
	if setting.EncryptionAlgorithm == "" {
		return nil
	}
	return i.CheckEncryption(encrypter.KeyAlgorithm(setting.EncryptionAlgorithm), encrypter.ContentEncryption(setting.ContentEncryption), legacy)
}
