package synth

import (
	"context"
	"time"

	"missingos/srv/dc"
)

// A Node is one file or directory of a synthetic tree. A Node value is light and made anew by every Lookup; two Nodes with the
// same Key are the same file to the kernel (same inode number). What a Node can do beyond Attr it says by implementing
// the small interfaces below; a missing one answers EPERM, ENOTSUP or ENOSYS as POSIX has it for that call.
//
// Every method gets a ctx with the caller's dc.Principal, a deadline (dc.OpTimeout, none for Stream reads and blocking locks)
// and cancellation by FUSE interrupt, and returns *dc.Error kinds; synth alone turns them into errnos and
// records their full text for /dc/.dc/errors.
type Node interface {
	// Key identifies the file for ever: a path-like string, unique in the mount ("kv/users/ada", "topics/t/.dc/ctl").
	Key() string
	Attr(ctx context.Context) (Attr, error)
}

// Attr is what stat shows. A zero Mode type bit means regular file; directories set IsDir.
type Attr struct {
	IsDir   bool
	Mode    uint32 // permission bits
	Size    int64
	UID     uint32
	GID     uint32
	ModTime time.Time
	Nlink   uint32 // 0 means 1 (2 for directories)
}

// A Dir is a directory.
type Dir interface {
	Node
	// Lookup finds a child, also a hidden one such as ".dc"; dc.NotFound if there is none.
	Lookup(ctx context.Context, name string) (Node, error)
	// List returns up to limit children in name order, strictly after the name `after` ("" for the start); fewer than limit
	// means the end. Hidden control directories are not listed.
	List(ctx context.Context, after string, limit int) ([]DirEntry, error)
}

// A DirEntry is one name of a directory listing.
type DirEntry struct {
	Name  string
	IsDir bool
	Key   string // the child's Node.Key
	Ino   uint64 // the inode number if it does not follow from Key
}

// A File is a regular file that can be opened. flags are open(2)'s; O_TRUNC has no effect here but is passed on to the handle:
// a truncate commits nothing by itself for control files and values (see INTERFACE: shells ignore errors of close).
type File interface {
	Node
	Open(ctx context.Context, flags uint32) (Handle, error)
}

// A Creator makes regular files: open(O_CREAT), with O_EXCL in flags if the caller asked for it.
type Creator interface {
	Create(ctx context.Context, name string, flags, mode uint32) (Node, Handle, error)
}

// Directory mutations, each optional. Names are checked (length, no slash) before the call.
type (
	Mkdirer interface {
		Mkdir(ctx context.Context, name string, mode uint32) (Node, error)
	}
	Unlinker interface {
		Unlink(ctx context.Context, name string) error
	}
	Rmdirer interface {
		Rmdir(ctx context.Context, name string) error
	}
	// A Renamer moves one of its children to newDir, which is another Node of the same room. flags are renameat2(2)'s.
	Renamer interface {
		Rename(ctx context.Context, name string, newDir Node, newName string, flags uint32) error
	}
	// A Truncater is told of truncate(2), ftruncate(2) and O_TRUNC; h is the open handle, nil for truncate(2). (An open with O_TRUNC
	// is an Open with that flag, then a Truncate to 0 with the new handle.)
	// Without it a truncate is accepted and ignored on files that have an Open.
	Truncater interface {
		Truncate(ctx context.Context, size int64, h Handle) error
	}
	// An Attrser accepts chmod, chown and utimes; nil fields are left alone. Without it they answer EPERM
	// (utimes to now, which touch(1) sends, is accepted and ignored).
	Attrser interface {
		SetAttr(ctx context.Context, mode, uid, gid *uint32, mtime *time.Time) error
	}
	// Xattrs serves user.dc.*; a Node without it has none.
	Xattrs interface {
		Getxattr(ctx context.Context, name string) ([]byte, error) // dc.NoAttr if there is none
		Setxattr(ctx context.Context, name string, value []byte, flags uint32) error
		Listxattr(ctx context.Context) ([]string, error)
		Removexattr(ctx context.Context, name string) error
	}
)

// A Handle is an open file. Calls on one handle may come concurrently. A handle that also implements the interfaces
// below gets those calls; Release comes exactly once, after all others, and must not block for long.
type Handle interface {
	Release()
}

// What a handle can do, each optional.
type (
	// A Reader answers pread(2); short only at the end of the file.
	Reader interface {
		Read(ctx context.Context, dst []byte, off int64) (n int, err error)
	}
	// A Writer answers pwrite(2); what it returns nil for is committed: replicated, durable, visible.
	// With O_APPEND off is the kernel's idea of the size and must be ignored by appenders.
	Writer interface {
		Write(ctx context.Context, data []byte, off int64) (n int, err error)
	}
	// A Flusher is told of every close(2) of a descriptor, including inherited ones (so: several times, also with nothing written).
	Flusher interface {
		Flush(ctx context.Context) error
	}
	// A Locker gets flock(2) (and whole-file fcntl locks). Lock blocks if wait; the kernel's owner distinguishes open files.
	// Without it the mount keeps the lock among its own processes.
	Locker interface {
		Lock(ctx context.Context, owner uint64, exclusive, wait bool) error // dc.Again if held elsewhere and !wait
		Unlock(ctx context.Context, owner uint64) error
	}
	// An Asker is a Locker that can tell who would be in the way of a lock (F_GETLK), without taking it.
	Asker interface {
		InTheWay(ctx context.Context, owner uint64, exclusive bool) (Held, bool, error)
	}
)

// A Streamer is a Handle that may ask for a stream instead of a file. Default is direct I/O and seekable, which keeps reads fresh and sizes
// honest; Stream means direct I/O, not seekable, offsets meaningless (clone files, tails).
type Streamer interface {
	Stream() bool
}

// A Settler is a handle whose closing commits something after close(2) has returned (RELEASE is asynchronous). Settling gives a
// channel that is closed once that is done, or nil if nothing is on its way. The next look-up or listing in the same room waits for it, up to
// [SettleWait] after the flush, so that `cp spec new; ls` sees the result.
type Settler interface {
	Settling() <-chan struct{}
}

// A Parallel node gets a kernel inode of its own from every look-up (with one inode number). The kernel holds an inode's lock
// across a write, so that many processes of one machine writing to one file wait for each other; to a Parallel file they
// do not. For files that are appended to by many, such as a topic's log.
type Parallel interface {
	Parallel() bool
}

// Ensure the vocabulary is used the same everywhere.
var _ error = (*dc.Error)(nil)
