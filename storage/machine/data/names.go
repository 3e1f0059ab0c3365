package data

import (
	"bytes"
	"encoding/binary"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
)

func (o *operation) makeFile(c *command.DataMake) (*command.DataResult, error) {
	const op = "create"
	if c.Nameless && o.version >= 2 {
		return o.makeNameless(c)
	}
	if err := checkName(op, c.Name); err != nil {
		return nil, err
	}
	dir, err := liveDir(o.tx, op, file.Ino(c.Parent))
	if err != nil {
		return nil, err
	}
	if err := need(op, dir, o.who, WantExec, "enter the directory"); err != nil {
		return nil, err
	}
	if d, ok := loadDentry(o.tx, inoOf(dir), c.Name); ok {
		in, _ := loadInode(o.tx, file.Ino(d.Ino))
		if c.Exclusive || c.Mode&file.TypeMask != file.Regular || in == nil {
			return nil, dc.Errorf(dc.Exists, op, string(c.Name), "")
		}
		res := answer(in)
		res.Existed = true
		return res, nil
	}
	if err := o.mayMake(op, dir, c); err != nil {
		return nil, err
	}
	in := o.newInode(dir, c)
	if isDir(in) {
		in.Nlink = dirLinks
		dir.Nlink++
	}
	o.enter(dir, c.Name, in)
	o.touch(dir)
	o.put(dir)
	o.put(in)
	return answer(in), nil
}

// newInode makes the inode of a file in dir, which has a name yet to be entered.
func (o *operation) newInode(dir *command.DataInode, c *command.DataMake) *command.DataInode {
	u := o.space(dirSlot(dir))
	u.Seq++
	u.Inodes++
	in := &command.DataInode{
		Ino: uint64(dirSlot(dir))<<file.SeqBits | u.Seq, Mode: c.Mode & (file.TypeMask | modePerm), Nlink: 1,
		Uid: o.who.GetUid(), Gid: o.who.GetGid(), Rdev: c.Rdev, Target: c.Target, Size: int64(len(c.Target)),
		Atime: o.now, Mtime: o.now, Ctime: o.now, Btime: o.now, Parent: dir.Ino, Name: c.Name, Version: 1,
	}
	inheritACL(in, dir, c)
	inherit(in, dir, o.who, o.version)
	return in
}

// makeNameless makes a regular file that no directory has an entry of (O_TMPFILE): an orphan, which goes when nobody has it open.
func (o *operation) makeNameless(c *command.DataMake) (*command.DataResult, error) {
	const op = "tmpfile"
	dir, err := liveDir(o.tx, op, file.Ino(c.Parent))
	if err != nil {
		return nil, err
	}
	if c.Mode&file.TypeMask != file.Regular || len(c.Name) > 0 {
		return nil, dc.Errorf(dc.Invalid, op, inoOf(dir).String(), "a file without a name is a regular one")
	}
	if err := o.mayMake(op, dir, c); err != nil {
		return nil, err
	}
	in := o.newInode(dir, c)
	in.Nlink, in.Linkable = 0, c.Linkable
	o.tx.Set(orphanKey(inoOf(in)), binary.BigEndian.AppendUint64(nil, uint64(o.now)))
	o.tx.Emit(Orphaned{Ino: inoOf(in)})
	o.put(in)
	return answer(in), nil
}

func (o *operation) mayMake(op string, dir *command.DataInode, c *command.DataMake) error {
	if err := need(op, dir, o.who, WantWrite|WantExec, "create files in the directory"); err != nil {
		return err
	}
	switch c.Mode & file.TypeMask {
	case file.Regular, file.Fifo, file.Socket:
	case file.Dir:
		if dir.Nlink >= file.MaxLinks {
			return dc.Errorf(dc.TooManyLinks, op, string(c.Name), "the directory has %d subdirectories, the limit", dir.Nlink-dirLinks)
		}
	case file.Symlink:
		if len(c.Target) == 0 || len(c.Target) >= dc.MaxPathBytes {
			return dc.Errorf(dc.NameTooLong, op, string(c.Name), "a target of %d bytes, allowed are 1 to %d", len(c.Target), dc.MaxPathBytes-1)
		}
	case file.CharDev, file.BlockDev:
		if o.who.GetUid() != 0 {
			return dc.Errorf(dc.NotOwner, op, string(c.Name), "only root makes device files")
		}
	default:
		return dc.Errorf(dc.Invalid, op, string(c.Name), "unknown file type in mode %o", c.Mode)
	}
	return nil
}

func dirSlot(dir *command.DataInode) uint16 { return inoOf(dir).Slot() }

// enter writes the directory entry.
func (o *operation) enter(dir *command.DataInode, name []byte, in *command.DataInode) {
	o.tx.Set(dentryKey(inoOf(dir), name), encode(&command.DataDentry{Ino: in.Ino, Type: in.Mode & file.TypeMask}))
}

