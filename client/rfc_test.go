package client

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// The examples of RFC 7520, sections 5.2, 5.4 and 5.5, and of sections 4.1 and 4.3
// are among the Wycheproof vectors.

// RFC 7516, appendix A.1: RSA-OAEP with A256GCM.
func TestExampleOfRFC7516(t *testing.T) {
	keys, err := ParseKeys([]byte(rfc7516Key))
	if err != nil {
		t.Fatal(err)
	}
	e, err := parseEncrypted(rfc7516Token)
	if err != nil {
		t.Fatal(err)
	}
	o := newOpener(t, func(c *OpenConfig) { c.Keys = keys })
	got, err := o.decrypt(e)
	if want := "The true sign of intelligence is not knowledge but imagination."; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	// There is no cty, so what is inside is not known to be a token.
	if _, err := o.Open(rfc7516Token); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("Open: got error %v, want ErrNotAllowed", err)
	}
}

// RFC 7516, appendices A.2 (RSA1_5) and A.3 (A128KW), both with A128CBC-HS256.
func TestFurtherExamplesOfRFC7516(t *testing.T) {
	for _, test := range []struct{ section, key, token string }{
		{"A.2", rfc7516KeyA2, rfc7516TokenA2},
		{"A.3", `{"kty":"oct","k":"GawgguFyGrWKav7AX4VKUg"}`, "eyJhbGciOiJBMTI4S1ciLCJlbmMiOiJBMTI4Q0JDLUhTMjU2In0." +
			"6KB707dM9YTIgHtLvtgWQ8mKwboJW3of9locizkDTHzBC2IlrT1oOQ.AxY8DCtDaGlsbGljb3RoZQ." +
			"KDlTtXchhZTGufMYmOYGS4HffxPSUrfmqCHXaI9wOGY.U0m_YmjN04DJvceFICbCVQ"},
	} {
		keys, err := ParseKeys([]byte(test.key))
		if err != nil {
			t.Fatalf("%s: %v", test.section, err)
		}
		e, err := parseEncrypted(test.token)
		if err != nil {
			t.Fatalf("%s: %v", test.section, err)
		}
		o := newOpener(t, func(c *OpenConfig) { c.Keys, c.KeyAlgorithms = keys, names(keyAlgorithms) })
		got, err := o.decrypt(e)
		if want := "Live long and prosper."; err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", test.section, got, err, want)
		}
	}
}

// RFC 7518, appendix C: Bob derives what Alice did, from her ephemeral key.
func TestExampleOfKeyDerivation(t *testing.T) {
	keys, err := ParseKeys([]byte(`{"kty":"EC","crv":"P-256","x":"weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",` +
		`"y":"e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck","d":"VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw"}`))
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader([]byte(`{"alg":"ECDH-ES","enc":"A128GCM","apu":"QWxpY2U","apv":"Qm9i","epk":{"kty":"EC","crv":"P-256",` +
		`"x":"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0","y":"SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}}`))
	if err != nil {
		t.Fatal(err)
	}
	e := &encrypted{header: h}
	got, err := e.agree(keys[0].Key, "A128GCM", 16)
	if want := "VqqN6vgjbSBcIijNcacQGg"; err != nil || base64.RawURLEncoding.EncodeToString(got) != want {
		t.Errorf("got %x, %v, want %s", got, err, want)
	}
}

// RFC 8037, appendices A.6 and A.7: Bob's end, whose private keys stand in RFC 7748,
// section 6.
func TestExamplesOfRFC8037(t *testing.T) {
	for _, test := range []struct{ crv, d, epk, z string }{
		{
			"X25519", "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
			`{"kty":"OKP","crv":"X25519","x":"hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}`,
			"4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
		},
		{
			"X448", "1c306a7ac2a0e2e0990b294470cba339e6453772b075811d8fad0d1d6927c120bb5ee8972b0d3e21374c9c921b09d1b0366f10b65173992d",
			`{"kty":"OKP","crv":"X448","x":"mwj3zDG34-Z9ItWuoSEHSic70rg94Jxj-qc9LCLF2bvINmRyQdlT1AxbEtqIEg1TF3-A5TLEH6A"}`,
			"07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282bb60c0b56fd2464c335543936521c24403085d59a449a5037514a879d",
		},
	} {
		d, err := hex.DecodeString(test.d)
		if err != nil {
			t.Fatal(err)
		}
		private, _, err := newOKP(test.crv, d)
		if err != nil {
			t.Fatal(err)
		}
		epk, err := parseObject([]byte(test.epk))
		if err != nil {
			t.Fatal(err)
		}
		got, err := sharedSecret(private, epk)
		if err != nil || hex.EncodeToString(got) != test.z {
			t.Errorf("%s: got %x, %v, want %s", test.crv, got, err, test.z)
		}
		epk["crv"] = []byte(`"P-256"`)
		if _, err := sharedSecret(private, epk); err == nil {
			t.Errorf("%s: agreed with a key on another curve", test.crv)
		}
	}
}

