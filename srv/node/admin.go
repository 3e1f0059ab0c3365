package node

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

// SocketName is the admin socket in a node's directory.
const SocketName = "dcd.sock"

// statusTimeout bounds the wait for meta's leader before the node answers with what it knows itself.
const statusTimeout = 2 * time.Second

// adminServer answers dcctl on the unix socket. Root and the daemon's own user may do everything, others may look.
type adminServer struct {
	dcpb.UnimplementedAdminServer
	n *Node
}

// Status describes the cluster; without an answer of meta's leader, as this node knows it.
func (a *adminServer) Status(ctx context.Context, _ *dcpb.AdminStatusRequest) (*dcpb.AdminStatusReply, error) {
	n := a.n
	reply := &dcpb.AdminStatusReply{Cluster: n.id.Cluster, Version: Version + " (" + Commit + ")", Node: n.id.Name, Mount: n.mountPath()}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := n.meta.ClusterStatus(ctx)
	if err == nil {
		reply.Nodes, reply.Groups = st.Nodes, st.Groups
		return reply, nil
	}
	n.log.Debug("status without meta", "err", err)
	reply.Stale = true
	n.knownStatus(reply)
	return reply, nil
}

// knownStatus fills in what this node knows without asking anybody.
func (n *Node) knownStatus(reply *dcpb.AdminStatusReply) {
	m := n.directory.snapshot()
	for _, rec := range m.Nodes {
		node := &dcpb.AdminNode{Id: rec.Id, Name: rec.Name, Address: rec.Address, State: "unknown", Version: rec.Version, Labels: rec.Labels}
		switch {
		case rec.Removed:
			node.State = "removed"
		case rec.Id == uint64(n.id.Node):
			node.State = "up"
			node.FreeBytes, node.TotalBytes = n.space.sizes()
		}
		reply.Nodes = append(reply.Nodes, node)
	}
	for _, rec := range m.Groups {
		g := &dcpb.AdminGroup{Id: rec.Id, Name: rec.Name, Kind: rec.Kind, Want: rec.Want}
		own := &dcpb.MetaReplicaState{}
		if member, ok := n.replicas.member(dc.GroupID(rec.Id)); ok {
			own = member.state()
			g.Leader, g.Term, g.Commit = own.Leader, own.Term, own.Commit
		}
		for _, id := range rec.Nodes {
			r := &dcpb.AdminReplica{Node: id, Role: "wanted", Health: "unknown"}
			if id == uint64(n.id.Node) && own.Group != 0 {
				r.Role, r.Applied, r.Receiving = "voter", own.Applied, own.Receiving
			}
			g.Replicas = append(g.Replicas, r)
		}
		reply.Groups = append(reply.Groups, g)
	}
}

// tokenAddresses is how many nodes a join token names.
const tokenAddresses = 3

