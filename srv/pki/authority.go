package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"missingos/srv/dc"
)

const (
	authorityLife = 30 * 365 * 24 * time.Hour
	nodeLife      = 10 * 365 * 24 * time.Hour
	clockSkew     = 24 * time.Hour // how far behind a node's clock may be and still accept a fresh certificate
)

// Authority is the cluster's certificate authority. It is safe for concurrent use.
type Authority struct {
	cluster string
	cert    *x509.Certificate
	key     ed25519.PrivateKey
}

// NewClusterID makes a random cluster id: 16 bytes in hexadecimal.
func NewClusterID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand aborts the process instead)
	return hex.EncodeToString(b[:])
}

// NewAuthority makes the authority of a new cluster.
func NewAuthority(cluster string) (*Authority, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, dc.Wrap(err, "make authority key", cluster)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "missing os cluster " + cluster},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, dc.Wrap(err, "make authority", cluster)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, dc.Wrap(err, "make authority", cluster)
	}
	return &Authority{cluster: cluster, cert: cert, key: key}, nil
}

// LoadAuthority makes the authority of what [Authority.Marshal] gave.
func LoadAuthority(cluster string, certDER, keyDER []byte) (*Authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "load authority", cluster, "certificate: %w", err)
	}
	key, err := parseKey(keyDER)
	if err != nil {
		return nil, dc.Wrap(err, "load authority", cluster)
	}
	return &Authority{cluster: cluster, cert: cert, key: key}, nil
}

// Marshal gives the certificate (DER) and the secret key (PKCS 8, DER).
func (a *Authority) Marshal() (certDER, keyDER []byte, err error) {
	keyDER, err = x509.MarshalPKCS8PrivateKey(a.key)
	return a.cert.Raw, keyDER, dc.Wrap(err, "marshal authority", a.cluster)
}

// Sign makes node's certificate for the key of a certificate request (PKCS 10, DER), whose other wishes are ignored. The request proves
// that its sender has the key.
func (a *Authority) Sign(csrDER []byte, node dc.NodeID) (certDER []byte, err error) {
	csr, err := ParseRequest(csrDER)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: node.String()},
		URIs:                  []*url.URL{nodeURI(a.cluster, node)},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(nodeLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, csr.PublicKey, a.key)
	return der, dc.Wrap(err, "sign certificate", node.String())
}

// NewRequest makes a certificate request (PKCS 10, DER) for key.
func NewRequest(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return der, dc.Wrap(err, "make certificate request", "")
}

// ParseRequest checks a certificate request's form and signature.
func ParseRequest(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, dc.Errorf(dc.Invalid, "certificate request", "", "%w", err)
	}
	if _, ok := csr.PublicKey.(ed25519.PublicKey); !ok {
		return nil, dc.Errorf(dc.Invalid, "certificate request", "", "the key is %T, want ed25519", csr.PublicKey)
	}
	return csr, nil
}

// KeyHash is SHA-256 of a request's public key: it tells a repeated request from another's.
func KeyHash(csr *x509.CertificateRequest) []byte {
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return sum[:]
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func nodeURI(cluster string, node dc.NodeID) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: cluster, Path: "/node/" + node.String()}
}

// nodeOf reads the node that a certificate names and checks that it is of cluster.
func nodeOf(cert *x509.Certificate, cluster string) (dc.NodeID, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" {
		return 0, fmt.Errorf("the certificate of %q names no node", cert.Subject.CommonName)
	}
	u := cert.URIs[0]
	if u.Host != cluster {
		return 0, fmt.Errorf("the certificate is of cluster %s, this is %s", u.Host, cluster)
	}
	id, ok := strings.CutPrefix(u.Path, "/node/")
	if !ok {
		return 0, fmt.Errorf("the certificate names %s, not a node", u)
	}
	return dc.ParseNodeID(id)
}
