package jwks

import "crypto/sha256"

// thumbprint is the RFC 7638 SHA-256 thumbprint of a key from its required
// members, given as name and value in the order of their names. The values
// are base64url or registered names, which JSON need not escape.
func thumbprint(pairs ...[2]string) string {
	text := make([]byte, 0, 1024)
	text = append(text, '{')
	for i, pair := range pairs {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, '"')
		text = append(text, pair[0]...)
		text = append(text, '"', ':', '"')
		text = append(text, pair[1]...)
		text = append(text, '"')
	}
	text = append(text, '}')
	digest := sha256.Sum256(text)
	return encode(digest[:])
}
