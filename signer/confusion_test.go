package signer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

// received is a token as a verifier reads it.
type received struct {
	Typ    string
	Claims map[string]any
}

func (r received) has(names ...string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return r.Claims[n] == nil })
}

func (r received) object(name string) map[string]any {
	o, _ := r.Claims[name].(map[string]any)
	return o
}

// meantFor reports whether the token comes from the issuer and is for the party.
func (r received) meantFor(party string) bool {
	aud := r.Claims["aud"]
	if list, ok := aud.([]any); ok {
		return r.Claims["iss"] == testISS && slices.Contains(list, any(party))
	}
	return r.Claims["iss"] == testISS && aud == any(party)
}

// issuedTo reports whether azp is the party. It may be absent if there is only one
// audience (OpenID Connect Core 1.0, section 3.1.3.7, numbers 4 and 5).
func (r received) issuedTo(party string) bool {
	audiences, _ := r.Claims["aud"].([]any)
	azp := r.Claims["azp"]
	return azp == any(party) || azp == nil && len(audiences) <= 1
}

// verifier accepts tokens of a kind for a client. Those below do what their standard demands
// and nothing more, because that is what an attacker looks for; where it says
// nothing that could tell kinds apart, they follow RFC 8725, section 3.12.
type verifier struct {
	name    string
	kind    TokenKind
	accepts func(received) bool
}

func verifiersOf(client string) []verifier {
	return []verifier{
		// OpenID Connect Core 1.0, sections 2 and 3.1.3.7. It does not speak of typ.
		{"a client that sends a nonce", IDToken, func(r received) bool {
			return r.meantFor(client) && r.issuedTo(client) && r.has("sub", "exp", "iat") && r.Claims["nonce"] == "n"
		}},
		// Without a nonce a logout token and an access token have all that Core
		// asks for. RFC 8725, section 3.12, demands that they be told apart: by the
		// typ that their own standards give them.
		{"a client that sends no nonce", IDToken, func(r received) bool {
			return r.meantFor(client) && r.issuedTo(client) && r.has("sub", "exp", "iat") && (r.Typ == "" || r.Typ == "JWT")
		}},
		// OpenID Connect Back-Channel Logout 1.0, section 2.6. The typ is only
		// recommended.
		{"a client's logout endpoint", LogoutToken, func(r received) bool {
			_, isObject := r.object("events")["http://schemas.openid.net/event/backchannel-logout"].(map[string]any)
			return r.meantFor(client) && r.has("iat", "exp") && (r.has("sub") || r.has("sid")) && isObject && r.Claims["nonce"] == nil
		}},
		// As it was in its drafts before the seventh, which knew no exp.
		{"an old client's logout endpoint", LogoutToken, func(r received) bool {
			_, isObject := r.object("events")["http://schemas.openid.net/event/backchannel-logout"].(map[string]any)
			return r.meantFor(client) && r.has("iat", "jti") && (r.has("sub") || r.has("sid")) && isObject && r.Claims["nonce"] == nil
		}},
		// OpenID Connect Core 1.0, sections 5.3.2 and 5.3.4, asks for iss, aud and
		// sub, which ID tokens have too; so RFC 8725, section 3.12, again: a
		// response of ours never expires and has no typ of another kind.
		{"a client's UserInfo request", UserInfo, func(r received) bool {
			return r.meantFor(client) && r.has("sub") && r.Claims["exp"] == nil && (r.Typ == "" || r.Typ == "JWT")
		}},
		// JARM, section 2.4, and the parameters without which nothing comes of it.
		{"a client's redirect URI", AuthorizationResponse, func(r received) bool {
			return r.meantFor(client) && r.has("exp") && (r.has("code") || r.has("error") || r.has("access_token") || r.has("id_token"))
		}},
		// RFC 9701, section 5, without even the typ that its section 8.1 relies on.
		{"a resource server that introspects", Introspection, func(r received) bool {
			return r.meantFor(client) && r.has("iat") && r.object("token_introspection") != nil
		}},
		// RFC 9068, section 4: the typ must be checked.
		{"a resource server", AccessToken, func(r received) bool {
			typ := strings.TrimPrefix(strings.ToLower(r.Typ), "application/")
			return typ == "at+jwt" && r.meantFor("api") && r.has("sub", "exp", "iat", "jti", "client_id")
		}},
	}
}

