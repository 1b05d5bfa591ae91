package signer

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/kms"
)

// Package client has a table of kinds of its own, because those who open tokens must
// not depend on the code that makes them. It has to refuse, claim by claim, what is
// refused here, and to open everything else.
func TestClientsRefuseTheClaimsThatAreNotIssued(t *testing.T) {
	key := newSigningKey(t, newSoftKey(t, kms.ES256), Options{})
	jwk, err := PublicJWK(key.Public(), kms.ES256)
	if err != nil {
		t.Fatal(err)
	}
	signers, err := client.ParseSigners(jwk)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(client.TokenKinds()), len(kinds); got != want {
		t.Errorf("clients know %d kinds, want %d", got, want)
	}
	for kind, own := range kindClaims {
		opener, err := client.NewOpener(client.OpenConfig{
			Signers: signers, AllowUnencrypted: true, Kind: client.TokenKind(kind), Clock: func() time.Time { return testNow },
		})
		if err != nil {
			t.Fatal(err)
		}
		good := mustPrepare(t, request(kind, own), kms.ES256)
		// openWith is the error of a client about a token with another claim.
		openWith := func(member string) error {
			p := *good
			p.json = []byte(strings.TrimSuffix(string(good.json), "}") + member + "}")
			token, err := Sign(t.Context(), key, &p)
			if err != nil {
				t.Fatal(err)
			}
			_, err = opener.Open(string(token))
			return err
		}
		if err := openWith(""); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		var present map[string]json.RawMessage
		if err := json.Unmarshal(good.json, &present); err != nil {
			t.Fatal(err)
		}
		for c := range claimCount {
			for _, name := range []string{c.name(), strings.ToUpper(c.name())} {
				if present[name] != nil {
					continue
				}
				member := `,"` + name + `":` + goodValue(c)
				_, err := Prepare(request(kind, strings.TrimSuffix(own, "}")+member+"}"), kms.ES256, testNow)
				if opened := openWith(member); (opened == nil) != (err == nil) {
					t.Errorf("%s with %s: issued with error %v, and opened with error %v", kind, name, err, opened)
				}
			}
		}
	}
}

// goodValue is a value that a claim may have, where it may be at all.
func goodValue(c claim) string {
	switch claimTable[c].form {
	case formDate:
		return sec(30)
	case formTexts:
		return `["x"]`
	case formObject:
		return `{}`
	}
	switch c {
	case claimISS:
		return `"` + testISS + `"`
	case claimAUD, claimAZP, claimClientID:
		return `"` + testClient + `"`
	}
	return `"x"`
}
