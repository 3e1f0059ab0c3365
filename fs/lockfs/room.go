package lockfs

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// Files is what the room needs of the store's files.
type Files interface {
	Stat(ctx context.Context, path string) (client.LockFile, error)
	Read(ctx context.Context, path string) (client.LockFile, error)
	Fence(ctx context.Context, path string) (dc.Revision, error)
	List(ctx context.Context, path, after string, limit int) ([]client.LockFile, error)
	Create(ctx context.Context, path string, exclusive bool, mode uint32) (client.LockFile, error)
	Mkdir(ctx context.Context, path string, mode uint32) (client.LockFile, error)
	Put(ctx context.Context, path string, p client.LockPut) (client.LockFile, error)
	Remove(ctx context.Context, path string, dir bool) error
	Rename(ctx context.Context, from, to string, noReplace bool) error
	SetAttr(ctx context.Context, path string, mode, uid, gid *uint32, mtime *time.Time) error
}

// Locks is what it needs of locks.
type Locks interface {
	Acquire(ctx context.Context, path string, exclusive, wait bool) (*client.LockLease, error)
	Holders(ctx context.Context, path string) ([]client.LockHold, error)
	Keep(ctx context.Context, path string, exclusive bool, mode uint32) (client.LockFile, *client.LockLease, error)
}

// Control is what the control files need.
type Control interface {
	Txn(ctx context.Context, t client.LockTxn) (client.LockTxnResult, error)
	Watch(ctx context.Context, w client.LockWatch, fn func(client.LockRevision) error) error
	Holds(ctx context.Context, waiting bool, cursor []byte) ([]client.LockHold, []byte, error)
	Sessions(ctx context.Context, after uint64) ([]client.LockSessionInfo, error)
	Standing() client.LockStanding
	Totals(ctx context.Context) (client.LockTotals, error)
	Compact(ctx context.Context, through dc.Revision) error
	SetDelay(ctx context.Context, d time.Duration) error
	SetHistory(ctx context.Context, h client.LockHistory) error
	At(rev dc.Revision) client.LockView
	StaleView() client.LockView
	SetEphemeral(ctx context.Context, path string, on bool) error
}

// Store is all of /dc/lock; *client.Lock is one.
type Store interface {
	Files
	Locks
	Control
}

var _ Store = (*client.Lock)(nil)

// New gives the room's root directory.
func New(s Store) synth.Dir { return &dir{store: s} }

// controlName is the hidden directory of control files.
const controlName = ".dc"

// A dir is a directory of the store.
type dir struct {
	store Store
	path  string // "" is the root
	sight sight
}

// A sight is what is known of a file: what a look-up has just found, for the Attr that follows it at once, and what was seen last.
type sight struct {
	found, last atomic.Pointer[client.LockFile]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// key is a file's identity; a directory's ends in a slash, so that a name that was a file and is a directory now is another inode.
func key(path string, isDir bool) string {
	if path == "" {
		return "lock"
	}
	if isDir {
		return "lock/" + path + "/"
	}
	return "lock/" + path
}

func (d *dir) Key() string { return key(d.path, true) }

func (d *dir) Attr(ctx context.Context) (synth.Attr, error) {
	return d.sight.attr(ctx, d.store, d.path, true)
}

// attr asks the store, unless a look-up has just done so. A file that was removed since looks as it did last, as a removed file that is open
// does elsewhere: the kernel asks for attributes at the end of open(2), and when that fails because another has removed the file that this very open
// made, it opens, and makes, once more.
func (g *sight) attr(ctx context.Context, s Store, path string, isDir bool) (synth.Attr, error) {
	f := g.found.Swap(nil)
	if f == nil {
		now, err := s.Stat(ctx, path)
		f = &now
		if err != nil && dc.KindOf(err) == dc.NotFound || err == nil && now.Dir != isDir {
			if f = g.last.Load(); f == nil {
				return synth.Attr{}, dc.Errorf(dc.Stale, "lock.stat", path, "the file was removed since it was found")
			}
		} else if err != nil {
			return synth.Attr{}, err
		}
	}
	g.last.Store(f)
	a := synth.Attr{IsDir: f.Dir, Mode: f.Mode, Size: f.Size, UID: f.UID, GID: f.GID, ModTime: f.ModTime}
	if f.ModTime.UnixMilli() == 0 {
		a.ModTime = time.Time{}
	}
	return a, nil
}

// node gives what f is. It remembers f for the Attr that follows.
func (d *dir) node(path string, f client.LockFile) synth.Node {
	if f.Dir {
		found := &dir{store: d.store, path: path}
		found.sight.found.Store(&f)
		return found
	}
	found := &file{store: d.store, path: path, ephemeral: f.Ephemeral}
	found.sight.found.Store(&f)
	return found
}

func (d *dir) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if name == controlName {
		return control(d.store, d.path), nil
	}
	path := join(d.path, name)
	f, err := d.store.Stat(ctx, path)
	if err != nil {
		return nil, err
	}
	return d.node(path, f), nil
}

