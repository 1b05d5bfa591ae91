package encrypter

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// RFC 3394 section 4.
func TestRFC3394KeyWrap(t *testing.T) {
	const (
		kek  = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
		data = "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"
	)
	for _, tc := range []struct {
		section   string
		kek, data int // bytes
		want      string
	}{
		{"4.1", 16, 16, "1FA68B0A8112B447 AEF34BD8FB5A7B82 9D3E862371D2CFE5"},
		{"4.2", 24, 16, "96778B25AE6CA435 F92B5B97C050AED2 468AB8A17AD84E5D"},
		{"4.3", 32, 16, "64E8C3F9CE0F5BA2 63E9777905818A2A 93C8191E7D6E8AE7"},
		{"4.4", 24, 24, "031D33264E15D332 68F24EC260743EDC E1C6C7DDEE725A93 6BA814915C6762D2"},
		{"4.5", 32, 24, "A8F9BC1612C68B3F F6E6F4FBE30E71E4 769C8B80A32CB895 8CD5D17D6B254DA1"},
		{"4.6", 32, 32, "28C9F404C4B810F4 CBCCB35CFB87F826 3F5786E2D80ED326 CBC7F0E71A99F43B FB988B9B7A02DD21"},
	} {
		t.Run(tc.section, func(t *testing.T) {
			block := must(aes.NewCipher(unhex(t, kek)[:tc.kek]))
			got, err := wrapKey([]byte("before"), block, unhex(t, data)[:tc.data])
			if err != nil {
				t.Fatal(err)
			}
			if want := append([]byte("before"), unhex(t, tc.want)...); !bytes.Equal(got, want) {
				t.Errorf("wrapKey = %X, want %X", got, want)
			}
		})
	}
}

