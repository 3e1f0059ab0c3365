package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"missingos/srv/dc"
)

// Config says how a shard uses the machine. The zero value is fine.
type Config struct {
	// MemTableBytes is what Badger gathers in memory before it writes a table; three of these exist at worst. Default 8 MiB.
	MemTableBytes int64
	// CacheBytes is what hot rows may take in memory, about. Default 1 MiB.
	CacheBytes int
	// ShelveAfter is how long a shard keeps its files open with nobody reading or writing, to twice that; see shelf.go. Default 1 min;
	// a shard with less than zero is open from Open to Close.
	ShelveAfter time.Duration
	// BootID names the machine's boot: unsynced writes of an earlier boot are not trusted. Default /proc/sys/kernel/random/boot_id.
	BootID string
	Log    *slog.Logger
	// Fatal is called when the replica must stop: a machine that panics, a disk that fails. It should not return; if it does
	// (in tests) the shard refuses all further work. Default: log and exit the process.
	Fatal func(error)
	// Damaged, if set, is called before Fatal when the files of a shard that was put away cannot be opened.
	Damaged func(error)

	hooks hooks
}

// hooks let tests stop at the steps of checkpoint and restore, and leave one out to see that a test notices.
type hooks struct {
	step     func(name string) error      // called before each step
	syncLogs func(directory string) error // in place of the real one
	pause    time.Duration                // in place of fetchPause
}

func (h hooks) at(name string) error {
	if h.step == nil {
		return nil
	}
	return h.step(name)
}

const (
	defaultMemTableBytes = 8 * dc.MiB
	defaultCacheBytes    = 1 * dc.MiB
	minMemTableBytes     = 4 * dc.MiB // a chunk of a large value must fit into one Badger transaction, 15% of this
)

