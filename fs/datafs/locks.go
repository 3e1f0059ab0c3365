package datafs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/locktable"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

func lockOf(in *fuse.LkIn) locktable.Lock {
	return locktable.Lock{
		Start: in.Lk.Start, End: in.Lk.End, Exclusive: in.Lk.Typ == unix.F_WRLCK, Flock: in.LkFlags&fuse.LK_FLOCK != 0,
		Owner: in.Owner, PID: in.Lk.Pid,
	}
}

// GetLk implements fuse.RawFileSystem.
func (f *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	out.Lk = fuse.FileLock{Typ: unix.F_UNLCK}
	if l, ok := f.locks.Conflict(file.Ino(in.NodeId), lockOf(in)); ok {
		out.Lk = fuse.FileLock{Start: l.Start, End: l.End, Typ: unix.F_RDLCK, Pid: l.PID}
		if l.Exclusive {
			out.Lk.Typ = unix.F_WRLCK
		}
	}
	return fuse.OK
}

// SetLk implements fuse.RawFileSystem.
func (f *FS) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.lock(cancel, in, false)
}

// SetLkw implements fuse.RawFileSystem. It blocks until the lock is free or the caller is interrupted.
func (f *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.lock(cancel, in, true)
}

func (f *FS) lock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	f.recent.drop(in.Pid)
	ino := file.Ino(in.NodeId)
	l := lockOf(in)
	if in.Lk.Typ == unix.F_UNLCK {
		f.locks.Unlock(ino, l)
		return fuse.OK
	}
	timeout := dc.OpTimeout
	if wait {
		timeout = 0
	}
	ctx, stop := f.context(cancel, &in.InHeader, timeout)
	defer stop()
	return f.status(ctx, f.locks.Lock(ctx, ino, l, wait))
}
