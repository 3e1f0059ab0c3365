package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"missingos/srv/dc"
)

// pieceBytes is about what of a held state is read at a time: a piece is copied, and then packed and sent with no file in use.
const pieceBytes = 1 * dc.MiB

// A Held is the state after one entry, kept for minutes: what is written, compacted or checkpointed meanwhile does not touch it. Unlike a
// [Pinned] it keeps no file in use between reads, so the shard can go to sleep and wake up (quiet.go). It ends when
// it is released, when a snapshot replaces the shard's state, or with the shard.
type Held struct {
	Mark
	Clock int64
	shard *Shard
	gen   *generation
	size  uint64 // bytes of all rows, about: old versions count, rows still in memory do not
	once  sync.Once
}

// Hold keeps the state after entry at, or, for 0, after one of the last entries, which may be before entry atLeast only if none
// after it has changed anything. The caller must Release it: old versions stay on disk meanwhile.
//
// Entries are committed in groups, and only the states between groups exist. A group never goes beyond a multiple of groupStep, so
// those states exist on every replica, and what one replica held another can hold: they are preferred. With dc.Stale the state asked for does not
// exist here, or not any more.
func (s *Shard) Hold(at, atLeast dc.Index) (*Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.filesLocked(true); err != nil {
		return nil, err
	}
	h := &Held{Mark: s.applied, Clock: s.clock, shard: s, gen: s.gen}
	var err error
	if at == 0 {
		common := s.applied.Index / groupStep * groupStep
		if common < s.applied.Index && common >= atLeast && atLeast > 0 {
			if m, clock, err := s.gen.stateAtLocked(common, s.cfg.BootID); err == nil {
				h.Mark, h.Clock = m, clock
			}
		}
	} else if at > s.applied.Index {
		err = dc.Errorf(dc.Stale, "", "", "entry %d is not applied yet", at)
	} else if at < s.applied.Index {
		h.Mark, h.Clock, err = s.gen.stateAtLocked(at, s.cfg.BootID)
	}
	if err != nil {
		return nil, dc.Wrap(err, "storage.hold", s.dir)
	}
	h.gen.pins[h.Index]++
	for _, t := range s.gen.db.Tables() {
		h.size += uint64(t.UncompressedSize)
	}
	return h, nil
}

// stateAtLocked finds the state after an earlier entry, if there was one and nothing of it has been compacted away.
func (g *generation) stateAtLocked(at dc.Index, boot string) (m Mark, clock int64, err error) {
	gone := func() error { return dc.Errorf(dc.Stale, "", "", "the state after entry %d is not here", at) }
	if at < g.durable.Index || uint64(at) < g.discarded {
		return m, 0, gone()
	}
	r := g.reader(at)
	defer r.close()
	item, err := r.txn.Get([]byte(appliedKey))
	if err != nil || item.Version() != uint64(at) {
		return m, 0, gone()
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		return m, 0, &Fault{err}
	}
	d := decoder{b: value}
	m, clock = Mark{dc.Index(d.uvarint()), dc.Term(d.uvarint())}, d.varint()
	// What an earlier boot wrote after the checkpoint that this one began with may have holes.
	if by := string(d.bytes()); d.bad || m.Index != at || by != boot && at > g.durable.Index {
		return m, 0, gone()
	}
	return m, clock, nil
}

// unpinLocked takes back one pin of a version.
func (g *generation) unpinLocked(at dc.Index) {
	if g.pins[at]--; g.pins[at] == 0 {
		delete(g.pins, at)
	}
}

// discardLocked lets compaction drop old versions, when everything up to durable is on stable storage. The last state that all
// replicas have stays, too: see Hold.
func (g *generation) discardLocked(durable dc.Index) {
	upTo := max(durable/groupStep*groupStep, g.durable.Index)
	for pinned := range g.pins {
		upTo = min(upTo, pinned)
	}
	g.discarded = max(g.discarded, uint64(upTo))
	g.db.SetDiscardTs(g.discarded)
}

// Release lets the state go; a second call does nothing.
func (h *Held) Release() {
	h.once.Do(func() {
		h.shard.mu.Lock()
		defer h.shard.mu.Unlock()
		h.gen.unpinLocked(h.Index)
	})
}

