package synth

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/srv/dc"
)

// change runs a mutation of the directory that h names, after what every one of them checks.
func (s *Server) change(cancel <-chan struct{}, h *fuse.InHeader, name string, fn func(ctx context.Context, d Dir) error) fuse.Status {
	d, st := s.dir(h.NodeId)
	if st != fuse.OK {
		return st
	}
	ctx, done := s.door.Context(cancel, h, dc.OpTimeout)
	defer done()
	if err := fits(d, name); err != nil {
		return s.door.Status(ctx, err)
	}
	return s.door.Status(ctx, fn(ctx, d))
}

// cannot is the error of a directory that lacks an operation.
func cannot(op string, d Dir, name, why string) error {
	return dc.Errorf(dc.NotOwner, op, d.Key()+"/"+name, "%s", why)
}

// Mkdir implements fuse.RawFileSystem.
func (s *Server) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	st := fuse.OK
	failed := s.change(cancel, &in.InHeader, name, func(ctx context.Context, d Dir) error {
		m, ok := d.(Mkdirer)
		if !ok {
			return cannot("mkdir", d, name, "directories cannot be made here")
		}
		n, err := m.Mkdir(ctx, name, in.Mode&0o7777)
		if err == nil {
			st = s.entry(ctx, n, out)
		}
		return err
	})
	if failed != fuse.OK {
		return failed
	}
	return st
}

// Unlink implements fuse.RawFileSystem.
func (s *Server) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.change(cancel, h, name, func(ctx context.Context, d Dir) error {
		u, ok := d.(Unlinker)
		if !ok {
			return cannot("unlink", d, name, "files cannot be removed here")
		}
		return u.Unlink(ctx, name)
	})
}

// Rmdir implements fuse.RawFileSystem.
func (s *Server) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.change(cancel, h, name, func(ctx context.Context, d Dir) error {
		r, ok := d.(Rmdirer)
		if !ok {
			return cannot("rmdir", d, name, "directories cannot be removed here")
		}
		return r.Rmdir(ctx, name)
	})
}

// Rename implements fuse.RawFileSystem. Between rooms it is EXDEV, upon which mv(1) copies and removes.
func (s *Server) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	to, st := s.dir(in.Newdir)
	if st != fuse.OK {
		return st
	}
	from, st := s.dir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if room(from.Key()) != room(to.Key()) {
		return fuse.EXDEV
	}
	return s.change(cancel, &in.InHeader, name, func(ctx context.Context, d Dir) error {
		if err := fits(to, newName); err != nil {
			return err
		}
		r, ok := d.(Renamer)
		if !ok {
			return cannot("rename", d, name, "files cannot be renamed here")
		}
		return r.Rename(ctx, name, to, newName, in.Flags)
	})
}

// Create implements fuse.RawFileSystem.
func (s *Server) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	st := fuse.OK
	failed := s.change(cancel, &in.InHeader, name, func(ctx context.Context, d Dir) error {
		c, ok := d.(Creator)
		if !ok {
			return cannot("create", d, name, "files cannot be made here")
		}
		n, h, err := c.Create(ctx, name, in.Flags, in.Mode&0o7777)
		if err != nil {
			return err
		}
		if st = s.entry(ctx, n, &out.EntryOut); st != fuse.OK {
			h.Release()
			return nil
		}
		s.opened(h, out.NodeId, n.Key(), &in.InHeader, in.Flags, &out.OpenOut)
		return nil
	})
	if failed != fuse.OK {
		return failed
	}
	return st
}

// Mknod, Symlink, Link and Tmpfile implement fuse.RawFileSystem: none of these exist among synthetic files.
func (s *Server) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Symlink implements fuse.RawFileSystem.
func (s *Server) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Link implements fuse.RawFileSystem.
func (s *Server) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Tmpfile implements fuse.RawFileSystem.
func (s *Server) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.ENOTSUP
}
