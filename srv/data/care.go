package data

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/replica"
)

// Stores is what the care for blocks asks of the nodes' block services. client.Data is one.
type Stores interface {
	HaveBlocks(ctx context.Context, node dc.NodeID, ids []file.BlockID) (sizes []uint32, err error)
	FetchBlocks(ctx context.Context, node dc.NodeID, blocks []file.Fetch) (each []error, err error)
	VerifyBlocks(ctx context.Context, node dc.NodeID, ids []file.BlockID) (each []error, err error)
	StoreSpace(ctx context.Context, node dc.NodeID) (file.Store, error)
}

// A Member is a node as meta's leader sees it.
type Member struct {
	Node       dc.NodeID
	Name       string
	Up         bool
	Dead       bool // silent for longer than the grace
	Drain      bool
	Removed    bool
	Zone, Rack string
}

// open tells whether the node may take blocks.
func (m Member) open() bool { return m.Up && !m.Drain && !m.Removed }

// gone tells whether what the node holds counts no more.
func (m Member) gone() bool { return m.Dead || m.Removed }

// CareConfig says how blocks are cared for. Without Stores and Members they are not.
type CareConfig struct {
	Stores  Stores
	Members func(ctx context.Context) ([]Member, error)
	// Rate is how many bytes a second copies may take. 0: 32 MiB; less than 0: no limit.
	Rate int64
	// Allowed says why blocks may not be relocated yet; see node's features. Optional.
	Allowed func() error
	// Every is how often members and reports are looked at; default 2 s. Tests shorten it.
	Every time.Duration
}

const (
	defaultRate  = 32 * dc.MiB
	careEvery    = 2 * time.Second
	roundEvery   = time.Hour
	retryFirst   = 2 * time.Second // after attempts that failed
	retryMost    = time.Minute
	maxNoted     = 65536 // reported blocks waiting to be looked at; of more, a round takes care
	membersFresh = 2 * time.Second
	maxQueued    = 65536 // tasks; what does not fit the next round finds again
	maxLostNamed = 16
	countFresh   = 30 * time.Second
	rateOver     = 10 * time.Second
	balanceEvery = 30
	lookTimeout  = 5 * time.Second
	careBatches  = 4 // copied at the same time
	classes      = 6
	classLast    = 0 // one copy is left
	classFew     = 1
	classInPlace = 2 // enough copies, one of them bad
	classDrain   = 3
	classSurplus = 4
	classBalance = 5
	scanPage     = 512
	scanBetween  = 5 * time.Millisecond // between pages, so that a round is no burden
)

// care is one term's care for the blocks of a group. Only run's goroutine changes what is not under mu.
type care struct {
	cfg   CareConfig
	log   *slog.Logger
	r     replica.Replica
	kick  chan struct{}
	queue [classes][]task

	members   map[dc.NodeID]Member
	spaces    map[dc.NodeID]*space
	looked    time.Time
	due       bool
	dueAt     time.Time // of the next round, at the latest
	retry     time.Duration
	ticks     int
	balancing bool
	balanceAt file.BlockID // where the search for blocks to move goes on
	passed    time.Time    // when everything let through so far has passed the throttle

	mu     sync.Mutex
	known  map[dc.NodeID]Member                // members, for status
	holds  map[dc.NodeID]int64                 // bytes that nodes should hold by the last round and what was moved since
	noted  map[file.BlockID]map[dc.NodeID]bool // reported: to be looked at, with the nodes whose copies are in doubt
	bad    map[file.BadCopy]bool               // found to be bad by reading, and not put right yet; in a round: whether it was met
	status counts
}

// space is what is known of a node's store, and what is on the way to it.
type space struct {
	file.Store
	known  bool
	coming int64 // bytes
}

// counts is what status tells.
type counts struct {
	blocks, bytes    uint64
	copies           map[int]uint64
	lost, short      uint64
	lostBlocks       []file.BlockID
	wanted           int
	counted          time.Time
	countTook        time.Duration
	queued           uint64
	queuedBytes      uint64
	moving           uint64
	done, failed     uint64
	doneBytes        uint64
	recent           [2]uint64 // bytes in the window before and in this one
	recentAt         time.Time
	busyFrom, busyAt time.Time // copying, without a pause of a window
	doing, lastErr   string
}

