package awskms_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/awskms/awsfault"
)

var es256 = kms.KeySpec{Algorithm: kms.ES256}

// Creating while things go wrong: never two keys for one call, and a key that
// came to be is found by its tag.
func TestFaultsOfCreating(t *testing.T) {
	for _, tt := range []struct {
		name     string
		fault    awsfault.Fault
		deadline time.Duration // default: 5 s
		want     error         // nil: a key
		made     int           // keys there are afterwards; -1: AWS may have gone on or not
		asked    int           // CreateKey calls
		says     string
	}{
		{name: "nothing", made: 1, asked: 1},
		{name: "answer lost", fault: awsfault.Fault{Op: "CreateKey", Lose: true}, want: kms.ErrUnavailable, made: 1, asked: 1, says: "may have been made"},
		{name: "connection reset", fault: awsfault.Fault{Op: "CreateKey", Reset: true}, want: kms.ErrUnavailable, asked: 1, says: "may have been made"},
		{name: "500", fault: awsfault.Fault{Op: "CreateKey", Code: "KMSInternalException"}, want: kms.ErrUnavailable, asked: 1, says: "may have been made"},
		{name: "stalled", fault: awsfault.Fault{Op: "CreateKey", Stall: 10 * time.Second}, deadline: 200 * time.Millisecond, want: context.DeadlineExceeded, made: -1, asked: 1, says: "may have been made"},
		{name: "throttled once", fault: awsfault.Fault{Op: "CreateKey", Code: "ThrottlingException", Times: 1}, made: 1, asked: 2},
		{name: "too many keys", fault: awsfault.Fault{Op: "CreateKey", Code: "LimitExceededException"}, want: kms.ErrKeyDisabled, asked: 1, says: "quota"},
		{name: "denied", fault: awsfault.Fault{Op: "CreateKey", Code: "AccessDeniedException"}, want: kms.ErrKeyDisabled, asked: 1, says: "kms:CreateKey"},
		{name: "Region without such keys", fault: awsfault.Fault{Op: "CreateKey", Code: "UnsupportedOperationException"}, want: kms.ErrKeyMismatch, asked: 1, says: "Region"},
		{name: "not to be seen yet", fault: awsfault.Fault{Op: "GetPublicKey", Code: "NotFoundException", Times: 2}, made: 1, asked: 1},
		{name: "its tags allow nothing yet", fault: awsfault.Fault{Op: "GetPublicKey", Code: "AccessDeniedException", Times: 1}, made: 1, asked: 1},
		{name: "still being created", fault: awsfault.Fault{Op: "GetPublicKey", Code: "KMSInvalidStateException", Times: 1}, made: 1, asked: 1},
		{name: "never to be seen", fault: awsfault.Fault{Op: "GetPublicKey", Code: "NotFoundException"}, deadline: 500 * time.Millisecond, want: context.DeadlineExceeded, made: 1, asked: 1, says: "was created"},
		{name: "may not be used", fault: awsfault.Fault{Op: "GetPublicKey", Code: "AccessDeniedException"}, deadline: 500 * time.Millisecond, want: kms.ErrKeyDisabled, made: 1, asked: 1, says: "kms:GetPublicKey"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEndpoint(t)
			b := newBackend(t, e.URL())
			if err := b.Check(t.Context()); err != nil { // there is an idle connection
				t.Fatal(err)
			}
			e.Set(tt.fault)
			if tt.deadline == 0 {
				tt.deadline = 5 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
			defer cancel()
			ref, err := b.CreateKey(ctx, es256, "login.1")
			if tt.want == nil && err != nil {
				t.Fatal(err)
			}
			if tt.want != nil {
				wantError(t, "CreateKey", err, tt.want)
				if ref != "" {
					t.Errorf("got %q beside the error", ref)
				}
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q does not mention %q", err, tt.says)
			}
			if got := e.Calls("CreateKey"); got != tt.asked {
				t.Errorf("CreateKey was sent %d times, want %d", got, tt.asked)
			}
			e.Set(awsfault.Fault{})
			found, err := b.FindKeys(t.Context(), "login.1")
			if err != nil || tt.made >= 0 && len(found) != tt.made {
				t.Errorf("afterwards there are %q, %v; want %d keys", found, err, tt.made)
			}
			if tt.want == nil && !slices.Equal(found, []string{ref}) {
				t.Errorf("found %q, want %q", found, ref)
			}
		})
	}
}

