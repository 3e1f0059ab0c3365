package datafs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// CopyFileRange implements fuse.RawFileSystem. Bytes that lie in blocks are not copied: the other file gets references to the same blocks.
func (f *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := f.handle(in.FhIn), f.handle(in.FhOut)
	if from == nil || to == nil {
		return 0, fuse.EBADF
	}
	ctx, stop := f.begin(cancel, &in.InHeader)
	defer stop()
	c := file.Clone{
		From: from.inode.ino, To: to.inode.ino, FromOff: int64(in.OffIn), ToOff: int64(in.OffOut), Len: int64(min(in.Len, 1<<30)), Mtime: nowNano(),
	}
	if c.FromOff < 0 || c.ToOff < 0 || c.ToOff > file.MaxFileBytes-c.Len {
		return 0, f.status(ctx, dc.Errorf(dc.TooLarge, "copy", to.inode.ino.String(), "offset %d is beyond the limit of %d for a file", in.OffOut, int64(file.MaxFileBytes)))
	}
	if err := from.inode.flush(ctx); err != nil && dc.KindOf(err) != dc.Stale {
		return 0, f.status(ctx, err)
	}
	n, err := to.inode.clone(dc.WithFence(ctx, to.condition()), c)
	if err == nil && n == 0 || dc.KindOf(err) == dc.Unsupported {
		n, err = to.inode.copyFrom(ctx, from.inode, to.condition(), c)
	}
	if err == nil && to.sync {
		err = to.inode.told(to.condition(), to.inode.sync(ctx))
	}
	return uint32(n), f.status(ctx, err)
}

// clone publishes what was written to n, and then has as much of c done as can be done with blocks.
func (n *inode) clone(ctx context.Context, c file.Clone) (done int64, err error) {
	if err := n.begin(ctx); err != nil {
		return 0, err
	}
	defer n.end()
	if err := n.concerns(dc.FenceOf(ctx), n.publish(ctx)); err != nil {
		return 0, err
	}
	for done < c.Len {
		part := c
		part.FromOff, part.ToOff, part.Len = c.FromOff+done, c.ToOff+done, c.Len-done
		m, attr, err := n.fs.cfg.Service.Clone(ctx, part)
		if err != nil && done > 0 {
			break
		}
		if err != nil {
			return 0, err
		}
		n.replaced(attr)
		if done += m; m == 0 {
			break
		}
	}
	return done, nil
}

// replaced takes in that n's content is another, of which only attributes are known.
func (n *inode) replaced(a file.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.Version < n.last.Version {
		return
	}
	n.last = a
	if n.content != nil && n.content.Attr.Version != a.Version {
		n.content = nil
	}
}

// copyFrom copies bytes that lie in no block.
func (n *inode) copyFrom(ctx context.Context, from *inode, fence dc.Fence, c file.Clone) (int64, error) {
	if err := from.refresh(ctx); err != nil {
		return 0, err
	}
	buf := make([]byte, min(c.Len, dc.InlineFileBytes))
	m, err := from.read(ctx, c.FromOff, buf)
	if err != nil || m == 0 {
		return 0, err
	}
	who, _ := dc.PrincipalOf(ctx)
	return int64(m), n.write(ctx, who, fence, false, c.ToOff, buf[:m])
}
