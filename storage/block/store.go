package block

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

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	maxBlock        = dc.MaxBlockBytes
	syncEvery       = time.Second
	checkpointEvery = 256 * dc.MiB
	spaceFresh      = 100 * time.Millisecond
)

// Config says where and how a store keeps blocks.
type Config struct {
	Dir  string    // is made if missing; nothing else may use it
	Node dc.NodeID // goes into the ids this node gives to blocks
	// SegmentBytes is when a segment is sealed. Default 1 GiB.
	SegmentBytes int64
	// MaxBytes bounds what the records may take; 0 is no bound but the disk's.
	MaxBytes int64
	// ReserveBytes is left free on the disk. Default: 5% of it.
	ReserveBytes int64
	// Fatal is called once when an fsync or the directory fails. Default: only log.
	Fatal func(error)
	Log   *slog.Logger
}

// Stats tells what a store holds and what it has room for.
type Stats struct {
	Blocks int
	Bytes  int64 // taken by records
	Free   int64 // that may still be written
	Total  int64 // Free and everything written
}

// Store keeps blocks. It is safe for concurrent use.
type Store struct {
	cfg     Config
	boot    uint32
	salt    uint64
	seq     atomic.Uint64
	written atomic.Uint64 // puts finished
	stop    context.CancelFunc
	done    chan struct{}

	syncMu sync.Mutex
	synced uint64 // puts made durable

	mu       sync.Mutex
	failed   error
	index    map[file.BlockID]place
	segments map[uint32]*segment
	active   *segment
	bytes    int64 // taken by live records
	since    int64 // written since the last checkpoint
	free     int64 // of the disk, as of freeAt
	freeAt   time.Time
}

// A place is where a block's record lies.
type place struct {
	segment uint32
	page    uint32 // offset / align
	bytes   uint32
}

func (p place) offset() int64 { return int64(p.page) * align }

type segment struct {
	number  uint32
	f       *os.File
	end     int64          // where the next record goes
	live    int64          // bytes of records in the index
	writing map[int64]bool // offsets of records being written
	dirty   bool
}

// Open opens or makes the store in cfg.Dir and starts its background sync. It reads what was written since the last
// checkpoint, 256 MiB at most after a crash.
func Open(cfg Config) (*Store, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = dc.GiB
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(error) {}
	}
	s := &Store{cfg: cfg, index: map[file.BlockID]place{}, segments: map[uint32]*segment{}, done: make(chan struct{})}
	if err := s.load(); err != nil {
		s.closeFiles()
		return nil, dc.Wrap(err, "block.open", cfg.Dir)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go s.background(ctx)
	return s, nil
}

// Close syncs, writes a checkpoint and closes the files. The store must not be used by then.
func (s *Store) Close() error {
	s.stop()
	<-s.done
	err := s.Sync()
	if err == nil {
		err = s.checkpoint()
	}
	return errors.Join(err, s.closeFiles())
}

// NewID gives the id for a block that this node is about to write somewhere; it is unique for ever.
func (s *Store) NewID() file.BlockID {
	return file.BlockID{Node: uint32(s.cfg.Node), Boot: s.boot, Seq: s.seq.Add(1)}
}

// Put stores data, 1 byte to dc.MaxBlockBytes, under id; ino is the inode it is written for. A block that is there already is left as it is.
// It returns when other calls can read the block; [Store.Sync] makes it durable. dc.NoSpace when the disk or the bound is full.
func (s *Store) Put(id file.BlockID, ino file.Ino, data []byte) error {
	return s.put("block.put", id, ino, data, false)
}

func (s *Store) put(op string, id file.BlockID, ino file.Ino, data []byte, replace bool) error {
	if len(data) == 0 || len(data) > maxBlock {
		return dc.Errorf(dc.Invalid, op, id.String(), "%d bytes, a block has 1 to %d", len(data), maxBlock)
	}
	h := header{
		magic: magicLive, salt: s.salt, bytes: uint32(len(data)), id: id, ino: uint64(ino), stampMS: time.Now().UnixMilli(),
	}
	seg, err := s.reserve(op, &h, replace)
	if err != nil || seg == nil {
		return err
	}
	head := h.encode(data)
	_, err = seg.f.WriteAt(data, h.offset+int64(len(head)))
	if err == nil {
		_, err = seg.f.WriteAt(head, h.offset)
	}
	return s.settle(op, &h, seg, err, replace)
}