// RFC 7518 appendix B: the cases B.1 to B.3 share plaintext, IV and additional
// data; the key of each counts up from zero.
func TestRFC7518AppendixBContentEncryption(t *testing.T) {
	const (
		plaintext = "A cipher system must not be required to be secret, and it must be able to fall into the hands of the enemy without inconvenience"
		aad       = "The second principle of Auguste Kerckhoffs"
	)
	iv := unhex(t, "1af38c2dc2b96ffdd86694092341bc04")
	for _, tc := range []struct {
		section string
		enc     ContentEncryption
		e, t    string
	}{
		{
			"B.1", A128CBCHS256,
			"c80edfa32ddf39d5ef00c0b468834279a2e46a1b8049f792f76bfe54b903a9c9" +
				"a94ac9b47ad2655c5f10f9aef71427e2fc6f9b3f399a221489f16362c7032336" +
				"09d45ac69864e3321cf82935ac4096c86e133314c54019e8ca7980dfa4b9cf1b" +
				"384c486f3a54c51078158ee5d79de59fbd34d848b3d69550a67646344427ade5" +
				"4b8851ffb598f7f80074b9473c82e2db",
			"652c3fa36b0a7c5b3219fab3a30bc1c4",
		},
		{
			"B.2", A192CBCHS384,
			"ea65da6b59e61edb419be62d19712ae5d303eeb50052d0dfd6697f77224c8edb" +
				"000d279bdc14c1072654bd30944230c657bed4ca0c9f4a8466f22b226d174621" +
				"4bf8cfc2400add9f5126e479663fc90b3bed787a2f0ffcbf3904be2a641d5c21" +
				"05bfe591bae23b1d7449e532eef60a9ac8bb6c6b01d35d49787bcd57ef484927" +
				"f280adc91ac0c4e79c7b11efc60054e3",
			"8490ac0e58949bfe51875d733f93ac2075168039ccc733d7",
		},
		{
			"B.3", A256CBCHS512,
			"4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd" +
				"822c301dd67c373bccb584ad3e9279c2e6d12a1374b77f077553df8294104" +
				"46b36ebd97066296ae6427ea75c2e0846a11a09ccf5370dc80bfecbad28c73f0" +
				"9b3a3b75e662a2594410ae496b2e2e6609e31e6e02cc837f053d21f37ff4f519" +
				"50bbe2638d09dd7a4930930806d0703b1f6",
			"4dd3b4c088a7f45c216839645b2012bf2e6269a8c56a816dbc1b267761955bc5",
		},
	} {
		t.Run(tc.section, func(t *testing.T) {
			cek := make([]byte, tc.enc.KeySize())
			for i := range cek {
				cek[i] = byte(i)
			}
			got, err := tc.enc.row().seal(nil, content{
				cek: cek, iv: iv, plaintext: []byte(plaintext),
				token: []byte(aad + ".encrypted key.iv."), headerSize: len(aad),
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tc.e+tc.t); !bytes.Equal(got, want) {
				t.Errorf("seal = %x, want %x", got, want)
			}
		})
	}
}

// RFC 7518 appendix C: Alice agrees with Bob on the CEK of an A128GCM token, and
// both say who they are.
func TestRFC7518AppendixCKeyDerivation(t *testing.T) {
	alice := ecdhKey(t, jwk{Crv: "P-256", D: "0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo"})
	bob := ecdhPublicKey(t, jwk{
		Crv: "P-256",
		X:   "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
		Y:   "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
	})
	a, err := newAgreement(bob, "A128GCM", 16)
	if err != nil {
		t.Fatal(err)
	}
	a.otherInfo = kdfOtherInfo("A128GCM", []byte("Alice"), []byte("Bob"), 16)
	w := &workspace{entropy: &fixedEntropy{t: t, key: alice}}
	key := make([]byte, 16)
	if err := a.derive(key, w); err != nil {
		t.Fatal(err)
	}
	if got, want := base64url.EncodeToString(key), "VqqN6vgjbSBcIijNcacQGg"; got != want {
		t.Errorf("derived key = %s, want %s", got, want)
	}
	const epk = `,"epk":{"kty":"EC","crv":"P-256","x":"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0","y":"SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}`
	if string(w.header) != epk {
		t.Errorf("header member = %s, want %s", w.header, epk)
	}
}

// RFC 7516 appendix A.1, all of the token. Its encrypted key holds a random
// seed that the RFC does not tell, and is taken as given.
func TestRFC7516AppendixA1Token(t *testing.T) {
	const (
		plaintext    = "The true sign of intelligence is not knowledge but imagination."
		header       = `{"alg":"RSA-OAEP","enc":"A256GCM"`
		encryptedKey = "OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGeipsEdY3mx_etLbbWSrFr05kLzcSr4qKAq7YN7e9jwQRb23nfa6c9d-StnImGyFDbSv04uVuxIp5Zms1gNxKKK2Da14B8S4rzVRltdYwam_lDp5XnZAYpQdb76FdIKLaVmqgfwX7XWRxv2322i-vDxRfqNzo_tETKzpVLzfiwQyeyPGLBIO56YJ7eObdv0je81860ppamavo35UgoRdbYaBcoh9QcfylQr66oc6vFWXRcZ_ZT2LawVCWTIy3brGPi6UklfCpIMfIjf7iGdXKHzg"
		want         = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ." + encryptedKey +
			".48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A.XFBoMYUZodetZdvTiFvSkQ"
	)
	cek := []byte{
		177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246,
		138, 7, 110, 91, 112, 46, 34, 105, 47, 130, 203, 46, 122, 234, 64, 252,
	}
	iv := []byte{227, 197, 117, 252, 2, 219, 233, 68, 180, 225, 77, 219}
	const ahead = len(header) / 3 * 3
	r := &Recipient{
		content:       A256GCM.row(),
		manage:        func(*workspace) ([]byte, error) { return unbase64(t, encryptedKey), nil },
		headerEncoded: base64url.EncodeToString([]byte(header[:ahead])),
		headerRest:    header[ahead:],
	}
	w := &workspace{entropy: &fixedEntropy{t: t, random: append(cek, iv...)}}
	got, err := r.appendToken(nil, []byte(plaintext), w)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("token = %s, want %s", got, want)
	}
}

// cookbookExample is an example of RFC 7520 section 5, as that RFC's authors
// publish it.
type cookbookExample struct {
	Input struct {
		Plaintext string
		Key       json.RawMessage
		Alg       KeyAlgorithm
		Enc       ContentEncryption
	}
	Generated     struct{ CEK, IV string }
	EncryptingKey struct {
		EPK          jwk
		EncryptedKey string `json:"encrypted_key"`
		CEK          string
	} `json:"encrypting_key"`
	Output struct{ Compact string }
}

