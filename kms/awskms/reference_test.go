package awskms

import (
	"errors"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

func TestReferenceFormsOfKMSAreUnderstood(t *testing.T) {
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, want := range []string{
		id,
		strings.ToUpper(id),
		"mrk-1234abcd12ab34cd56ef1234567890ab",
		"alias/login",
		"alias/team/login_es256-1",
		"arn:aws:kms:eu-west-1:111122223333:key/" + id,
		"arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
		"arn:aws-cn:kms:eu-west-1:111122223333:alias/login",
	} {
		if got, err := parseReference("key-id="+want, "eu-west-1"); err != nil || got != want {
			t.Errorf("%q: got %q and error %v", want, got, err)
		}
	}
}

func TestUnreadableReferencesAreRefused(t *testing.T) {
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, ref := range []string{
		"", "key-id=", "key-id= ", id, "arn:aws:kms:eu-west-1:111122223333:key/" + id, "Key-ID=" + id,
		"key-id=" + id + " ", "key-id=" + id + "\n", "key-id=" + id[1:], "key-id=login", "key-id=key/" + id,
		"key-id=alias/", "key-id=alias/a b", "key-id=mrk-" + id,
		"key-id=arn:aws:kms:eu-west-1:111122223333",
		"key-id=arn:aws:kms:eu-west-1:111122223333:",
		"key-id=arn:aws:kms:eu-west-1:111122223333:key/",
		"key-id=arn:aws:kms:eu-west-1:111122223333:key/alias",
		"key-id=arn:aws:kms:eu-west-1:111122223333:" + id,
		"key-id=arn:aws:s3:eu-west-1:111122223333:key/" + id,
		"key-id=arn:aws:kms:us-east-1:111122223333:key/" + id,
	} {
		if got, err := parseReference(ref, "eu-west-1"); !errors.Is(err, kms.ErrReference) {
			t.Errorf("%q: got %q and error %v, want %v", ref, got, err, kms.ErrReference)
		}
	}
}
