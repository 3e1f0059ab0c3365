package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"missingos/srv/dc"
)

const (
	tokenPrefix = "dct1."
	secretBytes = 16
)

// Token is what a node needs to join: where to ask, whom to trust there, and the secret that admits it.
type Token struct {
	Addresses   []string // host:port of nodes to ask, in order
	Fingerprint [sha256.Size]byte
	Secret      [secretBytes]byte
}

// NewToken makes a token with a fresh secret.
func NewToken(fingerprint [sha256.Size]byte, addresses []string) Token {
	t := Token{Addresses: addresses, Fingerprint: fingerprint}
	_, _ = rand.Read(t.Secret[:]) // never fails (crypto/rand aborts the process instead)
	return t
}

// Hash is what the cluster keeps of a secret.
func Hash(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// String gives the form that people copy: "dct1." and base64.
func (t Token) String() string {
	b := append(t.Fingerprint[:], t.Secret[:]...)
	b = append(b, strings.Join(t.Addresses, ",")...)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads the form that [Token.String] writes.
func ParseToken(s string) (Token, error) {
	var t Token
	body, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(body)
	if !ok || err != nil || len(b) <= sha256.Size+secretBytes {
		return t, dc.Errorf(dc.Invalid, "join token", "", "this is no join token (want dct1. and about a hundred letters): was it copied whole?")
	}
	copy(t.Fingerprint[:], b)
	copy(t.Secret[:], b[sha256.Size:])
	t.Addresses = strings.Split(string(b[sha256.Size+secretBytes:]), ",")
	return t, nil
}
