package client_test

import (
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/bulla-project/bulla/client"
)

// A relying party opens an ID token.
func ExampleOpener_Open() {
	privateJWK, err := os.ReadFile("private.jwk")
	if err != nil {
		log.Fatal(err)
	}
	keys, err := client.ParseKeys(privateJWK)
	if err != nil {
		log.Fatal(err)
	}
	issuerJWKS, err := os.ReadFile("issuer-jwks.json") // or fetched from the issuer's jwks_uri
	if err != nil {
		log.Fatal(err)
	}
	signers, err := client.ParseSigners(issuerJWKS)
	if err != nil {
		log.Fatal(err)
	}
	opener, err := client.NewOpener(client.OpenConfig{
		Keys:          keys,
		Signers:       signers,
		KeyAlgorithms: []string{"ECDH-ES"},
		Kind:          client.IDToken,
		Issuer:        "https://login.example.com",
		Audience:      "app-1",
	})
	if err != nil {
		log.Fatal(err)
	}

	token, err := opener.Open("eyJ…")
	switch {
	case errors.Is(err, client.ErrUnknownSigner):
		// The issuer may have a new key: fetch its JWKS again and retry once.
	case err != nil:
		log.Print(err)
	default:
		fmt.Printf("%s\n", token.Claims)
	}
}
