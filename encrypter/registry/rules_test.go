package registry

import (
	"errors"
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

func TestDecideOnEveryCombination(t *testing.T) {
	other := withURI("https://client.example/other")
	logout := Setting{Kind: "LOGOUT_TOKEN", SigningAlgorithm: "ES256"}
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
		{"one setting more", stored(), record(func(r *Registration) { r.Settings = append(r.Settings, logout) }), 0, 0, 0, ErrExists},
		{
			"settings in another order",
			stored(func(r *Registration) { r.Settings = []Setting{idToken(), logout} }),
			record(func(r *Registration) { r.Settings = []Setting{logout, idToken()} }),
			0, Unchanged, 3, nil,
		},
		{
			"enc left to its default",
			stored(func(r *Registration) { r.Settings[0].ContentEncryption = "A128CBC-HS256" }),
			record(func(r *Registration) { r.Settings[0].ContentEncryption = "" }),
			0, Unchanged, 3, nil,
		},
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
			want := Registration{Issuer: "main", ClientID: "app-1", Source: tc.want.Source, Settings: settings}
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
		"two sources":            {func(r *Registration) { r.Source.JWKS = []byte("{}") }, "source"},
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
