package node

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

const (
	maxMessageBytes = 64 * dc.MiB // the largest are Raft's: as many entries as a lagging follower is sent at a time
	dialTimeout     = 3 * time.Second
	keepaliveEvery  = 10 * time.Second
	keepaliveWait   = 5 * time.Second

	streamWindow = 4 << 20 // bytes that may be under way on a stream
	connWindow   = 16 << 20

	// addressKey is the metadata of a request that tells where its sender listens.
	addressKey = "dc-address"
)

// conns holds one connection to every node that is talked to, and serves this node's own calls in process.
type conns struct {
	id    *pki.Identity
	local *rpc.Local
	self  string // where this node listens, told with every request
	find  func(dc.NodeID) (address string, err error)
	dial  func(network, address string) (net.Conn, error) // optional

	mu     sync.Mutex
	open   map[dc.NodeID]*conn
	closed bool
}

type conn struct {
	address string
	under   *grpc.ClientConn
	*rpc.Mux
}

// Close closes both; calls under way fail.
func (c *conn) Close() {
	_ = c.under.Close() // first, so that nothing waits for an answer
	c.Mux.Close()
}

var _ client.Nodes = (*conns)(nil)

// Conn gives the connection to n, at the address that the directory names now. It does not block: the connection is made when it is used.
func (c *conns) Conn(n dc.NodeID) (grpc.ClientConnInterface, error) {
	if n == c.id.Node {
		return c.local, nil
	}
	return c.remote(n)
}

func (c *conns) remote(n dc.NodeID) (grpc.ClientConnInterface, error) {
	address, err := c.find(n)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, dc.Errorf(dc.Unavailable, "connect", n.String(), "this node is shutting down")
	}
	old := c.open[n]
	if old != nil && old.address == address {
		return old.Mux, nil
	}
	cc, err := grpc.NewClient("passthrough:///"+address, c.options(n)...)
	if err != nil {
		return nil, dc.Errorf(dc.Unavailable, "connect", n.String(), "%s: %w", address, err)
	}
	if old != nil {
		old.Close() // the node is elsewhere now: calls to the old address fail, and are retried
	}
	now := &conn{address, cc, rpc.NewMux(cc)}
	c.open[n] = now
	return now.Mux, nil
}

func (c *conns) options(n dc.NodeID) []grpc.DialOption {
	dial := c.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).Dial
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(c.id.Client(n))),
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) { return dial("tcp", address) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		grpc.WithDisableServiceConfig(),
		// Fixed windows: with its own, growing ones gRPC measures the line by a ping with every message.
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(metadata.AppendToOutgoingContext(ctx, addressKey, c.self), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, addressKey, c.self), d, cc, method, opts...)
		}),
	}
}

// prune closes connections to nodes that gone says are no longer of the cluster.
func (c *conns) prune(gone func(dc.NodeID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, cc := range c.open {
		if gone(n) {
			cc.Close()
			delete(c.open, n)
		}
	}
}

// Close closes all connections.
func (c *conns) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for n, cc := range c.open {
		cc.Close()
		delete(c.open, n)
	}
}
