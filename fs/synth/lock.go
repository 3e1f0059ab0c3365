package synth

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/locktable"
	"missingos/srv/dc"
)

// LockOf reads the lock that a GETLK or SETLK request speaks of; typ is F_RDLCK, F_WRLCK or F_UNLCK.
func LockOf(in *fuse.LkIn) (l locktable.Lock, typ uint32) {
	l = locktable.Lock{
		Start: in.Lk.Start, End: in.Lk.End, Owner: in.Owner, PID: in.Lk.Pid,
		Exclusive: in.Lk.Typ == unix.F_WRLCK, Flock: in.LkFlags&fuse.LK_FLOCK != 0,
	}
	if l.Flock {
		l.Start, l.End = 0, locktable.End
	}
	return l, in.Lk.Typ
}

// SetLock does what a SETLK (or, with wait, a SETLKW) request asks, in a lock table of one mount. datafs uses it too.
func SetLock[K comparable](ctx context.Context, t *locktable.Table[K], name K, in *fuse.LkIn, wait bool) error {
	l, typ := LockOf(in)
	if typ == unix.F_UNLCK {
		t.Unlock(name, l)
		return nil
	}
	return t.Lock(ctx, name, l, wait)
}

// GetLock answers a GETLK request from a lock table of one mount.
func GetLock[K comparable](t *locktable.Table[K], name K, in *fuse.LkIn, out *fuse.LkOut) {
	l, _ := LockOf(in)
	held, ok := t.Conflict(name, l)
	if !ok {
		out.Lk = fuse.FileLock{Typ: unix.F_UNLCK}
		return
	}
	out.Lk = fuse.FileLock{Start: held.Start, End: held.End, Typ: unix.F_RDLCK, Pid: held.PID}
	if held.Exclusive {
		out.Lk.Typ = unix.F_WRLCK
	}
}

// Held is somebody's lock on a whole file.
type Held struct {
	Exclusive bool
	PID       uint32 // of a process of this machine; 0 otherwise
}

// GetLk implements fuse.RawFileSystem. A [Locker] that is no [Asker] cannot be asked: its files answer that the lock is free.
func (s *Server) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	o, ok := s.handle(in.Fh)
	if !ok {
		return fuse.EBADF
	}
	h, ok := o.h.(Asker)
	if !ok {
		GetLock(&s.locks, o.key, in, out)
		return fuse.OK
	}
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	l, _ := LockOf(in)
	if err := wholeFile(o, l); err != nil {
		return s.door.Status(ctx, err)
	}
	held, found, err := h.InTheWay(ctx, l.Owner, l.Exclusive)
	if err != nil {
		return s.door.Status(ctx, err)
	}
	out.Lk = fuse.FileLock{Typ: unix.F_UNLCK}
	if found {
		out.Lk = fuse.FileLock{End: locktable.End, Typ: unix.F_RDLCK, Pid: held.PID}
		if held.Exclusive {
			out.Lk.Typ = unix.F_WRLCK
		}
	}
	return fuse.OK
}

func wholeFile(o *open, l locktable.Lock) error {
	if l.Start != 0 || l.End < locktable.End {
		return dc.Errorf(dc.Unsupported, "lock", o.key, "locks here are on whole files, not on bytes %d-%d", l.Start, l.End)
	}
	return nil
}

// SetLk implements fuse.RawFileSystem: take a lock or fail, or give it up.
func (s *Server) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	ctx, done := s.door.Context(cancel, &in.InHeader, dc.OpTimeout)
	defer done()
	return s.setLock(ctx, in, false)
}

// SetLkw implements fuse.RawFileSystem: wait for a lock.
func (s *Server) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	ctx, done := s.door.Context(cancel, &in.InHeader, 0)
	defer done()
	unblock, err := s.door.block("lock")
	if err != nil {
		return s.door.Status(ctx, err)
	}
	defer unblock()
	return s.setLock(ctx, in, true)
}

func (s *Server) setLock(ctx context.Context, in *fuse.LkIn, wait bool) fuse.Status {
	o, ok := s.handle(in.Fh)
	if !ok {
		return fuse.EBADF
	}
	h, ok := o.h.(Locker)
	if !ok {
		return s.door.Status(ctx, SetLock(ctx, &s.locks, o.key, in, wait))
	}
	l, typ := LockOf(in)
	if err := wholeFile(o, l); err != nil {
		return s.door.Status(ctx, err)
	}
	if typ == unix.F_UNLCK {
		o.forgetOwner(l.Owner)
		return s.door.Status(ctx, h.Unlock(ctx, l.Owner))
	}
	if err := h.Lock(ctx, l.Owner, l.Exclusive, wait); err != nil {
		return s.door.Status(ctx, err)
	}
	if !l.Flock {
		o.mu.Lock()
		if o.owners == nil {
			o.owners = make(map[uint64]struct{})
		}
		o.owners[l.Owner] = struct{}{}
		o.mu.Unlock()
	}
	return fuse.OK
}

// forgetOwner says whether owner had h's lock by fcntl.
func (o *open) forgetOwner(owner uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, had := o.owners[owner]
	delete(o.owners, owner)
	return had
}

// unlockOwner gives up the fcntl locks of a process that closes the file.
func (s *Server) unlockOwner(ctx context.Context, o *open, owner uint64) {
	s.locks.Release(o.key, owner, false)
	if h, ok := o.h.(Locker); ok && o.forgetOwner(owner) {
		if err := h.Unlock(ctx, owner); err != nil {
			Report(ctx, err)
		}
	}
}

// unlockFile gives up the flock lock of an open file that is gone.
func (s *Server) unlockFile(ctx context.Context, o *open, owner uint64) error {
	if h, ok := o.h.(Locker); ok {
		return h.Unlock(ctx, owner)
	}
	s.locks.Release(o.key, owner, true)
	return nil
}
