package datafs

import (
	"context"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	fmodeExec    = 0x20   // in open flags: the kernel opens the file to execute it
	releaseFlock = 1 << 1 // FUSE_RELEASE_FLOCK_UNLOCK
)

// A handle is an open file description.
type handle struct {
	inode    *inode
	writable bool
	appends  bool
	sync     bool
	direct   bool                     // the kernel does not ask for fresh attributes before it reads
	opener   uint32                   // the thread that opened it
	fence    atomic.Pointer[dc.Fence] // what its writes are conditioned on
}

// condition is what the handle's writes are conditioned on.
func (h *handle) condition() dc.Fence {
	if f := h.fence.Load(); f != nil {
		return *f
	}
	return dc.Fence{}
}

// setFence conditions the writes of the caller's descriptors of a file; see synth.OpenedBy.
func (f *FS) setFence(in *fuse.InHeader, value []byte) error {
	fence, err := synth.ParseFence(value)
	if err != nil {
		return err
	}
	f.mu.Lock()
	var of []*handle
	for _, h := range f.handles {
		if h.inode.ino == file.Ino(in.NodeId) && h.writable {
			of = append(of, h)
		}
	}
	f.mu.Unlock()
	mine, err := synth.OpenedBy(in.Pid, of, func(h *handle) uint32 { return h.opener })
	if err != nil {
		return err
	}
	for _, h := range mine {
		h.fence.Store(&fence)
	}
	return nil
}

// access gives the bits of access(2) that an open with flags needs.
func access(flags uint32) uint32 {
	if flags&fmodeExec != 0 {
		return fuse.X_OK
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return fuse.R_OK
	case unix.O_WRONLY:
		return fuse.W_OK
	}
	return fuse.R_OK | fuse.W_OK
}

// Open implements fuse.RawFileSystem. The kernel drops what it has cached of the file, and goes on to cache what it reads, checking
// attributes before each use. Appending handles bypass its cache: it cannot know where appended data ends up.
func (f *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	c, err := f.cfg.Service.Open(ctx, file.Ino(in.NodeId), access(in.Flags))
	if err != nil {
		return f.status(ctx, err)
	}
	f.openHandle(&in.InHeader, in.Flags, &c, out)
	return fuse.OK
}

