package encrypter

// keyManagement decides the content encryption key of one token and puts it
// into a form that only the recipient can read (RFC 7516 section 5.1, steps 1
// to 7). It belongs to one Recipient, holds that recipient's key, and may be
// called concurrently, each time with another workspace.
//
// It finds w.cek filled with fresh random bytes. An algorithm that encrypts a
// CEK takes it as it is; one that agrees upon a key, or shares one with the
// recipient, overwrites it. Header members that differ from token to token are
// appended to w.header as JSON text, each after a comma. It returns the
// encrypted key, empty if there is none, which is valid until w is released.
type keyManagement func(w *workspace) (encryptedKey []byte, err error)