// The key derivation of A128CBC+HS256 with the example of the drafts older than
// RFC 7516.
func TestLegacyKeyDerivation(t *testing.T) {
	cmk, err := hex.DecodeString("04d31fc5549dfcfe0b649dfa3faa6ace6b7cd42d6f6b09dbc8b100f08f9c2ccf")
	if err != nil {
		t.Fatal(err)
	}
	for label, want := range map[string]string{
		"Encryption": "cba5b4713ec316625b99d2267023e6ec",
		"Integrity":  "da18a011a032eb23d8d164ae9ba30a75b46facc87fc9cead282d3aaa235d093c",
	} {
		if got := hex.EncodeToString(legacyKey(cmk, len(want)*4, label)); got != want {
			t.Errorf("%s: got %s, want %s", label, got, want)
		}
	}
}

// Keys of the secret "password" (compare: printf password | openssl sha256).
func TestKeysOfASecret(t *testing.T) {
	sha256 := "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
	sha384 := "a8b64babd0aca91a59bdbb7761b421d4f2bb38280d3a75ba0f21f2bebc45583d446c598660c94ce680c47d19c30783a7"
	sha512 := "b109f3bbbc244eb82441917ed06d618b9008dd09b3befd1b5e07394c706a8bb980b1d7785e5976ec049b46df5f1326af5a2ea6d103fd07c95385ffab0cacbc86"
	for size, want := range map[int]string{16: sha256[:32], 24: sha256[:48], 32: sha256, 48: sha384, 64: sha512} {
		if got := hex.EncodeToString(secretKey([]byte("password"), size)); got != want {
			t.Errorf("%d bytes: got %s, want %s", size, got, want)
		}
	}
	if got := secretSizes(); !slices.Equal(got, []int{16, 24, 32, 48, 64}) {
		t.Errorf("got sizes %v: some are not tested", got)
	}
}

