package data

import (
	"bytes"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// purge deletes orphans, up to a step's worth of rows; more asks for another step.
func (o *operation) purge(c *command.DataPurge) (*command.DataResult, error) {
	left := rowsPerStep
	for _, n := range c.Inos {
		ino := file.Ino(n)
		in, ok := loadInode(o.tx, ino)
		if !ok || in.Nlink > 0 {
			o.tx.Delete(orphanKey(ino))
			continue
		}
		if !o.purgeOne(in, &left) {
			o.put(in)
			return &command.DataResult{More: true}, nil
		}
	}
	return &command.DataResult{}, nil
}

// purgeOne deletes in and what belongs to it; false if left ran out before.
func (o *operation) purgeOne(in *command.DataInode, left *int) bool {
	ino := inoOf(in)
	if in.Extents > 0 {
		for _, e := range o.overlapping(ino, 0, maxOffset, *left, false) {
			o.dropExtent(in, e)
			*left--
		}
		if in.Extents > 0 {
			return false
		}
	}
	if in.XattrBytes > 0 {
		span := prefix(inoKey(kindXattr, ino, 0))
		span.KeysOnly = true
		var keys [][]byte
		for k := range o.tx.Scan(span) {
			keys = append(keys, bytes.Clone(k))
		}
		for _, k := range keys {
			o.tx.Delete(k)
			*left--
		}
	}
	o.setInline(in, 0, nil)
	o.tx.Delete(inodeKey(ino))
	o.touched = append(o.touched, ino)
	o.tx.Delete(orphanKey(ino))
	o.space(ino.Slot()).Inodes--
	*left--
	return *left > 0
}

func (o *operation) forget(c *command.DataForget) (*command.DataResult, error) {
	for _, g := range c.Blocks {
		o.tx.Delete(garbageKey(0, dc.NodeID(g.Node), g.Block))
	}
	return &command.DataResult{}, nil
}

// Orphans lists up to limit inodes without names, after an inode.
func Orphans(rd storage.Reader, slot uint16, from file.Ino, limit int) []file.Ino {
	p := key(slot, kindOrphan, 0)
	span := after(p, inoKeyIn(slot, kindOrphan, from))
	span.KeysOnly = true
	var all []file.Ino
	for k := range rd.Scan(span) {
		if len(all) == limit {
			break
		}
		all = append(all, inoIn(k))
	}
	return all
}

// Garbage lists up to limit blocks that node should delete.
func Garbage(rd storage.Reader, slot uint16, node dc.NodeID, limit int) []file.BlockID {
	p := garbageKey(slot, node, nil)
	span := prefix(p)
	span.KeysOnly = true
	var all []file.BlockID
	for k := range rd.Scan(span) {
		if len(all) == limit {
			break
		}
		if id, err := file.ParseBlockID(k[len(p):]); err == nil {
			all = append(all, id)
		}
	}
	return all
}

// GarbageNodes lists the nodes that have blocks to delete.
func GarbageNodes(rd storage.Reader, slot uint16) []dc.NodeID {
	var all []dc.NodeID
	p := key(slot, kindGarbage, 0)
	for next := p; ; {
		found := dc.NodeID(0)
		for k := range rd.Scan(storage.Span{Start: next, End: afterPrefix(p), KeysOnly: true}) {
			found = dc.NodeID(inoIn(k))
			break
		}
		if found == 0 {
			return all
		}
		all = append(all, found)
		next = garbageKey(slot, found+1, nil)
	}
}

// HeldAt tells whether the block is referenced and node is among those that should hold it.
func HeldAt(rd storage.Reader, slot uint16, id file.BlockID, node dc.NodeID) bool {
	row, ok := loadBlock(rd, slot, id.Bytes())
	if !ok {
		return false
	}
	for _, n := range row.Nodes {
		if dc.NodeID(n) == node {
			return true
		}
	}
	return false
}
