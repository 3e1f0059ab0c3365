package datafs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ino := file.Ino(in.NodeId)
	n := f.open(ino)
	a, known := f.recent.take(in.Pid, ino)
	if !known || n != nil || in.Opcode == opLookup { // the dispatcher asks for the root directory when its name is looked up
		ctx, stop := f.context(cancel, &in.InHeader, f.patience())
		defer stop()
		var err error
		if a, err = f.cfg.Service.Stat(ctx, ino, 0); err == nil && n != nil {
			a, err = n.settled(ctx, a)
		}
		if err != nil {
			return f.status(ctx, err)
		}
		f.failed.Store(0)
		if in.Opcode == opLookup {
			f.recent.put(in.Pid, a)
		} else {
			f.recent.answered(in.Pid, a)
		}
	}
	*out = fuse.AttrOut{}
	fillAttr(&out.Attr, &a)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem. What was written before is published before, so that it cannot undo a new size or time.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	set := setAttrOf(in)
	ino := file.Ino(in.NodeId)
	n := f.open(ino)
	if fh, ok := in.GetFh(); ok {
		if h := f.handle(fh); h != nil {
			ctx = dc.WithFence(ctx, h.condition())
		}
	}
	var a file.Attr
	var err error
	if n != nil && (set.Size != nil || set.Mtime != nil || set.UID != nil || set.GID != nil || set.Mode != nil) {
		a, err = n.setAttr(ctx, set)
	} else {
		a, err = f.cfg.Service.SetAttr(ctx, ino, set)
	}
	if err != nil {
		return f.status(ctx, err)
	}
	a = f.saw(a)
	*out = fuse.AttrOut{}
	fillAttr(&out.Attr, &a)
	return fuse.OK
}

func setAttrOf(in *fuse.SetAttrIn) file.SetAttr {
	var set file.SetAttr
	if m, ok := in.GetMode(); ok {
		set.Mode = &m
	}
	if u, ok := in.GetUID(); ok {
		set.UID = &u
	}
	if g, ok := in.GetGID(); ok {
		set.GID = &g
	}
	if s, ok := in.GetSize(); ok {
		size := int64(s)
		set.Size = &size
		_, set.Open = in.GetFh()
	}
	now := time.Now().UnixNano()
	given := false
	when := func(valid, isNow uint32, sec uint64, nsec uint32) *int64 {
		switch {
		case in.Valid&valid == 0:
			return nil
		case in.Valid&isNow != 0:
			return &now
		}
		given = true
		t := int64(sec)*1e9 + int64(nsec)
		return &t
	}
	set.Atime = when(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec)
	set.Mtime = when(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)
	set.Now = !given
	return set
}

// Access implements fuse.RawFileSystem.
func (f *FS) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	_, err := f.cfg.Service.Stat(ctx, file.Ino(in.NodeId), in.Mask)
	return f.status(ctx, err)
}

// StatFs implements fuse.RawFileSystem.
func (f *FS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	sp, err := f.cfg.Service.Space(ctx)
	if err != nil {
		return f.status(ctx, err)
	}
	const inodesLeft = 1 << 40 // inode numbers do not run out; their rows take room of the same disks
	*out = fuse.StatfsOut{
		Blocks: uint64(sp.Total) / blockBytes, Bfree: uint64(sp.Free) / blockBytes, Bavail: uint64(sp.Free) / blockBytes,
		Files: uint64(sp.Inodes) + inodesLeft, Ffree: inodesLeft, Bsize: blockBytes, Frsize: blockBytes, NameLen: nameMax,
	}
	return fuse.OK
}
