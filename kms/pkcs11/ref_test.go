package pkcs11

import (
	"strings"
	"testing"

	"github.com/bulla-project/bulla/kms"
)

func TestParseReference(t *testing.T) {
	key := func(label, id string) wanted {
		return wanted{selector: selector{label: label, id: id, byLabel: label != "", byID: id != ""}}
	}
	full := key("login es;256", "\x00\xff")
	of := func(w wanted, class uint) wanted { w.class = class; return w }
	full.class = ckoPrivateKey
	full.token, full.serial, full.manufacturer, full.model = "The Software PKCS#11 Softtoken", "0012", "Snake Oil, Inc.", "1.0"
	for text, want := range map[string]wanted{
		"object=login-es256":                  key("login-es256", ""),
		"id=%01":                              key("", "\x01"),
		"object=x;id=%01%2f%2F":               key("x", "\x01//"),
		"id=ab":                               key("", "ab"), // RFC 7512: bytes may stand for themselves
		"object=a+b":                          key("a+b", ""),
		"object=%C3%A9t%C3%A9":                key("été", ""),
		"object=a=b&c":                        key("a=b&c", ""),
		"pkcs11:object=x":                     key("x", ""),
		"PKCS11:object=x":                     key("x", ""),
		"pkcs11:object=x;type=private;id=%01": of(key("x", "\x01"), ckoPrivateKey),
		"object=wrap-1;type=secret-key":       of(key("wrap-1", ""), ckoSecretKey),
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;serial=0012;object=login%20es%3B256;type=private;id=%00%ff": full,
	} {
		r, err := ParseReference(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if r.want != want {
			t.Errorf("%q: got %+v, want %+v", text, r.want, want)
		}
	}
}

func TestParseReferenceRefusesWithAdvice(t *testing.T) {
	for text, advice := range map[string]string{
		"":                                   "names no key",
		"pkcs11:":                            "names no key",
		"pkcs11:token=bulla":                 "add object=LABEL",
		"login-es256":                        "name=value",
		"=x":                                 "name=value",
		"object=x;":                          "name=value",
		";object=x":                          "name=value",
		"object=":                            "is empty",
		"id=":                                "is empty",
		"object=x;object=y":                  "occurs twice",
		"object=x;id=%1":                     "hexadecimal",
		"object=x;id=%":                      "hexadecimal",
		"object=x;id=%zz":                    "hexadecimal",
		"object=two words":                   "%20",
		"object=a/b":                         "%2F",
		"object=caf\xc3\xa9":                 "%C3",
		"object=%ff":                         "not UTF-8",
		"object=x;type=public":               "type=private",
		"object=x;type=secret":               "type=secret-key",
		"object=x;slot-id=3":                 "label or serial",
		"object=x;pin-value=SECRET":          "pin_file",
		"object=x?pin-value=SECRET":          "pin_file",
		"object=x?pin-source=file:SECRET":    "pin_file",
		"object=x?module-path=/SECRET.so":    "the backend's module",
		"object=x?module-name=SECRET":        "the backend's module",
		"object=x?x-vendor=SECRET&pin-value": "pin_file",
		"object=x?":                          "query",
		"object=x;library-version=3":         "the backend's module",
		"object=x;x-vendor=SECRET":           "unknown",
		"uri:object=x":                       "unknown",
		"object=" + strings.Repeat("x", maxReference): "longer",
	} {
		r, err := ParseReference(text)
		if err == nil {
			t.Errorf("%q: got %+v, want an error", text, r)
			continue
		}
		wantErr(t, err, kms.ErrReference, advice)
		if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: the error repeats what may be a secret: %v", text, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{
		"object=login-es256", "id=%01", "object=x;id=%01", "pkcs11:token=a%20b;object=x;type=private", "object=x;type=secret-key",
		"pkcs11:object=x?pin-value=1", "object=%ff", "object=%", ";;;", "pkcs11:?",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReference(text)
		if err != nil {
			wantErr(t, err, kms.ErrReference)
			return
		}
		if !r.want.byLabel && !r.want.byID {
			t.Errorf("%q is accepted and names no key", text)
		}
		if short := r.String(); len(short) <= maxReference {
			again, err := ParseReference(short)
			if err != nil {
				t.Fatalf("%q was written as %q, which is refused: %v", text, short, err)
			}
			if again != r {
				t.Errorf("%q was written as %q, which is read as %+v instead of %+v", text, short, again, r)
			}
		}
	})
}