func (f *FS) openHandle(in *fuse.InHeader, flags uint32, c *file.Content, out *fuse.OpenOut) {
	h := &handle{
		inode: f.acquire(c), opener: in.Pid, writable: flags&unix.O_ACCMODE != unix.O_RDONLY, sync: flags&unix.O_DSYNC != 0,
	}
	h.appends = h.writable && flags&unix.O_APPEND != 0
	h.direct = h.appends || flags&unix.O_DIRECT != 0
	if h.appends {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.handles[f.last] = h
	out.Fh = f.last
}

// Create implements fuse.RawFileSystem. The file may have been made by another node since the kernel looked.
func (f *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	mode := file.Regular | in.Mode&0o7777
	a, existed, err := f.cfg.Service.Make(ctx, file.Make{
		Dir: file.Ino(in.NodeId), Name: name, Mode: mode &^ (in.Umask & 0o777), FullMode: &mode, Exclusive: in.Flags&unix.O_EXCL != 0, Open: true,
	})
	if err != nil {
		return f.status(ctx, err)
	}
	c := file.Content{Attr: a, To: 1 << 62}
	if existed {
		if c, err = f.reopen(ctx, a, in.Flags); err != nil {
			return f.status(ctx, err)
		}
		a = c.Attr
	}
	f.openHandle(&in.InHeader, in.Flags, &c, &out.OpenOut)
	fillEntry(&out.EntryOut, f.saw(a))
	return fuse.OK
}

// Tmpfile implements fuse.RawFileSystem: a file without a name, which goes with its last handle unless it is linked before.
func (f *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	mode := file.Regular | in.Mode&0o7777
	a, _, err := f.cfg.Service.Make(ctx, file.Make{
		Dir: file.Ino(in.NodeId), Mode: mode &^ (in.Umask & 0o777), FullMode: &mode, Nameless: true, Linkable: in.Flags&unix.O_EXCL == 0, Open: true,
	})
	if err != nil {
		return f.status(ctx, err)
	}
	f.openHandle(&in.InHeader, in.Flags, &file.Content{Attr: a, To: 1 << 62}, &out.OpenOut)
	f.lostName(a.Ino)
	fillEntry(&out.EntryOut, a)
	return fuse.OK
}

// reopen opens a file that a creation found, and truncates it if flags say so: the kernel believes it is new.
func (f *FS) reopen(ctx context.Context, a file.Attr, flags uint32) (file.Content, error) {
	defer f.cfg.Service.Closed(a.Ino)
	if a.IsDir() {
		return file.Content{}, dc.Errorf(dc.IsDir, "open", a.Ino.String(), "")
	}
	c, err := f.cfg.Service.Open(ctx, a.Ino, access(flags))
	if err != nil || flags&unix.O_TRUNC == 0 {
		return c, err
	}
	zero := int64(0)
	if c.Attr, err = f.cfg.Service.SetAttr(ctx, a.Ino, file.SetAttr{Size: &zero, Open: true}); err != nil {
		f.cfg.Service.Closed(a.Ino)
		return c, err
	}
	return file.Content{Attr: c.Attr, To: 1 << 62}, nil
}

func (f *FS) handle(fh uint64) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handles[fh]
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	if h.direct || in.Flags&unix.O_DIRECT != 0 {
		if err := h.inode.refresh(ctx); err != nil {
			return nil, f.status(ctx, err)
		}
	}
	n, err := h.inode.read(ctx, int64(in.Offset), buf[:min(len(buf), int(in.Size))])
	if err != nil {
		return nil, f.status(ctx, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	if in.Offset > file.MaxFileBytes || in.Offset+uint64(len(data)) > file.MaxFileBytes {
		return 0, f.status(ctx, dc.Errorf(dc.TooLarge, "write", h.inode.ino.String(), "offset %d is beyond the limit of %d for a file", in.Offset, int64(file.MaxFileBytes)))
	}
	who, _ := dc.PrincipalOf(ctx)
	appends := h.appends && in.WriteFlags&fuse.WRITE_CACHE == 0
	if err := h.inode.write(ctx, who, h.condition(), appends, int64(in.Offset), data); err != nil {
		return 0, f.status(ctx, err)
	}
	if h.sync {
		if err := h.inode.told(h.condition(), h.inode.sync(ctx)); err != nil {
			return 0, f.status(ctx, err)
		}
	}
	return uint32(len(data)), fuse.OK
}

// Flush implements fuse.RawFileSystem: a descriptor is closed, and what was written becomes visible on every node.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	f.locks.Release(h.inode.ino, in.LockOwner, false)
	if !h.writable {
		f.recent.drop(in.Pid)
		return fuse.OK
	}
	f.recent.drop(in.Pid)
	ctx, stop := f.context(nil, &in.InHeader, dc.OpTimeout) // not interruptible: the caller could not try again
	defer stop()
	return f.status(ctx, h.inode.told(h.condition(), h.inode.flush(ctx)))
}

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	f.recent.drop(in.Pid)
	ctx, stop := f.context(nil, &in.InHeader, dc.OpTimeout)
	defer stop()
	return f.status(ctx, h.inode.told(h.condition(), h.inode.sync(ctx)))
}

// Release implements fuse.RawFileSystem.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f.mu.Lock()
	h := f.handles[in.Fh]
	delete(f.handles, in.Fh)
	f.mu.Unlock()
	if h == nil {
		return
	}
	n := h.inode
	if in.ReleaseFlags&releaseFlock != 0 {
		f.locks.Release(n.ino, in.LockOwner, true)
	}
	ctx, stop := f.context(nil, &in.InHeader, dc.OpTimeout)
	defer stop()
	if h.writable && n.dirtySince(0) {
		if err := n.told(h.condition(), n.flush(ctx)); err != nil {
			synth.Report(ctx, err)
			f.cfg.Log.Error("written data was lost: it could not be published by the time its file was closed", "inode", uint64(n.ino), "err", err)
		}
	}
	last := f.release(n)
	f.cfg.Service.Closed(n.ino)
	n.mu.Lock()
	nameless := n.nameless
	n.mu.Unlock()
	if last && nameless {
		f.report(ctx)
	}
}
