package node

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"missingos/consensus/transport"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

// gate says who may call this node: peers with a certificate of this cluster whose node has not been removed; a stranger may only join.
type gate struct {
	id        *pki.Identity
	directory *directory
}

// peer gives the node at the other end of a request; false for a stranger and for a removed node.
func (g *gate) peer(ctx context.Context) (dc.NodeID, bool) {
	n, ok := g.certified(ctx)
	return n, ok && !g.directory.removed(n)
}

func (g *gate) certified(ctx context.Context) (dc.NodeID, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return 0, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return 0, false
	}
	return g.id.Peer(info.State)
}

// refuse answers a removed node by what has become of it, whatever it asks. Of others it notes where they say that they listen.
func (g *gate) refuse(ctx context.Context) error {
	n, ok := g.certified(ctx)
	if !ok {
		return nil
	}
	if g.directory.removed(n) {
		return dc.Errorf(dc.Stale, "admit", n.String(), "the node has been removed from the cluster")
	}
	if told := metadata.ValueFromIncomingContext(ctx, addressKey); len(told) == 1 && len(told[0]) <= dc.MaxNameBytes {
		g.directory.hear(n, told[0])
	}
	return nil
}

func (g *gate) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.refuse(ctx); err != nil {
		return nil, rpc.ToStatus(err)
	}
	return next(ctx, req)
}

func (g *gate) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.refuse(ss.Context()); err != nil {
		return rpc.ToStatus(err)
	}
	return next(srv, ss)
}

// openMethods are those without a header: joining, and Raft's own, which check the sender themselves.
func openMethods() map[string]bool {
	open := map[string]bool{
		dcpb.Join_Join_FullMethodName: true,
		dcpb.Mux_Carry_FullMethodName: true, // what it carries is admitted call by call
	}
	d := transport.Raft_ServiceDesc
	for _, m := range d.Methods {
		open["/"+d.ServiceName+"/"+m.MethodName] = true
	}
	for _, s := range d.Streams {
		open["/"+d.ServiceName+"/"+s.StreamName] = true
	}
	return open
}

// newServer makes the gRPC server that other nodes speak to.
func newServer(id *pki.Identity, g *gate, admit *rpc.Admit) *grpc.Server {
	// A removed node still completes the handshake, so that it can be told; every request of it is refused.
	tls := id.Server(func(dc.NodeID) error { return nil })
	return grpc.NewServer(
		grpc.Creds(credentials.NewTLS(tls)),
		grpc.UnaryInterceptor(admitted(g, admit)),
		grpc.ChainStreamInterceptor(g.stream, admit.Stream),
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveEvery / 2, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(dialTimeout),
	)
}

// admitted is what every call passes, whether it comes alone or over a shared stream.
func admitted(g *gate, admit *rpc.Admit) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return g.unary(ctx, req, info, func(ctx context.Context, req any) (any, error) { return admit.Unary(ctx, req, info, next) })
	}
}

// registrars adds a service to several registrars at once.
type registrars []grpc.ServiceRegistrar

func (r registrars) RegisterService(d *grpc.ServiceDesc, srv any) {
	for _, one := range r {
		one.RegisterService(d, srv)
	}
}

// joiner serves strangers that want to join, by passing them on to meta's leader.
type joiner struct {
	dcpb.UnimplementedJoinServer
	meta *client.Meta
}

// joinServeTimeout bounds one request of a stranger.
const joinServeTimeout = 12 * time.Second

// Join admits a node that has a token.
func (j *joiner) Join(ctx context.Context, req *dcpb.JoinRequest) (*dcpb.JoinReply, error) {
	if len(req.Csr) > 4*dc.KiB || len(req.Name) > dc.MaxNameBytes || len(req.Address) > dc.MaxNameBytes || !strings.Contains(req.Address, ":") {
		return nil, dc.Errorf(dc.Invalid, "join", "", "the request is malformed")
	}
	ctx, cancel := context.WithTimeout(ctx, joinServeTimeout)
	defer cancel()
	return j.meta.Admit(ctx, req, pki.Hash(req.Secret))
}
