package fs

import (
	"maps"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/synth"
)

const (
	// DataRoot is the inode number, and node id, of the root directory of the cluster filesystem.
	DataRoot = 2
	dataName = "data"
)

// dispatch hands each request to the server whose file it is about. An ENOSYS would make the kernel never send that
// request again for the whole mount, so one server's "not here" is never let through to spoil the other's; the
// answer that the kernel would have given instead is.
type dispatch struct {
	synth  *synth.Server
	data   fuse.RawFileSystem // nil: there is no /dc/data
	failed failures
}

var _ fuse.RawFileSystem = (*dispatch)(nil)

// of is the server of a node id.
func (d *dispatch) of(id uint64) fuse.RawFileSystem {
	if d.data == nil || id == synth.RootID || id&synth.IDBit != 0 {
		return d.synth
	}
	return d.data
}

// instead replaces ENOSYS.
func instead(st, replacement fuse.Status) fuse.Status {
	if st == fuse.ENOSYS {
		return replacement
	}
	return st
}

func (d *dispatch) String() string { return "dc" }

func (d *dispatch) SetDebug(bool) {}

func (d *dispatch) Init(s *fuse.Server) {
	d.synth.Init(s)
	if d.data != nil {
		d.data.Init(s)
	}
}

func (d *dispatch) OnUnmount() {
	d.synth.OnUnmount()
	if d.data != nil {
		d.data.OnUnmount()
	}
}

// Lookup fails once where the kernel would have it fail twice: it takes the failure to look a known name up again as the name's end,
// and looks it up anew, so that a caller would wait for two deadlines when there is no quorum.
func (d *dispatch) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if d.failed.lately(h.NodeId, name) {
		return fuse.EIO
	}
	start := time.Now()
	st := d.lookup(cancel, h, name, out)
	if st == fuse.EIO && time.Since(start) > slowFailure {
		d.failed.add(h.NodeId, name)
	}
	return st
}

func (d *dispatch) lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != synth.RootID || name != dataName || d.data == nil {
		return instead(d.of(h.NodeId).Lookup(cancel, h, name, out), fuse.EIO)
	}
	in := fuse.GetAttrIn{InHeader: *h}
	in.NodeId = DataRoot
	var attr fuse.AttrOut
	if st := d.data.GetAttr(cancel, &in, &attr); st != fuse.OK {
		return instead(st, fuse.EIO)
	}
	*out = fuse.EntryOut{NodeId: DataRoot, Attr: attr.Attr}
	return fuse.OK
}

const (
	slowFailure   = time.Second            // a look-up that failed after that waited for somebody
	failureMemory = 500 * time.Millisecond // how long its failure answers for another
	maxFailures   = 1024
)

// failures remembers look-ups that have just failed by their deadline. The zero value is ready for use.
type failures struct {
	mu    sync.Mutex
	until map[failure]time.Time
}

type failure struct {
	parent uint64
	name   string
}

func (f *failures) lately(parent uint64, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	until, ok := f.until[failure{parent, name}]
	return ok && time.Now().Before(until)
}

func (f *failures) add(parent uint64, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(f.until, func(_ failure, until time.Time) bool { return now.After(until) })
	if f.until == nil || len(f.until) >= maxFailures {
		f.until = make(map[failure]time.Time)
	}
	f.until[failure{parent, name}] = now.Add(failureMemory)
}

func (d *dispatch) Forget(id, n uint64) { d.of(id).Forget(id, n) }

func (d *dispatch) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return instead(d.of(in.NodeId).GetAttr(cancel, in, out), fuse.EIO)
}

func (d *dispatch) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return instead(d.of(in.NodeId).SetAttr(cancel, in, out), fuse.ENOTSUP)
}

// Statx passes ENOSYS on: the kernel falls back to GetAttr for good, and only a data room without birth times says it.
func (d *dispatch) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	return d.of(in.NodeId).Statx(cancel, in, out)
}

// mask applies the caller's umask, which the kernel leaves to servers with access control lists, for a server without them.
func (d *dispatch) mask(id uint64, mode *uint32, umask uint32) {
	if d.of(id) == fuse.RawFileSystem(d.synth) {
		*mode &^= umask & 0o777
	}
}

func (d *dispatch) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	d.mask(in.NodeId, &in.Mode, in.Umask)
	return instead(d.of(in.NodeId).Mknod(cancel, in, name, out), fuse.EPERM)
}

func (d *dispatch) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	d.mask(in.NodeId, &in.Mode, in.Umask)
	return instead(d.of(in.NodeId).Mkdir(cancel, in, name, out), fuse.EPERM)
}

func (d *dispatch) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return instead(d.of(h.NodeId).Unlink(cancel, h, name), fuse.EPERM)
}

func (d *dispatch) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return instead(d.of(h.NodeId).Rmdir(cancel, h, name), fuse.EPERM)
}

func (d *dispatch) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	from := d.of(in.NodeId)
	if from != d.of(in.Newdir) {
		return fuse.EXDEV
	}
	return instead(from.Rename(cancel, in, name, newName), fuse.EINVAL)
}

func (d *dispatch) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	to := d.of(in.NodeId)
	if to != d.of(in.Oldnodeid) {
		return fuse.EXDEV
	}
	return instead(to.Link(cancel, in, name, out), fuse.EPERM)
}

func (d *dispatch) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return instead(d.of(h.NodeId).Symlink(cancel, h, target, name, out), fuse.EPERM)
}

func (d *dispatch) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, st := d.of(h.NodeId).Readlink(cancel, h)
	return target, instead(st, fuse.EINVAL)
}

