package datafs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/srv/dc/file"
)

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	a, err := f.cfg.Service.Lookup(ctx, file.Ino(h.NodeId), name)
	if err != nil {
		return f.status(ctx, err)
	}
	f.failed.Store(0)
	if n := f.open(a.Ino); n == nil {
		f.recent.put(h.Pid, a)
	} else if a, err = n.settled(ctx, a); err != nil {
		return f.status(ctx, err)
	}
	fillEntry(out, a)
	return fuse.OK
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := file.Dir | in.Mode&0o7777
	return f.make(cancel, &in.InHeader, file.Make{Name: name, Mode: mode &^ (in.Umask & 0o777), FullMode: &mode}, out)
}

// Mknod implements fuse.RawFileSystem.
func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := in.Mode
	if mode&file.TypeMask == 0 {
		mode |= file.Regular
	}
	return f.make(cancel, &in.InHeader, file.Make{Name: name, Mode: mode &^ (in.Umask & 0o777), FullMode: &mode, Rdev: in.Rdev}, out)
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(cancel, h, file.Make{Name: name, Mode: file.Symlink | 0o777, Target: []byte(target)}, out)
}

func (f *FS) make(cancel <-chan struct{}, h *fuse.InHeader, m file.Make, out *fuse.EntryOut) fuse.Status {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	m.Dir, m.Exclusive = file.Ino(h.NodeId), true
	a, _, err := f.cfg.Service.Make(ctx, m)
	if err != nil {
		return f.status(ctx, err)
	}
	fillEntry(out, f.saw(a))
	return fuse.OK
}

// Link implements fuse.RawFileSystem. As with Rename, what was written is published before the name is.
func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	if n := f.open(file.Ino(in.Oldnodeid)); n != nil && n.dirtySince(0) {
		if err := n.flush(ctx); err != nil {
			return f.status(ctx, err)
		}
	}
	a, err := f.cfg.Service.Link(ctx, file.Ino(in.Oldnodeid), file.Ino(in.NodeId), name)
	if err != nil {
		return f.status(ctx, err)
	}
	fillEntry(out, f.saw(a))
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	target, err := f.cfg.Service.Readlink(ctx, file.Ino(h.NodeId))
	return target, f.status(ctx, err)
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(cancel, h, name, false)
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(cancel, h, name, true)
}

func (f *FS) remove(cancel <-chan struct{}, h *fuse.InHeader, name string, rmdir bool) fuse.Status {
	ctx, stop := f.begin(cancel, h)
	defer stop()
	gone, err := f.cfg.Service.Unlink(ctx, file.Ino(h.NodeId), name, rmdir)
	f.lostName(gone)
	return f.status(ctx, err)
}

// lostName notes that an inode has no name any more, so that its last release is reported soon.
func (f *FS) lostName(gone file.Ino) {
	if gone == 0 {
		return
	}
	if n := f.open(gone); n != nil {
		n.mu.Lock()
		n.nameless = true
		n.mu.Unlock()
	}
}

// Rename implements fuse.RawFileSystem. What was written to a file is published before its new name is: the habit of writing
// a temporary file and renaming it over the old one never shows an empty file.
func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	dir := file.Ino(in.NodeId)
	if f.dirtyBytes.Load() > 0 {
		a, err := f.cfg.Service.Lookup(ctx, dir, name)
		if err != nil {
			return f.status(ctx, err)
		}
		if n := f.open(a.Ino); n != nil {
			if err := n.flush(ctx); err != nil {
				return f.status(ctx, err)
			}
		}
	}
	gone, err := f.cfg.Service.Rename(ctx, dir, name, file.Ino(in.Newdir), newName, in.Flags)
	f.lostName(gone)
	return f.status(ctx, err)
}
