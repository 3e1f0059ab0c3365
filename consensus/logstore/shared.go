package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// SharedConfig says where a node's log lives and how much it keeps.
type SharedConfig struct {
	FS FS
	// SegmentBytes is the size of a file; default 16 MiB. An entry takes at most a quarter of it.
	SegmentBytes int64
	// CacheBytes is what entries may take in memory, of all groups together; default 16 MiB.
	CacheBytes int
	// Fatal is called with an error of the disk and must not return in production: after a failed fsync nobody knows what is on it.
	Fatal func(err error)
	Log   *slog.Logger // default: discard
}

const (
	defaultSegmentBytes = 16 * dc.MiB
	defaultCacheBytes   = 16 * dc.MiB
	growBytes           = 1 * dc.MiB // a new file is filled with zeros so far ahead: writing over them costs one seek, growing two
	maxSpares           = 2          // files kept for reuse
	// Segments before the last keepSegments are emptied when little of them is needed: what is needed moves to the end.
	keepSegments = 2
)

// Shared is a node's one write-ahead log: the entries, votes and truncations of all groups in the order they came, in segment files. One goroutine
// writes: what comes while it waits for the disk goes out together next, in one write and one fsync for all groups.
//
// Lock order: mu only, and no I/O under it but closing, renaming and removing of files that are not needed.
type Shared struct {
	cfg  SharedConfig
	wake chan struct{}
	done chan struct{} // closed when the writer has ended

	began atomic.Int64 // start of the write under way, Unix nanoseconds; zero if none

	mu       sync.Mutex
	err      error // for ever
	closed   bool
	groups   map[dc.GroupID]*group
	segments []*part // by sequence number; the last is written
	spares   []string
	next     *batch // gathers
	cache    cache

	// The writer's own.
	end    int64 // where the last segment goes on
	zeroed int64 // how far it is filled
}

// part is one file, a segment. live counts what of it is needed.
type part struct {
	seq   uint64
	name  string
	file  File
	live  int
	used  int64 // bytes of what is needed
	stays bool  // it could not be emptied
}

// place is where a record lies.
type place struct {
	seg  *part
	off  uint32
	size uint32
}

// batch is what goes out in one write.
type batch struct {
	buf  []byte
	ops  []op
	done chan struct{}
	err  error
}

// op says what a record means once it is durable.
type op struct {
	kind  kind
	group *group
	index uint64
	off   int // in the batch's buffer
	size  int
	log   *raft.Log // of an entry, for the cache; nil if it was moved
	moved place     // where an entry was
}

// OpenShared opens or makes the log. It reads all segments, to know what they hold, and refuses a log that is damaged anywhere but at its very end.
func OpenShared(cfg SharedConfig) (*Shared, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = defaultSegmentBytes
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Shared{
		cfg: cfg, wake: make(chan struct{}, 1), done: make(chan struct{}),
		groups: map[dc.GroupID]*group{}, cache: cache{limit: cfg.CacheBytes},
	}
	if err := s.recover(); err != nil {
		for _, seg := range s.segments {
			err = errors.Join(err, seg.file.Close())
		}
		return nil, err
	}
	go s.run()
	return s, nil
}

// Open gives a group's part of the log; an empty one if the group is new. Closing it is free.
func (s *Shared) Open(id dc.GroupID) Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groupLocked(id)
}

func (s *Shared) groupLocked(id dc.GroupID) *group {
	g := s.groups[id]
	if g == nil {
		g = &group{shared: s, id: id}
		s.groups[id] = g
	}
	return g
}

// Drop forgets a group: its entries and its vote. It returns when that is durable. The group's Store takes no more writes.
func (s *Shared) Drop(id dc.GroupID) error {
	s.mu.Lock()
	g := s.groups[id]
	if g == nil {
		s.mu.Unlock()
		return nil
	}
	b := s.addLocked(record{kind: kindDrop, group: id}, op{kind: kindDrop, group: g})
	g.clearLocked()
	s.freeLocked(g.state)
	g.state, g.rec, g.commit = place{}, voteRecord{}, 0
	delete(s.groups, id)
	s.mu.Unlock()
	return s.wait(b)
}

// Stalled is how long the write under way has taken; zero if none is.
func (s *Shared) Stalled() time.Duration {
	start := s.began.Load()
	if start == 0 {
		return 0
	}
	return time.Since(time.Unix(0, start))
}

// Close writes what has come and closes the files.
func (s *Shared) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.wake)
	}
	s.mu.Unlock()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.err
	for _, seg := range s.segments {
		err = errors.Join(err, seg.file.Close())
	}
	s.segments = nil
	return err
}

var (
	errClosed  = errors.New("the log is closed")
	errDropped = errors.New("the group was dropped from the log")
)