func TestKeysOutOfUseAreNotFound(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	var refs []string
	for range 4 {
		ref, err := b.CreateKey(t.Context(), es256, "login.1")
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	for i, state := range []string{awsfault.Disabled, awsfault.PendingDeletion, awsfault.Creating} {
		if err := e.SetState(strings.TrimPrefix(refs[i], "key-id="), state); err != nil {
			t.Fatal(err)
		}
	}
	want := slices.Sorted(slices.Values(refs[2:]))
	if got, err := b.FindKeys(t.Context(), "login.1"); err != nil || !slices.Equal(got, want) {
		t.Errorf("found %q, %v; want %q", got, err, want)
	}
}

// An account with more keys than a page holds, AWS's own among them.
func TestOneKeyAmongThousandsIsFound(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	b.SetLookupRate(0)
	if err := e.NewAWSManagedKeys(30); err != nil {
		t.Fatal(err)
	}
	for range 1100 {
		newRef(t, e, "ECC_NIST_EDWARDS25519")
	}
	ref, err := b.CreateKey(t.Context(), es256, "login.1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.FindKeys(t.Context(), "login.1")
	if err != nil || !slices.Equal(got, []string{ref}) {
		t.Errorf("found %q, %v; want %q", got, err, ref)
	}
	for op, want := range map[string]int{"ListKeys": 2, "ListResourceTags": 1131, "DescribeKey": 31} {
		if got := e.Calls(op); got != want {
			t.Errorf("%s was asked %d times, want %d", op, got, want)
		}
	}
}

func TestLookingForKeysKeepsToItsRate(t *testing.T) {
	e := newEndpoint(t)
	b := newBackend(t, e.URL())
	b.SetLookupRate(100)
	for range 29 {
		newRef(t, e, "ECC_NIST_EDWARDS25519")
	}
	start := time.Now()
	if _, err := b.FindKeys(t.Context(), "login.1"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 190*time.Millisecond {
		t.Errorf("30 calls took %v; at 100 a second, 10 of them at once, they take 200ms", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.FindKeys(ctx, "login.1"); err == nil {
		t.Error("looking for keys outlived its deadline")
	}
}

// A key must not be overlooked because a permission is missing.
func TestLookingForKeysWithoutPermissionIsNoAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		customer, managed int
		fault             awsfault.Fault
		want              error
		says              string
	}{
		"an empty account":              {},
		"AWS's own keys only":           {managed: 3},
		"tags of keys may not be read":  {customer: 2, managed: 1, fault: awsfault.Fault{Op: "ListResourceTags", Code: "AccessDeniedException"}, want: kms.ErrKeyDisabled, says: "kms:ListResourceTags"},
		"keys may not be listed":        {customer: 2, fault: awsfault.Fault{Op: "ListKeys", Code: "AccessDeniedException"}, want: kms.ErrKeyDisabled, says: "kms:ListKeys"},
		"one key says nothing":          {customer: 2, fault: awsfault.Fault{Op: "DescribeKey", Code: "AccessDeniedException"}},
		"AWS's own keys say nothing":    {customer: 1, managed: 2, fault: awsfault.Fault{Op: "DescribeKey", Code: "AccessDeniedException"}},
		"none of the keys says a thing": {managed: 2, fault: awsfault.Fault{Op: "DescribeKey", Code: "AccessDeniedException"}, want: kms.ErrKeyDisabled, says: "kms:DescribeKey"},
		"throttled":                     {customer: 1, fault: awsfault.Fault{Op: "ListResourceTags", Code: "ThrottlingException"}, want: kms.ErrThrottled},
		"deleted meanwhile":             {customer: 2, fault: awsfault.Fault{Op: "ListResourceTags", Code: "NotFoundException", Times: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEndpoint(t)
			for range tt.customer {
				newRef(t, e, "ECC_NIST_EDWARDS25519")
			}
			if err := e.NewAWSManagedKeys(tt.managed); err != nil {
				t.Fatal(err)
			}
			e.Set(tt.fault)
			found, err := newBackend(t, e.URL()).FindKeys(t.Context(), "login.1")
			if tt.want == nil && (err != nil || len(found) != 0) {
				t.Errorf("found %q, %v", found, err)
			}
			if tt.want != nil {
				wantError(t, "FindKeys", err, tt.want)
				if err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%q does not mention %q", err, tt.says)
				}
			}
		})
	}
}
