package awsfault

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// operations are what the endpoint can do, by their names in the API. Each gets
// a request's body, and the fault that happens to it.
var operations = map[string]func(*Endpoint, []byte, Fault) (any, error){
	"GetPublicKey":     decoded((*Endpoint).getPublicKey),
	"Sign":             decoded((*Endpoint).sign),
	"Encrypt":          decoded((*Endpoint).encrypt),
	"Decrypt":          decoded((*Endpoint).decrypt),
	"CreateKey":        decoded((*Endpoint).createKey),
	"ListKeys":         decoded((*Endpoint).listKeys),
	"ListResourceTags": decoded((*Endpoint).listResourceTags),
	"DescribeKey":      decoded((*Endpoint).describeKey),
}

// Lengths that the API reference gives, in bytes or entries.
const (
	maxMessage    = 4096
	maxPlaintext  = 4096
	maxCiphertext = 6144
	maxKeysPage   = 1000
	usualKeysPage = 100
	maxTagsPage   = 50
)

// apiError is an error as KMS answers it.
type apiError struct {
	code, message string
	status        int // 0: what the code says
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// serverFaults are the codes that KMS answers with a status of 500 or more.
var serverFaults = map[string]int{
	"KMSInternalException": 500, "KeyUnavailableException": 500, "InternalFailure": 500,
	"DependencyTimeoutException": 503, "ServiceUnavailable": 503,
}

// operation is what a request asks for.
func operation(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
}

// refuse answers err in the form of the AWS JSON 1.1 protocol.
func refuse(w http.ResponseWriter, err error) {
	var e *apiError
	if !errors.As(err, &e) {
		e = &apiError{code: "KMSInternalException", message: err.Error()}
	}
	status := e.status
	if status == 0 {
		status = serverFaults[e.code]
	}
	if status == 0 {
		status = http.StatusBadRequest
	}
	write(w, status, map[string]string{"__type": e.code, "message": e.message})
}

func write(w http.ResponseWriter, status int, answer any) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", hex.EncodeToString(id[:]))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client may have gone away
}

// decoded makes an operation of a method that wants its parameters decoded.
func decoded[In any](do func(*Endpoint, *In, Fault) (any, error)) func(*Endpoint, []byte, Fault) (any, error) {
	return func(e *Endpoint, body []byte, f Fault) (any, error) {
		in := new(In)
		if err := json.Unmarshal(body, in); err != nil {
			return nil, &apiError{code: "SerializationException", message: err.Error()}
		}
		return do(e, in, f)
	}
}

func invalid(format string, v ...any) error {
	return &apiError{code: "ValidationException", message: fmt.Sprintf(format, v...)}
}

// key returns the key of an id or an ARN, whatever its state.
func (e *Endpoint) key(id string) (*key, error) {
	k := e.find(id)
	if k == nil {
		return nil, &apiError{code: "NotFoundException", message: fmt.Sprintf("Key '%s' does not exist", id)}
	}
	return k, nil
}

// usable returns a key that is in a state to be used, for what it is for.
func (e *Endpoint) usable(id, usage string) (*key, error) {
	k, err := e.key(id)
	if err != nil {
		return nil, err
	}
	switch state := e.stateOf(k); {
	case state == Disabled:
		return nil, &apiError{code: "DisabledException", message: k.arn() + " is disabled."}
	case state == PendingDeletion:
		return nil, &apiError{code: "KMSInvalidStateException", message: k.arn() + " is pending deletion."}
	case state != Enabled:
		return nil, &apiError{code: "KMSInvalidStateException", message: k.arn() + " is " + state + "."}
	case usage != "" && k.usage != usage:
		return nil, &apiError{code: "InvalidKeyUsageException", message: fmt.Sprintf("%s key usage is %s which is not valid for this operation.", k.arn(), k.usage)}
	}
	return k, nil
}

func (e *Endpoint) stateOf(k *key) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return k.state
}

type keyInput struct{ KeyId string }

func (e *Endpoint) getPublicKey(in *keyInput, _ Fault) (any, error) {
	k, err := e.usable(in.KeyId, "")
	if err != nil {
		return nil, err
	}
	if k.signer == nil {
		return nil, &apiError{code: "UnsupportedOperationException", message: k.arn() + " key spec is " + k.spec + " which is not valid for this operation."}
	}
	der, err := k.public()
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"KeyId": k.arn(), "PublicKey": der, "KeySpec": k.spec, "CustomerMasterKeySpec": k.spec,
		"KeyUsage": k.usage, "SigningAlgorithms": signingAlgorithms(k.spec),
	}, nil
}

