package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// maxHeaderBytes bounds the status line and headers of an answer.
	maxHeaderBytes = 32 << 10
	// maxValidator is the longest ETag that is kept, in bytes.
	maxValidator = 512
)

// Request says what to fetch.
type Request struct {
	// URI is the jwks_uri as it was registered.
	URI string
	// ETag and LastModified are the validators of the document the caller
	// has; empty for an unconditional request (RFC 9110, section 13.1).
	ETag         string
	LastModified string
}

// Response is a key set, or the word that the one the caller has still holds.
type Response struct {
	// NotModified is true for a 304: Document is empty, the caller's holds.
	NotModified bool
	// Document is the body of a 200, byte for byte and not yet looked into.
	Document []byte
	// ETag and LastModified are the validators to send next time: those of
	// the answer, or after a 304 without any, those of the request.
	ETag         string
	LastModified string
	// Freshness is how long the answer says it may be used.
	Freshness Freshness
}

// Get fetches a key set. It asks once: retries are for the caller to plan.
//
// An error wraps ErrURI if the URL is refused by its text, and is else a
// *Failure that wraps ErrFetch. If the caller has given up, it wraps
// context.Canceled too; that time has run out it says by its class, for the
// time may be ours (Config.Timeout) or the caller's.
func (c *Client) Get(ctx context.Context, req Request) (*Response, error) {
	t, err := c.parse(req.URI)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	resp, err := c.get(ctx, t, req)
	attrs := []slog.Attr{
		slog.String("host", t.url.Host), // path and query may mean something to their owner
		slog.Duration("took", time.Since(start)),
	}
	if err != nil {
		// The caller logs the failure in full, where it knows what it meant.
		var f *Failure
		if errors.As(err, &f) {
			attrs = append(attrs, slog.String("failure", string(f.Class)))
		}
	} else {
		attrs = append(attrs, slog.Bool("not_modified", resp.NotModified), slog.Int("bytes", len(resp.Document)))
	}
	c.log.LogAttrs(ctx, slog.LevelDebug, "fetched jwks_uri", attrs...)
	return resp, err
}

func (c *Client) get(ctx context.Context, t *target, req Request) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	release, err := c.limits.acquire(ctx, t.host)
	if err != nil {
		class := ClassBusy
		if errors.Is(err, context.Canceled) {
			class = ClassCanceled
		}
		return nil, &Failure{Class: class, Cause: fmt.Errorf("waiting for a turn: %w", err)}
	}
	defer release()

	conn, err := c.connect(ctx, t)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()

	resp, err := exchange(ctx, conn, t, req)
	if err != nil {
		return nil, failure(ctx, ClassProtocol, err)
	}
	defer func() { _ = resp.Body.Close() }()
	return c.read(ctx, resp, req)
}

// exchange sends the request over conn and returns the answer's head. The
// transport serves this one request: it knows no proxy, no cookies, no other
// connection, and RoundTrip follows no redirect.
func exchange(ctx context.Context, conn net.Conn, t *target, req Request) (*http.Response, error) {
	hr, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	hr.Header.Set("Accept", "application/jwk-set+json, application/json")
	// Asking for identity, and refusing anything else, leaves no room for a
	// small answer that unpacks into a large one.
	hr.Header.Set("Accept-Encoding", "identity")
	hr.Header.Set("User-Agent", "bulla")
	if etag := validETag(req.ETag); etag != "" {
		hr.Header.Set("If-None-Match", etag)
	}
	if modified := validDate(req.LastModified); modified != "" {
		hr.Header.Set("If-Modified-Since", modified)
	}

	handed := make(chan net.Conn, 1)
	handed <- conn
	hand := func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-handed:
			return c, nil
		default:
			return nil, errors.New("a second connection is refused")
		}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	tr := &http.Transport{
		DialContext:            hand,
		DialTLSContext:         hand,
		Protocols:              protocols,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return tr.RoundTrip(hr)
}

// read turns the answer into a Response, or into the failure it is.
func (c *Client) read(ctx context.Context, resp *http.Response, req Request) (*Response, error) {
	fail := func(class Class, format string, args ...any) (*Response, error) {
		return nil, &Failure{Class: class, Cause: fmt.Errorf(format, args...)}
	}
	conditional := validETag(req.ETag) != "" || validDate(req.LastModified) != ""
	out := &Response{
		ETag:         validETag(resp.Header.Get("ETag")),
		LastModified: validDate(resp.Header.Get("Last-Modified")),
		Freshness:    freshness(resp.Header, time.Now()),
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotModified && conditional:
		out.NotModified = true
		if out.ETag == "" && out.LastModified == "" {
			out.ETag, out.LastModified = req.ETag, req.LastModified
		}
		return out, nil
	case code == http.StatusNotModified:
		return fail(statusClass(code), "304 Not Modified to a request without a condition")
	case code >= 300 && code < 400:
		return fail(ClassRedirect, "status %d; redirects are not followed, register the URL they lead to", code)
	case code != http.StatusOK:
		return fail(statusClass(code), "status %d", code)
	}

	if enc := strings.Join(resp.Header.Values("Content-Encoding"), ", "); enc != "" && !strings.EqualFold(enc, "identity") {
		return fail(ClassContentEncoding, "Content-Encoding %.40q; the set must be sent as it is", enc)
	}
	if ct := resp.Header.Get("Content-Type"); !plausibleType(ct) {
		return fail(ClassContentType, "Content-Type %.80q; serve the set as application/jwk-set+json or application/json", ct)
	}
	if resp.ContentLength > c.maxBytes {
		return fail(ClassTooLarge, "Content-Length %d; at most %d bytes are read", resp.ContentLength, c.maxBytes)
	}
	doc, err := io.ReadAll(io.LimitReader(resp.Body, c.maxBytes+1))
	if err != nil {
		return nil, failure(ctx, ClassProtocol, fmt.Errorf("reading the body: %w", err))
	}
	if int64(len(doc)) > c.maxBytes {
		return fail(ClassTooLarge, "the body is longer than the %d bytes that are read", c.maxBytes)
	}
	out.Document = doc
	return out, nil
}

// plausibleType reports whether a body of this media type may be a JWK Set.
// RFC 7517, section 8.5 registers application/jwk-set+json; most hosts say
// application/json, and file and object stores say text/plain, some octet
// stream, or nothing. Those pass, since the document is parsed strictly
// anyway. What the check is for is the web page that a wrong URL gives with a
// status of 200: named as such it is easier to understand than as bad JSON.
func plausibleType(contentType string) bool {
	if contentType == "" {
		return true
	}
	mt, _, err := mime.ParseMediaType(contentType)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return false
	}
	switch mt {
	case "application/json", "text/json", "text/plain", "application/octet-stream", "binary/octet-stream":
		return true
	}
	return strings.HasPrefix(mt, "application/") && strings.HasSuffix(mt, "+json")
}

// validETag returns s if it is an entity tag (RFC 9110, section 8.8.3) in
// ASCII and of reasonable length, else "". It comes from a stranger and goes
// back to it.
func validETag(s string) string {
	tag := strings.TrimPrefix(s, "W/")
	if len(s) > maxValidator || len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return ""
	}
	for _, b := range []byte(tag[1 : len(tag)-1]) {
		if b < 0x21 || b == '"' || b > 0x7e {
			return ""
		}
	}
	return s
}

// validDate returns s if it is a date as HTTP writes it, else "".
func validDate(s string) string {
	if _, err := http.ParseTime(s); err != nil {
		return ""
	}
	return s
}
