package data

import (
	"bytes"
	"encoding/binary"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

func inoKeyIn(slot uint16, kind byte, ino file.Ino) []byte {
	return binary.BigEndian.AppendUint64(key(slot, kind, 8), uint64(ino))
}

// inoIn reads the eight bytes after the prefix of a key.
func inoIn(k []byte) file.Ino { return file.Ino(binary.BigEndian.Uint64(k[prefixBytes:])) }

// Lookup finds what a name in a directory names. dc.NotFound, dc.NotDir, dc.Denied.
func Lookup(rd storage.Reader, who *command.DataCaller, dir file.Ino, name []byte) (*command.DataInode, error) {
	const op = "lookup"
	if len(name) > dc.MaxNameBytes {
		return nil, checkName(op, name)
	}
	d, err := liveDir(rd, op, dir)
	if err != nil {
		return nil, err
	}
	if err := need(op, d, who, WantExec, "enter the directory"); err != nil {
		return nil, err
	}
	return named(rd, op, dir, name)
}

// Inode loads an inode; dc.Stale if it is gone.
func Inode(rd storage.Reader, ino file.Ino) (*command.DataInode, error) {
	in, ok := loadInode(rd, ino)
	if !ok {
		return nil, stale("stat", ino)
	}
	return in, nil
}

// IsDir tells whether an inode is a directory that exists.
func IsDir(rd storage.Reader, ino file.Ino) bool {
	in, ok := loadInode(rd, ino)
	return ok && isDir(in)
}

// Access checks what who may do with an inode, as access(2).
func Access(rd storage.Reader, who *command.DataCaller, ino file.Ino, want uint32) error {
	in, err := Inode(rd, ino)
	if err != nil {
		return err
	}
	return need("access", in, who, want&(WantRead|WantWrite|WantExec), "use it so")
}

// Open loads an inode that who wants to read or write, and checks that they may. It may be an orphan, whose last name went after it was found.
func Open(rd storage.Reader, who *command.DataCaller, ino file.Ino, want uint32) (*command.DataInode, error) {
	const op = "open"
	in, ok := loadInode(rd, ino)
	if !ok {
		return nil, stale(op, ino)
	}
	if err := need(op, in, who, want, "open it so"); err != nil {
		return nil, err
	}
	return in, nil
}

// An Entry is a name and what it names.
type Entry struct {
	Name  []byte
	Inode *command.DataInode
}

// List gives up to limit entries of a directory whose names are after a name, in byte order. A removed directory is empty.
func List(rd storage.Reader, dir file.Ino, from []byte, limit int) ([]Entry, error) {
	in, ok := loadInode(rd, dir)
	switch {
	case !ok:
		return nil, stale("readdir", dir)
	case !isDir(in):
		return nil, dc.Errorf(dc.NotDir, "readdir", dir.String(), "")
	}
	p := inoKey(kindDentry, dir, 0)
	span := prefix(p)
	if len(from) > 0 {
		span = after(p, dentryKey(dir, from))
	}
	type row struct {
		name []byte
		ino  file.Ino
	}
	var rows []row
	for k, v := range rd.Scan(span) {
		if len(rows) == limit {
			break
		}
		var d command.DataDentry
		decode("directory entry", v, &d)
		rows = append(rows, row{bytes.Clone(k[len(p):]), file.Ino(d.Ino)})
	}
	entries := make([]Entry, 0, len(rows))
	for _, r := range rows {
		if in, ok := loadInode(rd, r.ino); ok {
			entries = append(entries, Entry{r.name, in})
		}
	}
	return entries, nil
}

// Extents gives the extents of an inode that meet offsets from..., up to limit, with the nodes of their blocks, and the offset up to which they are all there.
func Extents(rd storage.Reader, ino file.Ino, from int64, limit int) (all []file.Extent, to int64) {
	nodes := map[string][]dc.NodeID{}
	add := func(e extent) {
		id, err := file.ParseBlockID(e.block)
		if err != nil {
			panic(&storage.Fault{Err: err})
		}
		ns, ok := nodes[string(e.block)]
		if !ok {
			if row, found := loadBlock(rd, ino.Slot(), e.block); found {
				for _, n := range row.Nodes {
					ns = append(ns, dc.NodeID(n))
				}
			}
			nodes[string(e.block)] = ns
		}
		all = append(all, file.Extent{Off: e.off, Len: e.len, Block: id, BlockOff: e.blockOff, Nodes: ns})
	}
	head := storage.Span{Start: inoKey(kindExtent, ino, 0), End: extentKey(ino, from), Reverse: true}
	for k, v := range rd.Scan(head) {
		if e := loadExtent(k, v); e.end() > from {
			add(e)
		}
		break
	}
	for k, v := range rd.Scan(storage.Span{Start: extentKey(ino, from), End: extentKey(ino, maxOffset)}) {
		if len(all) >= limit {
			return all, extentOffset(k)
		}
		add(loadExtent(k, v))
	}
	return all, maxOffset
}

// Xattr reads an attribute; dc.NoAttr if there is none.
func Xattr(rd storage.Reader, who *command.DataCaller, ino file.Ino, name []byte) ([]byte, error) {
	in, err := Inode(rd, ino)
	if err != nil {
		return nil, err
	}
	if isACL(name) {
		return readACL(in, name)
	}
	if err := checkXattr("getxattr", in, who, name, WantRead); err != nil {
		return nil, err
	}
	v, ok := rd.Get(xattrKey(ino, name))
	if !ok {
		return nil, dc.Errorf(dc.NoAttr, "getxattr", string(name), "")
	}
	return v, nil
}

// Xattrs lists the names of an inode's attributes that who may see.
func Xattrs(rd storage.Reader, who *command.DataCaller, ino file.Ino) ([]string, error) {
	in, err := Inode(rd, ino)
	if err != nil {
		return nil, err
	}
	names := aclNames(in)
	if in.XattrBytes == 0 {
		return names, nil
	}
	p := inoKey(kindXattr, ino, 0)
	span := prefix(p)
	span.KeysOnly = true
	for k := range rd.Scan(span) {
		name := string(k[len(p):])
		if len(name) >= 8 && name[:8] == "trusted." && who.GetUid() != 0 {
			continue
		}
		names = append(names, name)
	}
	return names, nil
}

// Usage gives what a slot holds.
func Usage(rd storage.Reader, slot uint16) (inodes, size int64) {
	u := loadUsage(rd, slot)
	return u.Inodes + 1, u.Bytes
}
