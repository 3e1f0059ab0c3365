package pki

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"missingos/srv/dc"
)

// Files of an identity, in the node's directory.
const (
	keyFile  = "node.key"
	certFile = "node.crt" // the node's certificate, then the authority's
	nodeFile = "node.json"
)

// Identity is one node's: who it is, its key and certificate, and whom it trusts.
type Identity struct {
	Cluster string
	Node    dc.NodeID
	Name    string

	key    ed25519.PrivateKey
	leaf   *x509.Certificate
	issuer *x509.Certificate
	roots  *x509.CertPool
}

type nodeRecord struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Node    uint64 `json:"node"`
	Name    string `json:"name"`
}

// NewIdentity joins a key with the certificate that was made for it, and checks that they belong together.
func NewIdentity(cluster string, node dc.NodeID, name string, key ed25519.PrivateKey, certDER, issuerDER []byte) (*Identity, error) {
	leaf, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "node certificate", node.String(), "%w", err)
	}
	issuer, err := x509.ParseCertificate(issuerDER)
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "authority certificate", cluster, "%w", err)
	}
	id := &Identity{Cluster: cluster, Node: node, Name: name, key: key, leaf: leaf, issuer: issuer, roots: x509.NewCertPool()}
	id.roots.AddCert(issuer)
	got, err := id.verify([]*x509.Certificate{leaf})
	if err == nil && got != node {
		err = dc.Errorf(dc.Invalid, "", "", "it names %s", got)
	}
	if pub, ok := leaf.PublicKey.(ed25519.PublicKey); err == nil && (!ok || !pub.Equal(key.Public())) {
		err = errors.New("it was made for another key")
	}
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "node certificate", node.String(), "%w", err)
	}
	return id, nil
}

// verify checks a peer's chain against the cluster's authority and gives the node it names.
func (id *Identity) verify(chain []*x509.Certificate) (dc.NodeID, error) {
	if len(chain) == 0 {
		return 0, errors.New("the peer shows no certificate")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:       id.roots,
		CurrentTime: time.Now(),
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return 0, err
	}
	return nodeOf(chain[0], id.Cluster)
}

// CreateKey gives the key in dir, made now if there is none, so that a join that is repeated asks for the same node.
func CreateKey(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	block, err := readPEM(path, "PRIVATE KEY")
	if err == nil {
		return parseKey(block[0])
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, dc.Wrap(err, "make key", path)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, dc.Wrap(err, "make key", path)
	}
	return key, WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Save writes the certificates and the record of the node beside the key, which [CreateKey] has stored. The record comes last: with it
// the directory is a node's.
func (id *Identity) Save(dir string) error {
	certs := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.leaf.Raw})
	certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.issuer.Raw})...)
	if err := WriteFile(filepath.Join(dir, certFile), certs); err != nil {
		return err
	}
	record, err := json.MarshalIndent(nodeRecord{Version: 1, Cluster: id.Cluster, Node: uint64(id.Node), Name: id.Name}, "", "  ")
	if err != nil {
		return dc.Wrap(err, "save identity", dir)
	}
	return WriteFile(filepath.Join(dir, nodeFile), append(record, '\n'))
}

// Exists tells whether dir holds an identity.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, nodeFile))
	return err == nil
}

// LoadIdentity reads what [Identity.Save] wrote; dc.NotFound if dir is no node's.
func LoadIdentity(dir string) (*Identity, error) {
	data, err := os.ReadFile(filepath.Join(dir, nodeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, dc.Errorf(dc.NotFound, "load identity", dir, "this directory is not a node's yet: run `dcd init` (first node) or `dcd join`")
	}
	if err != nil {
		return nil, dc.Wrap(err, "load identity", dir)
	}
	var record nodeRecord
	if err := json.Unmarshal(data, &record); err != nil || record.Version != 1 {
		return nil, dc.Errorf(dc.Corrupt, "load identity", filepath.Join(dir, nodeFile), "version %d: %v", record.Version, err)
	}
	keys, err := readPEM(filepath.Join(dir, keyFile), "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keys[0])
	if err != nil {
		return nil, err
	}
	certs, err := readPEM(filepath.Join(dir, certFile), "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	if len(certs) != 2 {
		return nil, dc.Errorf(dc.Corrupt, "load identity", filepath.Join(dir, certFile), "%d certificates, want 2", len(certs))
	}
	return NewIdentity(record.Cluster, dc.NodeID(record.Node), record.Name, key, certs[0], certs[1])
}

// Fingerprint is SHA-256 of the authority's certificate.
func (id *Identity) Fingerprint() [sha256.Size]byte { return sha256.Sum256(id.issuer.Raw) }

// certificate is what the node shows: itself and the authority, which a joining node compares with its token.
func (id *Identity) certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{id.leaf.Raw, id.issuer.Raw}, PrivateKey: id.key, Leaf: id.leaf}
}

// WriteFile replaces path with data, readable by its owner only, durably and all at once.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return dc.Wrap(err, "write", path)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return dc.Wrap(err, "write", path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readPEM gives the blocks of a file, at least one, all of the given type.
func readPEM(path, kind string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, dc.Wrap(err, "read", path)
	}
	var blocks [][]byte
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type != kind {
			return nil, dc.Errorf(dc.Corrupt, "read", path, "holds a %s, want a %s", b.Type, kind)
		}
		blocks = append(blocks, b.Bytes)
	}
	if len(blocks) == 0 {
		return nil, dc.Errorf(dc.Corrupt, "read", path, "holds no %s", kind)
	}
	return blocks, nil
}

func parseKey(der []byte) (ed25519.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "parse key", "", "%w", err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, dc.Errorf(dc.Corrupt, "parse key", "", "is %T, want ed25519", k)
	}
	return key, nil
}