// addLocked adds a record to the next batch.
func (s *Shared) addLocked(r record, o op) *batch {
	if s.next == nil {
		s.next = &batch{done: make(chan struct{})}
		s.next.buf = record{kind: kindBatch}.append(s.next.buf)
	}
	b := s.next
	o.off, o.size = len(b.buf), recordBytes+len(r.payload)
	b.buf = r.append(b.buf)
	b.ops = append(b.ops, o)
	if !s.closed {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return b
}

// wait returns when a batch is durable.
func (s *Shared) wait(b *batch) error {
	select {
	case <-b.done:
		return b.err
	case <-s.done:
	}
	select {
	case <-b.done:
		return b.err
	default:
		return errClosed
	}
}

// run writes batches until the log closes or the disk fails.
func (s *Shared) run() {
	defer close(s.done)
	for range s.wake {
		for {
			s.mu.Lock()
			b := s.next
			s.next = nil
			failed := s.err
			s.mu.Unlock()
			if b == nil {
				break
			}
			if failed == nil {
				failed = s.write(b)
			}
			s.publish(b, failed)
			s.move()
		}
	}
	s.mu.Lock()
	b := s.next
	s.next = nil
	s.mu.Unlock()
	if b != nil {
		err := s.err
		if err == nil { // nothing is written to a disk that failed
			err = s.write(b)
		}
		s.publish(b, err)
	}
}

// write makes a batch durable at the end of the log.
func (s *Shared) write(b *batch) error {
	s.began.Store(time.Now().UnixNano())
	defer s.began.Store(0)
	seal := record{kind: kindSeal}
	if s.end+int64(len(b.buf)+seal.size()) > s.cfg.SegmentBytes {
		if err := s.roll(); err != nil {
			return err
		}
	}
	seg := s.segments[len(s.segments)-1] // only this goroutine changes the list
	crc := salt(seg.seq)
	for off := 0; off < len(b.buf); {
		off += sealRecord(b.buf[off:], crc)
	}
	if err := s.put(seg, b.buf); err != nil {
		return err
	}
	if err := seg.file.Sync(); err != nil {
		return fmt.Errorf("%s: sync: %w", seg.name, err)
	}
	return nil
}

var zeros [growBytes]byte

// put writes at the end of a segment, filling the file ahead.
func (s *Shared) put(seg *part, b []byte) error {
	last := s.end + int64(len(b))
	if last > s.zeroed {
		to := max(last, min(s.zeroed+growBytes, s.cfg.SegmentBytes))
		if _, err := seg.file.WriteAt(zeros[:to-last], last); err != nil {
			return fmt.Errorf("%s: grow to %d bytes: %w", seg.name, to, err)
		}
		s.zeroed = to
	}
	if _, err := seg.file.WriteAt(b, s.end); err != nil {
		return fmt.Errorf("%s: write %d bytes at %d: %w", seg.name, len(b), s.end, err)
	}
	s.end = last
	return nil
}

// roll seals the last segment and begins the next.
func (s *Shared) roll() error {
	seg := s.segments[len(s.segments)-1]
	end := record{kind: kindSeal}.append(nil)
	sealRecord(end, salt(seg.seq))
	if err := s.put(seg, end); err != nil {
		return err
	}
	if err := seg.file.Sync(); err != nil {
		return fmt.Errorf("%s: sync: %w", seg.name, err)
	}
	return s.begin(seg.seq + 1)
}

// begin makes segment seq the last, of a spare file if there is one.
func (s *Shared) begin(seq uint64) error {
	name := segmentName(seq)
	s.mu.Lock()
	spare := ""
	if n := len(s.spares); n > 0 {
		spare, s.spares = s.spares[n-1], s.spares[:n-1]
	}
	s.mu.Unlock()
	if spare != "" {
		if err := s.cfg.FS.Rename(spare, name); err != nil {
			return err
		}
	}
	f, err := s.cfg.FS.Open(name)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil {
		err = s.cfg.FS.Sync()
	}
	if err == nil {
		_, err = f.WriteAt(encodeHeader(seq), 0) // synced with the first batch; until then nothing depends on it
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	s.mu.Lock()
	s.segments = append(s.segments, &part{seq: seq, name: name, file: f})
	s.mu.Unlock()
	s.end, s.zeroed = headerBytes, max(size, headerBytes)
	return nil
}

// publish lets a batch's records be found, and wakes who waits for it.
func (s *Shared) publish(b *batch, err error) {
	if err != nil {
		s.mu.Lock()
		first := s.err == nil
		s.err = err
		b.err = err
		s.mu.Unlock()
		if first {
			s.cfg.Fatal(fmt.Errorf("write-ahead log: %w", err))
		}
		close(b.done)
		return
	}
	s.mu.Lock()
	seg := s.segments[len(s.segments)-1]
	base := s.end - int64(len(b.buf))
	var gone uint64
	for _, o := range b.ops {
		at := place{seg, uint32(base) + uint32(o.off), uint32(o.size)}
		switch o.kind {
		case kindEntry:
			o.group.placedLocked(o, at)
		case kindState:
			if s.groups[o.group.id] == o.group {
				s.freeLocked(o.group.state)
				o.group.state = at
				s.useLocked(at)
			}
		case kindOldest:
			gone = o.index
		}
	}
	s.tidyLocked(gone)
	s.mu.Unlock()
	close(b.done)
}

func (s *Shared) useLocked(p place) { p.seg.live++; p.seg.used += int64(p.size) }

func (s *Shared) freeLocked(p place) {
	if p.seg != nil {
		p.seg.live--
		p.seg.used -= int64(p.size)
	}
}

// tidyLocked lets go of segments before gone, which the log says are not needed, and looks whether there are more of them.
func (s *Shared) tidyLocked(gone uint64) {
	for len(s.segments) > 1 && s.segments[0].seq < gone {
		seg := s.segments[0]
		s.segments = slices.Delete(s.segments, 0, 1)
		s.retire(seg)
	}
	if len(s.segments) == 1 {
		return
	}
	n := 0
	for n < len(s.segments)-1 && s.segments[n].live == 0 {
		n++
	}
	if oldest := s.segments[n].seq; n > 0 && s.err == nil && !s.closed && !s.oldestLocked(oldest) {
		s.addLocked(record{kind: kindOldest, index: oldest}, op{kind: kindOldest, index: oldest})
	}
}

// oldestLocked tells whether the next batch says already which segment is the oldest.
func (s *Shared) oldestLocked(seq uint64) bool {
	return s.next != nil && slices.ContainsFunc(s.next.ops, func(o op) bool { return o.kind == kindOldest && o.index >= seq })
}

// retire keeps a file for reuse, or removes it. What fails leaves a file that the next start clears away.
func (s *Shared) retire(seg *part) {
	err := seg.file.Close()
	if len(s.spares) < maxSpares {
		spare := spareName(seg.seq)
		if err = errors.Join(err, s.cfg.FS.Rename(seg.name, spare)); err == nil {
			s.spares = append(s.spares, spare)
		}
	} else {
		err = errors.Join(err, s.cfg.FS.Remove(seg.name))
	}
	if err != nil {
		s.cfg.Log.Warn("a segment of the log that is not needed stays", "file", seg.name, "err", err)
	}
}

// worthMovingLocked tells whether the oldest segment is to be emptied: little of it is needed, or, of all segments together, so little that the files
// take more than three times that. Without the second a group that needs more than a little of one segment would pin all that follow.
func (s *Shared) worthMovingLocked(old *part) bool {
	if old.used <= s.cfg.SegmentBytes/4 {
		return true
	}
	var used int64
	for _, seg := range s.segments {
		used += seg.used
	}
	return int64(len(s.segments)-keepSegments-2)*s.cfg.SegmentBytes > 3*used
}

// move writes again what is needed of the oldest segment if it is worth that, so that it can go. A group that never truncates its log would pin every
// segment otherwise. Only the writer calls it.
func (s *Shared) move() {
	s.mu.Lock()
	old := s.segments[0]
	if len(s.segments) <= keepSegments || old.live == 0 || !s.worthMovingLocked(old) || old.stays || s.err != nil || s.closed {
		s.mu.Unlock()
		return
	}
	type live struct {
		group *group
		index uint64
		at    place
		rec   record
	}
	var entries []live
	chunk := s.cfg.SegmentBytes / 4 // what is left goes after the next batch
	for _, g := range s.groups {
		if g.state.seg == old {
			// What the group's state is now, which may be later than what lies there: the copy comes after all that was written of it.
			s.addLocked(record{kind: kindState, group: g.id, payload: g.rec.encode()}, op{kind: kindState, group: g})
		}
		for i, p := range g.entries {
			if p.seg == old && chunk > 0 {
				chunk -= int64(p.size)
				entries = append(entries, live{group: g, index: g.first + uint64(i), at: p})
			}
		}
	}
	s.mu.Unlock()
	for i := range entries {
		var err error
		if entries[i].rec, err = s.readPlace(entries[i].at); err != nil {
			s.cfg.Log.Error("a segment of the log cannot be emptied", "file", old.name, "err", err)
			s.mu.Lock()
			old.stays = true
			s.mu.Unlock()
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range entries {
		if s.groups[l.group.id] == l.group && l.group.placeLocked(l.index) == l.at {
			s.addLocked(l.rec, op{kind: kindEntry, group: l.group, index: l.index, moved: l.at})
		}
	}
}

func (s *Shared) readPlace(p place) (record, error) {
	b := make([]byte, p.size)
	if _, err := p.seg.file.ReadAt(b, int64(p.off)); err != nil {
		return record{}, fmt.Errorf("%s: read at %d: %w", p.seg.name, p.off, err)
	}
	r, err := parseRecord(b, salt(p.seg.seq))
	if err != nil {
		return record{}, fmt.Errorf("%s: at %d: %w: the file is damaged", p.seg.name, p.off, err)
	}
	return r, nil
}
