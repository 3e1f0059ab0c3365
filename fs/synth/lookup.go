package synth

import (
	"context"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// Lookup implements fuse.RawFileSystem.
func (s *Server) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	d, st := s.dir(h.NodeId)
	if st != fuse.OK {
		return st
	}
	ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
	defer done()
	if err := fits(d, name); err != nil {
		return s.door.Status(ctx, err)
	}
	s.settle(ctx, d.Key())
	n, err := d.Lookup(ctx, name)
	if err != nil {
		if dc.KindOf(err) == dc.NotFound {
			return fuse.ENOENT // every look-up of a name that may not exist ends here: no news
		}
		return s.door.Status(ctx, err)
	}
	return s.entry(ctx, n, out)
}

// fits says whether a directory's entry can have a name; the error names the limit and not the whole name.
func fits(d Dir, name string) error {
	if len(name) <= dc.MaxNameBytes {
		return nil
	}
	return dc.Errorf(dc.NameTooLong, "name", d.Key()+"/"+strings.ToValidUTF8(name[:32], "")+"...", "a name of %d bytes exceeds the limit of %d (MaxNameBytes)",
		len(name), dc.MaxNameBytes)
}

// entry tells the kernel of a node.
func (s *Server) entry(ctx context.Context, n Node, out *fuse.EntryOut) fuse.Status {
	a, err := n.Attr(ctx)
	if err != nil {
		if dc.KindOf(err) == dc.NotFound {
			return fuse.ENOENT
		}
		return s.door.Status(ctx, err)
	}
	*out = fuse.EntryOut{NodeId: s.remember(n)}
	s.fill(&out.Attr, n.Key(), a)
	return fuse.OK
}

func (s *Server) fill(out *fuse.Attr, key string, a Attr) {
	t := a.ModTime
	if t.IsZero() {
		t = s.started
	}
	sec, nsec := uint64(t.Unix()), uint32(t.Nanosecond())
	*out = fuse.Attr{
		Ino: inode(key), Mode: a.Mode & 0o7777, Nlink: a.Nlink, Blksize: preferredIOBytes,
		Atime: sec, Mtime: sec, Ctime: sec, Atimensec: nsec, Mtimensec: nsec, Ctimensec: nsec,
	}
	out.Uid, out.Gid = a.UID, a.GID
	if a.IsDir {
		out.Mode |= unix.S_IFDIR
		out.Nlink = max(out.Nlink, 2)
		return
	}
	out.Mode |= unix.S_IFREG
	out.Nlink = max(out.Nlink, 1)
	out.Size = uint64(a.Size)
	out.Blocks = (out.Size + 511) / 512
}

// GetAttr implements fuse.RawFileSystem.
func (s *Server) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	return s.attr(ctx, in.NodeId, &out.Attr)
}

func (s *Server) attr(ctx context.Context, id uint64, out *fuse.Attr) fuse.Status {
	n, ok := s.node(id)
	if !ok {
		return fuse.Status(Errno(dc.Stale))
	}
	a, err := n.Attr(ctx)
	if err != nil {
		return s.door.Status(ctx, err)
	}
	s.fill(out, n.Key(), a)
	return fuse.OK
}

// Statx implements fuse.RawFileSystem. There is no birth time.
func (s *Server) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	var a fuse.Attr
	if st := s.attr(ctx, in.NodeId, &a); st != fuse.OK {
		return st
	}
	when := fuse.SxTime{Sec: a.Mtime, Nsec: a.Mtimensec}
	out.Statx = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink, Uid: a.Uid, Gid: a.Gid, Mode: uint16(a.Mode),
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks, Atime: when, Mtime: when, Ctime: when,
	}
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem: truncation, and for an [Attrser] modes, owners and times.
func (s *Server) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, ok := s.node(in.NodeId)
	if !ok {
		return fuse.Status(Errno(dc.Stale))
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	if err := s.setAttr(ctx, n, in); err != nil {
		return s.door.Status(ctx, err)
	}
	return s.attr(ctx, in.NodeId, &out.Attr)
}