// readers turn a payload into claims: one by the standard, one that makes no
// difference between upper and lower case, as encoding/json does for structs.
var readers = map[string]func(t *testing.T, payload []byte) map[string]any{
	"exact": func(t *testing.T, payload []byte) (claims map[string]any) {
		t.Helper()
		if err := json.Unmarshal(payload, &claims); err != nil {
			t.Fatal(err)
		}
		return claims
	},
	"folding": func(t *testing.T, payload []byte) map[string]any {
		t.Helper()
		var s struct {
			ISS     any `json:"iss"`
			AZP     any `json:"azp"`
			SUB     any `json:"sub"`
			AUD     any `json:"aud"`
			EXP     any `json:"exp"`
			IAT     any `json:"iat"`
			JTI     any `json:"jti"`
			Nonce   any `json:"nonce"`
			SID     any `json:"sid"`
			Client  any `json:"client_id"`
			Events  any `json:"events"`
			Intro   any `json:"token_introspection"`
			Code    any `json:"code"`
			Error   any `json:"error"`
			Access  any `json:"access_token"`
			IDToken any `json:"id_token"`
		}
		if err := json.Unmarshal(payload, &s); err != nil {
			t.Fatal(err)
		}
		return map[string]any{
			"iss": s.ISS, "azp": s.AZP, "sub": s.SUB, "aud": s.AUD, "exp": s.EXP, "iat": s.IAT, "jti": s.JTI, "nonce": s.Nonce, "sid": s.SID, "client_id": s.Client,
			"events": s.Events, "token_introspection": s.Intro, "code": s.Code, "error": s.Error, "access_token": s.Access, "id_token": s.IDToken,
		}
	},
}

// disguises are all claims that a caller could try: those that no kind minds are
// always there, and the others in every combination, left out, as they should
// be, and spelled in another case.
func disguises() []string {
	const event = `{"http://schemas.openid.net/event/backchannel-logout":{}}`
	all := []string{`{"iat":` + sec(0) + `,"jti":"j","sid":"s","state":"st","client_id":"` + testClient + `"`}
	for _, choice := range [][]string{
		{``, `"sub":"a"`, `"SUB":"a"`},
		{`"aud":"` + testClient + `"`, `"aud":["api","` + testClient + `"]`, `"aud":["` + testClient + `","` + otherClient + `"]`},
		{``, `"exp":` + sec(60), `"Exp":` + sec(60)},
		{``, `"nonce":"n"`, `"Nonce":"n"`},
		{``, `"events":` + event, `"EVENTS":` + event, `"events":{"other":{}}`},
		{``, `"token_introspection":{"active":true}`, `"to\u212Aen_introspection":{"active":true}`},
		{``, `"code":"c"`, `"Code":"c"`, `"error":"e"`, `"access_token":"t"`, `"id_token":"t"`},
	} {
		var longer []string
		for _, claims := range all {
			for _, c := range choice {
				if c == "" {
					longer = append(longer, claims)
				} else {
					longer = append(longer, claims+","+c)
				}
			}
		}
		all = longer
	}
	for i := range all {
		all[i] += "}"
	}
	return all
}

