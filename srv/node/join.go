package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
	"missingos/storage/command"
	metamachine "missingos/storage/machine/meta"
)

// bootstrapFile holds the first command of a new cluster, the authority's key among it, until the first run has replicated it.
const bootstrapFile = "bootstrap"

// joinTimeout bounds the conversation with one node that is asked to admit this one.
const joinTimeout = 15 * time.Second

// Init makes dir the first node of a new cluster.
func Init(dir, listen, name, mount string) (*pki.Identity, error) {
	unlock, name, err := claim(dir, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if listen == "" {
		listen = DefaultListen
	}
	cluster := pki.NewClusterID()
	ca, err := pki.NewAuthority(cluster)
	if err != nil {
		return nil, err
	}
	caCert, caKey, err := ca.Marshal()
	if err != nil {
		return nil, err
	}
	key, err := pki.CreateKey(dir)
	if err != nil {
		return nil, err
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(csr, 1)
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(cluster, 1, name, key, cert, caCert)
	if err != nil {
		return nil, err
	}
	address := advertised(listen)
	first, err := proto.Marshal(&command.MetaInit{
		Cluster: cluster, CaCert: caCert, CaKey: caKey, Node: &command.MetaNode{Id: 1, Name: name, Address: address},
	})
	if err != nil {
		return nil, dc.Wrap(err, "init", dir)
	}
	if err := pki.WriteFile(filepath.Join(dir, bootstrapFile), first); err != nil {
		return nil, err
	}
	m := &dcpb.MetaMap{
		Nodes:  []*dcpb.MetaMapNode{{Id: 1, Name: name, Address: address}},
		Groups: []*dcpb.MetaMapGroup{{Id: uint64(dc.MetaGroup), Name: "meta", Kind: dc.KindMeta, Nodes: []uint64{1}}},
	}
	return id, settle(dir, id, m, stored{Listen: listen, Mount: mount})
}

// Join makes dir a node of the cluster that issued token. An interrupted join may be repeated with the same token.
func Join(ctx context.Context, dir, token, listen, name, mount string) (*pki.Identity, error) {
	t, err := pki.ParseToken(token)
	if err != nil {
		return nil, err
	}
	unlock, name, err := claim(dir, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if listen == "" {
		listen = DefaultListen
	}
	key, err := pki.CreateKey(dir)
	if err != nil {
		return nil, err
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		return nil, err
	}
	reply, err := ask(ctx, t, &dcpb.JoinRequest{Secret: t.Secret[:], Csr: csr, Name: name, Address: advertised(listen), Version: Version})
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(reply.Cluster, dc.NodeID(reply.Node), reply.Name, key, reply.Certificate, reply.CaCertificate)
	if err != nil {
		return nil, err
	}
	return id, settle(dir, id, reply.Map, stored{Listen: listen, Mount: mount})
}

// claim locks dir for making it a node's and checks the name.
func claim(dir, name string) (unlock func(), _ string, err error) {
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, "", dc.Wrap(err, "find this machine's name", "")
		}
	}
	if err := metamachine.CheckName(name); err != nil {
		return nil, "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, "", err
	}
	if pki.Exists(dir) {
		id, err := pki.LoadIdentity(dir)
		if err == nil {
			err = dc.Errorf(dc.Exists, "make node", dir, "this directory is node %s (%s) of cluster %s already: start it with `dcd run`", id.Node, id.Name, id.Cluster)
		}
		return nil, "", errors.Join(err, lock.Close())
	}
	return func() { _ = lock.Close() }, name, nil
}

// settle writes everything that Run needs; the identity last, for with it dir is a node's.
func settle(dir string, id *pki.Identity, m *dcpb.MetaMap, s stored) error {
	if err := saveMap(dir, m); err != nil {
		return err
	}
	if err := s.save(dir); err != nil {
		return err
	}
	return id.Save(dir)
}

// ask asks the token's nodes in turn. A refusal by one that was reached is final.
func ask(ctx context.Context, t pki.Token, req *dcpb.JoinRequest) (*dcpb.JoinReply, error) {
	var errs []error
	for _, address := range t.Addresses {
		reply, err := askOne(ctx, address, t, req)
		if err == nil {
			return reply, nil
		}
		if k := dc.KindOf(err); k != dc.Unavailable && k != dc.NotLeader {
			return nil, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	return nil, dc.Errorf(dc.Unavailable, "join", "", "no node of the cluster could be asked: %w", errors.Join(errs...))
}

func askOne(ctx context.Context, address string, t pki.Token, req *dcpb.JoinRequest) (*dcpb.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(pki.Pinned(t.Fingerprint))))
	if err != nil {
		return nil, dc.Wrap(err, "join", address)
	}
	defer cc.Close()
	reply, err := dcpb.NewJoinClient(cc).Join(ctx, req)
	return reply, rpc.FromStatus(err)
}
