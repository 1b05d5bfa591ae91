// Package check holds the Kubernetes manifests to their types and to what
// docs/deploy.md promises of them. It renders every overlay as "kubectl apply -k"
// would, decodes each document strictly into the type of the API that it names,
// so that a misspelled field is an error and not a default, and looks whether the
// parts agree: selectors with labels, ports with ports, the configuration with
// the files that are mounted for it, and all of it with the rules for a pod that
// cannot harm its node.
//
// It is a module of its own, so that the types of Kubernetes are no dependencies
// of the service, and holds nothing but tests.
package check
