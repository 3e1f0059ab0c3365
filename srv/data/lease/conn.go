package lease

import (
	"math/rand/v2"
	"slices"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// A Conn is a node's connection to the leader: what it holds, for how long, and what it is to be told. All its leases have one time.
type Conn struct {
	ID      uint64
	Session uint64
	table   *Table

	until   time.Time
	held    map[file.Ino]struct{}
	ended   bool
	stopped bool          // its stream is at its end
	gone    chan struct{} // closed when it has ended
	timer   *time.Timer
	revoked []file.Ino // to be told
	told    uint64     // number of the last revocation taken to be told
	kick    chan struct{}
	unacked []unacked // in order
	unheard func(c *Conn, inos []file.Ino)
}

// unacked is a change that waits for the acknowledgement of a revocation.
type unacked struct {
	number uint64
	change *change
}

// Connect makes a connection, which holds nothing. replaces, if not 0, is an earlier one of the same node, which has given up all that it held. unheard, which must not block or
// use the table, is called with what was to be revoked from the connection, if its time ends before it says that it has given that up.
func (t *Table) Connect(session, replaces uint64, unheard func(c *Conn, inos []file.Ino)) (*Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.leading {
		return nil, dc.Errorf(dc.NotLeader, "lease", "", "this node does not lead the group")
	}
	if old := t.conns[replaces]; old != nil && old.Session == session {
		old.endLocked()
	}
	c := &Conn{
		ID: rand.Uint64() | 1, Session: session, table: t, until: time.Now().Add(t.ttl), held: map[file.Ino]struct{}{},
		gone: make(chan struct{}), kick: make(chan struct{}, 1), unheard: unheard,
	}
	t.conns[c.ID] = c
	c.watchLocked()
	return c, nil
}

// Conn finds a connection; nil if it has ended.
func (t *Table) Conn(id uint64) *Conn {
	if id == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conns[id]
}

// Gone is closed when the connection has ended: it was replaced, or the term is over.
func (c *Conn) Gone() <-chan struct{} { return c.gone }

// Kick says that there is something to be told, see Told.
func (c *Conn) Kick() <-chan struct{} { return c.kick }

// Renew lets all leases of the connection last for a whole time from now on. It must be called before the renewal is answered.
func (c *Conn) Renew() {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	c.until = time.Now().Add(c.table.ttl)
	c.watchLocked()
}

// Told gives what is to be revoked, and the number to acknowledge it by.
func (c *Conn) Told() (inos []file.Ino, number uint64) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	if len(c.revoked) == 0 {
		return nil, 0
	}
	c.told++
	inos, c.revoked = c.revoked, nil
	return inos, c.told
}

// Acknowledge notes that what was told up to number has been given up.
func (c *Conn) Acknowledge(number uint64) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	c.acknowledgeLocked(number)
}

func (c *Conn) acknowledgeLocked(number uint64) {
	for len(c.unacked) > 0 && c.unacked[0].number <= number {
		c.releaseLocked(c.unacked[0].change)
		c.unacked = c.unacked[1:]
	}
}

func (c *Conn) releaseLocked(ch *change) {
	if ch.holders--; ch.holders == 0 && !isDone(ch) {
		c.table.settleLocked(ch)
	}
}

// Stop notes that the connection's stream is at its end: it is told nothing any more, and ends when its time is up.
func (c *Conn) Stop() {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	if !c.ended && len(c.held) == 0 && len(c.unacked) == 0 {
		c.endLocked()
		return
	}
	c.stopped = true // expired ends it
}

// Grant gives the connection leases of those inos that have not changed since change number since; refused are the others. The caller has read them after that.
func (c *Conn) Grant(since uint64, inos ...file.Ino) (refused []uint64) {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	late := !t.leading || !time.Now().Before(c.until)
	for _, ino := range inos {
		if c.ended || late || t.changed.after(ino, since) || len(t.pending[ino]) > 0 {
			refused = append(refused, uint64(ino))
			continue
		}
		if _, ok := c.held[ino]; ok {
			continue
		}
		if len(c.held) >= MaxHeld {
			refused = append(refused, uint64(ino))
			continue
		}
		c.held[ino] = struct{}{}
		t.held[ino] = append(t.held[ino], c)
	}
	return refused
}

func (c *Conn) dropLocked(ino file.Ino) {
	if _, ok := c.held[ino]; !ok {
		return
	}
	delete(c.held, ino)
	t := c.table
	list := t.held[ino]
	if i := slices.Index(list, c); i >= 0 {
		list[i] = list[len(list)-1]
		list = list[:len(list)-1]
	}
	if len(list) == 0 {
		delete(t.held, ino)
	} else {
		t.held[ino] = list
	}
}

// revokeLocked takes the lease of ino back; ch waits until the node knows.
func (c *Conn) revokeLocked(ino file.Ino, ch *change) {
	c.dropLocked(ino)
	c.revoked = append(c.revoked, ino)
	c.waitLocked(ch)
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// waitLocked has ch wait for the acknowledgement of what is told next.
func (c *Conn) waitLocked(ch *change) {
	next := c.told + 1
	if n := len(c.unacked); n > 0 && c.unacked[n-1].change == ch {
		c.unacked[n-1].number = next
		return
	}
	ch.holders++
	c.unacked = append(c.unacked, unacked{next, ch})
	c.watchLocked()
}

// watchLocked makes sure that the end of the connection's time is noticed.
func (c *Conn) watchLocked() {
	if c.timer == nil && !c.ended {
		c.timer = time.AfterFunc(time.Until(c.until), c.expired)
	}
}

// expired looks whether the connection's time is up: then it holds nothing any more, and what waits for it goes on.
func (c *Conn) expired() {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	c.timer = nil
	if c.ended {
		return
	}
	if time.Now().Before(c.until) {
		c.watchLocked()
		return
	}
	if c.unheard != nil && len(c.unacked) > 0 {
		var inos []file.Ino
		for _, u := range c.unacked {
			inos = append(inos, u.change.inos...)
		}
		c.unheard(c, inos)
	}
	for ino := range c.held {
		c.dropLocked(ino)
	}
	c.revoked = nil
	for _, u := range c.unacked {
		c.releaseLocked(u.change)
	}
	c.unacked = nil
	if c.stopped || c == t.heir {
		c.endLocked()
	}
}

// endLocked ends the connection: what waits for it goes on.
func (c *Conn) endLocked() {
	if c.ended {
		return
	}
	c.ended = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.table.heir == c {
		c.table.heir = nil
	}
	for ino := range c.held {
		c.dropLocked(ino)
	}
	for _, u := range c.unacked {
		c.releaseLocked(u.change)
	}
	c.unacked, c.revoked = nil, nil
	delete(c.table.conns, c.ID)
	if c.gone != nil {
		close(c.gone)
	}
}
