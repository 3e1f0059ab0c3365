package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"missingos/srv/dc"
)

// Server gives the settings of the node's listener. A peer may come without a certificate (it can then only join); one that shows a
// certificate must show this cluster's, of a node that refuse does not object to.
func (id *Identity) Server(refuse func(dc.NodeID) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.certificate()},
		NextProtos:   []string{"h2"},
		ClientAuth:   tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			n, err := id.verify(cs.PeerCertificates)
			if err != nil {
				return err
			}
			return refuse(n)
		},
	}
}

// Client gives the settings for calling one node: the peer must prove to be that node.
func (id *Identity) Client(peer dc.NodeID) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{id.certificate()},
		NextProtos:         []string{"h2"},
		ServerName:         peer.String(),
		InsecureSkipVerify: true, // names of hosts mean nothing here; VerifyConnection checks the chain and the node
		VerifyConnection: func(cs tls.ConnectionState) error {
			n, err := id.verify(cs.PeerCertificates)
			if err == nil && n != peer {
				err = fmt.Errorf("this is node %s, not %s", n, peer)
			}
			return err
		},
	}
}

// Peer gives the node at the other end of a connection made with [Identity.Server]; false for a peer without a certificate.
func (id *Identity) Peer(cs tls.ConnectionState) (dc.NodeID, bool) {
	if len(cs.PeerCertificates) == 0 {
		return 0, false
	}
	n, err := nodeOf(cs.PeerCertificates[0], id.Cluster) // the chain was verified in the handshake
	return n, err == nil
}

// Pinned gives the settings for a first contact: the peer must be a node under the authority with this fingerprint.
func Pinned(fingerprint [sha256.Size]byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // VerifyConnection compares the authority with the token's
		VerifyConnection: func(cs tls.ConnectionState) error {
			chain := cs.PeerCertificates
			if len(chain) < 2 || sha256.Sum256(chain[len(chain)-1].Raw) != fingerprint {
				return errors.New("the node there is of another cluster than the join token")
			}
			roots := x509.NewCertPool()
			roots.AddCert(chain[len(chain)-1])
			_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			return err
		},
	}
}
