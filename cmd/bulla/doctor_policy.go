package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/encrypter"
	"github.com/bulla-project/bulla/server/issuer"
)

// longestGenerated is the longest RSA key that "client generate" makes, in
// bits.
const longestGenerated = 4096

// policies tells what each issuer allows, by the tables of algorithms.
func (d *doctor) policies(context.Context) []finding {
	issuers, err := newIssuers(d.cfg)
	if err != nil {
		return []finding{{Check: "policy", Subject: "issuers", Outcome: failed, Detail: err.Error(), Advice: "correct the policy"}}
	}
	var found []finding
	for _, i := range issuers.All() {
		found = append(found, policyOf(i)...)
	}
	return found
}

func policyOf(i *issuer.Issuer) []finding {
	found := []finding{{
		Check: "policy", Subject: i.Name(), Outcome: good,
		Detail: fmt.Sprintf("signs with %s; encrypts with %s, %s; RSA keys of clients have %d to %d bits",
			namesOrNumber(i.Signing(), "algorithm"), namesOrNumber(i.Encryption(), "key management algorithm"),
			namesOrNumber(i.ContentEncryption(), "content encryption"), i.MinRSABits(), i.MaxRSABits()),
	}}
	var legacy, instead []string
	for _, alg := range i.Encryption() {
		if alg.Legacy() {
			legacy, instead = append(legacy, string(alg)), append(instead, string(betterThan(alg))+" for "+string(alg))
		}
	}
	for _, enc := range i.ContentEncryption() {
		if enc.Legacy() {
			legacy, instead = append(legacy, string(enc)), append(instead, string(betterContent())+" for "+string(enc))
		}
	}
	if len(legacy) > 0 {
		found = append(found, finding{
			Check: "policy", Subject: i.Name(), Outcome: warned,
			Detail: "allows " + strings.Join(legacy, " and ") + " to clients that are registered as legacy, whose tokens are less well protected",
			Advice: "move those clients (the metric bulla_legacy_tokens_total counts what they still use) to " + strings.Join(instead, " and ") + ", then take these names and legacy: true out of the policy",
		})
	}
	if i.MinRSABits() > longestGenerated {
		found = append(found, finding{
			Check: "policy", Subject: i.Name(), Outcome: warned,
			Detail: fmt.Sprintf("min_rsa_bits is above the %d bits that \"client generate\" makes at most", longestGenerated),
			Advice: "lower it, or let clients generate keys on a curve, or bring RSA keys of their own",
		})
	}
	return found
}

// betterThan is the algorithm to use in place of a legacy one, with the same
// key: the first in the table.
func betterThan(old encrypter.KeyAlgorithm) encrypter.KeyAlgorithm {
	for _, alg := range encrypter.KeyAlgorithms() {
		if !alg.Legacy() && slices.ContainsFunc(alg.KeyTypes(), func(kty string) bool { return slices.Contains(old.KeyTypes(), kty) }) {
			return alg
		}
	}
	return ""
}

// betterContent is the content encryption to use in place of a legacy one: the
// first in the table.
func betterContent() encrypter.ContentEncryption {
	for _, enc := range encrypter.ContentEncryptions() {
		if !enc.Legacy() {
			return enc
		}
	}
	return ""
}

// namesOrNumber lists a few names, or says how many they are.
func namesOrNumber[T ~string](names []T, one string) string {
	const few = 4
	if len(names) > few {
		return plural(len(names), one)
	}
	var list []string
	for _, name := range names {
		list = append(list, string(name))
	}
	return strings.Join(list, ", ")
}
