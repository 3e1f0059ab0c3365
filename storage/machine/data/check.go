package data

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

// A Finding is something that the rows should not say. None can come of commands; each is worth a report.
type Finding struct {
	What  string // links, entry, extents, references, usage
	Where string
	Text  string
}

// A checker gathers findings.
type checker struct {
	rd    storage.Reader
	found []Finding
}

func (c *checker) find(what, where, format string, args ...any) {
	c.found = append(c.found, Finding{what, where, fmt.Sprintf(format, args...)})
}

// CheckInodes checks up to limit inodes after one: their names, link counts and extents. next is the last one looked at, 0 when there is no more.
func CheckInodes(rd storage.Reader, slot uint16, from file.Ino, limit int) (next file.Ino, n int, found []Finding) {
	c := &checker{rd: rd}
	var page []*command.DataInode
	for k, v := range rd.Scan(after(key(slot, kindInode, 0), inoKeyIn(slot, kindInode, from))) {
		if len(page) == limit {
			break
		}
		in := &command.DataInode{}
		decode(inoIn(k).String(), bytes.Clone(v), in)
		page = append(page, in)
	}
	for _, in := range page {
		c.names(in)
		c.content(in)
	}
	if len(page) == limit {
		next = inoOf(page[limit-1])
	}
	return next, len(page), c.found
}

// names checks that an inode has as many names as it counts.
func (c *checker) names(in *command.DataInode) {
	ino := inoOf(in)
	switch {
	case in.Nlink == 0:
		if _, ok := c.rd.Get(orphanKey(ino)); !ok {
			c.find("links", ino.String(), "it has no name and does not wait to be deleted")
		}
	case isDir(in):
		if want := dirLinks + c.subdirectories(ino); in.Nlink != want {
			c.find("links", ino.String(), "the directory counts %d links, %d would be right", in.Nlink, want)
		}
		if ino != file.Root {
			c.named(in, file.Ino(in.Parent), in.Name)
		}
	case in.Nlink == 1:
		c.named(in, file.Ino(in.Parent), in.Name)
	default:
		p := inoKey(kindLink, ino, 0)
		span := prefix(p)
		span.KeysOnly = true
		var links [][]byte
		for k := range c.rd.Scan(span) {
			links = append(links, bytes.Clone(k[len(p):]))
		}
		if len(links) != int(in.Nlink) {
			c.find("links", ino.String(), "it counts %d links and has %d", in.Nlink, len(links))
		}
		for _, l := range links {
			c.named(in, file.Ino(binary.BigEndian.Uint64(l)), l[8:])
		}
	}
}

func (c *checker) named(in *command.DataInode, dir file.Ino, name []byte) {
	if d, ok := loadDentry(c.rd, dir, name); !ok || d.Ino != in.Ino {
		c.find("entry", inoOf(in).String(), "%s has no entry %q for it", dir, name)
	}
}

func (c *checker) subdirectories(dir file.Ino) (n uint32) {
	for _, v := range c.rd.Scan(prefix(inoKey(kindDentry, dir, 0))) {
		var d command.DataDentry
		decode("directory entry", v, &d)
		if d.Type == file.Dir {
			n++
		}
	}
	return n
}

// content checks that extents lie one after the other, in blocks that there are, and are as many as the inode counts.
func (c *checker) content(in *command.DataInode) {
	ino := inoOf(in)
	var extents []extent
	for k, v := range c.rd.Scan(prefix(inoKey(kindExtent, ino, 0))) {
		extents = append(extents, loadExtent(k, v))
	}
	if in.Extents != uint64(len(extents)) {
		c.find("extents", ino.String(), "it counts %d extents and has %d", in.Extents, len(extents))
	}
	held, end := int64(len(in.Inline)), int64(0)
	for _, e := range extents {
		if e.off < end {
			c.find("extents", ino.String(), "the extent at %d begins before the end of the one before it, %d", e.off, end)
		}
		end = e.end()
		held += e.len
		row, ok := loadBlock(c.rd, ino.Slot(), e.block)
		switch {
		case !ok:
			c.find("extents", ino.String(), "the extent at %d lies in block %x, of which nothing is known", e.off, e.block)
		case e.blockOff < 0 || e.blockOff+e.len > int64(row.Size):
			c.find("extents", ino.String(), "the extent at %d ends beyond block %x", e.off, e.block)
		}
	}
	if in.Allocated != held {
		c.find("extents", ino.String(), "it counts %d bytes and holds %d", in.Allocated, held)
	}
}