// use keeps the files open until done is called.
func (h *Held) use() (done func(), err error) {
	s := h.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.filesLocked(true); err != nil {
		return nil, err
	}
	if s.gen != h.gen {
		return nil, dc.Errorf(dc.Stale, "", s.dir, "the state after entry %d has been replaced by a snapshot", h.Index)
	}
	h.gen.refs++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		h.gen.unrefLocked()
		s.free.Broadcast()
	}, nil
}

// A Pull says what a receiver of a snapshot wants.
type Pull struct {
	// Format is the highest format that the receiver reads (its SnapshotFormat); 0 is one of the version before there were several.
	Format int
	// At is the entry whose state the receiver has in part, and After the last row's key that it has. 0: it has nothing.
	At    dc.Index
	After []byte
}

// WriteSnapshot writes the rows of the held state to w that p asks for; p.At is the held state's, or 0. It blocks as w does.
func (h *Held) WriteSnapshot(ctx context.Context, p Pull, w io.Writer) error {
	format := min(max(p.Format, 1), SnapshotFormat)
	if p.At == 0 || format == 1 {
		p.After = nil
	}
	return dc.Wrap(h.write(ctx, format, p.After, w), "storage.snapshot", "")
}

func (h *Held) write(ctx context.Context, format int, after []byte, w io.Writer) error {
	if _, err := io.WriteString(w, snapshotMagic(format)); err != nil {
		return err
	}
	f := newFrames(w, format)
	head := binary.AppendUvarint([]byte{'h'}, uint64(h.Index))
	head = binary.AppendUvarint(head, uint64(h.Term))
	head = binary.AppendVarint(head, h.Clock)
	if format > 1 {
		head = binary.AppendUvarint(appendBytes(head, after), h.size)
	}
	f.write(head)
	rows, done := uint64(0), false
	for p := (piece{last: after}); !done; {
		var err error
		if done, err = h.read(&p); err != nil {
			return err
		}
		rows += p.rows
		for _, frame := range p.frames {
			f.write(frame)
		}
		if err := errors.Join(f.err, ctx.Err()); err != nil {
			return err
		}
	}
	f.write(binary.AppendUvarint([]byte{'e'}, rows))
	return f.flush()
}

// A piece is some of the rows, as payloads of frames.
type piece struct {
	frames [][]byte
	rows   uint64
	last   []byte // key of the last row; the next piece begins after it
}

// read replaces p by the piece after it; done says that it is the last.
func (h *Held) read(p *piece) (done bool, err error) {
	release, err := h.use()
	if err != nil {
		return false, err
	}
	defer release()
	size, frame := 0, []byte{'r'}
	p.frames, p.rows = nil, 0
	done = true
	after := p.last
	p.last = nil
	err = h.gen.physical(h.Index, after, func(key []byte, meta byte, value []byte) error {
		p.rows++
		p.last = append(p.last[:0], key...)
		frame = append(appendBytes(frame, key), meta)
		frame = appendBytes(frame, value)
		if len(frame) >= frameBytes {
			size += len(frame)
			p.frames = append(p.frames, frame)
			frame = []byte{'r'}
		}
		if done = size < pieceBytes; !done {
			return errPieceFull
		}
		return nil
	})
	if errors.Is(err, errPieceFull) {
		err = nil
	}
	if len(frame) > 1 {
		p.frames = append(p.frames, frame)
	}
	if p.rows == 0 {
		p.last = after
	}
	return done, err
}

var errPieceFull = errors.New("the piece is full")

// physical yields the rows of a version as they are stored, those after a key, in key order, but for the applied mark.
func (g *generation) physical(at dc.Index, after []byte, fn func(key []byte, meta byte, value []byte) error) error {
	r := g.reader(at)
	defer r.close()
	var err error
	r.items(Span{Start: after}, func(item *badger.Item) bool {
		if string(item.Key()) == appliedKey || after != nil && bytes.Equal(item.Key(), after) {
			return true
		}
		var inner error
		err = item.Value(func(value []byte) error { inner = fn(item.Key(), item.UserMeta(), value); return nil })
		if err == nil {
			err = inner
		}
		return err == nil
	})
	return err
}
