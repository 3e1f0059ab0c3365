package kvfs

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// Tables is what the room needs of tables.
type Tables interface {
	CreateTable(ctx context.Context, name string, mode uint32) (client.Descriptor, error)
	Table(ctx context.Context, name string) (client.Descriptor, error)
	Tables(ctx context.Context, after string, limit int) ([]client.Descriptor, error)
	DropTable(ctx context.Context, t client.Descriptor, onlyIfEmpty bool) error
	TableStat(ctx context.Context, t client.Descriptor) (client.KVStat, error)
	SetTableTTL(ctx context.Context, t client.Descriptor, ttl time.Duration) error
	Split(ctx context.Context, t client.Descriptor, key string) error
}

// Rows is what it needs of rows.
type Rows interface {
	Stat(ctx context.Context, t client.Descriptor, key string) (client.KVRow, error)
	Get(ctx context.Context, t client.Descriptor, key string) (client.KVRow, []byte, error)
	List(ctx context.Context, t client.Descriptor, dir, after string, limit int) ([]client.KVRow, error)
	Put(ctx context.Context, t client.Descriptor, key string, p client.KVPut) (client.KVRow, error)
	Remove(ctx context.Context, t client.Descriptor, key string, dir bool) error
	Mkdir(ctx context.Context, t client.Descriptor, key string, mode uint32) (client.KVRow, error)
	Rename(ctx context.Context, t client.Descriptor, from, to string, noReplace bool) error
	SetAttr(ctx context.Context, t client.Descriptor, key string, mode, uid, gid *uint32, mtime *time.Time) error
	SetTTL(ctx context.Context, t client.Descriptor, key string, ttl time.Duration) error
}

// Bulk is what it needs beside single rows.
type Bulk interface {
	Load(ctx context.Context, t client.Descriptor, rows []client.KVPair) error
	Scan(ctx context.Context, t client.Descriptor, s client.KVScan, fn func(client.KVPair) error) error
	Txn(ctx context.Context, t client.Descriptor, x client.KVTxn) (client.KVTxnResult, error)
}

// Store is all of /dc/kv; *client.KV is one.
type Store interface {
	Tables
	Rows
	Bulk
}

var _ Store = (*client.KV)(nil)

// New gives the room's root directory.
func New(s Store) synth.Dir { return &root{store: s} }

// root lists the tables.
type root struct{ store Store }

func (r *root) Key() string { return "kv" }

func (r *root) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o1777}, nil
}

// Lookup finds a table. Its descriptor may be a second old, so the table's group is asked whether it still is: a table that was dropped on
// another node is gone here at once, and its name free.
func (r *root) Lookup(ctx context.Context, name string) (synth.Node, error) {
	for try := 0; ; try++ {
		t, err := r.store.Table(ctx, name)
		if err != nil {
			return nil, err
		}
		_, err = r.store.TableStat(ctx, t)
		switch {
		case err == nil:
			return &dir{store: r.store, table: t}, nil
		case dc.KindOf(err) != dc.NotFound || try > 0: // a second time: dropped and made anew meanwhile
			return nil, err
		}
	}
}

func (r *root) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	tables, err := r.store.Tables(ctx, after, min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	out := make([]synth.DirEntry, len(tables))
	for i, t := range tables {
		out[i] = synth.DirEntry{Name: t.Name, IsDir: true, Key: key(t, "", true)}
	}
	return out, nil
}

