package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/encrypter/registry"
	"github.com/bulla-project/bulla/kms"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
	"github.com/bulla-project/bulla/server/audit"
	"github.com/bulla-project/bulla/server/issuer"
	"github.com/bulla-project/bulla/signer"
)

// changesAfter gives the issuer's clients a delay.
func changesAfter(t *testing.T, s *clientKeyService, delay time.Duration) {
	t.Helper()
	i, err := issuer.New(issuer.Config{
		Name: "main", Token: signer.Issuer{URL: "https://login.example.com"},
		DefaultAlgorithm: kms.ES256, SigningKeys: []kms.Algorithm{kms.ES256}, KeyChangeDelay: delay,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.gate.issuers = issuer.NewDirectory(i)
}

func getKey(t *testing.T, s *clientKeyService, id string) *bullav1.ClientKey {
	t.Helper()
	res, err := s.GetClientKey(as(t, registrar), &bullav1.GetClientKeyRequest{ClientId: id})
	if err != nil {
		t.Fatalf("get %s: %v", id, err)
	}
	return res.GetClientKey()
}

func deleteKey(t *testing.T, s *clientKeyService, id string) {
	t.Helper()
	if _, err := s.DeleteClientKey(as(t, registrar), &bullav1.DeleteClientKeyRequest{ClientId: id}); err != nil {
		t.Fatalf("delete %s: %v", id, err)
	}
}

// stands is what the API shows of a client, in a few words.
func stands(k *bullav1.ClientKey) string {
	text := k.GetRevision() + " " + strings.TrimPrefix(k.GetState().String(), "CLIENT_KEY_STATE_")
	for _, c := range k.GetChosenKeys() {
		text += " " + c.GetThumbprint()
	}
	if p := k.GetPendingChange(); p != nil {
		text += " then"
		for _, c := range p.GetChosenKeys() {
			text += " " + c.GetThumbprint()
		}
	}
	return text
}

func wantStands(t *testing.T, what string, k *bullav1.ClientKey, want string) {
	t.Helper()
	if got := stands(k); got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// recorded are the lines of changes.
func recorded(a *auditor) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lines []string
	for _, e := range a.events {
		text := fmt.Sprint(e.Outcome, " ", e.Permission, " ", e.OldThumbprint, " > ", e.NewThumbprint, " ", e.Revision)
		if !e.EffectiveAt.IsZero() {
			text += " later"
		}
		if e.DroppedThumbprint != "" {
			text += " instead of " + e.DroppedThumbprint
		}
		lines = append(lines, strings.ReplaceAll(text, ",USERINFO=none", ""))
	}
	return lines
}

func TestAReplacementWaits(t *testing.T) {
	s, record, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	wantStands(t, "a new client", register(t, s, registration("app", "one", "")), "1 READY of-one")
	began := time.Now()
	key := register(t, s, registration("app", "two", "1"))
	wantStands(t, "the reply", key, "2 READY of-one then of-two")
	wantStands(t, "Get", getKey(t, s, "app"), "2 READY of-one then of-two")
	p := key.GetPendingChange()
	if at := p.GetEffectiveAt().AsTime(); at.Before(began.Add(time.Hour)) || at.After(time.Now().Add(time.Hour)) {
		t.Errorf("it takes effect at %v", at)
	}
	if at := p.GetRequestedAt().AsTime(); at.Before(began.Add(-time.Second)) || p.GetSource() != bullav1.KeySource_KEY_SOURCE_JWKS || len(p.GetSettings()) != 2 || p.GetState() != bullav1.ClientKeyState_CLIENT_KEY_STATE_READY {
		t.Errorf("what waits is shown as %v", p)
	}
	if !slices.ContainsFunc(key.GetWarnings(), func(w string) bool { return strings.Contains(w, "waits until ") }) {
		t.Errorf("the reply does not warn: %q", key.GetWarnings())
	}
	list, err := s.ListClientKeys(as(t, registrar), &bullav1.ListClientKeysRequest{})
	if err != nil || len(list.GetClientKeys()) != 1 {
		t.Fatal(list, err)
	}
	wantStands(t, "List", list.GetClientKeys()[0], "2 READY of-one then of-two")
	explained, err := s.ExplainClientKey(as(t, registrar), &bullav1.ExplainClientKeyRequest{ClientId: "app"})
	if err != nil || explained.GetPending().GetEffectiveAt().AsTime() != p.GetEffectiveAt().AsTime() || explained.GetPending().GetSetting().GetEncryptionAlgorithm() != "RSA-OAEP-256" {
		t.Errorf("Explain: %v, %v", explained, err)
	}

	// A repeat changes nothing, and does not start the delay anew.
	for _, revision := range []string{"", "2"} {
		again := register(t, s, registration("app", "two", revision))
		wantStands(t, "a repeat", again, "2 READY of-one then of-two")
		if !again.GetPendingChange().GetEffectiveAt().AsTime().Equal(p.GetEffectiveAt().AsTime()) {
			t.Error("a repeat starts the delay anew")
		}
	}
	// So does what a caller repeats that knows nothing of it, and he need not be
	// one who may replace.
	if _, err := s.RegisterClientKey(as(t, creator), registration("app", "one", "")); err != nil {
		t.Error(err)
	}
	wantStands(t, "a repeat of what is in force", getKey(t, s, "app"), "2 READY of-one then of-two")
	_, err = s.RegisterClientKey(as(t, creator), registration("app", "three", ""))
	wantReason(t, "something else without a revision", err, "CLIENT_ALREADY_REGISTERED")
	_, err = s.RegisterClientKey(as(t, registrar), registration("app", "three", "1"))
	wantReason(t, "the revision before", err, "REVISION_MISMATCH")
	_, err = s.RegisterClientKey(as(t, creator), registration("app", "one", "2"))
	wantReason(t, "taking back by one who may not replace", err, "CALLER_NOT_ALLOWED")

	// The next takes the place of the one before, and waits anew.
	third := register(t, s, registration("app", "three", "2"))
	wantStands(t, "the next", third, "3 READY of-one then of-three")
	if !third.GetPendingChange().GetEffectiveAt().AsTime().After(p.GetEffectiveAt().AsTime()) {
		t.Error("the delay did not start anew")
	}
	wantStands(t, "taken back", register(t, s, registration("app", "one", "3")), "4 READY of-one")
	// A change of settings alone waits too.
	plain := registration("app", "one", "4")
	plain.Settings[0].EncryptionAlgorithm = ""
	wantStands(t, "no encryption", register(t, s, plain), "5 READY of-one then")
	deleteKey(t, s, "app")
	_, err = s.GetClientKey(as(t, registrar), &bullav1.GetClientKeyRequest{ClientId: "app"})
	wantReason(t, "deleted", err, "CLIENT_NOT_REGISTERED")

	if got, want := recorded(record), []string{
		"changed create_client_key  > ID_TOKEN=of-one 1",
		"changed replace_client_key ID_TOKEN=of-one > ID_TOKEN=of-two 2 later",
		"denied replace_client_key  >  0",
		"changed replace_client_key ID_TOKEN=of-one > ID_TOKEN=of-three 3 later instead of ID_TOKEN=of-two",
		"changed replace_client_key ID_TOKEN=of-one > ID_TOKEN=of-one 4 instead of ID_TOKEN=of-three",
		"changed replace_client_key ID_TOKEN=of-one > ID_TOKEN=none 5 later",
		"changed delete_client_key ID_TOKEN=of-one >  6 instead of ID_TOKEN=none",
	}; !slices.Equal(got, want) {
		t.Errorf("on record:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAChangeThatWaitsIsToldToThoseWhoWatch(t *testing.T) {
	s, _, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	told := newTellings()
	look := func() bool {
		t.Helper()
		res, err := s.look(t.Context(), "main", "app")
		if err != nil {
			t.Fatal(err)
		}
		return told.anew(res)
	}
	register(t, s, registration("app", "one", ""))
	if !look() || look() {
		t.Error("a new client is told once")
	}
	register(t, s, registration("app", "two", "1"))
	if !look() || look() {
		t.Error("that a change waits is told once")
	}
	res, err := s.look(t.Context(), "main", "app")
	if err != nil {
		t.Fatal(err)
	}
	if at := changesByItself(res.GetClientKey()); at.Before(res.GetClientKey().GetPendingChange().GetEffectiveAt().AsTime()) {
		t.Errorf("it is looked at again at %v", at)
	}
	deleteKey(t, s, "app")
	if res, err := s.look(t.Context(), "main", "app"); err != nil || !res.GetDeleted() || res.GetClientKey().GetPendingChange() != nil {
		t.Errorf("deleted: %v, %v", res, err)
	}
	register(t, s, registration("app", "three", ""))
	if res, err := s.look(t.Context(), "main", "app"); err != nil || res.GetDeleted() || stands(res.GetClientKey()) != "4 NO_USABLE_KEY then of-three" {
		t.Errorf("registered anew: %v, %v", res, err)
	}
}

// To delete a client and to register it anew is not the way around the delay.
func TestADeletedClientThatIsRegisteredAnewWaits(t *testing.T) {
	s, _, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	register(t, s, registration("app", "one", ""))
	deleteKey(t, s, "app")
	key := register(t, s, registration("app", "two", ""))
	wantStands(t, "registered anew", key, "3 NO_USABLE_KEY then of-two")
	if len(key.GetSettings()) != 0 || !strings.Contains(key.GetStateReason(), "takes effect at ") {
		t.Errorf("something is in force, or nothing says why: %v", key)
	}
	wantStands(t, "Get", getKey(t, s, "app"), "3 NO_USABLE_KEY then of-two")
	list, err := s.ListClientKeys(as(t, registrar), &bullav1.ListClientKeysRequest{State: bullav1.ClientKeyState_CLIENT_KEY_STATE_NO_USABLE_KEY})
	if err != nil || len(list.GetClientKeys()) != 1 {
		t.Errorf("List: %v, %v", list, err)
	}
	explained, err := s.ExplainClientKey(as(t, registrar), &bullav1.ExplainClientKeyRequest{ClientId: "app"})
	if err != nil || explained.GetSetting() != nil || explained.GetPending().GetSetting() == nil {
		t.Errorf("Explain: %v, %v", explained, err)
	}
	_, err = s.RefreshClientKey(as(t, registrar), &bullav1.RefreshClientKeyRequest{ClientId: "app"})
	wantReason(t, "Refresh by one who may not", err, "CALLER_NOT_ALLOWED")
	wantStands(t, "a repeat", register(t, s, registration("app", "two", "")), "3 NO_USABLE_KEY then of-two")
	// Neither is what was there before in force by that.
	_, err = s.RegisterClientKey(as(t, registrar), registration("app", "one", ""))
	wantReason(t, "what was deleted, without a revision", err, "CLIENT_ALREADY_REGISTERED")
	wantStands(t, "what was deleted", register(t, s, registration("app", "one", "3")), "4 NO_USABLE_KEY then of-one")
	deleteKey(t, s, "app")
	_, err = s.GetClientKey(as(t, registrar), &bullav1.GetClientKeyRequest{ClientId: "app"})
	wantReason(t, "deleted again", err, "CLIENT_NOT_REGISTERED")
	wantStands(t, "and registered", register(t, s, registration("app", "two", "")), "6 NO_USABLE_KEY then of-two")

	st := statusOf(fmt.Errorf("issuing: %w", (&registry.Registration{Deleted: true, Pending: &registry.Pending{EffectiveAt: time.Unix(1e9, 0)}}).Missing()))
	if st.Code() != codes.NotFound || !strings.Contains(st.Message(), "2001-09-09T01:46:40Z") {
		t.Errorf("a token for it: %v", st)
	}
}

func TestTakingBackNeedsNeitherTheHostNorANewLook(t *testing.T) {
	s, _, cache := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	register(t, s, registration("app", "one", ""))
	register(t, s, registration("app", "two", "1"))
	before := cache.checked
	register(t, s, registration("app", "one", "2"))
	if cache.checked != before {
		t.Error("what is in force was tried out again")
	}
}

func TestAGeneratedKeyWaitsAndIsHandedOutAtOnce(t *testing.T) {
	s, _, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	register(t, s, registration("app", "one", ""))
	req := &bullav1.GenerateClientKeyRequest{ClientId: "app", Revision: "1", Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "ECDH-ES"}}}
	res, err := s.GenerateClientKey(as(t, registrar), req)
	if err != nil {
		t.Fatal(err)
	}
	if p := res.GetClientKey().GetPendingChange(); len(res.GetPrivateJwk()) == 0 || p.GetSource() != bullav1.KeySource_KEY_SOURCE_GENERATED || res.GetClientKey().GetSource() != bullav1.KeySource_KEY_SOURCE_JWKS {
		t.Errorf("got %v", res.GetClientKey())
	}
}

func TestTheSecretInForceAndTheOneThatWaitsAreToldApart(t *testing.T) {
	s, record, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	with := func(secret, revision string) *bullav1.RegisterClientKeyRequest {
		return &bullav1.RegisterClientKeyRequest{
			ClientId: "app", Revision: revision, KeySource: &bullav1.RegisterClientKeyRequest_ClientSecret{ClientSecret: secret},
			Settings: []*bullav1.ResponseSetting{{TokenKind: bullav1.TokenKind_TOKEN_KIND_ID_TOKEN, EncryptionAlgorithm: "A256KW", ContentEncryption: "A256GCM"}},
		}
	}
	const one, two = "correct horse battery staple, the first", "correct horse battery staple, the second"
	register(t, s, with(one, ""))
	waits := register(t, s, with(two, "1"))
	if waits.GetPendingChange() == nil {
		t.Fatalf("got %v", waits)
	}
	lines := len(record.events)
	// Repeats, and each confirms a guess: on record.
	for _, secret := range []string{one, two} {
		if k := register(t, s, with(secret, "")); k.GetRevision() != "2" || k.GetPendingChange() == nil {
			t.Errorf("a repeat: got %v", k)
		}
	}
	_, err := s.RegisterClientKey(as(t, registrar), with("another guess, which is wrong", ""))
	wantReason(t, "a wrong guess", err, "CLIENT_ALREADY_REGISTERED")
	var outcomes []audit.Outcome
	for _, e := range record.events[lines:] {
		outcomes = append(outcomes, e.Outcome)
	}
	if want := []audit.Outcome{audit.Unchanged, audit.Unchanged, audit.Failed}; !slices.Equal(outcomes, want) {
		t.Errorf("on record of guesses: %v, want %v", outcomes, want)
	}
	if k := register(t, s, with(one, "2")); k.GetRevision() != "3" || k.GetPendingChange() != nil {
		t.Errorf("taken back: got %v", k)
	}
	// Of a deleted client, the secret that waits is the only one there is.
	deleteKey(t, s, "app")
	register(t, s, with(two, ""))
	lines = len(record.events)
	_, err = s.RegisterClientKey(as(t, registrar), with(one, ""))
	wantReason(t, "a wrong guess at a deleted client's", err, "CLIENT_ALREADY_REGISTERED")
	if len(record.events) != lines+1 {
		t.Error("a guess at a deleted client's secret is not on record")
	}
}

func TestAChangeOfTheDelayIsForChangesToCome(t *testing.T) {
	s, _, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	register(t, s, registration("app", "one", ""))
	at := register(t, s, registration("app", "two", "1")).GetPendingChange().GetEffectiveAt().AsTime()
	changesAfter(t, s, 0)
	if got := register(t, s, registration("app", "two", "2")).GetPendingChange().GetEffectiveAt().AsTime(); !got.Equal(at) {
		t.Errorf("what waits takes effect at %v, want %v", got, at)
	}
	wantStands(t, "another one", register(t, s, registration("app", "three", "2")), "3 READY of-three")
}

func TestWhatTookEffectMeanwhileIsNotChangedUnseen(t *testing.T) {
	s, _, _ := newClientKeys(t)
	changesAfter(t, s, time.Hour)
	register(t, s, registration("app", "one", ""))
	register(t, s, registration("app", "two", "1"))
	reg, err := s.store.Get(t.Context(), "main", "app")
	if err != nil {
		t.Fatal(err)
	}
	due := *reg
	due.Pending = &registry.Pending{EffectiveAt: time.Now().Add(-time.Second), Source: reg.Pending.Source, Settings: reg.Pending.Settings}
	seen, err := s.store.Put(t.Context(), due, reg.Revision)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.RegisterClientKey(as(t, registrar), registration("app", "one", fmt.Sprint(seen.Revision)))
	wantReason(t, "taking back too late", err, "REVISION_MISMATCH")
	wantStands(t, "in force", getKey(t, s, "app"), fmt.Sprint(seen.Revision+1, " READY of-two"))
	if _, err := s.store.Put(t.Context(), registry.Registration{Issuer: "main", ClientID: "app", Deleted: true}, seen.Revision); err == nil {
		t.Error("a write over what was in force before")
	}
}