// Token makes a join token.
func (a *adminServer) Token(ctx context.Context, req *dcpb.AdminTokenRequest) (*dcpb.AdminTokenReply, error) {
	addresses := []string{a.n.address}
	for _, rec := range a.n.directory.snapshot().Nodes {
		if !rec.Removed && rec.Id != uint64(a.n.id.Node) && len(addresses) < tokenAddresses {
			addresses = append(addresses, rec.Address)
		}
	}
	t := pki.NewToken(a.n.id.Fingerprint(), addresses)
	expires, err := a.n.meta.MintToken(ctx, pki.Hash(t.Secret[:]), time.Duration(req.TtlMs)*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return &dcpb.AdminTokenReply{Token: t.String(), ExpiresMs: expires.UnixMilli()}, nil
}

// Drain sets or clears a node's drain mark, or begins to decommission it.
func (a *adminServer) Drain(ctx context.Context, req *dcpb.AdminDrainRequest) (*dcpb.AdminDrainReply, error) {
	if req.Decommission {
		return &dcpb.AdminDrainReply{}, a.n.meta.Decommission(ctx, req.Node)
	}
	return &dcpb.AdminDrainReply{}, a.n.meta.Drain(ctx, req.Node, req.Drain)
}

// MoveGroup changes where a group should be.
func (a *adminServer) MoveGroup(ctx context.Context, req *dcpb.AdminMoveGroupRequest) (*dcpb.AdminMoveGroupReply, error) {
	return &dcpb.AdminMoveGroupReply{}, a.n.meta.MoveGroup(ctx, client.GroupMove{
		Group: req.Group, From: req.From, To: req.To, Leader: req.Leader, Automatic: req.Automatic, Force: req.Force,
	})
}

// Remove takes a node out of the cluster.
func (a *adminServer) Remove(ctx context.Context, req *dcpb.AdminRemoveRequest) (*dcpb.AdminRemoveReply, error) {
	return &dcpb.AdminRemoveReply{}, a.n.meta.RemoveNode(ctx, req.Node)
}

// listenUnix opens the admin socket. A path too long for a socket address is reached through its directory's descriptor.
func listenUnix(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, dc.Wrap(err, "open admin socket", path)
	}
	bind := path
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		d, err := os.Open(dir)
		if err != nil {
			return nil, dc.Wrap(err, "open admin socket", path)
		}
		defer d.Close()
		bind = filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), SocketName)
	}
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: bind, Net: "unix"})
	if err != nil {
		return nil, dc.Wrap(err, "open admin socket", path)
	}
	lis.SetUnlinkOnClose(false) // by then bind may mean something else; the next start removes it
	if err := os.Chmod(path, 0o666); err != nil {
		_ = lis.Close()
		return nil, dc.Wrap(err, "open admin socket", path)
	}
	return lis, nil
}

func newAdminServer(n *Node) *grpc.Server {
	s := grpc.NewServer(grpc.Creds(peerCreds{}), grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := mayAdminister(ctx, info.FullMethod); err != nil {
			return nil, rpc.ToStatus(err)
		}
		resp, err := next(ctx, req)
		return resp, rpc.ToStatus(err)
	}), grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := mayAdminister(s.Context(), info.FullMethod); err != nil {
			return rpc.ToStatus(err)
		}
		return rpc.ToStatus(next(srv, s))
	}))
	dcpb.RegisterAdminServer(s, &adminServer{n: n})
	return s
}

// mayAdminister is the one place that says who may do what through the socket.
func mayAdminister(ctx context.Context, method string) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return dc.Errorf(dc.Denied, "admit", method, "the caller is unknown")
	}
	who, ok := p.AuthInfo.(ucred)
	if !ok {
		return dc.Errorf(dc.Denied, "admit", method, "the caller is unknown")
	}
	look := method == dcpb.Admin_Status_FullMethodName || method == dcpb.Admin_DataStatus_FullMethodName
	if look || who.uid == 0 || int(who.uid) == os.Geteuid() {
		return nil
	}
	return dc.Errorf(dc.Denied, "admit", method, "only root and the daemon's user (uid %d) may do this, not uid %d", os.Geteuid(), who.uid)
}

// ucred is who is at the other end of a unix socket, as the kernel says.
type ucred struct{ uid uint32 }

// AuthType implements credentials.AuthInfo.
func (ucred) AuthType() string { return "peercred" }

// peerCreds asks the kernel who connected.
type peerCreds struct{}

var _ credentials.TransportCredentials = peerCreds{}

// ClientHandshake is not used: the daemon does not call itself.
func (peerCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a server's credentials only")
}

// ServerHandshake reads SO_PEERCRED, unix(7).
func (peerCreds) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if credErr != nil {
		return nil, nil, credErr
	}
	return c, ucred{cred.Uid}, nil
}

// Info implements credentials.TransportCredentials.
func (peerCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (p peerCreds) Clone() credentials.TransportCredentials { return p }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCreds) OverrideServerName(string) error { return nil }
