package server

import (
	"errors"

	"github.com/bulla-project/bulla/server/authz"
	"github.com/bulla-project/bulla/server/issuer"
)

// findIssuer resolves an issuer's name. Which issuers there are is nothing for
// a caller that no grant names.
func findIssuer(issuers *issuer.Directory, authorizer Authorizer, caller, name string) (*issuer.Issuer, error) {
	found, unknown := issuers.Find(name)
	if unknown == nil {
		return found, nil
	}
	err := authorizer.AllowSome(caller, authz.ReadSigningKeys, name)
	if errors.Is(err, authz.ErrCallerUnknown) {
		return nil, err
	}
	return nil, unknown
}