func (o *operation) link(c *command.DataLink) (*command.DataResult, error) {
	const op = "link"
	if err := checkName(op, c.Name); err != nil {
		return nil, err
	}
	dir, err := liveDir(o.tx, op, file.Ino(c.Parent))
	if err != nil {
		return nil, err
	}
	in, ok := loadInode(o.tx, file.Ino(c.Ino))
	switch {
	case !ok || in.Nlink == 0 && !in.Linkable:
		return nil, dc.Errorf(dc.NotFound, op, file.Ino(c.Ino).String(), "the file has been removed")
	case isDir(in):
		return nil, dc.Errorf(dc.NotOwner, op, string(c.Name), "directories have one name")
	case in.Nlink >= file.MaxLinks:
		return nil, dc.Errorf(dc.TooManyLinks, op, string(c.Name), "the file has %d names, the limit", in.Nlink)
	}
	if err := need(op, dir, o.who, WantWrite|WantExec, "create files in the directory"); err != nil {
		return nil, err
	}
	if _, ok := loadDentry(o.tx, inoOf(dir), c.Name); ok {
		return nil, dc.Errorf(dc.Exists, op, string(c.Name), "")
	}
	switch in.Nlink {
	case 0: // made without a name
		in.Linkable, in.Parent, in.Name = false, dir.Ino, c.Name
		o.tx.Delete(orphanKey(inoOf(in)))
	case 1:
		o.tx.Set(linkKey(inoOf(in), file.Ino(in.Parent), in.Name), nil)
		fallthrough
	default:
		o.tx.Set(linkKey(inoOf(in), inoOf(dir), c.Name), nil)
	}
	in.Nlink++
	in.Ctime = o.now
	o.enter(dir, c.Name, in)
	o.touch(dir)
	o.put(dir)
	o.put(in)
	return answer(in), nil
}

func (o *operation) unlink(c *command.DataUnlink) (*command.DataResult, error) {
	op := "unlink"
	if c.Dir {
		op = "rmdir"
	}
	dir, err := liveDir(o.tx, op, file.Ino(c.Parent))
	if err != nil {
		return nil, err
	}
	if err := need(op, dir, o.who, WantExec, "enter the directory"); err != nil {
		return nil, err
	}
	in, err := named(o.tx, op, inoOf(dir), c.Name)
	if err != nil {
		return nil, err
	}
	if err := mayRemove(op, dir, in, o.who); err != nil {
		return nil, err
	}
	switch {
	case c.Dir && !isDir(in):
		return nil, dc.Errorf(dc.NotDir, op, string(c.Name), "")
	case !c.Dir && isDir(in):
		return nil, dc.Errorf(dc.IsDir, op, string(c.Name), "")
	case c.Dir && !empty(o.tx, inoOf(in)):
		return nil, dc.Errorf(dc.NotEmpty, op, string(c.Name), "")
	}
	o.tx.Delete(dentryKey(inoOf(dir), c.Name))
	res := &command.DataResult{}
	o.lose(dir, c.Name, in, res)
	o.touch(dir)
	o.put(dir)
	res.Inode = Bare(in)
	return res, nil
}

// lose takes the name from in, whose entry in dir is gone or taken over, and stores in. The caller stores dir.
func (o *operation) lose(dir *command.DataInode, name []byte, in *command.DataInode, res *command.DataResult) {
	in.Ctime = o.now
	if isDir(in) {
		in.Nlink = 0
		dir.Nlink--
	} else {
		if in.Nlink > 1 {
			o.dropLink(in, inoOf(dir), name)
		}
		in.Nlink--
	}
	if in.Nlink == 0 {
		o.tx.Set(orphanKey(inoOf(in)), binary.BigEndian.AppendUint64(nil, uint64(o.now)))
		o.tx.Emit(Orphaned{Ino: inoOf(in)})
		res.Gone = in.Ino
	}
	o.put(in)
}

// dropLink removes the back link of one of several names; the last one left moves into the inode. It does not change the count.
func (o *operation) dropLink(in *command.DataInode, dir file.Ino, name []byte) {
	o.tx.Delete(linkKey(inoOf(in), dir, name))
	p := inoKey(kindLink, inoOf(in), 0)
	span := prefix(p)
	span.KeysOnly = true
	var first []byte
	for k := range o.tx.Scan(span) {
		first = bytes.Clone(k[len(p):])
		break
	}
	if first == nil {
		return
	}
	in.Parent, in.Name = binary.BigEndian.Uint64(first), first[8:]
	if in.Nlink == 2 {
		o.tx.Delete(linkKey(inoOf(in), file.Ino(in.Parent), in.Name))
	}
}

// moveLink notes that a name of in is now another.
func (o *operation) moveLink(in *command.DataInode, dir file.Ino, name []byte, newDir file.Ino, newName []byte) {
	if !isDir(in) && in.Nlink > 1 {
		o.tx.Delete(linkKey(inoOf(in), dir, name))
		o.tx.Set(linkKey(inoOf(in), newDir, newName), nil)
		if file.Ino(in.Parent) != dir || !bytes.Equal(in.Name, name) {
			return
		}
	}
	in.Parent, in.Name = uint64(newDir), newName
}