func newCare(cfg CareConfig, r replica.Replica, log *slog.Logger) *care {
	if cfg.Rate == 0 {
		cfg.Rate = defaultRate
	}
	if cfg.Every == 0 {
		cfg.Every = careEvery
	}
	if cfg.Allowed == nil {
		cfg.Allowed = func() error { return nil }
	}
	return &care{
		cfg: cfg, r: r, log: log.With("group", r.Group().String()), kick: make(chan struct{}, 1), due: true, dueAt: time.Now().Add(roundEvery),
		members: map[dc.NodeID]Member{}, spaces: map[dc.NodeID]*space{}, noted: map[file.BlockID]map[dc.NodeID]bool{}, bad: map[file.BadCopy]bool{},
		retry: retryFirst, status: counts{copies: map[int]uint64{}, recentAt: time.Now()},
	}
}

// note has a block looked at soon. node, if not 0, is said to have a bad copy.
func (c *care) note(id file.BlockID, node dc.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noted[id] == nil {
		if len(c.noted) >= maxNoted {
			return
		}
		c.noted[id] = map[dc.NodeID]bool{}
	}
	if node != 0 {
		c.noted[id][node] = true
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// recheck has a round begin soon.
func (c *care) recheck() {
	c.mu.Lock()
	c.dueAt = time.Time{}
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run cares until ctx ends. It works off what is queued in waves, so that what is more urgent comes in between.
func (c *care) run(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := c.look(ctx); err != nil {
			c.say("members are not known: " + err.Error())
		} else if c.step(ctx) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			c.ticks++
		case <-c.kick:
		}
	}
}

// step does the most urgent thing; false if there is nothing to do now.
func (c *care) step(ctx context.Context) bool {
	if c.takeNoted(ctx) {
		return true
	}
	c.mu.Lock()
	now := time.Now()
	round := c.due || now.After(c.dueAt)
	c.mu.Unlock()
	switch {
	case round && c.queuedTasks() == 0 || c.due:
		return c.round(ctx) == nil
	case c.queuedTasks() > 0:
		c.work(ctx)
		return true
	case c.ticks >= balanceEvery || c.balancing:
		c.ticks = 0
		return c.balance(ctx)
	}
	c.doing("")
	return false
}

// look asks who is there. What has changed makes a round due.
func (c *care) look(ctx context.Context) error {
	if time.Since(c.looked) < min(membersFresh, c.cfg.Every) {
		return nil
	}
	attempt, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	members, err := c.cfg.Members(attempt)
	if err != nil {
		return err
	}
	now := make(map[dc.NodeID]Member, len(members))
	changed := len(members) != len(c.members)
	for _, m := range members {
		now[m.Node] = m
		changed = changed || c.members[m.Node] != m
	}
	c.mu.Lock()
	c.members, c.known = now, now
	c.mu.Unlock()
	if changed {
		c.due, c.retry = true, retryFirst
		for i := range c.queue {
			c.queue[i] = nil
		}
	}
	c.lookSpaces(ctx)
	c.looked = time.Now()
	return nil
}

// lookSpaces asks the nodes that are up how much room they have.
func (c *care) lookSpaces(ctx context.Context) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	found := map[dc.NodeID]*space{}
	for id, m := range c.members {
		if !m.Up || m.Removed {
			continue
		}
		wg.Go(func() {
			st, err := c.cfg.Stores.StoreSpace(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			found[id] = &space{Store: st, known: err == nil}
		})
	}
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spaces = found
}

func (c *care) queuedTasks() int {
	n := 0
	for _, q := range c.queue {
		n += len(q)
	}
	return n
}

// say notes an error for status, and logs it when it is a new one.
func (c *care) say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text != "" && text != c.status.lastErr {
		c.log.Info("care for blocks", "err", text)
	}
	c.status.lastErr = text
}

func (c *care) doing(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.doing = what
	c.status.queued, c.status.queuedBytes = 0, 0
	for _, q := range c.queue {
		c.status.queued += uint64(len(q))
		for _, t := range q {
			c.status.queuedBytes += uint64(t.bytes)
		}
	}
}
