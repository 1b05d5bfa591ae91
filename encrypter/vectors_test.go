package encrypter

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
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

// RFC 7516 appendices A.1 to A.3, all of the tokens, and what appendix A.2 was
// in draft-ietf-jose-json-web-encryption-08: A128CBC+HS256. The encrypted keys of
// RSA hold random padding that nobody tells, and are taken as given.
func TestRFC7516AppendixATokens(t *testing.T) {
	const (
		imagination = "The true sign of intelligence is not knowledge but imagination."
		prosper     = "Live long and prosper."
		whereYouGo  = "No matter where you go, there you are."
		keyA1       = "OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGeipsEdY3mx_etLbbWSrFr05kLzcSr4qKAq7YN7e9jwQRb23nfa6c9d-StnImGyFDbSv04uVuxIp5Zms1gNxKKK2Da14B8S4rzVRltdYwam_lDp5XnZAYpQdb76FdIKLaVmqgfwX7XWRxv2322i-vDxRfqNzo_tETKzpVLzfiwQyeyPGLBIO56YJ7eObdv0je81860ppamavo35UgoRdbYaBcoh9QcfylQr66oc6vFWXRcZ_ZT2LawVCWTIy3brGPi6UklfCpIMfIjf7iGdXKHzg"
		keyDraft    = "ZmnlqWgjXyqwjr7cXHys8F79anIUI6J2UWdAyRQEcGBU-KPHsePM910_RoTDGu1IW40Dn0dvcdVEjpJcPPNIbzWcMxDi131Ejeg-b8ViW5YX5oRdYdiR4gMSDDB3mbkInMNUFT-PK5CuZRnHB2rUK5fhPuF6XFqLLZCG5Q_rJm6Evex-XLcNQAJNa1-6CIU12Wj3mPExxw9vbnsQDU7B4BfmhdyiflLA7Ae5ZGoVRl3A__yLPXxRjHFhpOeDp_adx8NyejF5cz9yDKULugNsDMdlHeJQOMGVLYaSZt3KP6aWNSqFA1PHDg-10ceuTEtq_vPE4-Gtev4N4K4Eudlj4Q"
		keyA2       = "UGhIOguC7IuEvf_NPVaXsGMoLOmwvc1GyqlIKOK1nN94nHPoltGRhWhw7Zx0-kFm1NJn8LE9XShH59_i8J0PH5ZZyNfGy2xGdULU7sHNF6Gp2vPLgNZ__deLKxGHZ7PcHALUzoOegEI-8E66jX2E4zyJKx-YxzZIItRzC5hlRirb6Y5Cl_p-ko3YvkkysZIFNPccxRU7qve1WYPxqbb2Yw8kZqa2rMWI5ng8OtvzlV7elprCbuPhcCdZ6XDP0_F8rkXds2vE4X-ncOIM8hAYHHi29NX0mcKiRaD0-D-ljQTP-cFPgwCp6X-nZZd9OHBv-B3oWh2TbqmScqXMR4gp_A"
	)
	given := func(encryptedKey string) keyManagement {
		return func(*workspace) ([]byte, error) { return unbase64(t, encryptedKey), nil }
	}
	cekA1 := []byte{
		177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246,
		138, 7, 110, 91, 112, 46, 34, 105, 47, 130, 203, 46, 122, 234, 64, 252,
	}
	ivA1 := []byte{227, 197, 117, 252, 2, 219, 233, 68, 180, 225, 77, 219}
	cekA2 := []byte{
		4, 211, 31, 197, 84, 157, 252, 254, 11, 100, 157, 250, 63, 170, 106, 206,
		107, 124, 212, 45, 111, 107, 9, 219, 200, 177, 0, 240, 143, 156, 44, 207,
	}
	ivA2 := []byte{3, 22, 60, 12, 43, 67, 104, 105, 108, 108, 105, 99, 111, 116, 104, 101}
	for _, tc := range []struct {
		section, plaintext, header string
		enc                        ContentEncryption
		manage                     keyManagement
		cek, iv                    []byte
		want                       string
	}{
		{
			"A.1", imagination, `{"alg":"RSA-OAEP","enc":"A256GCM"`, A256GCM, given(keyA1), cekA1, ivA1,
			"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ." + keyA1 +
				".48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A.XFBoMYUZodetZdvTiFvSkQ",
		},
		{
			"A.2", prosper, `{"alg":"RSA1_5","enc":"A128CBC-HS256"`, A128CBCHS256, given(keyA2), cekA2, ivA2,
			"eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMTI4Q0JDLUhTMjU2In0." + keyA2 +
				".AxY8DCtDaGlsbGljb3RoZQ.KDlTtXchhZTGufMYmOYGS4HffxPSUrfmqCHXaI9wOGY.9hH0vgRfYgPnAHOd8stkvw",
		},
		{
			"A.3", prosper, `{"alg":"A128KW","enc":"A128CBC-HS256"`, A128CBCHS256,
			must(aesKeyWrap(SecretKey(unbase64(t, "GawgguFyGrWKav7AX4VKUg")), nil)), cekA2, ivA2,
			"eyJhbGciOiJBMTI4S1ciLCJlbmMiOiJBMTI4Q0JDLUhTMjU2In0.6KB707dM9YTIgHtLvtgWQ8mKwboJW3of9locizkDTHzBC2IlrT1oOQ" +
				".AxY8DCtDaGlsbGljb3RoZQ.KDlTtXchhZTGufMYmOYGS4HffxPSUrfmqCHXaI9wOGY.U0m_YmjN04DJvceFICbCVQ",
		},
		{
			"draft 08, A.2", whereYouGo, `{"alg":"RSA1_5","enc":"A128CBC+HS256"`, A128CBCPlusHS256, given(keyDraft), cekA2, ivA2,
			"eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMTI4Q0JDK0hTMjU2In0." + keyDraft +
				".AxY8DCtDaGlsbGljb3RoZQ.Rxsjg6PIExcmGSF7LnSEkDqWIKfAw1wZz2XpabV5PwQsolKwEauWYZNE9Q1hZJEZ.8LXqMd0JLGsxMaB5uoNaMpg7uUW_p40RlaZHCwMIyzk",
		},
	} {
		t.Run(tc.section, func(t *testing.T) {
			ahead := len(tc.header) / 3 * 3
			r := &Recipient{
				content:       tc.enc.row(),
				manage:        tc.manage,
				headerEncoded: base64url.EncodeToString([]byte(tc.header[:ahead])),
				headerRest:    tc.header[ahead:],
			}
			w := &workspace{entropy: &fixedEntropy{t: t, random: slices.Concat(tc.cek, tc.iv)}}
			got, err := r.appendToken(nil, []byte(tc.plaintext), w, nil)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("token = %s, want %s", got, tc.want)
			}
		})
	}
}

