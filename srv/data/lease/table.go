package lease

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	// TTL is how long a lease lasts unless it is renewed.
	TTL = 2 * time.Second
	// MaxHeld is how many inodes one connection may hold. More are not granted.
	MaxHeld = 200_000
)

// A Table is the leases of one group. See the package's documentation.
type Table struct {
	ttl time.Duration

	mu       sync.Mutex
	leading  bool
	seq      uint64 // of changes
	conns    map[uint64]*Conn
	held     map[file.Ino][]*Conn
	changed  recent
	applying []*change // foretold, in order, not yet applied
	pending  map[file.Ino][]*change
	requests map[uint64]*Request
	heir     *Conn // holds everything that an earlier leader may have granted; nil once that has ended

	waiting atomic.Int64 // changes pending, all of them
}

// A change is a command that may not be seen yet.
type change struct {
	request uint64
	inos    []file.Ino
	holders int           // connections that have not given up what it touches; -1 while it is being applied
	done    chan struct{} // closed when it may be seen
}

// A Request is a mutation on its way through this leader.
type Request struct {
	ID   uint64
	conn *Conn
	own  map[file.Ino]bool
	made *change // what it has become, once it is being applied
}

// New makes a table of a replica that has just been opened. ttl 0 means [TTL].
func New(ttl time.Duration) *Table {
	if ttl == 0 {
		ttl = TTL
	}
	return &Table{
		ttl: ttl, conns: map[uint64]*Conn{}, held: map[file.Ino][]*Conn{}, changed: newRecent(2 * ttl),
		pending: map[file.Ino][]*change{}, requests: map[uint64]*Request{},
	}
}

// TTL is how long a lease lasts.
func (t *Table) TTL() time.Duration { return t.ttl }

// Lead begins a term: from now on this replica grants. For one lease's time an earlier leader's leases are respected. What changed just before may not have been
// given up by those who hold it, so it waits, too.
func (t *Table) Lead() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.leading = true
	t.heir = &Conn{table: t, until: now.Add(t.ttl), held: map[file.Ino]struct{}{}}
	c := &change{done: make(chan struct{}), holders: 1}
	if now.Sub(t.changed.lossy) < 2*t.ttl { // 2 TTL: see the design note
		c.inos = []file.Ino{everything}
	} else {
		t.changed.each(func(ino file.Ino) { c.inos = append(c.inos, ino) })
	}
	t.markLocked(c)
	t.heir.unacked = append(t.heir.unacked, unacked{1, c})
	for _, c := range t.applying {
		t.markLocked(c)
	}
	t.heir.watchLocked()
}

// everything stands for all inodes among those pending.
const everything file.Ino = 0

// Resign ends the term, and all leases that this replica granted as far as it knows of them: they last until their time is up, which the next leader waits for.
func (t *Table) Resign() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leading = false
	for _, c := range t.conns {
		c.endLocked()
	}
	if t.heir != nil {
		t.heir.endLocked()
	}
	for _, list := range t.pending {
		for _, c := range list {
			c.closeOnce()
		}
	}
	for i, c := range t.applying {
		t.applying[i] = &change{inos: c.inos, holders: -1, done: make(chan struct{})} // for the next term
	}
	clear(t.pending)
	clear(t.requests)
	t.waiting.Store(0)
}

func (c *change) closeOnce() {
	select {
	case <-c.done:
	default:
		close(c.done)
	}
}

// Leading tells whether this replica may answer: between Lead and Resign.
func (t *Table) Leading() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leading
}

// Seq is the number of the last change, to be asked for before a read whose answer is to be granted.
func (t *Table) Seq() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seq
}

