package data

import (
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// relocate changes where blocks are. A move is left out if the row is not what the mover saw, if a node that it adds has yet to delete an older copy (the
// deletion would take the new one), or if it comes too late; the copies that it made are garbage then.
func (o *operation) relocate(c *command.DataRelocate) (*command.DataResult, error) {
	res := &command.DataResult{}
	late := o.tx.Clock() > c.UntilMs
	for _, m := range c.Moves {
		res.Moved = append(res.Moved, !late && o.move(m))
		if !res.Moved[len(res.Moved)-1] {
			o.disown(m)
		}
	}
	return res, nil
}

func (o *operation) move(m *command.DataMove) bool {
	row, ok := loadBlock(o.tx, 0, m.Block)
	if !ok || len(m.Now) == 0 || !slices.Equal(row.Nodes, m.Was) {
		return false
	}
	for _, n := range m.Now {
		if !slices.Contains(m.Was, n) && AwaitsDeletion(o.tx, 0, m.Block, dc.NodeID(n)) {
			return false
		}
	}
	for _, n := range m.Was {
		if !slices.Contains(m.Now, n) && !slices.Contains(m.Gone, n) {
			o.tx.Set(garbageKey(0, dc.NodeID(n), m.Block), nil)
		}
	}
	row.Nodes = m.Now
	o.tx.Set(blockKey(0, m.Block), encode(row))
	return true
}

// disown has the copies deleted that a move has made and that do not count.
func (o *operation) disown(m *command.DataMove) {
	if len(m.Block) != file.BlockIDBytes {
		return
	}
	row, ok := loadBlock(o.tx, 0, m.Block)
	for _, n := range m.Now {
		if !slices.Contains(m.Was, n) && (!ok || !slices.Contains(row.Nodes, n)) {
			o.tx.Set(garbageKey(0, dc.NodeID(n), m.Block), nil)
		}
	}
}

// AwaitsDeletion tells whether node has yet to delete a copy of a block that does not count any more.
func AwaitsDeletion(rd storage.Reader, slot uint16, id []byte, node dc.NodeID) bool {
	_, ok := rd.Get(garbageKey(slot, node, id))
	return ok
}

// A Holding is where a block should be, and how many extents lie in it.
type Holding struct {
	file.Location
	Refs int
}

// Holdings lists up to limit blocks after one, in order of their ids; the zero id is before all.
func Holdings(rd storage.Reader, slot uint16, from file.BlockID, limit int) []Holding {
	p := key(slot, kindBlock, 0)
	span := prefix(p)
	if !from.IsZero() {
		span = after(p, blockKey(slot, from.Bytes()))
	}
	all := make([]Holding, 0, min(limit, 1024))
	for k, v := range rd.Scan(span) {
		if len(all) == limit {
			break
		}
		id, err := file.ParseBlockID(k[len(p):])
		if err != nil {
			panic(&storage.Fault{Err: err})
		}
		var row command.DataBlock
		decode("block", v, &row)
		all = append(all, holding(id, &row))
	}
	return all
}

// BlockCount counts the blocks that files reference.
func BlockCount(rd storage.Reader, slot uint16) (n int) {
	span := prefix(key(slot, kindBlock, 0))
	span.KeysOnly = true
	for range rd.Scan(span) {
		n++
	}
	return n
}

// Held finds where a block should be; false if no file references it.
func Held(rd storage.Reader, slot uint16, id file.BlockID) (Holding, bool) {
	row, ok := loadBlock(rd, slot, id.Bytes())
	if !ok {
		return Holding{}, false
	}
	return holding(id, row), true
}

func holding(id file.BlockID, row *command.DataBlock) Holding {
	h := Holding{Location: file.Location{Block: id, Bytes: int(row.Size)}, Refs: int(row.Refs)}
	for _, n := range row.Nodes {
		h.Nodes = append(h.Nodes, dc.NodeID(n))
	}
	return h
}
