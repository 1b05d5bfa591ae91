package registry

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func idToken() Setting {
	return Setting{Kind: "ID_TOKEN", EncryptionAlgorithm: "RSA-OAEP-256", ContentEncryption: "A256GCM"}
}

// record returns a valid record with the given changes.
func record(edit ...func(*Registration)) Registration {
	r := Registration{
		Issuer:   "main",
		ClientID: "app-1",
		Source:   Source{JWKSURI: "https://client.example/jwks"},
		Settings: []Setting{idToken()},
	}
	for _, f := range edit {
		f(&r)
	}
	return r
}

// stored returns a record as a store would hold it at revision 3.
func stored(edit ...func(*Registration)) *Registration {
	r := record(edit...)
	r.Revision = 3
	r.CreatedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r.UpdatedAt = r.CreatedAt.Add(time.Hour)
	return &r
}

func withURI(uri string) func(*Registration) {
	return func(r *Registration) { r.Source.JWKSURI = uri }
}

func tombstone() *Registration {
	return &Registration{Issuer: "main", ClientID: "app-1", Revision: 3, Deleted: true}
}

// tampered is what stands for a record at revision 3 that fails its
// authentication.
func tampered() *Registration {
	err := fmt.Errorf("reading app-1: %w", &TamperedError{Revision: 3})
	return Unreadable("main", "app-1", err)
}

func withPEM(pem string) func(*Registration) {
	return func(r *Registration) { r.Source = Source{PEM: []byte(pem)} }
}

func generated(yes bool) func(*Registration) {
	return func(r *Registration) { r.Source = Source{JWKS: []byte("{}"), Generated: yes} }
}

func withSecret(sealed string, expiresAt time.Time) func(*Registration) {
	return func(r *Registration) {
		r.Source.Secret = &Secret{DataKey: "k1", Sealed: []byte(sealed), ExpiresAt: expiresAt}
	}
}

// withSecretAs edits a record's secret, which is valid before.
func withSecretAs(edit func(*Secret)) func(*Registration) {
	return func(r *Registration) {
		withSecret("sealed", time.Time{})(r)
		edit(r.Source.Secret)
	}
}

var noon = time.Date(2027, 6, 1, 12, 0, 0, 0, time.UTC)