// Begin notes a mutation that is about to be proposed, under the id it gives it. own are inodes about which conn (which may be nil) does not answer from memory until it has
// the reply: the mutation revokes nothing of them from it. End must follow.
func (t *Table) Begin(conn *Conn, own []uint64) *Request {
	r := &Request{ID: rand.Uint64() | 1, conn: conn}
	if conn != nil && len(own) > 0 {
		r.own = make(map[file.Ino]bool, len(own))
		for _, ino := range own {
			r.own[file.Ino(ino)] = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests[r.ID] = r
	return r
}

// End forgets a mutation; its change may still be pending.
func (t *Table) End(r *Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.requests, r.ID)
}

// Applying notes that a command that writes inos is about to be committed: answers about them wait.
func (t *Table) Applying(request uint64, inos []file.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &change{request: request, inos: inos, holders: -1, done: make(chan struct{})}
	t.applying = append(t.applying, c)
	if !t.leading {
		return
	}
	t.markLocked(c)
	if r := t.requests[request]; r != nil {
		r.made = c
	}
}

func (t *Table) markLocked(c *change) {
	t.waiting.Add(1)
	for _, ino := range c.inos {
		t.pending[ino] = append(t.pending[ino], c)
	}
}

// Applied notes that the command foretold first of those that are not applied yet is committed, and revokes what it touches.
func (t *Table) Applied() {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.applying[0]
	if t.applying = t.applying[1:]; len(t.applying) == 0 {
		t.applying = nil
	}
	t.seq++
	now := time.Now()
	for _, ino := range c.inos {
		t.changed.add(ino, t.seq, now)
	}
	if !t.leading || isDone(c) {
		return
	}
	c.holders = 0
	own := t.requests[c.request]
	for _, ino := range c.inos {
		for i := 0; i < len(t.held[ino]); {
			conn := t.held[ino][i]
			if own != nil && own.conn == conn && own.own[ino] {
				i++
				continue
			}
			conn.revokeLocked(ino, c) // takes it out of the list
		}
	}
	if t.heir != nil {
		t.heir.waitLocked(c)
	}
	if c.holders == 0 {
		t.settleLocked(c)
	}
}

func isDone(c *change) bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Replaced notes that the whole state was replaced by another replica's.
func (t *Table) Replaced() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = newRecent(2 * t.ttl)
	t.seq++
	t.changed.prevFrom, t.changed.curFrom = t.seq, t.seq
}

// settleLocked lets a change be seen.
func (t *Table) settleLocked(c *change) {
	for _, ino := range c.inos {
		list := t.pending[ino]
		for i, p := range list {
			if p == c {
				list[i] = list[len(list)-1]
				list = list[:len(list)-1]
				break
			}
		}
		if len(list) == 0 {
			delete(t.pending, ino)
		} else {
			t.pending[ino] = list
		}
	}
	t.waiting.Add(-1)
	c.closeOnce()
}

// Settle waits until everything that an answer about inos may show can be seen.
func (t *Table) Settle(ctx context.Context, inos ...file.Ino) error {
	if t.waiting.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	wait := slices.Clone(t.pending[everything])
	for _, ino := range inos {
		wait = append(wait, t.pending[ino]...)
	}
	t.mu.Unlock()
	return await(ctx, wait)
}

// SettleRequest waits until what a mutation did can be seen, and if it did nothing itself (it failed, or is the repetition of one that did), everything that its answer may show.
func (t *Table) SettleRequest(ctx context.Context, r *Request) error {
	if t.waiting.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	var wait []*change
	if r.made != nil {
		wait = append(wait, r.made)
	} else {
		for _, list := range t.pending {
			wait = append(wait, list...)
		}
	}
	t.mu.Unlock()
	return await(ctx, wait)
}

func await(ctx context.Context, wait []*change) error {
	for _, c := range wait {
		select {
		case <-c.done:
		case <-ctx.Done():
			return dc.Errorf(dc.Unavailable, "lease", "", "a change waits for nodes to give up what they hold of it: %w", ctx.Err())
		}
	}
	return nil
}

// Pending tells whether a change of ino waits for somebody.
func (t *Table) Pending(ino file.Ino) bool {
	if t.waiting.Load() == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pending[ino]) > 0 || len(t.pending[everything]) > 0
}
