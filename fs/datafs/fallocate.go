package datafs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// Fallocate implements fuse.RawFileSystem. Room is not reserved: allocating only extends the file. Holes can be made.
func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	ctx = dc.WithFence(ctx, h.condition())
	off, end := int64(in.Offset), int64(in.Offset+in.Length)
	if off < 0 || end < off || end > file.MaxFileBytes {
		return fuse.Status(unix.EFBIG)
	}
	const keep, punchHole, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	switch in.Mode {
	case 0:
		return f.status(ctx, h.inode.extend(ctx, end))
	case keep:
		return fuse.OK
	case punchHole | keep, zero | keep:
		return f.status(ctx, h.inode.punchHole(ctx, off, end, false))
	case zero:
		return f.status(ctx, h.inode.punchHole(ctx, off, end, true))
	}
	return fuse.Status(unix.EOPNOTSUPP)
}

// extend makes the file at least size bytes long.
func (n *inode) extend(ctx context.Context, size int64) error {
	return n.commitNow(ctx, func(file.Attr) file.Commit { return file.Commit{Size: size} })
}

// punchHole zeroes [off, end) and gives its room back.
func (n *inode) punchHole(ctx context.Context, off, end int64, extend bool) error {
	return n.commitNow(ctx, func(a file.Attr) file.Commit {
		var c file.Commit
		if extend {
			c.Size = end
		}
		if to := min(end, a.Size); to > off {
			c.Pieces = []file.Piece{{Off: off, Len: to - off}}
		}
		return c
	})
}

// commitNow publishes what was written and then a change that depends on the size.
func (n *inode) commitNow(ctx context.Context, change func(file.Attr) file.Commit) error {
	if err := n.begin(ctx); err != nil {
		return err
	}
	defer n.end()
	if err := n.concerns(dc.FenceOf(ctx), n.publish(ctx)); err != nil {
		return err
	}
	a, err := n.fs.cfg.Service.Stat(ctx, n.ino, 0)
	if err != nil {
		return err
	}
	c := change(a)
	if len(c.Pieces) == 0 && c.Size <= a.Size {
		return nil
	}
	c.Ino, c.Mtime = n.ino, nowNano()
	attr, err := n.fs.cfg.Service.Commit(ctx, c)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.newsLocked(&c, attr)
	return nil
}