// RFC 7520 sections 5.2, 5.4 and 5.5. The RFC has the header's members in
// another order than this package, so that header and tag differ; each step's
// result is compared instead, and the content encryption is made with the RFC's
// header.
func TestRFC7520Examples(t *testing.T) {
	files, err := filepath.Glob("testdata/rfc7520_*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d examples, want 3 (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			var example cookbookExample
			if err := json.Unmarshal(must(os.ReadFile(file)), &example); err != nil {
				t.Fatal(err)
			}
			var key jose.JSONWebKey
			if err := key.UnmarshalJSON(example.Input.Key); err != nil {
				t.Fatal(err)
			}
			cfg := RecipientConfig{Key: key.Public().Key, KeyID: key.KeyID, Algorithm: example.Input.Alg, ContentEncryption: example.Input.Enc}
			r, err := NewRecipient(cfg)
			if err != nil {
				t.Fatal(err)
			}
			enc := example.Input.Enc.row()
			iv := unbase64(t, example.Generated.IV)
			direct := example.EncryptingKey.CEK != "" // agreed upon, not generated
			cek := unbase64(t, example.Generated.CEK+example.EncryptingKey.CEK)

			fixed := &fixedEntropy{t: t, random: append(bytes.Clone(cek), iv...)}
			if direct {
				clear(fixed.random[:len(cek)])
			}
			if epk := example.EncryptingKey.EPK; epk.Crv != "" {
				fixed.key = ecdhKey(t, epk)
			}
			w := &workspace{entropy: fixed}
			token := string(must(r.appendToken(nil, []byte(example.Input.Plaintext), w)))
			if got := open(t, token, key.Key, example.Input.Alg, example.Input.Enc); string(got) != example.Input.Plaintext {
				t.Errorf("opened to %q", got)
			}
			if !bytes.Equal(w.cek, cek) {
				t.Errorf("CEK = %x, want %x", w.cek, cek)
			}

			got, want := strings.Split(token, "."), strings.Split(example.Output.Compact, ".")
			if fixed.key == nil && example.EncryptingKey.EPK.Crv != "" { // RSA-OAEP has a seed that nobody can give
				if got[1] != want[1] {
					t.Errorf("encrypted key = %s, want %s", got[1], want[1])
				}
				gotEPK, wantEPK := protectedHeader(t, token)["epk"], protectedHeader(t, example.Output.Compact)["epk"]
				if a, b := must(json.Marshal(gotEPK)), must(json.Marshal(wantEPK)); !bytes.Equal(a, b) {
					t.Errorf("epk = %s, want %s", a, b)
				}
			}
			if got[2] != want[2] {
				t.Errorf("IV = %s, want %s", got[2], want[2])
			}
			sealed, err := enc.seal(nil, content{
				cek: w.cek, iv: iv, plaintext: []byte(example.Input.Plaintext),
				token: []byte(strings.Join(want[:3], ".") + "."), headerSize: len(want[0]),
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := append(unbase64(t, want[3]), unbase64(t, want[4])...); !bytes.Equal(sealed, want) {
				t.Errorf("ciphertext and tag = %x, want %x", sealed, want)
			}
		})
	}
}

// jwk is an elliptic curve key of a published example.
type jwk struct{ Crv, X, Y, D string }

// nistCurve returns a curve and the size in bytes of its field.
func nistCurve(t testing.TB, crv string) (ecdh.Curve, int) {
	t.Helper()
	switch crv {
	case "P-256":
		return ecdh.P256(), 32
	case "P-384":
		return ecdh.P384(), 48
	case "P-521":
		return ecdh.P521(), 66
	}
	t.Fatalf("unknown curve %q", crv)
	return nil, 0
}

func ecdhKey(t testing.TB, k jwk) *ecdh.PrivateKey {
	t.Helper()
	curve, size := nistCurve(t, k.Crv)
	// Wycheproof gives the scalar with a leading zero, or without.
	d := bytes.TrimLeft(unbase64(t, k.D), "\x00")
	private, err := curve.NewPrivateKey(append(make([]byte, size-len(d)), d...))
	if err != nil {
		t.Fatalf("private key: %v", err)
	}
	return private
}

func ecdhPublicKey(t testing.TB, k jwk) *ecdh.PublicKey {
	t.Helper()
	curve, _ := nistCurve(t, k.Crv)
	public, err := curve.NewPublicKey(append(append([]byte{4}, unbase64(t, k.X)...), unbase64(t, k.Y)...))
	if err != nil {
		t.Fatalf("public key: %v", err)
	}
	return public
}
