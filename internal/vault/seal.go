package vault

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"

	"github.com/paddock-sandbox/paddock/internal/durable"
)

// A sealed vault is: magic, the revision (8 bytes, big endian), and the JSON of
// record sealed with AES-256-GCM, its random nonce before it. NIST SP 800-38D
// 8.3 allows 2^32 random nonces under one key, which is one for each write. The
// sandbox's id and the revision are the associated data, so that no file opens
// in place of another.
const magic = "paddock-vault-1\n"

// keySize is that of AES-256.
const keySize = 32

// record is the plain text of a sealed vault.
type record struct {
	Credentials []recordCredential `json:"credentials"`
	Bindings    []recordBinding    `json:"bindings"`
}

type recordCredential struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Value    string `json:"value"`
	Revision int64  `json:"revision"`
}

type recordBinding struct {
	Binding
	Revision int64 `json:"revision"`
}

func seal(aead cipher.AEAD, id string, c *content) ([]byte, error) {
	var r record
	for i := range c.credentials {
		x := &c.credentials[i]
		r.Credentials = append(r.Credentials, recordCredential{x.Name, x.Source.Type, x.Source.Value.Reveal(), x.revision})
	}
	for i := range c.bindings {
		r.Bindings = append(r.Bindings, recordBinding{c.bindings[i].Binding, c.bindings[i].revision})
	}
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint64([]byte(magic), uint64(c.revision))
	return aead.Seal(out, nil, plain, associated(id, c.revision)), nil
}

// open is seal's inverse. Its errors wrap ErrSealed.
func open(aead cipher.AEAD, id string, sealed []byte) (*content, error) {
	rest, ok := bytes.CutPrefix(sealed, []byte(magic))
	if !ok || len(rest) < 8+aead.Overhead() {
		return nil, fmt.Errorf("%w: the file is not a vault, or is cut off", ErrSealed)
	}
	c := &content{revision: int64(binary.BigEndian.Uint64(rest))}
	plain, err := aead.Open(nil, nil, rest[8:], associated(id, c.revision))
	if err != nil {
		return nil, fmt.Errorf("%w: its key is another one, or the file was changed", ErrSealed)
	}
	var r record
	if err := json.Unmarshal(plain, &r); err != nil {
		// Not wrapped: errors of the decoder may quote what they read.
		return nil, fmt.Errorf("%w: its content is not understood; it may be of another version of paddock", ErrSealed)
	}
	for _, x := range r.Credentials {
		c.credentials = append(c.credentials, credential{
			Credential{Name: x.Name, Source: Source{Type: x.Type, Value: NewSecret(x.Value)}}, x.Revision})
	}
	for _, x := range r.Bindings {
		c.bindings = append(c.bindings, binding{x.Binding, x.Revision})
	}
	return c, nil
}

func associated(id string, revision int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("paddock vault of "+id+" "), uint64(revision))
}

// readKey returns the cipher of the key in a file, which is nobody else's to
// read. A missing file is fs.ErrNotExist.
func readKey(path string) (cipher.AEAD, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key %s may be read by others (mode %04o); run: chmod 600 %s", path, fi.Mode().Perm(), path)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("the key %s has %d bytes instead of %d; put a backup in its place", path, len(key), keySize)
	}
	return newCipher(key)
}

// makeKey makes the key. The file has its whole content when it appears.
func makeKey(path string) (cipher.AEAD, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := durable.Write(path, key, 0o600); err != nil {
		return nil, fmt.Errorf("writing the key of the credential vaults: %w", err)
	}
	return newCipher(key)
}

func newCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
