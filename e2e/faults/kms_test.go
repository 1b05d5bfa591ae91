package faults

import (
	"time"

	"github.com/bulla-project/bulla/e2e/harness"
	"github.com/bulla-project/bulla/kms/awskms/awsfault"
)

// newCloudRig is a service whose keys, the wrapping key too, are in AWS KMS:
// here an endpoint of our own that really signs.
func newCloudRig(r *rig) {
	t := r.t
	endpoint, err := awsfault.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoint.Close)
	newKey := func(spec string) string {
		arn, err := endpoint.NewKey(spec)
		if err != nil {
			t.Fatal(err)
		}
		return "key-id=" + arn
	}
	r.cloud = endpoint
	r.expected = []string{"SIGNING_KEY_UNAVAILABLE", "SIGNING_THROTTLED", "DEADLINE_EXCEEDED"}
	r.Service = harness.New(t, harness.Config{
		Env:      endpoint.Environ(),
		Wrapping: harness.M{"backend": "aws", "key": newKey("SYMMETRIC_DEFAULT")},
		Issuers: []harness.M{{"name": harness.Issuer, "iss": harness.IssuerURL, "signing_keys": []harness.M{
			{"algorithm": "ES256", "keys": []string{"aws:" + newKey("ECC_NIST_P256")}},
		}}},
		Edit: func(tree harness.M) {
			tree["backends"] = harness.M{"aws": harness.M{"awskms": harness.M{"region": awsfault.Region, "endpoint": endpoint.URL()}}}
		},
	})
}

// ofTheCloud are the faults of AWS KMS.
var ofTheCloud = []fault{
	{
		name: "KMS throttles", most: unlimited, short: time.Second, long: 30 * time.Second,
		what: "three of ten calls of Sign are answered with ThrottlingException; a call is made up to three times",
		do:   answered(awsfault.Fault{Op: "Sign", Share: 0.3, Code: "ThrottlingException"}),
	},
	{
		name: "KMS fails", most: unlimited, short: time.Second, long: 10 * time.Second,
		what: "all calls are answered with KMSInternalException, status 500",
		do:   answered(awsfault.Fault{Code: "KMSInternalException"}),
	},
	{
		name: "KMS stalls", most: unlimited, short: 1500 * time.Millisecond, long: 30 * time.Second,
		what: "all answers come 10 s later; those that are still due when that ends come at once",
		do:   answered(awsfault.Fault{Stall: 10 * time.Second}),
	},
	{
		name: "KMS gone", most: unlimited, short: time.Second, long: 30 * time.Second,
		what: "the endpoint closes all connections, and its port",
		do: func(r *rig) func() {
			r.cloud.Down()
			return func() {
				if err := r.cloud.Up(); err != nil {
					r.t.Error(err)
				}
			}
		},
	},
}

// answered sets a fault, until it ends.
func answered(f awsfault.Fault) func(*rig) func() {
	return func(r *rig) func() {
		r.cloud.Set(f)
		return func() { r.cloud.Set(awsfault.Fault{}) }
	}
}
