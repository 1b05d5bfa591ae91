package fetch

import "testing"

func TestTargetIsWhatOneOwnerHas(t *testing.T) {
	for want, uris := range map[string][]string{
		"evil.example": {
			"https://evil.example/", "https://a.evil.example/x?y", "https://a.b.c.evil.example:8443", "HTTPS://A.Evil.EXAMPLE/", "https://evil.example./",
		},
		"evil.co.uk":               {"https://evil.co.uk/", "https://x.y.evil.co.uk/"},
		"a.github.io":              {"https://a.github.io/jwks", "https://x.a.github.io/"},
		"b.github.io":              {"https://b.github.io/"},
		"co.uk":                    {"https://co.uk/"}, // a suffix by itself
		"intranet":                 {"https://intranet/", "https://INTRANET:8443/"},
		"svc.local":                {"https://jwks.svc.local/"}, // a suffix that the list does not know
		"xn--clent-fza.example":    {"https://xn--clent-fza.example/", "https://a.XN--CLENT-FZA.example/"},
		"xn--fiqs8s":               {"https://xn--fiqs8s/"},
		"a.xn--55qx5d.xn--j6w193g": {"https://b.a.xn--55qx5d.xn--j6w193g/"}, // an IDN below an IDN suffix
		"10.1.2.3":                 {"https://10.1.2.3/", "https://10.1.2.3:8443/", "https://[::ffff:10.1.2.3]/"},
		"10.1.2.4":                 {"https://10.1.2.4/"},
		"fd00:1:2:3::/64":          {"https://[fd00:1:2:3::1]/", "https://[fd00:1:2:3:4:5:6:7]:8443/", "https://[FD00:1:2:3::9]/"},
		"fd00:1:2:4::/64":          {"https://[fd00:1:2:4::1]/"},
		"":                         {"https://[", "%"},
	} {
		for _, uri := range uris {
			if got := Target(uri); got != want {
				t.Errorf("%s: got %q, want %q", uri, got, want)
			}
		}
	}
}
