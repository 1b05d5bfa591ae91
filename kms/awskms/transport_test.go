package awskms

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// closedBody cannot be read once it is closed.
type closedBody struct {
	io.Reader
	closed bool
}

func (b *closedBody) Read(p []byte) (int, error) {
	if b.closed {
		return 0, errors.New("read after close")
	}
	return b.Reader.Read(p)
}

func (b *closedBody) Close() error {
	b.closed = true
	return nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestRequestBodyOutlivesTheCallersClose(t *testing.T) {
	given := &closedBody{Reader: strings.NewReader("digest")}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://kms.example.com/", given)
	if err != nil {
		t.Fatal(err)
	}
	_, err = wholeBody{roundTripper(func(sent *http.Request) (*http.Response, error) {
		given.Close() // as the SDK does while the transport is still at work
		again, err := sent.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		for name, body := range map[string]io.Reader{"Body": sent.Body, "GetBody": again} {
			if got, err := io.ReadAll(body); err != nil || string(got) != "digest" {
				t.Errorf("%s: read %q and error %v", name, got, err)
			}
		}
		return &http.Response{Body: http.NoBody}, nil
	})}.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if !given.closed {
		t.Error("the caller's body was not closed")
	}
}
