// Package registry says what Bulla knows of an OAuth client: where its
// encryption keys come from and how each kind of token is to be signed and
// encrypted for it. It holds the record, the rules by which a record may
// change, and the interface of the store that keeps it; it does no I/O.
//
// Whoever can change a client's keys can read its tokens. Hence the rules: a
// registration without a revision only creates, a change names the revision
// it replaces, and a deletion leaves a tombstone, so that an unknown client
// and a deleted one are never confused with one that wants no encryption. A
// change can be made to wait, so that who should not have made it is found out
// in time: a record holds what is in force and what follows on it (Pending).
package registry

import (
	"context"
	"errors"
	"time"
)

// Errors of the registry and its stores. Stores wrap them; callers match with
// errors.Is.
var (
	// ErrNotFound: there is no such record. Register the client first.
	ErrNotFound = errors.New("not registered")

	// ErrExists: the client is registered already, differently. Read the
	// record and change it by naming its revision.
	ErrExists = errors.New("already registered")

	// ErrRevision: the record is no longer at the revision the caller named.
	// Read it again and decide again.
	ErrRevision = errors.New("revision does not match")

	// ErrTampered: the stored record is not as this service wrote it: somebody
	// changed the store. Nothing of it is used. Whoever may replace the client
	// can register or delete it; an operator has to look at the store.
	ErrTampered = errors.New("stored registration fails its authentication")

	// ErrUnavailable: the store cannot be read or written at the moment: try
	// again later. A write may have happened all the same if the store was
	// lost while it was under way; repeating it is safe.
	ErrUnavailable = errors.New("registry unavailable")
)

// TamperedError is an ErrTampered with what is needed to replace the record.
type TamperedError struct {
	// Revision is what the record says its revision is. Put takes it as the
	// expected one; nothing else of the record is to be believed.
	Revision uint64
}

func (e *TamperedError) Error() string { return ErrTampered.Error() }

// Unwrap returns ErrTampered.
func (e *TamperedError) Unwrap() error { return ErrTampered }

// After is where List goes on after a client: the name that sorts next.
func After(clientID string) string { return clientID + "\x00" }

// TokenKind is a kind of token by its name in the API, such as "ID_TOKEN".
type TokenKind string

// The kinds that the registry knows something of.
const (
	IDToken     TokenKind = "ID_TOKEN"
	LogoutToken TokenKind = "LOGOUT_TOKEN"
)

// SettingKind is the kind whose setting tokens of kind k are made by: logout
// tokens are made as the client's ID tokens are (OpenID Connect Back-Channel
// Logout 1.0, section 2.4), every other kind has a setting of its own.
func (k TokenKind) SettingKind() TokenKind {
	if k == LogoutToken {
		return IDToken
	}
	return k
}

// Setting says how one kind of token is made for a client. An empty
// EncryptionAlgorithm means that tokens of this kind are signed only.
type Setting struct {
	Kind TokenKind `json:"kind"`
	// SigningAlgorithm is the JWS alg the client registered; empty leaves the
	// choice to the request and the issuer.
	SigningAlgorithm string `json:"signing_algorithm,omitempty"`
	// EncryptionAlgorithm is the JWE alg (RFC 7518, section 4).
	EncryptionAlgorithm string `json:"encryption_algorithm,omitempty"`
	// ContentEncryption is the JWE enc (RFC 7518, section 5).
	ContentEncryption string `json:"content_encryption,omitempty"`
	// KeyID pins the client's key; empty lets the rules of choice decide.
	KeyID string `json:"key_id,omitempty"`
}

// Source is where a client's keys come from. At most one of JWKS, JWKSURI and
// PEM is set; Secret may stand alone or beside them, as it does for a client
// that signs in with a secret and has encryption keys of its own. Nothing need
// be set where no setting encrypts.
type Source struct {
	// JWKS is a JWK Set document (RFC 7517, section 5), kept byte for byte as
	// it was registered.
	JWKS []byte `json:"jwks,omitempty"`
	// Generated says that JWKS is the public half of a key pair that Bulla
	// made. Its private half was handed out once and is not kept.
	Generated bool `json:"generated,omitempty"`
	// JWKSURI is the https URL of the client's JWK Set (OpenID Connect
	// Dynamic Client Registration 1.0, section 2). The sets fetched from it
	// are kept as KeySets.
	JWKSURI string `json:"jwks_uri,omitempty"`
	// PEM is a public key (SPKI or PKCS#1) or an X.509 certificate, as it was
	// registered.
	PEM []byte `json:"pem,omitempty"`
	// Secret is what is kept of the client's secret.
	Secret *Secret `json:"secret,omitempty"`
}