func TestDecideOnEveryCombination(t *testing.T) {
	other := withURI("https://client.example/other")
	signed := Setting{Kind: "INTROSPECTION", SigningAlgorithm: "ES256"}
	tests := []struct {
		name     string
		current  *Registration
		want     Registration
		revision uint64
		change   Change
		expect   uint64
		err      error
	}{
		{"unknown client", nil, record(), 0, Create, 0, nil},
		{"unknown client, revision named", nil, record(), 1, 0, 0, ErrNotFound},
		{"deleted client", tombstone(), record(), 0, Recreate, 3, nil},
		{"deleted client, its revision named", tombstone(), record(), 3, 0, 0, ErrNotFound},
		{"identical repeat", stored(), record(), 0, Unchanged, 3, nil},
		{"identical, revision named", stored(), record(), 3, Unchanged, 3, nil},
		{"identical, old revision", stored(), record(), 2, 0, 0, ErrRevision},
		{"different", stored(), record(other), 0, 0, 0, ErrExists},
		{"different, revision named", stored(), record(other), 3, Replace, 3, nil},
		{"different, old revision", stored(), record(other), 2, 0, 0, ErrRevision},
		{"different, revision to come", stored(), record(other), 4, 0, 0, ErrRevision},
		{"another source", stored(), record(func(r *Registration) { r.Source = Source{JWKS: []byte("{}")} }), 0, 0, 0, ErrExists},
		{"another alg", stored(), record(func(r *Registration) { r.Settings[0].EncryptionAlgorithm = "RSA-OAEP" }), 0, 0, 0, ErrExists},
		{"another pin", stored(), record(func(r *Registration) { r.Settings[0].KeyID = "k" }), 0, 0, 0, ErrExists},
		{"one setting more", stored(), record(func(r *Registration) { r.Settings = append(r.Settings, signed) }), 0, 0, 0, ErrExists},
		{
			"settings in another order",
			stored(func(r *Registration) { r.Settings = []Setting{idToken(), signed} }),
			record(func(r *Registration) { r.Settings = []Setting{signed, idToken()} }),
			0, Unchanged, 3, nil,
		},
		{
			"enc left to its default",
			stored(func(r *Registration) { r.Settings[0].ContentEncryption = "A128CBC-HS256" }),
			record(func(r *Registration) { r.Settings[0].ContentEncryption = "" }),
			0, Unchanged, 3, nil,
		},
		{"legacy", stored(), record(func(r *Registration) { r.Legacy = true }), 0, 0, 0, ErrExists},
		{"legacy, repeated", stored(func(r *Registration) { r.Legacy = true }), record(func(r *Registration) { r.Legacy = true }), 0, Unchanged, 3, nil},
		{"x5t", stored(), record(func(r *Registration) { r.X5T = true }), 0, 0, 0, ErrExists},
		{"x5t, repeated", stored(func(r *Registration) { r.X5T = true }), record(func(r *Registration) { r.X5T = true }), 0, Unchanged, 3, nil},
		{"PEM", stored(), record(withPEM("a")), 0, 0, 0, ErrExists},
		{"PEM, repeated", stored(withPEM("a")), record(withPEM("a")), 0, Unchanged, 3, nil},
		{"another PEM", stored(withPEM("a")), record(withPEM("b")), 0, 0, 0, ErrExists},
		{"generated", stored(generated(false)), record(generated(true)), 0, 0, 0, ErrExists},
		{"generated, repeated", stored(generated(true)), record(generated(true)), 0, Unchanged, 3, nil},
		{"a secret beside the rest", stored(), record(withSecret("a", noon)), 0, 0, 0, ErrExists},
		{"no secret any more", stored(withSecret("a", noon)), record(), 0, 0, 0, ErrExists},
		{"secret, repeated", stored(withSecret("a", noon.Local())), record(withSecret("a", noon)), 0, Unchanged, 3, nil},
		{"another secret", stored(withSecret("a", noon)), record(withSecret("b", noon)), 3, Replace, 3, nil},
		{"the secret expires later", stored(withSecret("a", noon)), record(withSecret("a", noon.Add(1))), 0, 0, 0, ErrExists},
		{"the secret under another data key", stored(withSecret("a", noon)), record(withSecret("a", noon), func(r *Registration) {
			r.Source.Secret.DataKey = "k2"
		}), 0, 0, 0, ErrExists},
		{"tampered", tampered(), record(), 0, Recreate, 3, nil},
		{"tampered, its revision named", tampered(), record(), 3, Recreate, 3, nil},
		{"tampered, other revision", tampered(), record(), 2, 0, 0, ErrRevision},
		{
			"times and revision of the wish do not count",
			stored(), *stored(func(r *Registration) { r.UpdatedAt = time.Now() }),
			0, Unchanged, 3, nil,
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Decide(tc.current, tc.want, tc.revision)
			if !errors.Is(err, tc.err) || got.Change != tc.change || got.Expect != tc.expect {
				t.Fatalf("got change %d over %d, %v; want %d over %d, %v", got.Change, got.Expect, err, tc.change, tc.expect, tc.err)
			}
			if err != nil {
				return
			}
			settings := withDefaults(tc.want.Settings)
			sortByKind(settings)
			want := Registration{
				Issuer: "main", ClientID: "app-1", Source: tc.want.Source, Settings: settings,
				Legacy: tc.want.Legacy, X5T: tc.want.X5T,
			}
			if tc.change == Unchanged {
				want = *tc.current
			}
			if diff := cmp.Diff(want, got.Record); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecideLeavesTheWishAlone(t *testing.T) {
	want := record(func(r *Registration) {
		r.Settings = []Setting{{Kind: "USERINFO"}, {Kind: "ID_TOKEN", EncryptionAlgorithm: "ECDH-ES"}}
	})
	d, err := Decide(nil, want, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want.Settings[0].Kind != "USERINFO" || want.Settings[1].ContentEncryption != "" {
		t.Errorf("the caller's settings were changed: %+v", want.Settings)
	}
	if s, _ := d.Record.Setting("ID_TOKEN"); s.ContentEncryption != DefaultContentEncryption {
		t.Errorf("got enc %q, want %q", s.ContentEncryption, DefaultContentEncryption)
	}
}

func TestDecideRefusesMixedUpRecords(t *testing.T) {
	if _, err := Decide(stored(func(r *Registration) { r.ClientID = "app-2" }), record(), 3); err == nil {
		t.Error("the record of another client was accepted")
	}
	if _, err := Decide(nil, *tombstone(), 0); err == nil {
		t.Error("a tombstone was accepted as a registration")
	}
	if _, err := Decide(nil, record(func(r *Registration) { r.Tampered = true }), 0); err == nil {
		t.Error("a record that fails its authentication was accepted as a registration")
	}
	if _, err := Decide(Unreadable("main", "app-2", &TamperedError{Revision: 3}), record(), 3); err == nil {
		t.Error("what stands for another client's record was accepted")
	}
}

// TestGreatestRevisionIsNotCountedOn: what a record claims that was tampered with
// is handed to the store as it is.
func TestGreatestRevisionIsNotCountedOn(t *testing.T) {
	current := Unreadable("main", "app-1", &TamperedError{Revision: math.MaxUint64})
	for _, revision := range []uint64{0, math.MaxUint64} {
		d, err := Decide(current, record(), revision)
		if err != nil || d.Change != Recreate || d.Expect != math.MaxUint64 || d.Record.Revision != 0 {
			t.Errorf("revision %d: got %+v, %v; want Recreate over the greatest revision", revision, d, err)
		}
		d, err = DecideDelete(current, revision)
		if err != nil || d.Change != Delete || d.Expect != math.MaxUint64 || d.Record.Revision != 0 {
			t.Errorf("revision %d: got %+v, %v; want Delete over the greatest revision", revision, d, err)
		}
	}
}

func TestOnlyATamperedRecordIsUnreadable(t *testing.T) {
	for _, err := range []error{nil, ErrNotFound, ErrUnavailable, ErrTampered} {
		if got := Unreadable("main", "app-1", err); got != nil {
			t.Errorf("%v: got %+v, want nil", err, got)
		}
	}
	if err := error(&TamperedError{Revision: 3}); !errors.Is(err, ErrTampered) {
		t.Errorf("%v is not ErrTampered", err)
	}
	if err := tampered().Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("what stands for an unreadable record could be stored: got %v, want ErrInvalid", err)
	}
}

func TestLogoutTokensShareTheSettingOfIDTokens(t *testing.T) {
	r := record(func(r *Registration) { r.Settings = append(r.Settings, Setting{Kind: "USERINFO"}) })
	if got, ok := r.Setting("LOGOUT_TOKEN"); !ok || got != idToken() {
		t.Errorf("got %+v, %v; want that of ID_TOKEN", got, ok)
	}
	r.Settings = r.Settings[1:]
	if got, ok := r.Setting("LOGOUT_TOKEN"); ok {
		t.Errorf("got %+v for a client without a setting for ID tokens, want none", got)
	}
}

func TestDecideDelete(t *testing.T) {
	tests := []struct {
		name     string
		current  *Registration
		revision uint64
		err      error
	}{
		{"unknown", nil, 0, ErrNotFound},
		{"unknown, revision named", nil, 3, ErrNotFound},
		{"deleted", tombstone(), 0, ErrNotFound},
		{"deleted, revision named", tombstone(), 3, ErrNotFound},
		{"registered", stored(), 0, nil},
		{"registered, revision named", stored(), 3, nil},
		{"registered, old revision", stored(), 2, ErrRevision},
		{"tampered", tampered(), 0, nil},
		{"tampered, revision named", tampered(), 3, nil},
		{"tampered, old revision", tampered(), 2, ErrRevision},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := DecideDelete(tc.current, tc.revision)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			want := Decision{Change: Delete, Expect: 3, Record: Registration{Issuer: "main", ClientID: "app-1", Deleted: true}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if err := got.Record.Validate(); err != nil {
				t.Errorf("the tombstone is not valid: %v", err)
			}
		})
	}
}

func TestRecordsOutOfShapeAreRefused(t *testing.T) {
	setting := func(edit func(*Setting)) func(*Registration) {
		return func(r *Registration) { edit(&r.Settings[0]) }
	}
	tests := map[string]struct {
		edit  func(*Registration)
		field string
	}{
		"no issuer":              {func(r *Registration) { r.Issuer = "" }, "issuer"},
		"issuer with NUL":        {func(r *Registration) { r.Issuer = "a\x00b" }, "issuer"},
		"no client_id":           {func(r *Registration) { r.ClientID = "" }, "client_id"},
		"client_id too long":     {func(r *Registration) { r.ClientID = strings.Repeat("a", 256) }, "client_id"},
		"client_id with newline": {func(r *Registration) { r.ClientID = "a\n" }, "client_id"},
		"client_id with DEL":     {func(r *Registration) { r.ClientID = "a\x7f" }, "client_id"},
		"client_id not ASCII":    {func(r *Registration) { r.ClientID = "ä" }, "client_id"},
		"client_id not UTF-8":    {func(r *Registration) { r.ClientID = "a\xff" }, "client_id"},
		"no source":              {func(r *Registration) { r.Source = Source{} }, "source"},
		"JWKS and URI":           {func(r *Registration) { r.Source.JWKS = []byte("{}") }, "source"},
		"PEM and URI":            {func(r *Registration) { r.Source.PEM = []byte("pem") }, "source"},
		"PEM and JWKS":           {func(r *Registration) { r.Source = Source{PEM: []byte("pem"), JWKS: []byte("{}")} }, "source"},
		"generated, PEM":         {func(r *Registration) { r.Source = Source{PEM: []byte("pem"), Generated: true} }, "source.generated"},
		"generated URI":          {func(r *Registration) { r.Source.Generated = true }, "source.generated"},
		"PEM too long":           {withPEM(strings.Repeat("a", MaxPEM+1)), "source.pem"},
		"no data key":            {withSecretAs(func(s *Secret) { s.DataKey = "" }), "source.secret.data_key"},
		"data key too long":      {withSecretAs(func(s *Secret) { s.DataKey = strings.Repeat("k", 65) }), "source.secret.data_key"},
		"data key with space":    {withSecretAs(func(s *Secret) { s.DataKey = "k 1" }), "source.secret.data_key"},
		"nothing sealed":         {withSecretAs(func(s *Secret) { s.Sealed = nil }), "source.secret.sealed"},
		"too much sealed":        {withSecretAs(func(s *Secret) { s.Sealed = make([]byte, MaxSealed+1) }), "source.secret.sealed"},
		"expiry before Unix":     {withSecretAs(func(s *Secret) { s.ExpiresAt = time.Unix(-1, 0) }), "source.secret.expires_at"},
		"expiry after RFC 3339":  {withSecretAs(func(s *Secret) { s.ExpiresAt = time.Unix(1<<40, 0) }), "source.secret.expires_at"},
		"setting of its own":     {setting(func(s *Setting) { s.Kind = "LOGOUT_TOKEN" }), "settings[0].kind"},
		"JWKS too long":          {func(r *Registration) { r.Source = Source{JWKS: make([]byte, MaxJWKS+1)} }, "source.jwks"},
		"URI too long":           {withURI(strings.Repeat("a", MaxJWKSURI+1)), "source.jwks_uri"},
		"URI with NUL":           {withURI("https://a\x00"), "source.jwks_uri"},
		"no settings":            {func(r *Registration) { r.Settings = nil }, "settings"},
		"too many settings": {func(r *Registration) {
			for i := range MaxSettings {
				r.Settings = append(r.Settings, Setting{Kind: TokenKind(strings.Repeat("K", i+1))})
			}
		}, "settings"},
		"second of three": {func(r *Registration) {
			r.Settings = []Setting{idToken(), {Kind: "A", KeyID: "k"}, {Kind: "USERINFO"}}
		}, "settings[1].key_id"},
		"two for one kind":    {func(r *Registration) { r.Settings = append(r.Settings, Setting{Kind: "ID_TOKEN"}) }, "settings[1].kind"},
		"no kind":             {setting(func(s *Setting) { s.Kind = "" }), "settings[0].kind"},
		"kind with space":     {setting(func(s *Setting) { s.Kind = "ID TOKEN" }), "settings[0].kind"},
		"alg too long":        {setting(func(s *Setting) { s.SigningAlgorithm = strings.Repeat("A", 65) }), "settings[0].signing_algorithm"},
		"alg with newline":    {setting(func(s *Setting) { s.EncryptionAlgorithm = "RSA\n" }), "settings[0].encryption_algorithm"},
		"enc without alg":     {setting(func(s *Setting) { s.EncryptionAlgorithm = "" }), "settings[0].content_encryption"},
		"pin without alg":     {setting(func(s *Setting) { *s = Setting{Kind: "ID_TOKEN", KeyID: "k"} }), "settings[0].key_id"},
		"pin too long":        {setting(func(s *Setting) { s.KeyID = strings.Repeat("k", 256) }), "settings[0].key_id"},
		"pin with a control":  {setting(func(s *Setting) { s.KeyID = "k\u0085" }), "settings[0].key_id"},
		"pin that is no text": {setting(func(s *Setting) { s.KeyID = "k\xff" }), "settings[0].key_id"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Decide(nil, record(tc.edit), 0)
			var invalid *InvalidError
			if !errors.As(err, &invalid) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want an InvalidError", err)
			}
			if invalid.Field != tc.field || invalid.Problem == "" {
				t.Errorf("got %+v, want field %s", invalid, tc.field)
			}
		})
	}
}

