package block

import (
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// Size tells how long a block is, without reading it; false if it is not here.
func (s *Store) Size(id file.BlockID) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.index[id]
	return int(p.bytes), ok
}

// Verify reads a whole block. It gives the errors of [Store.Read].
func (s *Store) Verify(id file.BlockID) error {
	size, ok := s.Size(id)
	if !ok {
		return dc.Errorf(dc.NotFound, "block.verify", id.String(), "node %s does not hold the block", s.cfg.Node)
	}
	_, err := s.Read(id, 0, make([]byte, size))
	return err
}

// Replace stores data under id as [Store.Put] does, in the place of a record that is there already, if one is: that one is damaged.
func (s *Store) Replace(id file.BlockID, ino file.Ino, data []byte) error {
	return s.put("block.replace", id, ino, data, true)
}

// exchange puts a new record into the index where an old one is.
func (s *Store) exchange(h *header, seg *segment) error {
	need := recordBytes(h.bytes)
	s.mu.Lock()
	seg.dirty = true
	seg.live += need
	old, had := s.index[h.id]
	s.index[h.id] = place{h.segment, uint32(h.offset / align), h.bytes}
	s.written.Add(1)
	var oldSeg *segment
	empty := false
	if had {
		oldSeg = s.segments[old.segment]
		s.bytes -= recordBytes(old.bytes)
		oldSeg.live -= recordBytes(old.bytes)
		s.freeAt = time.Time{}
		if empty = oldSeg.live == 0 && oldSeg != s.active && len(oldSeg.writing) == 0; empty {
			delete(s.segments, old.segment)
		}
	}
	s.mu.Unlock()
	if !had {
		return nil
	}
	if err := s.Sync(); err != nil { // the new record must be safe before the old one goes
		return err
	}
	if err := s.erase(oldSeg, old, empty); err != nil {
		return dc.Errorf(diskKind(err), "block.replace", h.id.String(), "%w", err)
	}
	return nil
}
