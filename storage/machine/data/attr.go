package data

import (
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

func (o *operation) setAttr(c *command.DataSetAttr) (*command.DataResult, error) {
	const op = "setattr"
	in, ok := loadInode(o.tx, file.Ino(c.Ino))
	if !ok {
		return nil, stale(op, file.Ino(c.Ino))
	}
	if err := o.maySetAttr(op, in, c); err != nil {
		return nil, err
	}
	if c.Size != nil {
		if more := o.truncate(in, *c.Size); more {
			o.put(in)
			res := answer(in)
			res.More = true
			return res, nil
		}
	}
	o.setOwner(in, c)
	if c.Mode != nil {
		mode := *c.Mode & modePerm
		if o.who.GetUid() != 0 && !isDir(in) && !inGroup(o.who, in.Gid) {
			mode &^= modeSetGID
		}
		in.Mode = in.Mode&file.TypeMask | mode
		chmodACL(in)
	}
	if c.Atime != nil {
		in.Atime = *c.Atime
	}
	if c.Mtime != nil {
		in.Mtime = *c.Mtime
	}
	in.Ctime = o.now
	o.put(in)
	return answer(in), nil
}

func (o *operation) maySetAttr(op string, in *command.DataInode, c *command.DataSetAttr) error {
	if c.Mode != nil {
		if err := needOwner(op, in, o.who); err != nil {
			return err
		}
	}
	if c.Uid != nil && *c.Uid != in.Uid && o.who.GetUid() != 0 {
		return dc.Errorf(dc.NotOwner, op, inoOf(in).String(), "only root changes the owner of a file")
	}
	if c.Gid != nil && *c.Gid != in.Gid && o.who.GetUid() != 0 && (o.who.GetUid() != in.Uid || !inGroup(o.who, *c.Gid)) {
		return dc.Errorf(dc.NotOwner, op, inoOf(in).String(), "only the owner changes the group, to one of their own")
	}
	if (c.Atime != nil || c.Mtime != nil) && !owns(in, o.who) {
		if !c.TimesNow {
			return needOwner(op, in, o.who)
		}
		if err := need(op, in, o.who, WantWrite, "write the file"); err != nil {
			return err
		}
	}
	if c.Size == nil {
		return nil
	}
	switch {
	case isDir(in):
		return dc.Errorf(dc.IsDir, op, inoOf(in).String(), "a directory cannot be truncated")
	case !isRegular(in) || *c.Size < 0:
		return dc.Errorf(dc.Invalid, op, inoOf(in).String(), "cannot be truncated to %d bytes", *c.Size)
	case *c.Size > file.MaxFileBytes:
		return dc.Errorf(dc.TooLarge, op, inoOf(in).String(), "%d bytes exceed the limit of %d for a file", *c.Size, int64(file.MaxFileBytes))
	case c.Open:
		return nil
	}
	return need(op, in, o.who, WantWrite, "write the file")
}

func (o *operation) setOwner(in *command.DataInode, c *command.DataSetAttr) {
	if c.Uid == nil && c.Gid == nil {
		return
	}
	if c.Uid != nil {
		in.Uid = *c.Uid
	}
	if c.Gid != nil {
		in.Gid = *c.Gid
	}
	o.dropPrivileges(in)
}

// truncate sets the size. A file with many extents beyond it shrinks in steps: more says that another is needed.
func (o *operation) truncate(in *command.DataInode, size int64) (more bool) {
	if size < in.Size {
		if to, cut := o.cutTail(in, size); cut {
			size, more = to, true
		}
		o.cutInline(in, size)
	}
	in.Size = size
	in.Version++
	in.Mtime, in.Ctime = o.now, o.now
	if o.who.GetUid() != 0 {
		o.dropPrivileges(in)
	}
	return more
}

// cutTail removes extents from the end down to size, but no more than a step's worth: then it says where it stopped.
func (o *operation) cutTail(in *command.DataInode, size int64) (stopped int64, cut bool) {
	if in.Extents == 0 {
		return 0, false
	}
	over := o.overlapping(inoOf(in), size, maxOffset, rowsPerStep+1, true)
	from := size
	if len(over) > rowsPerStep {
		from, cut = over[rowsPerStep-1].off, true
		over = over[:rowsPerStep]
	}
	for _, e := range over {
		o.punchExtent(in, e, from, maxOffset)
	}
	return from, cut
}

// stale is the error for an inode that is gone.
func stale(op string, ino file.Ino) error {
	return dc.Errorf(dc.Stale, op, ino.String(), "the file has been removed")
}

// ManyBeyond tells whether truncating an inode to size takes more than one command.
func ManyBeyond(rd storage.Reader, ino file.Ino, size int64) bool {
	n := 0
	for range rd.Scan(storage.Span{Start: extentKey(ino, size), End: extentKey(ino, maxOffset), KeysOnly: true}) {
		if n++; n > rowsPerStep {
			return true
		}
	}
	return false
}
