package awskms

import (
	"bytes"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
)

// idleConnections is how many connections are kept open for the next
// signatures. A new one costs a TLS handshake, several times a signature's own
// time.
const idleConnections = 64

// newTransport is the SDK's transport, with its time limits and the
// certificates of AWS_CA_BUNDLE, but one that Close can close. It speaks
// HTTP/1.1 only: each call has a connection to itself, so that one that hangs
// holds up one call, and ends with it.
func newTransport(sdk aws.Config) *http.Transport {
	sdkClient, ok := sdk.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		sdkClient = awshttp.NewBuildableClient()
	}
	t := sdkClient.GetTransport()
	t.MaxIdleConnsPerHost = idleConnections
	t.ForceAttemptHTTP2 = false
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return t
}

// wholeBody sends requests whose body is in memory and stays there.
//
// The SDK closes a request's body as soon as the answer begins. On a new
// connection net/http may then still be busy with it, takes that for a broken
// request and closes the connection, and the answer, which was good, is lost:
// "use of closed network connection". Towards a fast endpoint that is one
// connection in twenty. The SDK would try again, a second later.
//
// GetBody lets net/http itself repeat a request that an idle connection, just
// closed by the other side, did not take any more.
type wholeBody struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (w wholeBody) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return w.next.RoundTrip(req)
	}
	body, err := io.ReadAll(req.Body)
	closeErr := req.Body.Close()
	if err != nil {
		return nil, err
	}
	if closeErr != nil {
		return nil, closeErr
	}
	req = req.Clone(req.Context())
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body = io.NopCloser(bytes.NewReader(body))
	return w.next.RoundTrip(req)
}
