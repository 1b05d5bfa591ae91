package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/kms"
	"github.com/bulla-project/bulla/kms/pkcs11"
	"github.com/bulla-project/bulla/server/config"
)

// keyToCreate is what the command was asked for.
type keyToCreate struct {
	file    string
	backend string
	label   string
	spec    kms.KeySpec
	timeout time.Duration
	output  string
}

func keyCreateCommand() *cobra.Command {
	var k keyToCreate
	cmd := &cobra.Command{
		Use:   "create --config FILE --backend NAME --algorithm ALG --label LABEL",
		Short: "Make a signing key in a backend",
		Long: `Make a signing key in a backend of the configuration, and print the location to
list in an issuer's signing_keys.

The private half never leaves the backend: on a PKCS#11 token it is sensitive
and not extractable, and it does nothing but sign. The command asks the backend
itself, not the service, and needs what the service needs for it: the PIN file,
or credentials. The service may be running.

The first key of an algorithm signs at once when it is listed. One that is
listed beside it is published, and waits for "bulla key rotate" or the schedule.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error { return k.create(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&k.file, "config", "bulla.yaml", "the configuration")
	f.StringVar(&k.backend, "backend", "", "the backend's name in the configuration")
	f.StringVar((*string)(&k.spec.Algorithm), "algorithm", "", "the JWS algorithm that the key will sign with, such as ES256")
	f.IntVar(&k.spec.RSABits, "rsa-bits", 0, "length of an RSA key: 2048, 3072 or 4096 (default 2048)")
	f.StringVar(&k.label, "label", "", "the key's label: letters, digits, dots, dashes and underscores")
	f.DurationVar(&k.timeout, "timeout", time.Minute, "how long the backend may take")
	outputFlag(cmd, &k.output)
	return cmd
}

// check reads the configuration and holds the flags against it.
func (k *keyToCreate) check() (*config.Config, error) {
	cfg, err := config.Load(k.file)
	if err != nil {
		return nil, err
	}
	var all error
	wrong := func(format string, args ...any) { all = errors.Join(all, fmt.Errorf(format, args...)) }
	names := strings.Join(sortedKeys(cfg.Backends), ", ")
	if k.backend == "" {
		wrong("--backend is missing: give one of %s", names)
	} else if _, ok := cfg.Backends[k.backend]; !ok {
		wrong("there is no backend %q in %s: give one of %s", k.backend, k.file, names)
	}
	if k.spec.Algorithm == "" {
		wrong("--algorithm is missing: give one of %v", kms.Algorithms())
	} else if err := k.spec.Check(); err != nil {
		wrong("%w", err)
	}
	if k.label == "" {
		wrong("--label is missing: give the key a name to know it by")
	} else if err := kms.CheckTag(k.label); err != nil {
		wrong("--label: %w", err)
	}
	return cfg, all
}

// create makes the key, unless there is one of its label: a command that is
// run twice must not leave a key that nobody asked for.
func (k *keyToCreate) create(cmd *cobra.Command) (err error) {
	cfg, err := k.check()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), k.timeout)
	defer cancel()
	open, err := openBackends(ctx, cfg, map[string]bool{k.backend: true}, commandLog(cmd))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, open.Close()) }()
	backend := open.byName[k.backend]
	creator, ok := backend.(kms.Creator)
	if !ok {
		return fmt.Errorf("backend %s makes no keys: make one with its own tools", k.backend)
	}
	if err := k.mustBeNew(ctx, backend, creator); err != nil {
		return err
	}
	ref, err := creator.CreateKey(ctx, k.spec, k.label)
	if err != nil {
		return fmt.Errorf("backend %s: make a key: %w; should it have come to be all the same, this command run again says so", k.backend, err)
	}
	if _, err := backend.OpenKey(ctx, ref, k.spec.Algorithm); err != nil {
		return fmt.Errorf("the key was made and is at %s:%s, but cannot be used: %w", k.backend, ref, err)
	}
	return k.print(cmd, k.backend+":"+ref)
}

// mustBeNew refuses a label that a key has already, whoever made it: on a token
// a second one would make every reference by the label alone ambiguous, and
// with it the key that is in use.
func (k *keyToCreate) mustBeNew(ctx context.Context, backend kms.Backend, creator kms.Creator) error {
	taken := func(how string) error {
		return fmt.Errorf("backend %s has a key labeled %s already%s, and nothing was made: choose another label", k.backend, k.label, how)
	}
	there, err := creator.FindKeys(ctx, k.label)
	switch {
	case err != nil:
		return fmt.Errorf("backend %s: look for keys labeled %s: %w", k.backend, k.label, err)
	case len(there) > 0:
		return taken(fmt.Sprintf(" (list it as %s:%s)", k.backend, there[0]))
	}
	token, ok := backend.(*pkcs11.Backend)
	if !ok {
		return nil // made keys have names of their own there
	}
	byLabel := "object=" + k.label
	_, signs := token.OpenKey(ctx, byLabel, k.spec.Algorithm)
	_, wraps := token.OpenWrapper(ctx, byLabel)
	for _, err := range []error{signs, wraps} {
		switch {
		case errors.Is(err, kms.ErrKeyNotFound):
		case errors.Is(err, kms.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			return fmt.Errorf("backend %s: look for keys labeled %s: %w", k.backend, k.label, err)
		default: // it opens, or is there and of another kind
			return taken("")
		}
	}
	return nil
}

// print shows where the key is, as the configuration writes it.
func (k *keyToCreate) print(cmd *cobra.Command, location string) error {
	if k.output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetEscapeHTML(false)
		return e.Encode(struct {
			Algorithm kms.Algorithm `json:"algorithm"`
			Location  string        `json:"location"`
		}{k.spec.Algorithm, location})
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Made a key for %s. List it in an issuer's signing_keys:\n", k.spec.Algorithm)
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "- {algorithm: %s, keys: [%q]}\n", k.spec.Algorithm, location)
	return err
}
