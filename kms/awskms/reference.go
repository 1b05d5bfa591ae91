package awskms

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/bulla-project/bulla/kms"
)

const refPrefix = "key-id="

// What KMS calls a key: an id (a UUID, or that of a multi-Region key) or an
// alias. Both may stand alone or as the resource of an ARN.
var (
	keyID     = regexp.MustCompile(`^(?:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|mrk-[0-9a-fA-F]{32})$`)
	aliasName = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]{1,250}$`)
)

// parseReference returns the KeyId parameter that ref stands for. What KMS
// would not accept is found here, when the configuration is read, and so is a
// key of another region than the backend's. Errors wrap kms.ErrReference.
func parseReference(ref, region string) (string, error) {
	id, ok := strings.CutPrefix(ref, refPrefix)
	if !ok {
		return "", fmt.Errorf("%w: %q: an AWS KMS key is referred to as key-id=ID, where ID is a key id, an alias (alias/NAME) or the ARN of either", kms.ErrReference, ref)
	}
	name := id
	if arn.IsARN(id) {
		a, err := arn.Parse(id)
		if err != nil || a.Service != "kms" {
			return "", fmt.Errorf("%w: %q is not the ARN of a KMS key or alias", kms.ErrReference, id)
		}
		if a.Region != region {
			return "", fmt.Errorf("%w: %q is in region %q and this backend in %q: configure a backend for that region", kms.ErrReference, id, a.Region, region)
		}
		name = a.Resource
		if key, isKey := strings.CutPrefix(a.Resource, "key/"); isKey {
			name = key
		} else if keyID.MatchString(name) {
			name = "" // an id without "key/" before it
		}
	}
	if !keyID.MatchString(name) && !aliasName.MatchString(name) {
		return "", fmt.Errorf("%w: %q is not a key id, an alias (alias/NAME) or the ARN of either", kms.ErrReference, id)
	}
	return id, nil
}

// isAlias reports whether KMS would look id up anew at each call.
func isAlias(id string) bool {
	a, err := arn.Parse(id)
	if err != nil {
		return strings.HasPrefix(id, "alias/")
	}
	return strings.HasPrefix(a.Resource, "alias/")
}