func (s *Server) setAttr(ctx context.Context, n Node, in *fuse.SetAttrIn) error {
	if size, ok := in.GetSize(); ok {
		var h Handle
		if fh, ok := in.GetFh(); ok {
			if o, ok := s.handle(fh); ok {
				h, ctx = o.h, o.fenced(ctx)
			}
		}
		if t, ok := n.(Truncater); ok {
			if err := t.Truncate(ctx, int64(size), h); err != nil {
				return err
			}
		} else if _, ok := n.(File); !ok {
			return dc.Errorf(dc.Invalid, "truncate", n.Key(), "not a file that can be written")
		}
	}
	var mode, uid, gid *uint32
	var mtime *time.Time
	if m, ok := in.GetMode(); ok {
		mode = &m
	}
	if u, ok := in.GetUID(); ok {
		uid = &u
	}
	if g, ok := in.GetGID(); ok {
		gid = &g
	}
	if t, ok := in.GetMTime(); ok {
		mtime = &t
	}
	if mode == nil && uid == nil && gid == nil && mtime == nil {
		return nil
	}
	if a, ok := n.(Attrser); ok {
		return a.SetAttr(ctx, mode, uid, gid, mtime)
	}
	now := in.Valid&fuse.FATTR_MTIME_NOW != 0
	if mode == nil && uid == nil && gid == nil && (now || in.Valid&fuse.FATTR_SIZE != 0) {
		return nil // touch(1), and the time that comes along with a truncation
	}
	return dc.Errorf(dc.NotOwner, "setattr", n.Key(), "this file's mode, owner and times cannot be set")
}

// Access implements fuse.RawFileSystem; the kernel itself checks modes.
func (s *Server) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// Readlink implements fuse.RawFileSystem: there are no symbolic links here.
func (s *Server) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return nil, fuse.EINVAL
}

// StatFs implements fuse.RawFileSystem: synthetic files take no space.
func (s *Server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: dc.MaxNameBytes}
	return fuse.OK
}

// xattrs gives the attributes of a node, if it has some and name is of a kind that synthetic files can have. The kernel asks for
// security.* and system.* all the time.
func (s *Server) xattrs(id uint64, name string) (Xattrs, fuse.Status) {
	n, ok := s.node(id)
	if !ok {
		return nil, fuse.Status(Errno(dc.Stale))
	}
	if strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "system.") {
		return nil, fuse.OK
	}
	x, _ := n.(Xattrs)
	return x, fuse.OK
}

// GetXAttr implements fuse.RawFileSystem.
func (s *Server) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dst []byte) (uint32, fuse.Status) {
	x, st := s.xattrs(h.NodeId, name)
	if st != fuse.OK {
		return 0, st
	}
	if x == nil {
		return 0, fuse.ENODATA
	}
	ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
	defer done()
	value, err := x.Getxattr(ctx, name)
	if err != nil {
		return 0, s.door.Status(ctx, err)
	}
	return reply(dst, value)
}

// ListXAttr implements fuse.RawFileSystem.
func (s *Server) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dst []byte) (uint32, fuse.Status) {
	x, st := s.xattrs(h.NodeId, "")
	if st != fuse.OK || x == nil {
		return 0, st
	}
	ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
	defer done()
	names, err := x.Listxattr(ctx)
	if err != nil {
		return 0, s.door.Status(ctx, err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return reply(dst, list)
}

// reply copies an attribute's value, or says how much room it needs.
func reply(dst, value []byte) (uint32, fuse.Status) {
	if len(dst) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dst, value)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (s *Server) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if name == FenceXattr {
		ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
		defer done()
		return s.door.Status(ctx, s.setFence(&in.InHeader, value))
	}
	x, st := s.xattrs(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	if x == nil {
		return fuse.ENOTSUP
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	return s.door.Status(ctx, x.Setxattr(ctx, name, value, in.Flags))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (s *Server) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if name == FenceXattr {
		ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
		defer done()
		return s.door.Status(ctx, s.setFence(h, nil))
	}
	x, st := s.xattrs(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	if x == nil {
		return fuse.ENODATA
	}
	ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
	defer done()
	return s.door.Status(ctx, x.Removexattr(ctx, name))
}