func (c *Config) setDefaults() error {
	if c.MemTableBytes == 0 {
		c.MemTableBytes = defaultMemTableBytes
	}
	if c.ShelveAfter == 0 {
		c.ShelveAfter = defaultShelveAfter
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	c.MemTableBytes = max(c.MemTableBytes, minMemTableBytes)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Fatal == nil {
		log := c.Log
		c.Fatal = func(err error) {
			log.Error("storage stops the process", "err", err)
			fmt.Fprintln(os.Stderr, "dcd: storage:", err)
			os.Exit(1)
		}
	}
	if c.Damaged == nil {
		c.Damaged = func(error) {}
	}
	if c.hooks.syncLogs == nil {
		c.hooks.syncLogs = syncLogs
	}
	if c.hooks.pause == 0 {
		c.hooks.pause = fetchPause
	}
	if c.BootID == "" {
		id, err := bootID()
		if err != nil {
			return err
		}
		c.BootID = id
	}
	return nil
}

// A Mark is a place in the log that a state has reached.
type Mark struct {
	Index dc.Index
	Term  dc.Term
}

// Restored is the event observers get when a snapshot has replaced the whole state: what they knew of it is void.
type Restored struct{}

// A Shard is one replica of one group's state, on disk. Every state it shows is that after some entry: what an entry wrote becomes
// visible, all at once, when the shard's applied index moves past it, because every row is written at the version
// "index of its entry" and read at the version "applied". So a crash between two writes of one entry, or versions left over from a
// future that a power cut took back, are never seen; applying the entries again writes them anew, with the same content.
//
// Apply and Restore come from one goroutine; everything else may be called from any.
//
// Disk full: Badger retries a failed flush for ever and then blocks Apply, and a write to a memory-mapped log on a full disk
// kills the process (SIGBUS). The node therefore refuses writes while space is still left; see the reserve in srv/node.
type Shard struct {
	dir     string
	cfg     Config
	machine Machine

	apply     sync.Mutex // Apply, Restore, Close; taken before the others
	ledger    *ledger    // nil while shelved
	observers []func(dc.Index, []any)
	foretold  []func([]any)
	sleeper   sleeper
	shelf     alarm
	queued    atomic.Bool // waits for a shelf slot

	receiving sync.Mutex // one Restore at a time; taken before apply
	incoming  dc.Index   // of what a Restore that gave up has left; 0 if there is nothing. Guarded by receiving

	checkpoint sync.Mutex // one Checkpoint at a time; taken before mu

	open sync.WaitGroup // generations whose files are open

	mu       sync.Mutex
	free     sync.Cond // with mu: signalled when a reader lets go and when paused ends
	paused   bool      // new readers wait: the files are being opened or closed
	used     bool      // somebody has read or written since the last look
	gen      *generation
	applied  Mark
	clock    int64
	durable  Mark          // of the last checkpoint
	began    dc.Index      // entry that the state began with in this process, or with a snapshot
	moved    chan struct{} // closed and replaced when applied grows or the shard closes; nil if nobody waits
	failed   error         // why the shard refuses work
	receipt  *Receipt      // of the snapshot that is being received
	aside    string        // what becomes of the state that the next Restore replaces; empty: it is removed
	distrust bool          // what a former Restore has received is not to be used
}

// Open opens the shard in dir, creating it if there is none. A shard is open once at a time.
func Open(dir string, m Machine, cfg Config) (*Shard, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Shard{dir: dir, cfg: cfg, machine: m}
	s.free.L = &s.mu
	s.sleeper.init(s)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, dc.Wrap(err, "storage.open", dir)
	}
	name, err := readCurrent(dir)
	if err != nil {
		return nil, dc.Wrap(err, "storage.open", dir)
	}
	if name == "" {
		name, err = s.create()
		if err != nil {
			return nil, dc.Wrap(err, "storage.open", dir)
		}
	}
	if err := removeOthers(dir, name); err != nil {
		return nil, dc.Wrap(err, "storage.open", dir)
	}
	path := filepath.Join(dir, name)
	rec, shelved, err := onShelf(path)
	if err != nil {
		return nil, dc.Wrap(err, "storage.open", dir)
	}
	if shelved && s.cfg.ShelveAfter >= 0 {
		if err := checkManifest(path); err != nil {
			return nil, dc.Wrap(err, "storage.open", dir)
		}
		s.gen = newGeneration(path, &s.cfg, &s.open)
		s.gen.begin(rec)
		s.applied, s.durable, s.clock = rec.mark(), rec.mark(), *rec.Clock
		if s.incoming, err = leftIncoming(dir, rec.Index); err != nil {
			return nil, dc.Wrap(err, "storage.open", dir)
		}
		return s, nil
	}
	g, err := openGeneration(path, &s.cfg, &s.open)
	if err != nil {
		return nil, dc.Wrap(err, "storage.open", dir)
	}
	l, err := g.load(m)
	if err == nil {
		s.incoming, err = leftIncoming(dir, g.durable.Index)
	}
	if err != nil {
		return nil, errors.Join(dc.Wrap(err, "storage.open", dir), g.db.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adoptLocked(g, l)
	return s, nil
}

// adoptLocked makes g, whose files are open, with the ledger loaded from it, the shard's state. Called under apply, too, once the shard is in use.
func (s *Shard) adoptLocked(g *generation, l *ledger) {
	s.ledger = l
	s.gen, s.durable, s.began = g, g.durable, l.applied
	s.applied, s.clock = Mark{l.applied, l.term}, l.clock
	s.wakeLocked()
	if g.awake {
		s.sleeper.schedule()
	}
	s.shelf.set(s.cfg.ShelveAfter, s.shelve)
}

// Observe adds a function that is called after entries are committed, in order, an entry at a time, with the events that the machine
// emitted for it (none for most, [Restored] after a snapshot). It runs on the apply path: it must be quick, must not block and must
// not use the shard. Call Observe before the first Apply.
func (s *Shard) Observe(fn func(index dc.Index, events []any)) {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.observers = append(s.observers, fn)
}

// Foretell adds a function that is called with the same events before the entry is committed: no view shows it yet. If the commit fails, the shard does,
// and observers are not called. The same rules hold as for [Shard.Observe].
func (s *Shard) Foretell(fn func(events []any)) {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.foretold = append(s.foretold, fn)
}

// Applied is the index of the last entry that views show; 0 in a new shard. After a restart the log is replayed from here.
func (s *Shard) Applied() dc.Index { return s.Mark().Index }

// AppliedTerm is the term of that entry.
func (s *Shard) AppliedTerm() dc.Term { return s.Mark().Term }

// Mark is both at one moment.
func (s *Shard) Mark() Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// Durable is the last checkpoint: what survives a power cut. The log may be dropped up to here, no further.
func (s *Shard) Durable() Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

// Clock is the log's clock, Unix milliseconds: the greatest of all entries applied.
func (s *Shard) Clock() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// WaitApplied blocks until entry index is applied, ctx ends or the shard closes.
func (s *Shard) WaitApplied(ctx context.Context, index dc.Index) error {
	for {
		s.mu.Lock()
		if s.applied.Index >= index {
			s.mu.Unlock()
			return nil
		}
		if err := s.failed; err != nil {
			s.mu.Unlock()
			return err
		}
		if s.moved == nil {
			s.moved = make(chan struct{})
		}
		moved := s.moved
		s.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return dc.Errorf(dc.KindOf(ctx.Err()), "storage.wait", "", "entry %d is not applied yet: %w", index, ctx.Err())
		}
	}
}

// SetAside has the state that the next Restore replaces, because it is wrong, kept as a directory, which must not exist, of the same file system. That
// Restore begins with the first row: who sent what there is of it may have been wrong, too.
func (s *Shard) SetAside(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aside, s.distrust = path, true
}

func (s *Shard) wakeLocked() {
	if s.moved != nil {
		close(s.moved)
		s.moved = nil
	}
}

// View runs fn on the state as of the last entry applied. Entries go on being applied meanwhile; fn does not see them. A disk
// that fails under a read gives the *Fault as an error.
func (s *Shard) View(fn func(Reader) error) error {
	p, err := s.Pin()
	if err != nil {
		return err
	}
	defer p.Release()
	return p.View(fn)
}

// A Pinned is the state after one entry, held readable while later entries are applied. Old versions stay on disk
// as long as it is held: release it within minutes.
type Pinned struct {
	Mark
	Clock int64
	shard *Shard
	gen   *generation
	once  sync.Once
}

// Pin holds the state as it is. The caller must Release it.
func (s *Shard) Pin() (*Pinned, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinLocked()
}

func (s *Shard) pinLocked() (*Pinned, error) {
	if err := s.filesLocked(true); err != nil {
		return nil, err
	}
	p := &Pinned{Mark: s.applied, Clock: s.clock, shard: s, gen: s.gen}
	p.gen.refs++
	p.gen.pins[p.Index]++
	return p, nil
}

// View runs fn on the pinned state.
func (p *Pinned) View(fn func(Reader) error) error {
	return p.read(func(r Reader) error { return fn(machineView{r}) })
}

// read is View with the shard's own rows.
func (p *Pinned) read(fn func(Reader) error) (err error) {
	r := &cachedReader{g: p.gen, at: p.Index}
	defer r.close()
	defer func() {
		switch f := recover().(type) {
		case nil:
		case *Fault:
			err = f
		default:
			panic(f)
		}
	}()
	return fn(r)
}

// Release lets the state go; a second call does nothing.
func (p *Pinned) Release() {
	p.once.Do(func() {
		p.shard.mu.Lock()
		defer p.shard.mu.Unlock()
		p.gen.unpinLocked(p.Index)
		p.gen.unrefLocked()
		p.shard.free.Broadcast()
	})
}

// fail stops the shard: Fatal, and if that returns, errors from now on.
func (s *Shard) fail(err error) {
	s.mu.Lock()
	if s.failed == nil {
		s.failed = dc.Wrap(err, "storage", s.dir)
	}
	s.wakeLocked()
	s.mu.Unlock()
	s.cfg.Fatal(err)
}

// Close makes a checkpoint and closes the files. It waits for views and pins to end.
func (s *Shard) Close() error {
	s.sleeper.stop()
	s.shelf.stop()
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	for s.paused { // a reader is opening the files
		s.free.Wait()
	}
	closed := s.gen == nil
	broken := s.failed != nil
	s.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if !broken {
		err = s.checkpointWith(true)
	}
	s.mu.Lock()
	for s.paused {
		s.free.Wait()
	}
	g := s.gen
	s.gen = nil
	if s.failed == nil {
		s.failed = dc.Errorf(dc.Unavailable, "storage", s.dir, "the shard is closed")
	}
	s.wakeLocked()
	g.unrefLocked()
	s.mu.Unlock()
	s.open.Wait()
	return errors.Join(err, g.closeErr)
}

// Stats are figures for people.
type Stats struct {
	Applied, Durable Mark
	Clock            int64
	Rows             uint64 // about; rows still in memory are not counted, deleted ones not yet compacted are; 0 while shelved
	DiskBytes        int64  // about
	Shelved          bool   // the files are closed
}

// Stats gathers them; it costs a walk over the list of tables, or of the directory if the shard is shelved, which it stays.
func (s *Shard) Stats() Stats {
	s.mu.Lock()
	for s.paused {
		s.free.Wait()
	}
	if s.failed == nil && s.gen.db == nil {
		path, st := s.gen.path, Stats{Applied: s.applied, Durable: s.durable, Clock: s.clock, Shelved: true}
		s.mu.Unlock()
		st.DiskBytes = tableBytes(path)
		return st
	}
	used := s.used
	p, err := s.pinLocked()
	s.used = used // looking is no use
	s.mu.Unlock()
	if err != nil {
		return Stats{}
	}
	defer p.Release()
	st := Stats{Applied: p.Mark, Durable: s.Durable(), Clock: p.Clock}
	for _, t := range p.gen.db.Tables() {
		st.Rows += uint64(t.KeyCount)
		st.DiskBytes += int64(t.OnDiskSize)
	}
	return st
}
