package awsfault

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The signatures are those of AWS's own test suite for Signature Version 4
// (get-vanilla, get-vanilla-query-order-key-case, post-vanilla,
// post-x-www-form-urlencoded), for its service "service".
func TestPublishedSignaturesAreAccepted(t *testing.T) {
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	s := scope{region: "us-east-1", service: "service", secrets: map[string]string{"AKIDEXAMPLE": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}}
	for _, tt := range []struct {
		name, method, target, contentType, body, signed, signature string
	}{
		{"get-vanilla", "GET", "/", "", "", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"get-vanilla-query-order-key-case", "GET", "/?Param2=value2&Param1=value1", "", "", "host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{"post-vanilla", "POST", "/", "", "", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"post-x-www-form-urlencoded", "POST", "/", "application/x-www-form-urlencoded", "Param1=value1", "content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		request := func() *http.Request {
			r := httptest.NewRequest(tt.method, tt.target, nil)
			r.Host = "example.amazonaws.com"
			r.Header.Set("X-Amz-Date", "20150830T123600Z")
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="+tt.signed+", Signature="+tt.signature)
			return r
		}
		if err := checkSignature(request(), []byte(tt.body), s, at); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err := checkSignature(request(), []byte(tt.body+"x"), s, at); err == nil {
			t.Errorf("%s: accepted with another body", tt.name)
		}
	}
}

func TestWhatIsNotSignedRightIsRefused(t *testing.T) {
	const secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	request := func() *http.Request {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = "example.amazonaws.com"
		r.Header.Set("X-Amz-Date", "20150830T123600Z")
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31")
		return r
	}
	for name, tt := range map[string]struct {
		change          func(*http.Request)
		secret          string
		region, service string
		late            time.Duration
		want            string
	}{
		"as it was":              {want: ""},
		"just in time":           {late: sigWindow, want: ""},
		"another secret":         {secret: "another", want: "InvalidSignatureException"},
		"another region":         {region: "eu-west-1", want: "InvalidSignatureException"},
		"another service":        {service: "kms", want: "InvalidSignatureException"},
		"too late":               {late: sigWindow + time.Second, want: "InvalidSignatureException"},
		"too early":              {late: -sigWindow - time.Second, want: "InvalidSignatureException"},
		"another host":           {change: func(r *http.Request) { r.Host = "example.com" }, want: "InvalidSignatureException"},
		"another path":           {change: func(r *http.Request) { r.URL.Path = "/x" }, want: "InvalidSignatureException"},
		"a query":                {change: func(r *http.Request) { r.URL.RawQuery = "a=b" }, want: "InvalidSignatureException"},
		"another method":         {change: func(r *http.Request) { r.Method = http.MethodPost }, want: "InvalidSignatureException"},
		"another date":           {change: func(r *http.Request) { r.Header.Set("X-Amz-Date", "20150830T123601Z") }, want: "InvalidSignatureException"},
		"another day":            {change: func(r *http.Request) { r.Header.Set("X-Amz-Date", "20150831T123600Z") }, want: "InvalidSignatureException"},
		"no date":                {change: func(r *http.Request) { r.Header.Del("X-Amz-Date") }, want: "IncompleteSignatureException"},
		"an unsigned AWS header": {change: func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.Sign") }, want: "IncompleteSignatureException"},
		"no signature":           {change: func(r *http.Request) { r.Header.Del("Authorization") }, want: "MissingAuthenticationTokenException"},
		"another algorithm":      {change: func(r *http.Request) { r.Header.Set("Authorization", "Basic YTpi") }, want: "IncompleteSignatureException"},
		"an unknown identity":    {change: func(r *http.Request) { setKey(r, "AKIDOTHER") }, want: "UnrecognizedClientException"},
		"a wrong body hash":      {change: func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "00") }, want: "IncompleteSignatureException"},
	} {
		r := request()
		if tt.change != nil {
			tt.change(r)
		}
		s := scope{region: "us-east-1", service: "service", secrets: map[string]string{"AKIDEXAMPLE": secret}}
		if tt.secret != "" {
			s.secrets["AKIDEXAMPLE"] = tt.secret
		}
		if tt.region != "" {
			s.region = tt.region
		}
		if tt.service != "" {
			s.service = tt.service
		}
		err := checkSignature(r, nil, s, at.Add(tt.late))
		code := ""
		var answer *apiError
		if errors.As(err, &answer) {
			code = answer.code
		}
		if code != tt.want || (code == "") != (err == nil) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func setKey(r *http.Request, id string) {
	header := bytes.ReplaceAll([]byte(r.Header.Get("Authorization")), []byte("AKIDEXAMPLE"), []byte(id))
	r.Header.Set("Authorization", string(header))
}

func TestFaultsStrikeAsOftenAsTheyShould(t *testing.T) {
	for _, tt := range []struct {
		fault Fault
		op    string
		want  int // of 100 requests
	}{
		{Fault{}, "Sign", 100}, // of the zero fault, that is
		{Fault{Share: 0.3}, "Sign", 30},
		{Fault{Share: 0.3, Times: 5}, "Sign", 5},
		{Fault{Times: 2}, "Sign", 2},
		{Fault{Op: "Sign", Share: 1}, "Sign", 100},
		{Fault{Op: "Sign"}, "GetPublicKey", 0},
	} {
		e := &Endpoint{calls: map[string]int{}, lifted: make(chan struct{})}
		tt.fault.Flip = true
		e.Set(tt.fault)
		got := 0
		for range 100 {
			if f, _ := e.strike(tt.op); f.Flip {
				got++
			}
		}
		if got != tt.want {
			t.Errorf("%+v struck %s %d times, want %d", tt.fault, tt.op, got, tt.want)
		}
	}
}