func (d *dir) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	files, err := d.store.List(ctx, d.path, after, min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	out := make([]synth.DirEntry, 0, len(files))
	for _, f := range files {
		out = append(out, synth.DirEntry{Name: f.Path, IsDir: f.Dir, Key: key(join(d.path, f.Path), f.Dir)})
	}
	return out, nil
}

func (d *dir) Create(ctx context.Context, name string, flags, mode uint32) (synth.Node, synth.Handle, error) {
	if name == controlName {
		return nil, nil, dc.Errorf(dc.Exists, "lock.create", join(d.path, name), "the name .dc is reserved for control files")
	}
	path, exclusive := join(d.path, name), flags&unix.O_EXCL != 0
	self, err := d.store.Stat(ctx, d.path)
	if err != nil {
		return nil, nil, err
	}
	var f client.LockFile
	var keep *client.LockLease
	if self.Ephemeral {
		f, keep, err = d.store.Keep(ctx, path, exclusive, mode)
	} else {
		f, err = d.store.Create(ctx, path, exclusive, mode)
	}
	if err != nil {
		return nil, nil, err
	}
	h := newHandle(d.store, path, flags|unix.O_TRUNC, f.Created)
	h.keep = keep
	return d.node(path, f), h, nil
}

func (d *dir) Mkdir(ctx context.Context, name string, mode uint32) (synth.Node, error) {
	path := join(d.path, name)
	f, err := d.store.Mkdir(ctx, path, mode)
	if err != nil {
		return nil, err
	}
	return d.node(path, f), nil
}

func (d *dir) Unlink(ctx context.Context, name string) error {
	return d.store.Remove(ctx, join(d.path, name), false)
}

func (d *dir) Rmdir(ctx context.Context, name string) error {
	if name == controlName {
		return dc.Errorf(dc.Denied, "lock.remove", join(d.path, name), "the control directory belongs to the store")
	}
	return d.store.Remove(ctx, join(d.path, name), true)
}

func (d *dir) Rename(ctx context.Context, name string, newDir synth.Node, newName string, flags uint32) error {
	to, ok := newDir.(*dir)
	if !ok {
		return dc.Errorf(dc.Invalid, "lock.rename", join(d.path, name), "files cannot be moved among control files")
	}
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return dc.Errorf(dc.Invalid, "lock.rename", join(d.path, name), "only RENAME_NOREPLACE is known here")
	}
	return d.store.Rename(ctx, join(d.path, name), join(to.path, newName), flags&unix.RENAME_NOREPLACE != 0)
}

func (d *dir) SetAttr(ctx context.Context, mode, uid, gid *uint32, mtime *time.Time) error {
	return d.store.SetAttr(ctx, d.path, mode, uid, gid, mtime)
}

func (d *dir) Getxattr(ctx context.Context, name string) ([]byte, error) {
	if name == xattrVersion {
		return version(ctx, d.store, d.path)
	}
	return nil, dc.NoAttr
}

func (d *dir) Setxattr(_ context.Context, name string, _ []byte, _ uint32) error {
	return noXattr(d.path, name)
}
func (d *dir) Listxattr(context.Context) ([]string, error) { return []string{xattrVersion}, nil }
func (d *dir) Removexattr(_ context.Context, name string) error {
	return noXattr(d.path, name)
}

// noXattr refuses to change attributes: those of the store are what it says they are.
func noXattr(path, name string) error {
	if strings.HasPrefix(name, "user.dc.") {
		return dc.Errorf(dc.Denied, "lock.setxattr", path, "%s is set by the store", name)
	}
	return dc.Errorf(dc.Unsupported, "lock.setxattr", path, "files of /dc/lock keep no attributes of your own")
}
