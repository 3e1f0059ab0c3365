package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

const (
	leaseHello    = 3 * time.Second  // how long a leader may take to answer a new connection
	leaseIdle     = 30 * time.Second // leases that nobody used for so long are not renewed
	leaseBackoff  = 100 * time.Millisecond
	leaseRefused  = 10 * time.Second // how long a cluster that grants nothing is left alone
	renewalsALife = 4
)

// leaseKeeper keeps this node's connection to the leader of the data group, while there is use for it.
type leaseKeeper struct {
	d     *Data
	ctx   context.Context
	stop  context.CancelFunc
	kick  chan struct{} // there is use for a connection, or for a renewal
	start sync.Once
	done  sync.WaitGroup
}

func (k *leaseKeeper) init(d *Data) {
	k.d, k.kick = d, make(chan struct{}, 1)
	k.ctx, k.stop = context.WithCancel(dc.WithPrincipal(context.Background(), dc.System(d.c.Node())))
}

func (k *leaseKeeper) close() {
	k.start.Do(func() {}) // nothing starts from now on
	k.stop()
	k.done.Wait()
	k.d.cache.disconnect()
}

// want is called when something could have been answered from memory under a lease.
func (k *leaseKeeper) want() {
	k.start.Do(func() { k.done.Go(k.run) })
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run connects whenever there is use for it.
func (k *leaseKeeper) run() {
	var last uint64
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.kick:
		}
		g, err := k.d.group(file.Root)
		if err == nil {
			err = k.d.c.Stream(k.ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
				return k.connection(ctx, cc, h, &last)
			})
		}
		k.d.cache.disconnect()
		wait := leaseBackoff
		if dc.KindOf(err) == dc.Unsupported {
			wait = leaseRefused
		}
		if sleep(k.ctx, wait) != nil {
			return
		}
	}
}

// connection runs one connection until it breaks. last is the number of the one before, and then its own.
func (k *leaseKeeper) connection(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header, last *uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(leaseHello, cancel)
	defer late.Stop()
	stream, err := dcpb.NewDataClient(cc).Leases(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&dcpb.DataLeasesRequest{Header: h, Session: k.d.session, Replaces: *last}); err != nil {
		_, err = stream.Recv() // says why
		return err
	}
	hello, err := stream.Recv()
	if err != nil {
		return err
	}
	if !late.Stop() {
		return dc.Errorf(dc.Unavailable, "lease", "", "the leader answered too late")
	}
	*last = hello.Connection
	c := &leaseConnection{d: k.d, id: hello.Connection, ttl: time.Duration(hello.TtlMs) * time.Millisecond, stream: stream, sent: map[uint64]time.Duration{}}
	k.d.cache.connected(c.id)
	var renewing sync.WaitGroup
	renewing.Go(func() {
		defer cancel()
		c.renew(ctx, k.kick)
	})
	defer renewing.Wait()
	defer cancel()
	return c.hear()
}

// A leaseConnection is one connection that the leader has taken.
type leaseConnection struct {
	d      *Data
	id     uint64
	ttl    time.Duration
	stream grpc.BidiStreamingClient[dcpb.DataLeasesRequest, dcpb.DataLeasesReply]

	mu    sync.Mutex // of sending
	sent  map[uint64]time.Duration
	asked uint64 // renewals
	last  time.Duration
}

func (c *leaseConnection) send(m *dcpb.DataLeasesRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Renew > 0 {
		c.sent[m.Renew] = c.d.cfg.Clock()
	}
	return c.stream.Send(m)
}

// renew asks for more time while somebody uses the leases. It returns when the connection is of no use any more.
func (c *leaseConnection) renew(ctx context.Context, kick <-chan struct{}) {
	cache := c.d.cache
	tick := time.NewTicker(c.ttl / renewalsALife)
	defer tick.Stop()
	c.mu.Lock()
	c.last = c.d.cfg.Clock()
	c.mu.Unlock()
	for {
		now := c.d.cfg.Clock()
		if now-time.Duration(cache.used.Load()) < leaseIdle {
			c.asked++
			if c.send(&dcpb.DataLeasesRequest{Renew: c.asked}) != nil || c.overdue(now) {
				return
			}
		} else {
			c.heard(now) // nothing is expected
		}
		if !c.pause(ctx, tick, kick) || cache.wornOut() || !cache.isOf(c.id) {
			return
		}
	}
}

// pause waits for the next renewal; if nobody uses the leases, until somebody does.
func (c *leaseConnection) pause(ctx context.Context, tick *time.Ticker, kick <-chan struct{}) bool {
	cache := c.d.cache
	for {
		select {
		case <-ctx.Done():
			return false
		case <-kick:
			if int64(c.d.cfg.Clock()) >= cache.until.Load() && !c.pending() || !cache.isOf(c.id) {
				return true
			}
		case <-tick.C:
			if c.d.cfg.Clock()-time.Duration(cache.used.Load()) < leaseIdle {
				return true
			}
			tick.Stop() // until there is use
			select {
			case <-ctx.Done():
				return false
			case <-kick:
			}
			tick.Reset(c.ttl / renewalsALife)
			return true
		}
	}
}

// pending tells whether a renewal is under way.
func (c *leaseConnection) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sent) > 0
}

func (c *leaseConnection) heard(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = now
	clear(c.sent)
}

// overdue tells that the leader has not answered renewals for too long.
func (c *leaseConnection) overdue(now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now-c.last > 2*c.ttl
}

// hear takes in what the leader says until the stream ends.
func (c *leaseConnection) hear() error {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			return err
		}
		if m.Renewed > 0 {
			c.renewed(m.Renewed)
		}
		if m.Revocation > 0 {
			c.d.cache.revoke(m.Revoked)
			if err := c.send(c.d.givenUp(m.Revocation, m.Revoked)); err != nil {
				return err
			}
		}
	}
}

// renewed trusts the leases for most of their time, from when the renewal was sent.
func (c *leaseConnection) renewed(n uint64) {
	c.mu.Lock()
	at, ok := c.sent[n]
	for m := range c.sent {
		if m <= n {
			delete(c.sent, m)
		}
	}
	if ok {
		c.last = max(c.last, at)
	}
	c.mu.Unlock()
	if ok {
		c.d.cache.renewed(at + c.ttl - c.ttl/8)
	}
}

// givenUp acknowledges a revocation, and tells which of the inodes are open: the leader may not have heard of that.
func (d *Data) givenUp(number uint64, inos []uint64) *dcpb.DataLeasesRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &dcpb.DataLeasesRequest{Acknowledged: number, Opened: d.number}
	for _, ino := range inos {
		if d.open[file.Ino(ino)] > 0 {
			m.Open = append(m.Open, ino)
		}
	}
	return m
}

// isOf tells whether the cache keeps what is granted to a connection.
func (c *fileCache) isOf(conn uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn == conn
}