type signInput struct {
	KeyId, MessageType, SigningAlgorithm string
	Message                              []byte
}

func (e *Endpoint) sign(in *signInput, f Fault) (any, error) {
	k, err := e.usable(in.KeyId, "SIGN_VERIFY")
	if err != nil {
		return nil, err
	}
	s, known := schemes[in.SigningAlgorithm]
	if !known {
		return nil, invalid("no signing algorithm %q", in.SigningAlgorithm)
	}
	if !slices.Contains(s.specs, k.spec) {
		return nil, &apiError{code: "InvalidKeyUsageException", message: fmt.Sprintf("Algorithm %s is incompatible with key spec %s.", in.SigningAlgorithm, k.spec)}
	}
	input := in.Message
	switch in.MessageType {
	case "", "RAW":
		if len(input) > maxMessage {
			return nil, invalid("1 validation error detected: Value at 'message' failed to satisfy constraint: Member must have length less than or equal to %d", maxMessage)
		}
		if !s.raw {
			input = digestOf(s.hash, input)
		}
	case "DIGEST":
		if s.raw {
			return nil, invalid("%s requires MessageType RAW", in.SigningAlgorithm)
		}
		if len(input) != s.hash.Size() {
			return nil, invalid("Digest is invalid length for algorithm %s.", in.SigningAlgorithm)
		}
	default:
		return nil, invalid("no message type %q", in.MessageType)
	}
	signature, err := k.sign(s, input)
	if err != nil {
		return nil, err
	}
	if f.Flip {
		signature[len(signature)-1] ^= 1
	}
	return map[string]any{"KeyId": k.arn(), "Signature": signature, "SigningAlgorithm": in.SigningAlgorithm}, nil
}

type encryptInput struct {
	KeyId, EncryptionAlgorithm string
	Plaintext                  []byte
	EncryptionContext          map[string]string
}

const symmetric = "SYMMETRIC_DEFAULT"

func (e *Endpoint) encrypt(in *encryptInput, _ Fault) (any, error) {
	k, err := e.usable(in.KeyId, "ENCRYPT_DECRYPT")
	switch {
	case err != nil:
		return nil, err
	case in.EncryptionAlgorithm != "" && in.EncryptionAlgorithm != symmetric:
		return nil, &apiError{code: "InvalidKeyUsageException", message: "Algorithm " + in.EncryptionAlgorithm + " is incompatible with key spec " + k.spec + "."}
	case len(in.Plaintext) == 0 || len(in.Plaintext) > maxPlaintext:
		return nil, invalid("a plaintext has 1 to %d bytes, not %d", maxPlaintext, len(in.Plaintext))
	}
	return map[string]any{"KeyId": k.arn(), "CiphertextBlob": k.seal(in.Plaintext, in.EncryptionContext), "EncryptionAlgorithm": symmetric}, nil
}

type decryptInput struct {
	KeyId, EncryptionAlgorithm string
	CiphertextBlob             []byte
	EncryptionContext          map[string]string
}

func (e *Endpoint) decrypt(in *decryptInput, _ Fault) (any, error) {
	if n := len(in.CiphertextBlob); n == 0 || n > maxCiphertext {
		return nil, invalid("a ciphertext has 1 to %d bytes, not %d", maxCiphertext, n)
	}
	bad := &apiError{code: "InvalidCiphertextException"}
	const header = 1 + 36 // blobHeader's length
	if len(in.CiphertextBlob) < header || in.CiphertextBlob[0] != 1 {
		return nil, bad
	}
	maker := e.find(string(in.CiphertextBlob[1:header]))
	if maker == nil || maker.secret == nil {
		return nil, bad
	}
	id := in.KeyId
	if id == "" {
		id = maker.id
	}
	k, err := e.usable(id, "ENCRYPT_DECRYPT")
	if err != nil {
		return nil, err
	}
	if k != maker {
		return nil, &apiError{code: "IncorrectKeyException", message: "The key ID in the request does not identify a CMK that can perform this operation."}
	}
	plaintext, err := k.open(in.CiphertextBlob, in.EncryptionContext)
	if err != nil {
		return nil, bad
	}
	return map[string]any{"KeyId": k.arn(), "Plaintext": plaintext, "EncryptionAlgorithm": symmetric}, nil
}