// reserve finds room for a record and notes that it is being written; no segment means that the block is there already, and is not to be replaced.
func (s *Store) reserve(op string, h *header, replace bool) (*segment, error) {
	need := recordBytes(h.bytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	if _, ok := s.index[h.id]; ok && !replace {
		return nil, nil
	}
	if free := s.freeLocked(); free < need {
		return nil, dc.Errorf(dc.NoSpace, op, h.id.String(), "node %s has no room for %d bytes more (%d free above its reserve)", s.cfg.Node, need, max(free, 0))
	}
	if s.active == nil || s.active.end+need > s.cfg.SegmentBytes && s.active.end > 0 {
		if err := s.newSegmentLocked(); err != nil {
			return nil, dc.Errorf(diskKind(err), op, h.id.String(), "%w", err)
		}
	}
	seg := s.active
	h.segment, h.offset = seg.number, seg.end
	seg.end += need
	seg.writing[h.offset] = true
	s.bytes += need
	s.since += need
	s.free -= need
	return seg, nil
}

// settle notes how writing a record went.
func (s *Store) settle(op string, h *header, seg *segment, err error, replace bool) error {
	need := recordBytes(h.bytes)
	if err == nil && replace {
		if err = s.exchange(h, seg); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(seg.writing, h.offset)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(seg.writing, h.offset)
	if err != nil {
		s.bytes -= need
		s.freeAt = time.Time{}
		return dc.Errorf(diskKind(err), op, h.id.String(), "%w", err)
	}
	seg.dirty = true
	if _, twice := s.index[h.id]; twice { // two puts of one block at once: the second record is never found
		s.bytes -= need
		return nil
	}
	seg.live += need
	s.index[h.id] = place{h.segment, uint32(h.offset / align), h.bytes}
	s.written.Add(1)
	return nil
}

func diskKind(err error) dc.Kind {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return dc.NoSpace
	}
	return dc.Internal
}

// freeLocked is how many bytes may still be written.
func (s *Store) freeLocked() int64 {
	if time.Since(s.freeAt) > spaceFresh {
		var st unix.Statfs_t
		if err := unix.Statfs(s.cfg.Dir, &st); err == nil {
			reserve := s.cfg.ReserveBytes
			if reserve == 0 {
				reserve = int64(st.Blocks) * st.Bsize / 20
			}
			s.free, s.freeAt = int64(st.Bavail)*st.Bsize-reserve, time.Now()
		}
	}
	if s.cfg.MaxBytes > 0 {
		return min(s.free, s.cfg.MaxBytes-s.bytes)
	}
	return s.free
}

// Read copies bytes of a block from off on into dst and verifies them. It gives less than len(dst) only at the block's end.
// dc.NotFound if the block is not here, dc.Corrupt if the disk gave other bytes than were put.
func (s *Store) Read(id file.BlockID, off int64, dst []byte) (int, error) {
	p, seg := s.find(id)
	for {
		n, err := s.readAt(id, p, seg, off, dst)
		if err == nil {
			return n, nil
		}
		now, again := s.find(id)
		if again == nil || now == p {
			return n, err
		}
		p, seg = now, again // it has been replaced meanwhile
	}
}

func (s *Store) readAt(id file.BlockID, p place, seg *segment, off int64, dst []byte) (int, error) {
	const op = "block.read"
	if seg == nil {
		return 0, dc.Errorf(dc.NotFound, op, id.String(), "node %s does not hold the block", s.cfg.Node)
	}
	if off < 0 || off >= int64(p.bytes) {
		return 0, nil
	}
	n := min(int64(len(dst)), int64(p.bytes)-off)
	first := off / file.ChecksumBytes
	from := first * file.ChecksumBytes
	to := min(int64(p.bytes), (off+n+file.ChecksumBytes-1)/file.ChecksumBytes*file.ChecksumBytes)
	head, body := make([]byte, dataOffset(p.bytes)), dst
	if from != off || to-from != n {
		body = make([]byte, to-from)
	}
	body = body[:to-from]
	_, err := seg.f.ReadAt(head, p.offset())
	if err == nil {
		_, err = seg.f.ReadAt(body, p.offset()+int64(len(head))+from)
	}
	h, sums, ok := decodeHeader(head, s.salt, p.segment, p.offset())
	if err != nil || !ok || h.magic != magicLive || h.id != id || !verify(sums, int(first), body) {
		if ok && h.magic == magicDead { // deleted after the checkpoint that still lists it
			s.forget(id, p)
		}
		if _, seg := s.find(id); seg == nil {
			return 0, dc.Errorf(dc.NotFound, op, id.String(), "the block was deleted")
		}
		return 0, dc.Errorf(dc.Corrupt, op, id.String(), "node %s: the checksum of bytes %d to %d does not match (%v)", s.cfg.Node, from, to, err)
	}
	if from != off || to-from != n {
		copy(dst[:n], body[off-from:])
	}
	return int(n), nil
}

// forget drops a block from the index whose record turned out to be deleted.
func (s *Store) forget(id file.BlockID, p place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.index[id] == p {
		delete(s.index, id)
		s.bytes -= recordBytes(p.bytes)
		s.segments[p.segment].live -= recordBytes(p.bytes)
	}
}

func (s *Store) find(id file.BlockID) (place, *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.index[id]
	if !ok {
		return p, nil
	}
	return p, s.segments[p.segment]
}

func (s *Store) newSegmentLocked() error {
	n := uint32(1)
	if s.active != nil {
		n = s.active.number + 1
	}
	f, err := os.OpenFile(s.segmentPath(n), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		return errors.Join(err, f.Close())
	}
	s.active = &segment{number: n, f: f, writing: map[int64]bool{}}
	s.segments[n] = s.active
	return nil
}

func (s *Store) segmentPath(n uint32) string {
	return filepath.Join(s.cfg.Dir, fmt.Sprintf("seg-%08d", n))
}

func (s *Store) closeFiles() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.f.Close())
	}
	return errors.Join(errs...)
}