// RFC 7516 appendix A.2 has a key for RSA1_5. What is encrypted to it is read
// with nothing but its modulus and private exponent: RFC 8017 section 7.2.2.
func TestRFC7516AppendixA2KeyReadsPKCS1(t *testing.T) {
	number := func(s string) *big.Int { return new(big.Int).SetBytes(unbase64(t, s)) }
	n := number("sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw")
	d := number("VFCWOqXr8nvZNyaaJLXdnNPXZKRaWCjkU5Q2egQQpTBMwhprMzWzpR8Sxq1OPThh_J6MUD8Z35wky9b8eEO0pwNS8xlh1lOFRRBoNqDIKVOku0aZb-rynq8cxjDTLZQ6Fz7jSjR1Klop-YKaUHc9GsEofQqYruPhzSA-QgajZGPbE_0ZaVDJHfyd7UUBUKunFMScbflYAAOYJqVIVwaYR5zWEEceUjNnTNo_CVSj-VvXLO5VZfCUAVLgW4dpf1SrtZjSt34YLsRarSb127reG_DUwg9Ch-KyvjT1SkHgUWRVGcyly7uvVGRSDwsXypdrNinPA4jlhoNdizK2zF2CWQ")
	r, err := NewRecipient(RecipientConfig{Key: &rsa.PublicKey{N: n, E: 65537}, Algorithm: RSA15, ContentEncryption: A128CBCPlusHS256})
	if err != nil {
		t.Fatal(err)
	}
	w := &workspace{entropy: systemEntropy{}}
	token := string(must(r.appendToken(nil, signedToken(100), w, nil)))
	c := new(big.Int).SetBytes(unbase64(t, strings.Split(token, ".")[1]))
	message := c.Exp(c, d, n).FillBytes(make([]byte, 256))
	padding, cek, found := bytes.Cut(message[2:], []byte{0})
	if message[0] != 0 || message[1] != 2 || !found || len(padding) != 256-3-32 || !bytes.Equal(cek, w.cek) {
		t.Errorf("the encrypted key holds %x, want 0002, %d bytes that are not zero, 00, and the CEK %x", message, 256-3-32, w.cek)
	}
}

// RFC 8037 appendices A.6 and A.7: the ephemeral key in the header, and the
// shared secret, of which go-jose's Concat KDF makes the key for key wrapping.
func TestRFC8037KeyAgreement(t *testing.T) {
	for _, tc := range []struct {
		section, crv, public, private, epk, secret string
		alg                                        KeyAlgorithm
		enc                                        ContentEncryption
		size                                       int
	}{
		{
			"A.6", "X25519", "3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08",
			"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
			"hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo",
			"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
			ECDHESA128KW, A128GCM, 16,
		},
		{
			"A.7", "X448", "PreoKbDNIPW8_AtZm2_sz22kYnEHvbDU80W0MCfYuXL8PjT7QjKhPKcG3LV67D2uB73BxnvzNgk",
			"9a8f4925d1519f5775cf46b04b5800d4ee9ee8bae8bc5565d498c28dd9c9baf574a9419744897391006382a6f127ab1d9ac2d8c0a598726b",
			"mwj3zDG34-Z9ItWuoSEHSic70rg94Jxj-qc9LCLF2bvINmRyQdlT1AxbEtqIEg1TF3-A5TLEH6A",
			"07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282bb60c0b56fd2464c335543936521c24403085d59a449a5037514a879d",
			ECDHESA256KW, A256GCM, 32,
		},
	} {
		t.Run(tc.section, func(t *testing.T) {
			a, err := newAgreement(okpPublicKey(t, jwk{Crv: tc.crv, X: tc.public}), string(tc.alg), tc.size)
			if err != nil {
				t.Fatal(err)
			}
			fixed := &fixedEntropy{t: t, random: unhex(t, tc.private)}
			w := &workspace{entropy: fixed}
			key := make([]byte, tc.size)
			if err := a.derive(key, w); err != nil {
				t.Fatal(err)
			}
			fixed.spent()
			if want := joseConcatKDF(unhex(t, tc.secret), string(tc.alg), "", "", tc.size); !bytes.Equal(key, want) {
				t.Errorf("derived key %x, want %x", key, want)
			}
			if want := `,"epk":{"kty":"OKP","crv":"` + tc.crv + `","x":"` + tc.epk + `"}`; string(w.header) != want {
				t.Errorf("header member = %s, want %s", w.header, want)
			}
		})
	}
}