type createKeyInput struct {
	KeySpec, KeyUsage, Description string
	Tags                           []tag
}

func (e *Endpoint) createKey(in *createKeyInput, _ Fault) (any, error) {
	if in.KeySpec == "" {
		in.KeySpec = symmetric
	}
	if _, known := newMaterial[in.KeySpec]; !known {
		return nil, invalid("no key spec %q", in.KeySpec)
	}
	fits := "SIGN_VERIFY"
	if in.KeySpec == symmetric {
		fits = "ENCRYPT_DECRYPT"
	}
	if in.KeyUsage != fits {
		return nil, invalid("key usage %q does not go with key spec %s here", in.KeyUsage, in.KeySpec)
	}
	if len(in.Tags) > maxTagsPage {
		return nil, &apiError{code: "TagException", message: "too many tags"}
	}
	k, err := e.add(&key{spec: in.KeySpec, usage: in.KeyUsage, description: in.Description, tags: in.Tags})
	if err != nil {
		return nil, err
	}
	return map[string]any{"KeyMetadata": e.metadata(k)}, nil
}

func (e *Endpoint) describeKey(in *keyInput, _ Fault) (any, error) {
	k, err := e.key(in.KeyId)
	if err != nil {
		return nil, err
	}
	return map[string]any{"KeyMetadata": e.metadata(k)}, nil
}

func (e *Endpoint) metadata(k *key) map[string]any {
	state := e.stateOf(k)
	m := map[string]any{
		"AWSAccountId": account, "KeyId": k.id, "Arn": k.arn(), "CreationDate": float64(k.made.UnixMilli()) / 1000,
		"Enabled": state == Enabled, "Description": k.description, "KeyUsage": k.usage, "KeyState": state, "Origin": "AWS_KMS",
		"KeyManager": "CUSTOMER", "KeySpec": k.spec, "CustomerMasterKeySpec": k.spec, "MultiRegion": false,
	}
	if k.managed {
		m["KeyManager"] = "AWS"
	}
	if k.usage == "SIGN_VERIFY" {
		m["SigningAlgorithms"] = signingAlgorithms(k.spec)
	}
	return m
}

type listInput struct {
	Limit         *int
	Marker, KeyId string
}

// page is the entries of a list from the one that marker names on, at most
// limit, and the marker of the next page, "" if this is the last.
func page[T any](all []T, name func(T) string, in *listInput, limit, maxLimit int) ([]T, string, error) {
	if in.Limit != nil {
		limit = *in.Limit
	}
	if limit < 1 || limit > maxLimit {
		return nil, "", invalid("a limit is 1 to %d, not %d", maxLimit, limit)
	}
	if in.Marker != "" {
		i := slices.IndexFunc(all, func(v T) bool { return name(v) == in.Marker })
		if i < 0 {
			return nil, "", &apiError{code: "InvalidMarkerException", message: "no such marker"}
		}
		all = all[i:]
	}
	if len(all) <= limit {
		return all, "", nil
	}
	return all[:limit], name(all[limit]), nil
}

func (e *Endpoint) listKeys(in *listInput, _ Fault) (any, error) {
	keys, next, err := page(e.sortedKeys(), func(k *key) string { return k.id }, in, usualKeysPage, maxKeysPage)
	if err != nil {
		return nil, err
	}
	entries := make([]map[string]string, len(keys))
	for i, k := range keys {
		entries[i] = map[string]string{"KeyId": k.id, "KeyArn": k.arn()}
	}
	return listed("Keys", entries, next), nil
}

func (e *Endpoint) listResourceTags(in *listInput, _ Fault) (any, error) {
	k, err := e.key(in.KeyId)
	if err != nil {
		return nil, err
	}
	if k.managed {
		return nil, &apiError{code: "AccessDeniedException", message: "User is not authorized to perform: kms:ListResourceTags on resource: " + k.arn()}
	}
	tags, next, err := page(k.tags, func(t tag) string { return t.TagKey }, in, maxTagsPage, maxTagsPage)
	if err != nil {
		return nil, err
	}
	return listed("Tags", tags, next), nil
}

// listed is the answer of a list operation.
func listed(name string, entries any, next string) map[string]any {
	answer := map[string]any{name: entries, "Truncated": next != ""}
	if next != "" {
		answer["NextMarker"] = next
	}
	return answer
}
