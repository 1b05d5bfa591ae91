package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// A key that the service has forgotten must not be lost to a full disk.
func TestPrivateKeyThatCannotBeWrittenIsPrinted(t *testing.T) {
	const jwk = `{"kty":"OKP","d":"private"}`
	for name, tc := range map[string]struct {
		hand func(*privateKeyOutput) error
		want string
	}{
		"text": {func(o *privateKeyOutput) error { return o.write([]byte(jwk)) }, jwk + "\n"},
		"json": {
			func(o *privateKeyOutput) error {
				return o.printJSON(&bullav1.GenerateClientKeyResponse{PrivateJwk: []byte(jwk)})
			},
			`{"client_key":{},"private_jwk":` + jwk + "}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			cmd := &cobra.Command{}
			cmd.SetOut(&out)
			cmd.SetErr(&errOut)
			o, err := newPrivateKeyOutput(cmd, filepath.Join(t.TempDir(), "key"))
			if err != nil {
				t.Fatal(err)
			}
			if err := o.file.Close(); err != nil { // stands for a disk that takes nothing
				t.Fatal(err)
			}
			if err := tc.hand(o); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("got %q, want %q", out.String(), tc.want)
			}
			if s := errOut.String(); !strings.Contains(s, "could not be written to "+o.path) || !strings.Contains(s, "WARNING") || strings.Contains(s, jwk) {
				t.Errorf("got on standard error %q", s)
			}
			_ = o.discard() // it was closed above
			if _, err := os.Stat(o.path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file that holds no key is still there (%v)", err)
			}
		})
	}
}

func TestFailedCallMayHaveArrived(t *testing.T) {
	for text, tc := range map[string]struct {
		code codes.Code
		want bool
	}{
		"context deadline exceeded":      {codes.DeadlineExceeded, true},
		"context canceled":               {codes.Canceled, true},
		"error reading from server: EOF": {codes.Unavailable, true},
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: {codes.Unavailable, false},
		"name resolver error: produced zero addresses":                                                                 {codes.Unavailable, false},
		"not allowed": {codes.PermissionDenied, false},
	} {
		if got := mayHaveArrived(status.Error(tc.code, text)); got != tc.want {
			t.Errorf("%s: got %v, want %v", text, got, tc.want)
		}
	}
	if mayHaveArrived(errors.New("no such file")) {
		t.Error("an error of this machine: got true, want false")
	}
}
