package storage

import (
	"bufio"
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
	once  sync.Once
}

// Hold keeps the state as it is. The caller must Release it: old versions stay on disk meanwhile.
func (s *Shard) Hold() (*Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	h := &Held{Mark: s.applied, Clock: s.clock, shard: s, gen: s.gen}
	h.gen.pins[h.Index]++
	return h, nil
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
	for s.paused {
		s.free.Wait()
	}
	if s.failed != nil {
		return nil, s.failed
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

// WriteSnapshot writes the held state to w, in the highest format that the receiver reads (its SnapshotFormat; 0 is a receiver of
// the version before there were several). It blocks as w does.
func (h *Held) WriteSnapshot(ctx context.Context, format int, w io.Writer) error {
	return dc.Wrap(h.write(ctx, min(max(format, 1), SnapshotFormat), w), "storage.snapshot", "")
}

func (h *Held) write(ctx context.Context, format int, w io.Writer) error {
	f := frames{w: bufio.NewWriterSize(w, 64*dc.KiB), packer: newPacker(format)}
	if _, err := f.w.WriteString(snapshotMagic(format)); err != nil {
		return err
	}
	head := binary.AppendUvarint([]byte{'h'}, uint64(h.Index))
	head = binary.AppendUvarint(head, uint64(h.Term))
	f.write(binary.AppendVarint(head, h.Clock))
	rows, done := uint64(0), false
	for p := (piece{}); !done; {
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
	return errors.Join(f.err, f.w.Flush())
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
	err = h.gen.physical(h.Index, p.last, func(key []byte, meta byte, value []byte) error {
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