func (r *root) Mkdir(ctx context.Context, name string, mode uint32) (synth.Node, error) {
	t, err := r.store.CreateTable(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return &dir{store: r.store, table: t}, nil
}

func (r *root) Rmdir(ctx context.Context, name string) error {
	t, err := r.store.Table(ctx, name)
	if err != nil {
		return err
	}
	return r.store.DropTable(ctx, t, true)
}

// key is a file's identity. A table's id is in it, so that a table made anew under an old name is another directory; a directory's ends in
// a slash, so that a name that was a row and is a directory now is another inode.
func key(t client.Descriptor, path string, isDir bool) string {
	k := fmt.Sprintf("kv/%d", t.ID)
	if path != "" {
		k += "/" + path
	}
	if isDir {
		k += "/"
	}
	return k
}

// A dir is a table, or a directory in one.
type dir struct {
	store Store
	table client.Descriptor
	path  string // "" is the table
	sight sight
}

func (d *dir) Key() string { return key(d.table, d.path, true) }

func (d *dir) Attr(ctx context.Context) (synth.Attr, error) {
	if d.path == "" {
		// Attributes of the descriptor; that the table still is there the row operations tell.
		return synth.Attr{IsDir: true, Mode: d.table.Mode, UID: d.table.UID, GID: d.table.GID, ModTime: d.table.Created}, nil
	}
	return d.sight.attr(ctx, d.store, d.table, d.path, true)
}

// A sight is what is known of a row or directory: what a look-up has just found, and what was seen last.
type sight struct{ found, last atomic.Pointer[client.KVRow] }

// attr uses what a look-up found for the Attr that follows it at once; later ones ask the store. Something that was removed since looks as
// it did last, as a removed file that is open does elsewhere. An error would be worse than useless: the kernel asks for attributes at the end
// of open(2), and when that fails because another has removed the row that this very open made, it opens, and makes, once more.
func (g *sight) attr(ctx context.Context, s Store, t client.Descriptor, path string, isDir bool) (synth.Attr, error) {
	r := g.found.Swap(nil)
	if r == nil {
		now, err := s.Stat(ctx, t, path)
		r = &now
		if err != nil && dc.KindOf(err) == dc.NotFound || err == nil && now.Dir != isDir {
			if r = g.last.Load(); r == nil {
				return synth.Attr{}, dc.Errorf(dc.Stale, "kv.stat", t.Name+"/"+path, "it was removed since it was found")
			}
		} else if err != nil {
			return synth.Attr{}, err
		}
	}
	g.last.Store(r)
	a := synth.Attr{IsDir: r.Dir, Mode: r.Mode, Size: r.Size, UID: r.UID, GID: r.GID, ModTime: r.ModTime}
	if r.Dir && r.Created == 0 { // there only by the rows below it: it is the table's owner's
		a.UID, a.GID = t.UID, t.GID
	}
	return a, nil
}

func (d *dir) node(path string, r client.KVRow) synth.Node {
	if r.Dir {
		found := &dir{store: d.store, table: d.table, path: path}
		found.sight.found.Store(&r)
		return found
	}
	found := &row{store: d.store, table: d.table, path: path}
	found.sight.found.Store(&r)
	return found
}

func (d *dir) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if name == controlName && d.path == "" {
		return control(d.store, d.table), nil
	}
	path := join(d.path, segmentOf(name))
	r, err := d.store.Stat(ctx, d.table, path)
	if err != nil {
		return nil, err
	}
	return d.node(path, r), nil
}

func (d *dir) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	rows, err := d.store.List(ctx, d.table, d.path, segmentOf(after), min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	out := make([]synth.DirEntry, len(rows))
	for i, r := range rows {
		out[i] = synth.DirEntry{Name: nameOf(r.Key), IsDir: r.Dir, Key: key(d.table, join(d.path, r.Key), r.Dir)}
	}
	return out, nil
}

func (d *dir) Create(ctx context.Context, name string, flags, mode uint32) (synth.Node, synth.Handle, error) {
	if name == controlName && d.path == "" {
		return nil, nil, dc.Errorf(dc.Exists, "kv.create", name, "the name .dc is reserved for control files")
	}
	path := join(d.path, segmentOf(name))
	r, err := d.store.Put(ctx, d.table, path, client.KVPut{How: client.KVTouch, Exclusive: flags&unix.O_EXCL != 0, Mode: mode})
	if err != nil {
		return nil, nil, err
	}
	h := newHandle(d.store, d.table, path, flags, r)
	h.replace()
	return d.node(path, r), h, nil
}

func (d *dir) Mkdir(ctx context.Context, name string, mode uint32) (synth.Node, error) {
	path := join(d.path, segmentOf(name))
	r, err := d.store.Mkdir(ctx, d.table, path, mode)
	if err != nil {
		return nil, err
	}
	return d.node(path, r), nil
}

func (d *dir) Unlink(ctx context.Context, name string) error {
	return d.store.Remove(ctx, d.table, join(d.path, segmentOf(name)), false)
}

func (d *dir) Rmdir(ctx context.Context, name string) error {
	if name == controlName && d.path == "" {
		return dc.Errorf(dc.Denied, "kv.remove", name, "the control directory belongs to the table")
	}
	return d.store.Remove(ctx, d.table, join(d.path, segmentOf(name)), true)
}

func (d *dir) Rename(ctx context.Context, name string, newDir synth.Node, newName string, flags uint32) error {
	to, ok := newDir.(*dir)
	if !ok || to.table.ID != d.table.ID {
		return &dc.Error{Op: "kv.rename", Path: name, Kind: dc.CrossDevice, Err: errOtherTable}
	}
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return dc.Errorf(dc.Invalid, "kv.rename", name, "only RENAME_NOREPLACE is known here")
	}
	return d.store.Rename(ctx, d.table, join(d.path, segmentOf(name)), join(to.path, segmentOf(newName)), flags&unix.RENAME_NOREPLACE != 0)
}

var errOtherTable = fmt.Errorf("rows move inside their table only; copy and remove")

func (d *dir) SetAttr(ctx context.Context, mode, uid, gid *uint32, mtime *time.Time) error {
	if d.path == "" {
		if mode == nil && uid == nil && gid == nil {
			return nil // touch of a table
		}
		return dc.Errorf(dc.Unsupported, "kv.setattr", d.table.Name, "owner and mode of a table are set when it is made")
	}
	return d.store.SetAttr(ctx, d.table, d.path, mode, uid, gid, mtime)
}