// CheckEntries checks up to limit directory entries after one: that what they name is there and of the type that they say. next is the last one looked at, nil when there
// is no more.
func CheckEntries(rd storage.Reader, slot uint16, from []byte, limit int) (next []byte, n int, found []Finding) {
	c := &checker{rd: rd}
	p := key(slot, kindDentry, 0)
	type row struct {
		key []byte
		d   *command.DataDentry
	}
	var page []row
	for k, v := range rd.Scan(after(p, append(bytes.Clone(p), from...))) {
		if len(page) == limit {
			break
		}
		d := &command.DataDentry{}
		decode("directory entry", bytes.Clone(v), d)
		page = append(page, row{bytes.Clone(k), d})
	}
	for _, r := range page {
		dir, name := inoIn(r.key), r.key[prefixBytes+8:]
		where := fmt.Sprintf("%s, %q", dir, name)
		in, ok := loadInode(rd, file.Ino(r.d.Ino))
		switch {
		case !ok:
			c.find("entry", where, "it names %s, which is not there", file.Ino(r.d.Ino))
		case in.Mode&file.TypeMask != r.d.Type:
			c.find("entry", where, "it says type %o, %s has %o", r.d.Type, file.Ino(r.d.Ino), in.Mode&file.TypeMask)
		}
		if parent, ok := loadInode(rd, dir); !ok || !isDir(parent) {
			c.find("entry", where, "its directory is not there")
		}
	}
	if len(page) == limit {
		next = page[limit-1].key[prefixBytes:]
	}
	return next, len(page), c.found
}

// CheckReferences checks, for one of a number of parts of all blocks, that each counts the extents that lie in it, and, in the first, that the sums over all inodes are right. It
// reads all extents; memory is some 50 bytes for each block of the part.
func CheckReferences(rd storage.Reader, slot uint16, part, parts int) (n int, found []Finding) {
	c := &checker{rd: rd}
	counted := map[file.BlockID]uint32{}
	for _, v := range rd.Scan(prefix(key(slot, kindExtent, 0))) {
		var e command.DataExtent
		decode("extent", v, &e)
		if id, err := file.ParseBlockID(e.Block); err == nil && int(id.Seq%uint64(parts)) == part {
			counted[id]++
		}
	}
	p := key(slot, kindBlock, 0)
	for k, v := range rd.Scan(prefix(p)) {
		id, err := file.ParseBlockID(k[len(p):])
		if err != nil || int(id.Seq%uint64(parts)) != part {
			continue
		}
		var row command.DataBlock
		decode("block", v, &row)
		if row.Refs != counted[id] {
			c.find("references", "block "+id.String(), "it counts %d extents, %d lie in it", row.Refs, counted[id])
		}
		n++
	}
	if part == 0 {
		c.usage(slot)
	}
	return n, c.found
}

func (c *checker) usage(slot uint16) {
	u := loadUsage(c.rd, slot)
	var inodes, size int64
	for _, v := range c.rd.Scan(prefix(key(slot, kindInode, 0))) {
		var in command.DataInode
		decode("inode", v, &in)
		if inoOf(&in) != file.Root {
			inodes++
		}
		size += in.Allocated
	}
	if u.Inodes != inodes || u.Bytes != size {
		c.find("usage", fmt.Sprintf("slot %d", slot), "it counts %d files and %d bytes, there are %d and %d", u.Inodes, u.Bytes, inodes, size)
	}
}
