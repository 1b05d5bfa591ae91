package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/bulla-project/bulla/client"
	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// An identity backend issues tokens for a list of clients.
func ExampleClient_SignAndEncryptAll() {
	service, err := client.Dial(client.Config{
		Address: "bulla-1:8443,bulla-2:8443", CAFile: "ca.crt", CertFile: "idp.crt", KeyFile: "idp.key",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()
	var requests []*bullav1.SignAndEncryptRequest
	for _, clientID := range []string{"app-1", "app-2"} {
		requests = append(requests, &bullav1.SignAndEncryptRequest{
			ClientId: clientID, TokenKind: bullav1.TokenKind_TOKEN_KIND_LOGOUT_TOKEN, Claims: []byte(`{"sub":"alice"}`),
		})
	}
	for i, r := range service.SignAndEncryptAll(context.Background(), requests) {
		if r.Err != nil {
			log.Printf("%s: %v", requests[i].GetClientId(), r.Err)
			continue
		}
		fmt.Println(r.Reply.GetToken())
	}
}

// A login page issues a token for each of its users, over one stream.
func ExampleStream() {
	service, err := client.Dial(client.Config{Address: "bulla:8443", CAFile: "ca.crt", CertFile: "idp.crt", KeyFile: "idp.key"})
	if err != nil {
		log.Fatal(err)
	}
	defer service.Close()
	stream := service.NewStream(client.StreamConfig{})
	defer stream.Close()

	// As often as is needed, from as many goroutines as there are.
	res, err := stream.SignAndEncrypt(context.Background(), &bullav1.SignAndEncryptRequest{ClientId: "app-1", Claims: []byte(`{"sub":"alice"}`)})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(res.GetToken())
}

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
