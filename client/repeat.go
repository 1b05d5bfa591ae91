package client

import (
	"encoding/json"
	"strings"

	_ "google.golang.org/grpc/health" // by it a connection asks replicas whether they are ready

	bullav1 "github.com/bulla-project/bulla/proto/bulla/v1"
)

// repeatable are the calls that may be made twice: at worst a token is made that
// nobody gets.
func repeatable() []string {
	return []string{
		bullav1.TokenService_SignAndEncrypt_FullMethodName,
		bullav1.TokenService_Sign_FullMethodName,
		bullav1.TokenService_BatchSignAndEncrypt_FullMethodName,
		bullav1.ClientKeyService_GetClientKey_FullMethodName,
		bullav1.ClientKeyService_ListClientKeys_FullMethodName,
		bullav1.ClientKeyService_ExplainClientKey_FullMethodName,
		bullav1.SigningKeyService_GetJWKS_FullMethodName,
		bullav1.SigningKeyService_ListSigningKeys_FullMethodName,
		bullav1.SigningKeyService_GetProviderMetadata_FullMethodName,
		bullav1.StatusService_GetStatus_FullMethodName,
	}
}

// serviceConfig is gRPC's description of how calls are made: again after
// UNAVAILABLE (gRFC A6), in turn to all that the address stands for, and where
// replicas are named to those of them that are ready (gRFC A17). A single name may
// stand for many in DNS too, as that of a headless Service in Kubernetes does.
func serviceConfig(attempts int, replicas bool) string {
	type object = map[string]any
	config := object{"loadBalancingConfig": []object{{"round_robin": object{}}}}
	if replicas {
		config["healthCheckConfig"] = object{"serviceName": ""}
	}
	if attempts > 1 {
		var names []object
		for _, full := range repeatable() {
			service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
			names = append(names, object{"service": service, "method": method})
		}
		config["methodConfig"] = []object{{"name": names, "retryPolicy": object{
			"maxAttempts": attempts, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 3, "retryableStatusCodes": []string{"UNAVAILABLE"},
		}}}
	}
	doc, err := json.Marshal(config)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(doc)
}
