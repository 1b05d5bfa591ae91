package client

import (
	"errors"
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