func TestRecordsInShapeAreAccepted(t *testing.T) {
	tests := map[string]func(*Registration){
		"plain":                     func(*Registration) {},
		"signed only":               func(r *Registration) { r.Settings[0] = Setting{Kind: "USERINFO", SigningAlgorithm: "ES256"} },
		"every VSCHAR in client_id": func(r *Registration) { r.ClientID = ` !"#$%&'()*+,-./09:;<=>?@AZ[\]^_az{|}~` },
		"longest client_id":         func(r *Registration) { r.ClientID = strings.Repeat("~", 255) },
		"legacy enc":                func(r *Registration) { r.Settings[0].ContentEncryption = "A128CBC+HS256" },
		"pin in any script":         func(r *Registration) { r.Settings[0].KeyID = "clé 鍵" },
		"longest PEM":               withPEM(strings.Repeat("a", MaxPEM)),
		"generated":                 generated(true),
		"secret alone":              func(r *Registration) { r.Source = Source{}; withSecret("a", time.Time{})(r) },
		"secret beside URI":         withSecret("a", noon),
		"longest secret":            withSecretAs(func(s *Secret) { s.Sealed = make([]byte, MaxSealed) }),
		"longest JWKS":              func(r *Registration) { r.Source = Source{JWKS: make([]byte, MaxJWKS)} },
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Decide(nil, record(edit), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStoredRecordMustBeNormalized(t *testing.T) {
	r := record(func(r *Registration) { r.Settings[0].ContentEncryption = "" })
	if err := r.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("an alg without enc: got %v, want ErrInvalid", err)
	}
}

func TestTombstoneKeepsNothing(t *testing.T) {
	for name, edit := range map[string]func(*Registration){
		"settings":  func(r *Registration) { r.Settings = []Setting{idToken()} },
		"JWKS":      func(r *Registration) { r.Source.JWKS = []byte("{}") },
		"URI":       withURI("https://client.example/jwks"),
		"PEM":       withPEM("pem"),
		"secret":    withSecret("a", time.Time{}),
		"generated": func(r *Registration) { r.Source.Generated = true },
		"legacy":    func(r *Registration) { r.Legacy = true },
		"x5t":       func(r *Registration) { r.X5T = true },
	} {
		r := tombstone()
		edit(r)
		if err := r.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}