// A caller that may issue tokens of one kind tries to make one that passes for
// another. For every pair of kinds all claims that it could send are tried.
func TestATokenOfOneKindNeverPassesForAnother(t *testing.T) {
	key := newSigningKey(t, staticKey{newSoftKey(t, kms.ES256), make([]byte, 64)}, Options{SkipVerify: true})
	claims := disguises()
	if len(kinds) != 6 {
		t.Errorf("%d kinds, want 6: the new ones belong in this test", len(kinds))
	}
	for kind := range kinds {
		var tokens [][]byte
		for _, c := range claims {
			if p, err := Prepare(request(kind, c), kms.ES256, testNow); err == nil {
				token, err := Sign(t.Context(), key, p)
				if err != nil {
					t.Fatal(err)
				}
				tokens = append(tokens, token)
			}
		}
		for how, read := range readers {
			seen := make([]received, len(tokens))
			for i, token := range tokens {
				seen[i] = receive(t, token, read)
			}
			for _, v := range verifiersOf(testClient) {
				t.Run(fmt.Sprintf("%s as %s/%s/%s", kind, v.kind, v.name, how), func(t *testing.T) {
					i := slices.IndexFunc(seen, v.accepts)
					switch {
					case v.kind == kind && i < 0:
						t.Errorf("the verifier takes none of %d tokens of its own kind: it proves nothing", len(seen))
					case v.kind != kind && i >= 0:
						t.Errorf("taken: typ %q, %v", seen[i].Typ, seen[i].Claims)
					}
				})
			}
		}
	}
}

// otherClient is one whose tokens testClient would like to have.
const otherClient = "victim"

// A client decrypts its token, and hands the signed one to another client. Whatever
// the claims were, that one must not take it, of its own kind or as another. (Access
// tokens are for resource servers, of which one may be named beside another.)
func TestATokenOfOneClientNeverPassesForAnothers(t *testing.T) {
	key := newSigningKey(t, staticKey{newSoftKey(t, kms.ES256), make([]byte, 64)}, Options{SkipVerify: true})
	claims := partyDisguises()
	tokensFor := func(kind TokenKind, client, claims string) []byte {
		req := request(kind, claims)
		req.ClientID = client
		p, err := Prepare(req, kms.ES256, testNow)
		if err != nil {
			return nil
		}
		token, err := Sign(t.Context(), key, p)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for kind, own := range kindClaims {
		if !kind.ClientBound() {
			continue
		}
		for how, read := range readers {
			for _, v := range verifiersOf(otherClient) {
				if v.kind == AccessToken {
					continue
				}
				mine, accepted := 0, false
				for _, parties := range claims {
					all := strings.TrimSuffix(own, "}") + parties + "}"
					if token := tokensFor(kind, testClient, all); token != nil {
						mine++
						if r := receive(t, token, read); v.accepts(r) {
							t.Errorf("%s as %s/%s/%s: taken: typ %q, %v", kind, v.kind, v.name, how, r.Typ, r.Claims)
						}
					}
					if token := tokensFor(kind, otherClient, all); token != nil && v.accepts(receive(t, token, read)) {
						accepted = true
					}
				}
				if v.kind == kind && !accepted || mine == 0 {
					t.Errorf("%s as %s/%s/%s: the verifier takes nothing of its own, or there was nothing to take: it proves nothing", kind, v.kind, v.name, how)
				}
			}
		}
	}
}

// partyDisguises are claims about the parties, in every combination, to be added to
// those of a kind.
func partyDisguises() []string {
	all := []string{``, `,"nonce":"n"`}
	for _, choice := range [][]string{
		{``, `,"aud":"` + otherClient + `"`, `,"aud":["` + otherClient + `","` + testClient + `"]`, `,"aud":["` + testClient + `"]`},
		{``, `,"Aud":"` + otherClient + `"`, `,"A\u0055D":["` + otherClient + `"]`},
		{``, `,"azp":"` + otherClient + `"`, `,"azp":"` + testClient + `"`, `,"azp":null`},
		{``, `,"Azp":"` + otherClient + `"`, `,"AZP":null`},
	} {
		var longer []string
		for _, claims := range all {
			for _, c := range choice {
				longer = append(longer, claims+c)
			}
		}
		all = longer
	}
	return all
}

func receive(t *testing.T, token []byte, read func(*testing.T, []byte) map[string]any) received {
	t.Helper()
	parts := bytes.Split(token, []byte("."))
	var header struct{ Typ string }
	text, err := base64.RawURLEncoding.DecodeString(string(parts[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &header); err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil {
		t.Fatal(err)
	}
	return received{header.Typ, read(t, payload)}
}