// draft-ietf-jose-json-web-encryption-08 appendices A.2.3 and following.
func TestLegacyKeysAreThoseOfTheDraft(t *testing.T) {
	encryption, integrity := legacyKeys(unhex(t, "04d31fc5549dfcfe0b649dfa3faa6ace6b7cd42d6f6b09dbc8b100f08f9c2ccf"))
	if want := unhex(t, "cba5b4713ec316625b99d2267023e6ec"); !bytes.Equal(encryption, want) {
		t.Errorf("encryption key %x, want %x", encryption, want)
	}
	if want := unhex(t, "da18a011a032eb23d8d164ae9ba30a75b46facc87fc9cead282d3aaa235d093c"); !bytes.Equal(integrity, want) {
		t.Errorf("integrity key %x, want %x", integrity, want)
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
		IV, Tag      string // of the encrypted key
	} `json:"encrypting_key"`
	Output struct{ Compact string }
}

// RFC 7520 sections 5.1, 5.2 and 5.4 to 5.8: all that are a compact token of
// algorithms that are here, and not compressed. The RFC has the header's members in
// another order than this package, so that header and tag differ; each step's
// result is compared instead, and the content encryption is made with the RFC's
// header.
func TestRFC7520Examples(t *testing.T) {
	files, err := filepath.Glob("testdata/rfc7520_*.json")
	if err != nil || len(files) != 7 {
		t.Fatalf("%d examples, want 7 (%v)", len(files), err)
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
			// private is for the reader, public for the recipient.
			private, public := key.Key, key.Public().Key
			if secret, ok := private.([]byte); ok {
				private, public = SecretKey(secret), SecretKey(secret)
			}
			cfg := RecipientConfig{Key: public, KeyID: key.KeyID, Algorithm: example.Input.Alg, ContentEncryption: example.Input.Enc}
			r, err := NewRecipient(cfg)
			if err != nil {
				t.Fatal(err)
			}
			enc := example.Input.Enc.row()
			iv := unbase64(t, example.Generated.IV)
			agreed := example.EncryptingKey.CEK != "" // upon, not generated
			cek := unbase64(t, example.Generated.CEK+example.EncryptingKey.CEK)

			fixed := &fixedEntropy{t: t, random: slices.Concat(cek, iv, unbase64(t, example.EncryptingKey.IV))}
			switch {
			case agreed:
				clear(fixed.random[:len(cek)])
			case cfg.Algorithm == Dir:
				cek = public.(SecretKey)
				fixed.random = append(make([]byte, len(cek)), iv...)
			}
			if epk := example.EncryptingKey.EPK; epk.Crv != "" {
				fixed.key = ecdhKey(t, epk)
			}
			w := &workspace{entropy: fixed}
			token := string(must(r.appendToken(nil, []byte(example.Input.Plaintext), w, nil)))
			fixed.spent()
			if got := open(t, token, private, example.Input.Alg, example.Input.Enc); string(got) != example.Input.Plaintext {
				t.Errorf("opened to %q", got)
			}
			if !bytes.Equal(w.cek, cek) {
				t.Errorf("CEK = %x, want %x", w.cek, cek)
			}

			got, want := strings.Split(token, "."), strings.Split(example.Output.Compact, ".")
			if _, random := private.(*rsa.PrivateKey); !random { // RSA has padding that nobody can give
				if got[1] != want[1] {
					t.Errorf("encrypted key = %s, want %s", got[1], want[1])
				}
				gotHeader, wantHeader := protectedHeader(t, token), protectedHeader(t, example.Output.Compact)
				delete(gotHeader, "cty")
				if diff := cmp.Diff(wantHeader, gotHeader); diff != "" {
					t.Errorf("header, without cty (-want +got):\n%s", diff)
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

// okpPublicKey makes a recipient's key for X25519 or X448.
func okpPublicKey(t testing.TB, k jwk) any {
	t.Helper()
	if k.Crv == "X448" {
		return X448PublicKey(unbase64(t, k.X))
	}
	return must(ecdh.X25519().NewPublicKey(unbase64(t, k.X)))
}
