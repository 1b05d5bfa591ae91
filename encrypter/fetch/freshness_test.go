package fetch

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func header(lines ...string) http.Header {
	h := http.Header{}
	for _, l := range lines {
		k, v, _ := strings.Cut(l, ": ")
		h.Add(k, v)
	}
	return h
}

func TestFreshnessOfAnAnswer(t *testing.T) {
	const (
		date  = "Date: Fri, 02 Jan 2026 11:59:00 GMT"
		later = "Expires: Fri, 02 Jan 2026 12:09:00 GMT"
	)
	stale := Freshness{Stated: true}
	fresh := func(d time.Duration) Freshness { return Freshness{For: d, Stated: true} }
	tests := []struct {
		name string
		h    http.Header
		want Freshness
	}{
		{"nothing said", header(date), Freshness{}},
		{"Age alone", header("Age: 5"), Freshness{}},
		{"only other directives", header("Cache-Control: public, must-revalidate, s-maxage=9"), Freshness{}},
		{"max-age", header("Cache-Control: max-age=600"), fresh(10 * time.Minute)},
		{"max-age less Age", header("Cache-Control: max-age=600", "Age: 60"), fresh(9 * time.Minute)},
		{"Age beyond max-age", header("Cache-Control: max-age=600", "Age: 6000"), stale},
		{"Age that is none", header("Cache-Control: max-age=600", "Age: -5"), fresh(10 * time.Minute)},
		{"max-age before Expires", header("Cache-Control: max-age=60", later, date), fresh(time.Minute)},
		{"name in capitals, quoted value", header(`Cache-Control: Public, MAX-AGE="60"`), fresh(time.Minute)},
		{"spaces and empty elements", header("Cache-Control: , ,  max-age=60 ,"), fresh(time.Minute)},
		{"two fields, the shorter counts", header("Cache-Control: max-age=60", "Cache-Control: max-age=30"), fresh(30 * time.Second)},
		{"max-age in quotes of another", header(`Cache-Control: ext="a, max-age=5", max-age=60`), fresh(time.Minute)},
		{"max-age negative", header("Cache-Control: max-age=-1"), stale},
		{"max-age without value", header("Cache-Control: max-age"), stale},
		{"max-age that is no number", header("Cache-Control: max-age=1h", later), stale},
		{"max-age beyond int64", header("Cache-Control: max-age=99999999999999999999"), fresh(maxFreshness)},
		{"no-store", header("Cache-Control: max-age=60, no-store"), stale},
		{"no-cache", header("Cache-Control: no-cache", later), stale},
		{"Expires less Date", header(later, date), fresh(10 * time.Minute)},
		{"Expires less Date and Age", header(later, date, "Age: 60"), fresh(9 * time.Minute)},
		{"Expires without Date", header(later), fresh(9 * time.Minute)},
		{"Expires in the past", header("Expires: Fri, 02 Jan 2026 11:00:00 GMT", date), stale},
		{"Expires 0", header("Expires: 0", date), stale},
		{"Expires in another form", header("Expires: Friday, 02-Jan-26 12:09:00 GMT", date), fresh(10 * time.Minute)},
		{"Expires in the year 0, and aged", header("Expires: Sat, 01 Jan 0000 00:00:00 GMT", "Age: 9999999999"), stale},
		{"Expires far away", header("Expires: Fri, 31 Dec 9999 23:59:59 GMT", date), fresh(maxFreshness)},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := freshness(tc.h, noon); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestValidators(t *testing.T) {
	for s, want := range map[string]bool{
		`"a"`: true, `W/"a"`: true, `""`: true,
		`a`: false, `"`: false, `w/"a"`: false, `"a`: false, `"a"b"`: false, "\"a\nb\"": false, `"a b"`: false, "\"\x80\"": false, "": false,
		`"` + strings.Repeat("a", maxValidator) + `"`: false,
	} {
		if got := validETag(s); (got == s && s != "") != want {
			t.Errorf("validETag(%q) = %q, want kept %t", s, got, want)
		}
	}
	for s, want := range map[string]bool{
		"Wed, 21 Oct 2015 07:28:00 GMT": true, "Wednesday, 21-Oct-15 07:28:00 GMT": true,
		"": false, "yesterday": false, "2015-10-21": false, "Wed, 21 Oct 2015 07:28:00 GMT\r\nX: y": false,
	} {
		if got := validDate(s); (got == s && s != "") != want {
			t.Errorf("validDate(%q) = %q, want kept %t", s, got, want)
		}
	}
}

func FuzzFreshness(f *testing.F) {
	f.Add("max-age=600, public", "5", "Fri, 02 Jan 2026 12:09:00 GMT", "Fri, 02 Jan 2026 11:59:00 GMT")
	f.Add(`a="b,\",c", max-age="7"`, "99999999999999999999", "0", "")
	f.Add("no-store", "-1", "", "x")
	f.Fuzz(func(t *testing.T, cc, age, expires, date string) {
		h := http.Header{"Cache-Control": {cc}, "Age": {age}, "Expires": {expires}, "Date": {date}}
		got := freshness(h, noon)
		if got.For < 0 || got.For > maxFreshness || !got.Stated && got.For != 0 {
			t.Errorf("got %+v", got)
		}
		// An older answer is never fresher.
		h.Set("Age", "0")
		if young := freshness(h, noon); got.Stated != young.Stated || got.For > young.For {
			t.Errorf("got %+v, and %+v without Age", got, young)
		}
	})
}
