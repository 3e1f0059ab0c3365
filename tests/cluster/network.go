package cluster

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A network carries the nodes' connections and breaks them on demand. Nodes are numbered from 1.
type network struct {
	number    int32
	mu        sync.Mutex
	changed   *sync.Cond
	addresses map[string]int // of listeners
	cut       map[[2]int]bool
	stalled   map[int]bool
	conns     map[*conn]struct{}
}

func newNetwork() *network {
	n := &network{number: networks.Add(1), addresses: map[string]int{}, cut: map[[2]int]bool{}, stalled: map[int]bool{}, conns: map[*conn]struct{}{}}
	n.changed = sync.NewCond(&n.mu)
	return n
}

// Clusters of this process so far.
var networks atomic.Int32

// host is an address of node i's own: its port can't be taken while it is down, by an outgoing connection (those are from 127.0.0.1) or another node.
func (n *network) host(i int) string {
	return fmt.Sprintf("127.%d.%d.%d", 1+os.Getpid()%254, n.number, i)
}

// listen gives node i a listener on a free port, or on the one it had.
func (n *network) listen(i int, address string) (net.Listener, error) {
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses[lis.Addr().String()] = i
	return lis, nil
}

// dialer opens connections from node i.
func (n *network) dialer(from int) func(network, address string) (net.Conn, error) {
	return func(kind, address string) (net.Conn, error) {
		n.mu.Lock()
		to := n.addresses[address]
		refused := n.cut[[2]int{from, to}]
		n.mu.Unlock()
		if refused {
			return nil, fmt.Errorf("connection from node %d to node %d is cut", from, to)
		}
		raw, err := net.DialTimeout(kind, address, time.Second)
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, net: n, from: from, to: to}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.conns[c] = struct{}{}
		return c, nil
	}
}

// set changes what is broken and ends the connections that are cut now.
func (n *network) set(change func()) {
	n.mu.Lock()
	change()
	var dead []*conn
	for c := range n.conns {
		if n.cut[[2]int{c.from, c.to}] {
			dead = append(dead, c)
		}
	}
	n.changed.Broadcast()
	n.mu.Unlock()
	for _, c := range dead {
		_ = c.Close()
	}
}

// A conn is the dialling end of a connection.
type conn struct {
	net.Conn
	net      *network
	from, to int
	closed   bool // guarded by net.mu
}

// pass waits while either end is stalled.
func (c *conn) pass() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for !c.closed && (c.net.stalled[c.from] || c.net.stalled[c.to]) {
		c.net.changed.Wait()
	}
	if c.closed {
		return os.ErrClosed
	}
	return nil
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if perr := c.pass(); err == nil && perr != nil {
		return 0, perr
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.pass(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	c.closed = true
	delete(c.net.conns, c)
	c.net.changed.Broadcast()
	c.net.mu.Unlock()
	return c.Conn.Close()
}
