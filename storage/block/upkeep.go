package block

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// Delete removes blocks; ids that are not here are ignored.
func (s *Store) Delete(ids []file.BlockID) error {
	for _, id := range ids {
		s.mu.Lock()
		p, ok := s.index[id]
		seg := s.segments[p.segment]
		if ok {
			delete(s.index, id)
			s.bytes -= recordBytes(p.bytes)
			seg.live -= recordBytes(p.bytes)
			s.freeAt = time.Time{}
		}
		empty := ok && seg.live == 0 && seg != s.active && len(seg.writing) == 0
		if empty {
			delete(s.segments, seg.number)
		}
		s.mu.Unlock()
		if !ok {
			continue
		}
		if err := s.erase(seg, p, empty); err != nil {
			return dc.Errorf(diskKind(err), "block.delete", id.String(), "%w", err)
		}
	}
	return nil
}

// erase gives a record's room back to the disk.
func (s *Store) erase(seg *segment, p place, whole bool) error {
	if whole {
		return errors.Join(os.Remove(seg.f.Name()), seg.f.Close())
	}
	var dead [4]byte
	putMagic(dead[:], magicDead)
	if _, err := seg.f.WriteAt(dead[:], p.offset()); errors.Is(err, os.ErrClosed) {
		return nil // another deletion emptied the segment
	} else if err != nil {
		return err
	}
	if room := recordBytes(p.bytes) - align; room > 0 {
		err := onFile(seg.f, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, p.offset()+align, room)
		})
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("punch hole: %w", err)
		}
	}
	return nil
}

// onFile runs do on the descriptor of f; os.ErrClosed if it is closed.
func onFile(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := c.Control(func(fd uintptr) { result = do(int(fd)) }); err != nil {
		return err
	}
	return result
}

// Sync returns when every block whose Put returned before is on stable storage.
func (s *Store) Sync() error {
	want := s.written.Load()
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if s.synced >= want {
		return s.failure()
	}
	upTo := s.written.Load()
	s.mu.Lock()
	var dirty []*segment
	for _, seg := range s.segments {
		if seg.dirty {
			seg.dirty = false
			dirty = append(dirty, seg)
		}
	}
	s.mu.Unlock()
	for _, seg := range dirty {
		err := onFile(seg.f, unix.Fdatasync)
		if err != nil && !errors.Is(err, os.ErrClosed) { // closed: the segment was emptied and removed meanwhile
			return s.fail(fmt.Errorf("fdatasync of %s: %w", seg.f.Name(), err))
		}
	}
	s.synced = upTo
	return s.failure()
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fail closes the store to all further use: what the kernel lost after a failed fsync cannot be known.
func (s *Store) fail(err error) error {
	err = dc.Errorf(dc.Internal, "block.sync", s.cfg.Dir, "%w", err)
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = err
	}
	s.mu.Unlock()
	if first {
		s.cfg.Log.Error("block store failed", "dir", s.cfg.Dir, "err", err)
		s.cfg.Fatal(err)
	}
	return err
}

// Stats tells what the store holds.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := max(0, s.freeLocked())
	return Stats{Blocks: len(s.index), Bytes: s.bytes, Free: free, Total: free + s.bytes}
}

// Blocks lists all blocks by id, as they are now.
func (s *Store) Blocks() []file.BlockID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]file.BlockID, 0, len(s.index))
	for id := range s.index {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, file.BlockID.Compare)
	return ids
}

// Info tells for which inode a block was written here, and when by this node's clock; ok is false if it is not here or not readable.
func (s *Store) Info(id file.BlockID) (ino file.Ino, put time.Time, ok bool) {
	p, seg := s.find(id)
	if seg == nil {
		return 0, time.Time{}, false
	}
	head := make([]byte, dataOffset(p.bytes))
	if _, err := seg.f.ReadAt(head, p.offset()); err != nil {
		return 0, time.Time{}, false
	}
	h, _, ok := decodeHeader(head, s.salt, p.segment, p.offset())
	return file.Ino(h.ino), time.UnixMilli(h.stampMS), ok
}

func (s *Store) background(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.Sync() != nil {
			return
		}
		s.mu.Lock()
		due := s.since >= checkpointEvery
		s.mu.Unlock()
		if due {
			if err := s.checkpoint(); err != nil {
				s.cfg.Log.Warn("block checkpoint not written", "dir", s.cfg.Dir, "err", err)
			}
		}
	}
}
