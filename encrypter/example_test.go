package encrypter_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log"
	"strings"

	"github.com/bulla-project/bulla/encrypter"
)

func ExampleRecipient_Encrypt() {
	// The client has the private key. Usually its public key comes out of a
	// JWK Set.
	client, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}

	// Once for each client, and again when its keys change.
	recipient, err := encrypter.NewRecipient(encrypter.RecipientConfig{
		Key:               &client.PublicKey,
		KeyID:             "2026-enc",
		Algorithm:         encrypter.ECDHESA128KW,
		ContentEncryption: encrypter.A128CBCHS256,
	})
	if err != nil {
		log.Fatal(err)
	}

	// For each token.
	jws := []byte("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl")
	token, err := recipient.Encrypt(jws)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("parts:", len(strings.Split(token, ".")))

	// Claims that nobody signed are not enclosed.
	_, err = recipient.Encrypt([]byte(`{"sub":"alice"}`))
	fmt.Println(err)

	// Output:
	// parts: 5
	// not a signed token: expected three non-empty parts joined by dots; sign the claims before they are encrypted
}

func ExampleKeyAlgorithm_Fits() {
	client, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(encrypter.ECDHES.Fits(&client.PublicKey))
	fmt.Println(encrypter.RSAOAEP256.Fits(&client.PublicKey))

	// Output:
	// <nil>
	// unsuitable encryption key: RSA-OAEP-256 needs a key of type RSA, and this one is EC P-384; use a fitting key, or for this one ECDH-ES, ECDH-ES+A128KW, ECDH-ES+A192KW, ECDH-ES+A256KW
}
