package awsfault

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// AWS Signature Version 4 (AWS General Reference, "Signature Version 4 signing
// process"): a request carries an HMAC over a canonical form of itself, under a
// key that is derived from the secret, the date, the Region and the service.
const (
	sigAlgorithm = "AWS4-HMAC-SHA256"
	sigEnd       = "aws4_request"
	sigTime      = "20060102T150405Z"
	sigWindow    = 5 * time.Minute
)

// scope is what a request's signature has to be for.
type scope struct {
	region, service string
	secrets         map[string]string // access key to secret key
}

// checkSignature returns the error that AWS answers to a request whose signature
// is not good for s at the time now.
func checkSignature(r *http.Request, body []byte, s scope, now time.Time) error {
	auth, err := parseAuthorization(r.Header.Get("Authorization"))
	if err != nil {
		return err
	}
	stamp := r.Header.Get("X-Amz-Date")
	signedAt, err := time.Parse(sigTime, stamp)
	if err != nil {
		return incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	for _, name := range auth.unsigned(r) {
		return incomplete("'" + name + "' must be a 'SignedHeader' in the AWS Authorization.")
	}
	secret, known := s.secrets[auth.accessKey]
	if !known {
		return &apiError{code: "UnrecognizedClientException", message: "The security token included in the request is invalid."}
	}
	switch {
	case auth.date != stamp[:8]:
		return wrongSignature("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")
	case auth.region != s.region:
		return wrongSignature("Credential should be scoped to a valid region.")
	case auth.service != s.service:
		return wrongSignature("Credential should be scoped to correct service: '" + s.service + "'.")
	case now.Sub(signedAt) > sigWindow:
		return wrongSignature(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - 5 min.)", stamp, now.UTC().Add(-sigWindow).Format(sigTime), now.UTC().Format(sigTime)))
	case signedAt.Sub(now) > sigWindow:
		return wrongSignature(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + 5 min.)", stamp, now.UTC().Add(sigWindow).Format(sigTime), now.UTC().Format(sigTime)))
	}
	hash := sha256Hex(body)
	if claimed := r.Header.Get("X-Amz-Content-Sha256"); claimed != "" && claimed != hash {
		return wrongSignature("The value of X-Amz-Content-Sha256 does not match the body's hash.")
	}
	request := sha256Hex([]byte(canonicalRequest(r, auth.headers, hash)))
	toSign := strings.Join([]string{sigAlgorithm, stamp, strings.Join([]string{auth.date, auth.region, auth.service, sigEnd}, "/"), request}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{auth.date, auth.region, auth.service, sigEnd, toSign} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(auth.signature)) {
		return wrongSignature("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

func incomplete(message string) error {
	return &apiError{code: "IncompleteSignatureException", message: message}
}

func wrongSignature(message string) error {
	return &apiError{code: "InvalidSignatureException", message: message}
}

// authorization is an Authorization header.
type authorization struct {
	accessKey, date, region, service string
	headers                          []string // the signed ones, in lower case and sorted
	signature                        string   // hexadecimal
}

func parseAuthorization(header string) (*authorization, error) {
	if header == "" {
		return nil, &apiError{code: "MissingAuthenticationTokenException", message: "Missing Authentication Token"}
	}
	rest, ok := strings.CutPrefix(header, sigAlgorithm+" ")
	if !ok {
		return nil, incomplete("Authorization header has no " + sigAlgorithm)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	credential := strings.Split(fields["Credential"], "/")
	if len(credential) != 5 || credential[4] != sigEnd || fields["SignedHeaders"] == "" || fields["Signature"] == "" {
		return nil, incomplete("Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' parameters")
	}
	headers := strings.Split(fields["SignedHeaders"], ";")
	if !slices.IsSorted(headers) {
		return nil, incomplete("SignedHeaders are not sorted")
	}
	return &authorization{
		accessKey: credential[0], date: credential[1], region: credential[2], service: credential[3],
		headers: headers, signature: fields["Signature"],
	}, nil
}

// unsigned are the headers of r that have to be signed and are not: the host,
// the content's type, and all that are AWS's.
func (a *authorization) unsigned(r *http.Request) []string {
	must := []string{"host"}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") || name == "content-type" {
			must = append(must, name)
		}
	}
	return slices.DeleteFunc(must, func(name string) bool { return slices.Contains(a.headers, name) })
}

// canonicalRequest is r in the one form that both sides know.
func canonicalRequest(r *http.Request, signed []string, bodyHash string) string {
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	var headers strings.Builder
	for _, name := range signed {
		values := r.Header.Values(name)
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{fmt.Sprint(r.ContentLength)} // net/http keeps it apart
		}
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = strings.Join(strings.Fields(v), " ")
		}
		headers.WriteString(name + ":" + strings.Join(trimmed, ",") + "\n")
	}
	return strings.Join([]string{r.Method, path, canonicalQuery(r.URL.Query()), headers.String(), strings.Join(signed, ";"), bodyHash}, "\n")
}

// canonicalQuery is sorted, and escaped as RFC 3986 does.
func canonicalQuery(query url.Values) string {
	var pairs []string
	for name, values := range query {
		for _, v := range values {
			pairs = append(pairs, escape(name)+"="+escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
