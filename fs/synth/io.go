package synth

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// Open implements fuse.RawFileSystem.
func (s *Server) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, ok := s.node(in.NodeId)
	if !ok {
		return fuse.Status(Errno(dc.Stale))
	}
	f, ok := n.(File)
	if !ok {
		return fuse.Status(unix.EISDIR)
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	h, err := f.Open(ctx, in.Flags)
	if err != nil {
		return s.door.Status(ctx, err)
	}
	if t, ok := n.(Truncater); ok && in.Flags&unix.O_TRUNC != 0 { // FUSE_ATOMIC_O_TRUNC: no SETATTR follows
		if err := t.Truncate(ctx, 0, h); err != nil {
			h.Release()
			return s.door.Status(ctx, err)
		}
	}
	s.opened(h, in.NodeId, n.Key(), &in.InHeader, in.Flags, out)
	return fuse.OK
}

// opened tells the kernel of a handle. Direct I/O keeps reads fresh whatever size the kernel believes; a stream has no positions either.
func (s *Server) opened(h Handle, node uint64, key string, in *fuse.InHeader, flags uint32, out *fuse.OpenOut) {
	fh, o := s.addHandle(h, node, key, in, flags)
	*out = fuse.OpenOut{Fh: fh, OpenFlags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES}
	if o.stream {
		out.OpenFlags |= fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_STREAM
	}
}

// Read implements fuse.RawFileSystem. A read of a stream may block for ever.
func (s *Server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	o, ok := s.handle(in.Fh)
	if !ok {
		return nil, fuse.EBADF
	}
	r, ok := o.h.(Reader)
	if !ok {
		return nil, fuse.EINVAL
	}
	timeout := dc.OpTimeout
	if o.stream {
		timeout = 0
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, timeout)
	defer done()
	if o.stream {
		unblock, err := s.door.block("read")
		if err != nil {
			return nil, s.door.Status(ctx, err)
		}
		defer unblock()
		if o.nonBlocking {
			ctx = withNonBlocking(ctx)
		}
	}
	buf = buf[:min(len(buf), int(in.Size))]
	n, err := r.Read(ctx, buf, int64(in.Offset))
	if err != nil {
		return nil, s.door.Status(ctx, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (s *Server) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	o, ok := s.handle(in.Fh)
	if !ok {
		return 0, fuse.EBADF
	}
	w, ok := o.h.(Writer)
	if !ok {
		return 0, fuse.EINVAL
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	n, err := w.Write(o.fenced(ctx), data, int64(in.Offset))
	if err != nil {
		return 0, s.door.Status(ctx, err)
	}
	return uint32(n), fuse.OK
}

// Flush implements fuse.RawFileSystem: a descriptor of the file was closed, by anybody who had it. Nothing interrupts it.
func (s *Server) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	o, ok := s.handle(in.Fh)
	if !ok {
		return fuse.EBADF
	}
	ctx, done := s.door.Context(nil, &in.InHeader, dc.OpTimeout)
	defer done()
	s.unlockOwner(ctx, o, in.LockOwner)
	f, ok := o.h.(Flusher)
	if !ok {
		return fuse.OK
	}
	if err := f.Flush(o.fenced(ctx)); err != nil {
		return s.door.Status(ctx, err)
	}
	s.noteSettling(o)
	return fuse.OK
}

// Release implements fuse.RawFileSystem: nobody has the file open through this handle any more.
func (s *Server) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	o, ok := s.handle(in.Fh)
	if !ok {
		return
	}
	if in.ReleaseFlags&fuse.FUSE_RELEASE_FLOCK_UNLOCK != 0 {
		ctx, done := s.door.Context(nil, &in.InHeader, dc.OpTimeout)
		if err := s.unlockFile(ctx, o, in.LockOwner); err != nil {
			Report(ctx, err)
		}
		done()
	}
	s.mu.Lock()
	delete(s.handles, in.Fh)
	s.mu.Unlock()
	o.h.Release()
}

// Fsync implements fuse.RawFileSystem: what write(2) returned for is durable already.
func (s *Server) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Lseek implements fuse.RawFileSystem for SEEK_DATA and SEEK_HOLE: a synthetic file is data without holes.
func (s *Server) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	var a fuse.Attr
	if st := s.attr(ctx, in.NodeId, &a); st != fuse.OK {
		return st
	}
	switch {
	case in.Offset >= a.Size:
		return fuse.Status(unix.ENXIO)
	case in.Whence == unix.SEEK_DATA:
		out.Offset = in.Offset
	default:
		out.Offset = a.Size
	}
	return fuse.OK
}

// Fallocate, CopyFileRange and Ioctl implement fuse.RawFileSystem. They answer as a file system that has them not for these
// files; ENOSYS would make the kernel stop asking for the whole mount.
func (s *Server) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return fuse.ENOTSUP }

// CopyFileRange implements fuse.RawFileSystem.
func (s *Server) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOTSUP
}

// Ioctl implements fuse.RawFileSystem.
func (s *Server) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
