package awskms

import (
	"fmt"
	"net"
	"net/url"
)

// checkEndpoint refuses what could not be an endpoint, and plain http to
// anywhere but this machine.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http"):
		return fmt.Errorf("awskms: endpoint %q is not a URL such as https://kms.eu-west-1.amazonaws.com", redacted(u))
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Errorf("awskms: endpoint %q: use https; plain http is for an emulator on this machine's loopback address", endpoint)
	}
	return nil
}

// redacted is u without a password that someone may have put there.
func redacted(u *url.URL) string {
	if u == nil {
		return "(unreadable)"
	}
	return u.Redacted()
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