// Secret is what is kept of a client's secret: the keys that its settings
// derive from it, and the secret itself only where a setting signs with it.
// All of it is sealed; package encrypter/secrets makes and opens it.
type Secret struct {
	// DataKey is the id of the data key that seals Sealed.
	DataKey string `json:"data_key"`
	// Sealed is the material, encrypted and bound to issuer and client.
	Sealed []byte `json:"sealed"`
	// ExpiresAt is when the client's secret goes out of use
	// (client_secret_expires_at); zero for never.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Registration is what is stored of one client of one issuer. A value is
// never changed after it has been handed out.
type Registration struct {
	Issuer   string    `json:"issuer"`
	ClientID string    `json:"client_id"`
	Source   Source    `json:"source"`
	Settings []Setting `json:"settings"`
	// Legacy allows algorithms that are only kept for old clients, where the
	// issuer's policy names them too.
	Legacy bool `json:"legacy,omitempty"`
	// X5T adds the x5t header beside x5t#S256 for a key with a certificate.
	X5T bool `json:"x5t,omitempty"`

	// Revision counts the changes of this client from 1. It goes on after a
	// deletion, so that no revision ever names two records.
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	// Deleted marks a tombstone: the client was registered and is no more.
	Deleted bool `json:"deleted,omitempty"`

	// Pending is what the record becomes at a time that is yet to come, nil if no
	// change waits. That of a tombstone is a registration anew.
	Pending *Pending `json:"pending,omitempty"`

	// Tampered marks a record that fails its authentication, in a list and as
	// Unreadable makes one: it then holds the client's name, the revision that
	// the record claims, and nothing else. It is never stored.
	Tampered bool `json:"-"`
}

// Setting returns the setting by which tokens of the given kind are made. Its
// Kind is the one that it was registered for: for LOGOUT_TOKEN, ID_TOKEN.
func (r *Registration) Setting(kind TokenKind) (Setting, bool) {
	kind = kind.SettingKind()
	for _, s := range r.Settings {
		if s.Kind == kind {
			return s, true
		}
	}
	return Setting{}, false
}

// KeySet is the last good JWK Set that a jwks_uri gave, and how the fetches
// have gone since. It is shared by all clients that registered the same URI.
type KeySet struct {
	URI string `json:"uri"`
	// Document is the last good set, byte for byte; empty if the URI has
	// never given one.
	Document []byte `json:"document,omitempty"`
	// ETag and LastModified are the validators of Document for a conditional
	// request (RFC 9110, section 8.8).
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
	// FetchedAt is when Document was last received or confirmed (200 or 304).
	FetchedAt time.Time `json:"fetched_at,omitzero"`
	// FreshUntil is when Document stops being fresh.
	FreshUntil time.Time `json:"fresh_until,omitzero"`

	// FailingSince is when the first of an unbroken row of failed refreshes
	// happened; zero when the last one worked.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Failures counts that row.
	Failures int `json:"failures,omitempty"`
	// Failure is the incident id under which the log has the last failure.
	Failure string `json:"failure,omitempty"`
	// NextAttempt is when the URI may be fetched again.
	NextAttempt time.Time `json:"next_attempt,omitzero"`

	// ForcedAt is when somebody last asked for a refresh out of turn and the
	// URI was fetched for that.
	ForcedAt time.Time `json:"forced_at,omitzero"`
}

// Store keeps registrations and key sets. What a write has acknowledged
// survives the death of the process. All methods may be called concurrently;
// errors are those of this package, or the context's.
type Store interface {
	// Get returns the registration of a client as it stands now, tombstones
	// included, or ErrNotFound: a change that waited and whose time has come is
	// in force, and has a revision of its own. A record that fails its
	// authentication is a *TamperedError.
	Get(ctx context.Context, issuer, clientID string) (*Registration, error)

	// Put writes reg if the stored revision (0 when there is no record) is
	// still expect, and returns it with its new revision and times. It answers
	// ErrRevision otherwise. A deletion is a Put of a tombstone. Of a change that
	// waits, nothing is kept but what reg has of it.
	Put(ctx context.Context, reg Registration, expect uint64) (*Registration, error)

	// List returns up to limit live registrations of an issuer whose client_id
	// sorts at or after from in byte order, in that order, as Get does; and with
	// them the tombstones of clients whose registration anew waits.
	List(ctx context.Context, issuer, from string, limit int) ([]*Registration, error)

	// KeySet returns what is known of a jwks_uri, or ErrNotFound.
	KeySet(ctx context.Context, uri string) (*KeySet, error)

	// PutKeySet replaces what is known of a jwks_uri. Nothing is kept of a URI
	// that no live registration names. One that waits names its own.
	PutKeySet(ctx context.Context, set KeySet) error

	// URIs calls yield for every jwks_uri that a live registration names, once
	// each, until yield returns false.
	URIs(ctx context.Context, yield func(uri string) bool) error

	// Check reads something real and cheap, and returns nil if it could.
	Check(ctx context.Context) error
}