// secretSizes lists the sizes of all keys that are made of a secret.
func secretSizes() []int {
	var sizes []int
	for _, alg := range keyAlgorithms {
		if alg.secretSize == nil {
			continue
		}
		for _, enc := range contentEncryptions {
			sizes = append(sizes, alg.secretSize(enc))
		}
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// RFC 7515, appendix A.3 (ES256), and RFC 8037, appendix A.4 (EdDSA). The headers of
// both have no kid, which Open would refuse; so the signer is put in by hand.
func TestExamplesOfSignatures(t *testing.T) {
	for _, test := range []struct{ rfc, alg, key, token, payload string }{
		{
			rfc: "7515", alg: "ES256",
			key: `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",` +
				`"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`,
			token: "eyJhbGciOiJFUzI1NiJ9." +
				"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ." +
				"DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
			payload: "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		{
			rfc: "8037", alg: "EdDSA",
			key: `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			token: "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc." +
				"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
			payload: "Example of Ed25519 signing",
		},
	} {
		t.Run(test.rfc, func(t *testing.T) {
			var key jose.JSONWebKey
			if err := key.UnmarshalJSON([]byte(test.key)); err != nil {
				t.Fatal(err)
			}
			key.Algorithm = test.alg
			o := &Opener{signers: []jose.JSONWebKey{key}, signatureAlgorithms: signatureAlgorithms}
			s, err := parseSigned(test.token)
			if err != nil {
				t.Fatal(err)
			}
			got, err := o.verify(s)
			if err != nil || string(got) != test.payload {
				t.Errorf("got %q, %v, want %q", got, err, test.payload)
			}
		})
	}
}

const rfc7516Token = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ." +
	"OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGe" +
	"ipsEdY3mx_etLbbWSrFr05kLzcSr4qKAq7YN7e9jwQRb23nfa6c9d-StnImGyFDb" +
	"Sv04uVuxIp5Zms1gNxKKK2Da14B8S4rzVRltdYwam_lDp5XnZAYpQdb76FdIKLaV" +
	"mqgfwX7XWRxv2322i-vDxRfqNzo_tETKzpVLzfiwQyeyPGLBIO56YJ7eObdv0je8" +
	"1860ppamavo35UgoRdbYaBcoh9QcfylQr66oc6vFWXRcZ_ZT2LawVCWTIy3brGPi" +
	"6UklfCpIMfIjf7iGdXKHzg." +
	"48V1_ALb6US04U3b." +
	"5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6ji" +
	"SdiwkIr3ajwQzaBtQD_A." +
	"XFBoMYUZodetZdvTiFvSkQ"

const rfc7516Key = `{"kty":"RSA",` +
	`"n":"oahUIoWw0K0usKNuOR6H4wkf4oBUXHTxRvgb48E-BVvxkeDNjbC4he8rUW` +
	`cJoZmds2h7M70imEVhRU5djINXtqllXI4DFqcI1DgjT9LewND8MW2Krf3S` +
	`psk_ZkoFnilakGygTwpZ3uesH-PFABNIUYpOiN15dsQRkgr0vEhxN92i2a` +
	`sbOenSZeyaxziK72UwxrrKoExv6kc5twXTq4h-QChLOln0_mtUZwfsRaMS` +
	`tPs6mS6XrgxnxbWhojf663tuEQueGC-FCMfra36C9knDFGzKsNa7LZK2dj` +
	`YgyD3JR_MB_4NUJW_TqOQtwHYbxevoJArm-L5StowjzGy-_bq6Gw",` +
	`"e":"AQAB",` +
	`"d":"kLdtIj6GbDks_ApCSTYQtelcNttlKiOyPzMrXHeI-yk1F7-kpDxY4-WY5N` +
	`WV5KntaEeXS1j82E375xxhWMHXyvjYecPT9fpwR_M9gV8n9Hrh2anTpTD9` +
	`3Dt62ypW3yDsJzBnTnrYu1iwWRgBKrEYY46qAZIrA2xAwnm2X7uGR1hghk` +
	`qDp0Vqj3kbSCz1XyfCs6_LehBwtxHIyh8Ripy40p24moOAbgxVw3rxT_vl` +
	`t3UVe4WO3JkJOzlpUf-KTVI2Ptgm-dARxTEtE-id-4OJr0h-K-VFs3VSnd` +
	`VTIznSxfyrj8ILL6MG_Uv8YAu7VILSB3lOW085-4qE3DzgrTjgyQ",` +
	`"p":"1r52Xk46c-LsfB5P442p7atdPUrxQSy4mti_tZI3Mgf2EuFVbUoDBvaRQ-` +
	`SWxkbkmoEzL7JXroSBjSrK3YIQgYdMgyAEPTPjXv_hI2_1eTSPVZfzL0lf` +
	`fNn03IXqWF5MDFuoUYE0hzb2vhrlN_rKrbfDIwUbTrjjgieRbwC6Cl0",` +
	`"q":"wLb35x7hmQWZsWJmB_vle87ihgZ19S8lBEROLIsZG4ayZVe9Hi9gDVCOBm` +
	`UDdaDYVTSNx_8Fyw1YYa9XGrGnDew00J28cRUoeBB_jKI1oma0Orv1T9aX` +
	`IWxKwd4gvxFImOWr3QRL9KEBRzk2RatUBnmDZJTIAfwTs0g68UZHvtc",` +
	`"dp":"ZK-YwE7diUh0qR1tR7w8WHtolDx3MZ_OTowiFvgfeQ3SiresXjm9gZ5KL` +
	`hMXvo-uz-KUJWDxS5pFQ_M0evdo1dKiRTjVw_x4NyqyXPM5nULPkcpU827` +
	`rnpZzAJKpdhWAgqrXGKAECQH0Xt4taznjnd_zVpAmZZq60WPMBMfKcuE",` +
	`"dq":"Dq0gfgJ1DdFGXiLvQEZnuKEN0UUmsJBxkjydc3j4ZYdBiMRAy86x0vHCj` +
	`ywcMlYYg4yoC4YZa9hNVcsjqA3FeiL19rk8g6Qn29Tt0cj8qqyFpz9vNDB` +
	`UfCAiJVeESOjJDZPYHdHY8v1b-o-Z2X5tvLx-TCekf7oxyeKDUqKWjis",` +
	`"qi":"VIMpMYbPf47dT1w_zDUXfPimsSegnMOA1zTaX7aGk_8urY6R8-ZW1FxU7` +
	`AlWAyLWybqq6t16VFd7hQd0y6flUK4SlOydB61gwanOsXGOAOv82cHq0E3` +
	`eL4HrtZkUuKvnPrMnsUUFlfUdybVzxyjz9JF_XyaY14ardLSjf4L_FNY"}`

const rfc7516TokenA2 = `eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMTI4Q0JDLUhTMjU2In0.UGhIOguC7IuEvf_NPVaXsGMoLOmwvc1GyqlIKOK1nN94nHPo` +
	`ltGRhWhw7Zx0-kFm1NJn8LE9XShH59_i8J0PH5ZZyNfGy2xGdULU7sHNF6Gp2vPLgNZ__deLKxGHZ7PcHALUzoOegEI-8E66jX2E` +
	`4zyJKx-YxzZIItRzC5hlRirb6Y5Cl_p-ko3YvkkysZIFNPccxRU7qve1WYPxqbb2Yw8kZqa2rMWI5ng8OtvzlV7elprCbuPhcCdZ` +
	`6XDP0_F8rkXds2vE4X-ncOIM8hAYHHi29NX0mcKiRaD0-D-ljQTP-cFPgwCp6X-nZZd9OHBv-B3oWh2TbqmScqXMR4gp_A.AxY8D` +
	`CtDaGlsbGljb3RoZQ.KDlTtXchhZTGufMYmOYGS4HffxPSUrfmqCHXaI9wOGY.9hH0vgRfYgPnAHOd8stkvw`

const rfc7516KeyA2 = `{"kty":"RSA","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3J` +
	`DXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4` +
	`H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHp` +
	`M2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB","d":"VFCWOqXr8nvZNyaaJLXdnN` +
	`PXZKRaWCjkU5Q2egQQpTBMwhprMzWzpR8Sxq1OPThh_J6MUD8Z35wky9b8eEO0pwNS8xlh1lOFRRBoNqDIKVOku0aZb-rynq8cxj` +
	`DTLZQ6Fz7jSjR1Klop-YKaUHc9GsEofQqYruPhzSA-QgajZGPbE_0ZaVDJHfyd7UUBUKunFMScbflYAAOYJqVIVwaYR5zWEEceUj` +
	`NnTNo_CVSj-VvXLO5VZfCUAVLgW4dpf1SrtZjSt34YLsRarSb127reG_DUwg9Ch-KyvjT1SkHgUWRVGcyly7uvVGRSDwsXypdrNi` +
	`nPA4jlhoNdizK2zF2CWQ","p":"9gY2w6I6S6L0juEKsbeDAwpd9WMfgqFoeA9vEyEUuk4kLwBKcoe1x4HG68ik918hdDSE9vDQS` +
	`ccA3xXHOAFOPJ8R9EeIAbTi1VwBYnbTp87X-xcPWlEPkrdoUKW60tgs1aNd_Nnc9LEVVPMS390zbFxt8TN_biaBgelNgbC95sM",` +
	`"q":"uKlCKvKv_ZJMVcdIs5vVSU_6cPtYI1ljWytExV_skstvRSNi9r66jdd9-yBhVfuG4shsp2j7rGnIio901RBeHo6TPKWVVyk` +
	`Pu1iYhQXw1jIABfw-MVsN-3bQ76WLdt2SDxsHs7q7zPyUyHXmps7ycZ5c72wGkUwNOjYelmkiNS0"}`
