package awskms

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// policy is an IAM policy or a key policy.
type policy struct {
	Version   string
	Statement []struct {
		Sid, Effect         string
		Action              []string
		Principal, Resource any
		Condition           map[string]map[string]any
	}
}

// The page's policies allow what the client interface calls, each in its place,
// and nothing else.
func TestPoliciesOfThePageAreTheCallsOfTheClient(t *testing.T) {
	page, err := os.ReadFile("../../docs/backends/awskms.md")
	if err != nil {
		t.Fatal(err)
	}
	granted := map[string][]string{} // by statement
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(page, -1) {
		var p policy
		decoder := json.NewDecoder(strings.NewReader(string(block[1])))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&p); err != nil {
			t.Fatalf("a policy that does not parse: %v\n%s", err, block[1])
		}
		if p.Version != "2012-10-17" {
			t.Errorf("a policy of version %q", p.Version)
		}
		for _, s := range p.Statement {
			if s.Effect != "Allow" || s.Resource == nil {
				t.Errorf("%s: effect %q, resource %v", s.Sid, s.Effect, s.Resource)
			}
			if s.Sid == "AdministratorsManage" {
				if slices.Contains(s.Action, "kms:Sign") {
					t.Error("administrators may sign")
				}
				continue // people, not Bulla
			}
			if was, seen := granted[s.Sid]; seen && !slices.Equal(was, s.Action) {
				t.Errorf("%s allows %v and %v", s.Sid, was, s.Action)
			}
			granted[s.Sid] = s.Action
		}
	}
	want := map[string][]string{
		"BullaSigns":              {"kms:GetPublicKey", "kms:Sign"},
		"BullaWraps":              {"kms:Encrypt", "kms:Decrypt"},
		"BullaCreatesSigningKeys": {"kms:CreateKey", "kms:TagResource"},
		"BullaListsKeys":          {"kms:ListKeys"},
		"BullaFindsItsKeys":       {"kms:ListResourceTags", "kms:DescribeKey"},
		"BullaSignsWithItsKeys":   {"kms:GetPublicKey", "kms:Sign"},
	}
	if !reflect.DeepEqual(granted, want) {
		t.Errorf("the page allows %v, want %v", granted, want)
	}

	calls := []string{"kms:TagResource"} // the tag that CreateKey sets
	for i := range reflect.TypeFor[client]().NumMethod() {
		calls = append(calls, "kms:"+reflect.TypeFor[client]().Method(i).Name)
	}
	var all []string
	for _, actions := range granted {
		all = append(all, actions...)
	}
	slices.Sort(calls)
	slices.Sort(all)
	if all = slices.Compact(all); !slices.Equal(all, calls) {
		t.Errorf("the page allows %v, the client calls %v", all, calls)
	}
}

// What the page says of names and numbers is what the code has.
func TestPageSaysWhatTheCodeDoes(t *testing.T) {
	page, err := os.ReadFile("../../docs/backends/awskms.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{tagName, contextName, "at most 4096 bytes", "About 2900 bytes", "at most 200 a second", "never more than 2 s"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if maxRaw != 4096 || fittingClaims != 2900 || lookupRate != 200 || attemptLimit.Seconds() != 2 {
		t.Error("a number has changed: change the page and this test")
	}
	for alg := range signingAlgorithms {
		if !strings.Contains(string(page), string(alg)) {
			t.Errorf("the page does not mention %s", alg)
		}
	}
}
