package datafs

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

func nowNano() int64 { return time.Now().UnixNano() }

// Lseek implements fuse.RawFileSystem for SEEK_DATA and SEEK_HOLE.
func (f *FS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	off, err := h.inode.seek(dc.WithFence(ctx, h.condition()), int64(in.Offset), in.Whence == unix.SEEK_DATA)
	if err != nil {
		return f.status(ctx, err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// seek finds the first offset from off on that is in data, or in a hole (the end of the file is one).
func (n *inode) seek(ctx context.Context, off int64, data bool) (int64, error) {
	if err := n.concerns(dc.FenceOf(ctx), n.flush(ctx)); err != nil {
		return 0, err
	}
	if err := n.refresh(ctx); err != nil {
		return 0, err
	}
	for at := off; ; {
		v, err := n.look(ctx, at, at)
		if err != nil {
			return 0, err
		}
		c := v.content
		if at >= c.Attr.Size {
			if off >= c.Attr.Size || data {
				return 0, dc.Errorf(dc.NoDevice, "lseek", n.ino.String(), "no data from offset %d on", off)
			}
			return c.Attr.Size, nil
		}
		in, next := false, min(c.To, c.Attr.Size) // whether at is in data, and where that may change
		if c.InlineOff <= at && at < c.InlineEnd() {
			in, next = true, min(next, c.InlineEnd())
		} else if at < c.InlineOff {
			next = min(next, c.InlineOff)
		}
		for _, e := range c.Extents {
			switch {
			case e.Off <= at && at < e.End():
				in, next = true, e.End()
			case at < e.Off && !in:
				next = min(next, e.Off)
			}
		}
		if in == data {
			return at, nil
		}
		at = next
	}
}
