package encrypter

// contentSealer encrypts and authenticates one plaintext: it appends the
// ciphertext and then the authentication tag to dst. The sizes of key, IV and
// tag are those of its row in the table.
type contentSealer func(dst []byte, c content) ([]byte, error)

// content is what a content encryption algorithm works on.
type content struct {
	cek       []byte
	iv        []byte
	plaintext []byte

	// token is the JWE as far as it is written: encoded header, encrypted key
	// and IV, joined by dots. Its first headerSize bytes are the header.
	token      []byte
	headerSize int
}

// aad returns the additional authenticated data: ASCII(BASE64URL(header)), RFC
// 7516 section 5.1 step 14.
func (c content) aad() []byte { return c.token[:c.headerSize] }