func (d *dispatch) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return instead(d.of(in.NodeId).Access(cancel, in), fuse.OK)
}

func (d *dispatch) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dst []byte) (uint32, fuse.Status) {
	n, st := d.of(h.NodeId).GetXAttr(cancel, h, name, dst)
	return n, instead(st, fuse.ENODATA)
}

func (d *dispatch) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dst []byte) (uint32, fuse.Status) {
	n, st := d.of(h.NodeId).ListXAttr(cancel, h, dst)
	return n, instead(st, fuse.OK)
}

func (d *dispatch) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	return instead(d.of(in.NodeId).SetXAttr(cancel, in, name, value), fuse.ENOTSUP)
}

func (d *dispatch) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return instead(d.of(h.NodeId).RemoveXAttr(cancel, h, name), fuse.ENOTSUP)
}

func (d *dispatch) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	d.mask(in.NodeId, &in.Mode, in.Umask)
	return instead(d.of(in.NodeId).Create(cancel, in, name, out), fuse.EPERM)
}

func (d *dispatch) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return instead(d.of(in.NodeId).Tmpfile(cancel, in, out), fuse.ENOTSUP)
}

// AtomicTruncater is a data room whose Open and Create heed O_TRUNC themselves.
type AtomicTruncater interface {
	AtomicTruncate() bool
}

// Open passes O_TRUNC on (the mount asks for FUSE_ATOMIC_O_TRUNC, so that a handle knows it replaces its file), to a data
// room that does not heed it as the truncation that the kernel would have sent.
func (d *dispatch) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	to := d.of(in.NodeId)
	a, ok := to.(AtomicTruncater)
	if to == fuse.RawFileSystem(d.synth) || in.Flags&unix.O_TRUNC == 0 || ok && a.AtomicTruncate() {
		return instead(to.Open(cancel, in, out), fuse.EIO)
	}
	in.Flags &^= unix.O_TRUNC
	if st := to.Open(cancel, in, out); st != fuse.OK {
		return instead(st, fuse.EIO)
	}
	cut := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in.InHeader, Valid: fuse.FATTR_SIZE}}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		cut.Valid |= fuse.FATTR_KILL_SUIDGID
	}
	var attr fuse.AttrOut
	if st := to.SetAttr(cancel, &cut, &attr); st != fuse.OK {
		to.Release(nil, &fuse.ReleaseIn{InHeader: in.InHeader, Fh: out.Fh, Flags: in.Flags})
		return instead(st, fuse.EIO)
	}
	return fuse.OK
}

func (d *dispatch) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r, st := d.of(in.NodeId).Read(cancel, in, buf)
	return r, instead(st, fuse.EIO)
}

// Lseek handles SEEK_DATA and SEEK_HOLE; the kernel does the rest.
func (d *dispatch) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return instead(d.of(in.NodeId).Lseek(cancel, in, out), fuse.EINVAL)
}

func (d *dispatch) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return instead(d.of(in.NodeId).GetLk(cancel, in, out), fuse.Status(unix.ENOLCK))
}

func (d *dispatch) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return instead(d.of(in.NodeId).SetLk(cancel, in), fuse.Status(unix.ENOLCK))
}

func (d *dispatch) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return instead(d.of(in.NodeId).SetLkw(cancel, in), fuse.Status(unix.ENOLCK))
}

func (d *dispatch) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	d.of(in.NodeId).Release(cancel, in)
}

func (d *dispatch) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, st := d.of(in.NodeId).Write(cancel, in, data)
	return n, instead(st, fuse.EIO)
}

// Writev answers ENOSYS to go-fuse, not the kernel, where a server has only Write.
func (d *dispatch) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	return d.of(in.NodeId).Writev(cancel, in, data)
}

func (d *dispatch) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from := d.of(in.NodeId)
	if from != d.of(in.NodeIdOut) {
		return 0, fuse.EXDEV
	}
	n, st := from.CopyFileRange(cancel, in)
	return n, instead(st, fuse.ENOTSUP)
}

func (d *dispatch) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	return instead(d.of(in.NodeId).Ioctl(cancel, in, inbuf, out, outbuf), fuse.Status(unix.ENOTTY))
}

func (d *dispatch) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return instead(d.of(in.NodeId).Flush(cancel, in), fuse.OK)
}

func (d *dispatch) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return instead(d.of(in.NodeId).Fsync(cancel, in), fuse.OK)
}

func (d *dispatch) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return instead(d.of(in.NodeId).Fallocate(cancel, in), fuse.ENOTSUP)
}

func (d *dispatch) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return instead(d.of(in.NodeId).OpenDir(cancel, in, out), fuse.EIO)
}

func (d *dispatch) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return instead(d.of(in.NodeId).ReadDir(cancel, in, out), fuse.EIO)
}

func (d *dispatch) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return instead(d.of(in.NodeId).ReadDirPlus(cancel, in, out), fuse.EIO)
}

func (d *dispatch) ReleaseDir(in *fuse.ReleaseIn) { d.of(in.NodeId).ReleaseDir(in) }

func (d *dispatch) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return instead(d.of(in.NodeId).FsyncDir(cancel, in), fuse.OK)
}

// StatFs is the cluster filesystem's everywhere, so that `df /dc` tells something.
func (d *dispatch) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if d.data == nil {
		return d.synth.StatFs(cancel, h, out)
	}
	in := *h
	in.NodeId = DataRoot
	if st := d.data.StatFs(cancel, &in, out); st != fuse.ENOSYS {
		return st
	}
	return d.synth.StatFs(cancel, h, out)
}
