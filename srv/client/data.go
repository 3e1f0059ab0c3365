package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// A BlockStore is this node's own block store.
type BlockStore interface {
	NewID() file.BlockID
	Put(id file.BlockID, ino file.Ino, data []byte) error
	Read(id file.BlockID, off int64, dst []byte) (int, error)
	Sync() error
}

// DataConfig says where file content is kept.
type DataConfig struct {
	// Store is this node's store. It gives ids to the blocks that this node writes, and takes one replica of each.
	Store BlockStore
	// Nodes gives the nodes whose stores take blocks, in any order, this one among them. Default: those that hold the data group.
	Nodes func() []dc.NodeID
	// Domain tells what a node fails together with. A block's nodes share zones, and racks in a zone, as little as those that answer allow. Default: nothing.
	Domain func(dc.NodeID) (zone, rack string)
	// Clock is the time since some moment, that runs also while the machine sleeps. Default: since it was started. For tests.
	Clock func() time.Duration
}

// Data is the client of /dc/data: metadata on the leader of the data group, blocks on the nodes. Close waits for writes to slow replicas.
// Methods take the principal from ctx and return *dc.Error.
type Data struct {
	c       *Client
	cfg     DataConfig
	session uint64
	suspect suspects
	moved   movedBlocks
	bad     badCopies
	cache   *fileCache
	leases  leaseKeeper

	mu     sync.Mutex
	number uint64          // of the last open
	making map[uint64]bool // numbers of creations under way, whose inodes are not known yet
	open   map[file.Ino]int

	reported atomic.Bool // the last report was of nothing, so that no other is needed
	writes   sync.WaitGroup
}

// NewData makes the client of /dc/data on top of c.
func NewData(c *Client, cfg DataConfig) *Data {
	if cfg.Clock == nil {
		cfg.Clock = bootTime
	}
	d := &Data{c: c, cfg: cfg, session: randomID(), open: map[file.Ino]int{}, making: map[uint64]bool{}}
	d.leases.init(d)
	d.cache = newFileCache(cfg.Clock, d.leases.want)
	d.reported.Store(true)
	return d
}

// Close gives up what this node holds leases of and waits until writes that nobody waits for any more have ended; each is bounded by a few seconds.
func (d *Data) Close() {
	d.leases.close()
	d.writes.Wait()
}

// group is the group that has the slot of ino. There is one data group so far, which has them all.
func (d *Data) group(file.Ino) (dc.GroupID, error) { return d.c.Group(dc.KindData + "/0") }

// now is the time that a change carries.
func (d *Data) now() int64 { return max(time.Now().UnixNano(), d.c.clock.Load()*1e6) }

// query runs a read on the leader of ino's group.
func (d *Data) query(ctx context.Context, ino file.Ino, call func(context.Context, dcpb.DataClient, *dcpb.Header) error) error {
	g, err := d.group(ino)
	if err != nil {
		return err
	}
	return d.c.Query(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		return call(ctx, dcpb.NewDataClient(cc), h)
	})
}

// change runs a mutation on the leader of the group of own's inodes and gives what it answers with. The caller ends own.
func (d *Data) change(ctx context.Context, own *ownChange, call func(context.Context, dcpb.DataClient, *dcpb.Header) (*dcpb.DataAttrReply, error)) (*dcpb.DataAttrReply, error) {
	g, err := d.group(own.inos[0])
	if err != nil {
		return nil, err
	}
	var out *dcpb.DataAttrReply
	hold := own.hold()
	err = d.c.Mutate(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		h.Hold = hold
		out, err = call(ctx, dcpb.NewDataClient(cc), h)
		return err
	})
	return out, err
}

func attrOf(a *dcpb.DataAttr) file.Attr {
	return file.Attr{
		Ino: file.Ino(a.GetIno()), Mode: a.GetMode(), Nlink: a.GetNlink(), UID: a.GetUid(), GID: a.GetGid(), Rdev: a.GetRdev(),
		Size: a.GetSize(), Allocated: a.GetAllocated(), Atime: a.GetAtime(), Mtime: a.GetMtime(), Ctime: a.GetCtime(), Btime: a.GetBtime(),
		Parent: file.Ino(a.GetParent()), Version: a.GetVersion(), ACL: a.GetAcl(), Xattrs: a.GetXattrs(),
	}
}

// Lookup finds what a name in a directory names. Like Stat, Open, List and Readlink it answers from memory under a lease, then
// without a check of permissions: the kernel has made it.
func (d *Data) Lookup(ctx context.Context, dir file.Ino, name string) (file.Attr, error) {
	if a, absent, known := d.cache.lookup(dir, name); absent {
		return a, dc.Errorf(dc.NotFound, "lookup", name, "")
	} else if known {
		return a, nil
	}
	t := d.cache.ask(dir)
	var out *dcpb.DataAttrReply
	err := d.query(ctx, dir, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.Lookup(ctx, &dcpb.DataLookupRequest{Header: h, Parent: uint64(dir), Name: []byte(name)})
		return err
	})
	if err != nil {
		return file.Attr{}, err
	}
	if out.Absent {
		d.cache.found(t, out.Grant, dir, name, nil)
		return file.Attr{}, dc.Errorf(dc.NotFound, "lookup", name, "")
	}
	a := attrOf(out.Attr)
	d.cache.found(t, out.Grant, dir, name, &a)
	return a, nil
}

// Stat reads the attributes of an inode; dc.Stale if it is gone. If access is not 0, it checks those bits of access(2) first.
func (d *Data) Stat(ctx context.Context, ino file.Ino, access uint32) (file.Attr, error) {
	if access == 0 {
		if a, known := d.cache.stat(ino); known {
			return a, nil
		}
	}
	t := d.cache.ask(ino)
	var out *dcpb.DataAttrReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.Stat(ctx, &dcpb.DataStatRequest{Header: h, Ino: uint64(ino), Access: access})
		return err
	})
	if err != nil {
		return file.Attr{}, err
	}
	a := attrOf(out.Attr)
	d.cache.heard(t, out.Grant, a, nil)
	return a, nil
}

// List reads up to limit entries of a directory whose names come after a name ("" for the start); fewer than limit are the last.
func (d *Data) List(ctx context.Context, dir file.Ino, after string, limit int) ([]file.Entry, error) {
	if page, known := d.cache.list(dir, after, limit); known {
		return page, nil
	}
	t := d.cache.ask(dir)
	var out *dcpb.DataListReply
	err := d.query(ctx, dir, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.List(ctx, &dcpb.DataListRequest{Header: h, Ino: uint64(dir), After: []byte(after), Limit: uint32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	entries := make([]file.Entry, 0, len(out.Entries))
	for _, e := range out.Entries {
		entries = append(entries, file.Entry{Name: string(e.Name), Attr: attrOf(e.Attr)})
	}
	d.cache.listed(t, out.Grant, dir, after, entries, len(entries) < limit)
	return entries, nil
}

// Readlink reads a symbolic link.
func (d *Data) Readlink(ctx context.Context, ino file.Ino) ([]byte, error) {
	if target, known := d.cache.readlink(ino); known {
		return target, nil
	}
	t := d.cache.ask(ino)
	var out *dcpb.DataReadlinkReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.Readlink(ctx, &dcpb.DataStatRequest{Header: h, Ino: uint64(ino)})
		return err
	})
	if err != nil {
		return nil, err
	}
	d.cache.heardTarget(t, out.Grant, ino, out.Target)
	return out.Target, nil
}

// Make creates a file, directory, symbolic link (with a target) or device; mode has the type bits. Without exclusive a file that exists is
// the answer, with existed true. With open the file counts as opened (see [Data.Open]).
func (d *Data) Make(ctx context.Context, m file.Make) (a file.Attr, existed bool, err error) {
	q := &dcpb.DataMakeRequest{
		Parent: uint64(m.Dir), Name: []byte(m.Name), Mode: m.Mode, Rdev: m.Rdev, Target: m.Target, Exclusive: m.Exclusive, Now: d.now(),
		FullMode: m.FullMode, Nameless: m.Nameless, Linkable: m.Linkable,
	}
	if m.Open {
		q.Session, q.Opened = d.session, d.beginMake()
		defer d.endMake(q.Opened)
	}
	own := d.cache.begin(m.Dir)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Make(ctx, q)
	})
	if err != nil {
		own.end(nil, err, nil)
		return file.Attr{}, false, err
	}
	if m.Open {
		d.nextOpen(file.Ino(out.Attr.Ino))
	}
	if m.Nameless {
		own.end(out, nil, nil)
	} else {
		own.end(out, nil, nil, named{dir: m.Dir, name: m.Name, ino: file.Ino(out.Attr.Ino)})
	}
	return attrOf(out.Attr), out.Existed, nil
}

// Link gives a file another name.
func (d *Data) Link(ctx context.Context, ino, dir file.Ino, name string) (file.Attr, error) {
	q := &dcpb.DataLinkRequest{Ino: uint64(ino), Parent: uint64(dir), Name: []byte(name), Now: d.now()}
	own := d.cache.begin(dir, ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Link(ctx, q)
	})
	own.end(out, err, nil, named{dir: dir, name: name, ino: ino})
	return attrOf(out.GetAttr()), err
}

// Unlink removes a name, or with rmdir an empty directory. gone is the inode whose last name it was, or 0.
func (d *Data) Unlink(ctx context.Context, dir file.Ino, name string, rmdir bool) (gone file.Ino, err error) {
	q := &dcpb.DataUnlinkRequest{Parent: uint64(dir), Name: []byte(name), Dir: rmdir, Now: d.now()}
	own := d.cache.begin(dir, d.cache.named(dir, name))
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Unlink(ctx, q)
	})
	own.end(out, err, nil, named{dir: dir, name: name, ino: 0})
	return file.Ino(out.GetGone()), err
}

// Rename moves a name; flags are renameat2(2)'s. gone is the inode that was replaced, if that was its last name, or 0.
func (d *Data) Rename(ctx context.Context, dir file.Ino, name string, newDir file.Ino, newName string, flags uint32) (gone file.Ino, err error) {
	q := &dcpb.DataRenameRequest{
		Parent: uint64(dir), Name: []byte(name), NewParent: uint64(newDir), NewName: []byte(newName), Flags: flags, Now: d.now(),
	}
	moved, replaced := d.cache.named(dir, name), d.cache.named(newDir, newName)
	own := d.cache.begin(dir, newDir, moved, replaced)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Rename(ctx, q)
	})
	own.end(out, err, nil, d.cache.moves(q, file.Ino(out.GetAttr().GetIno()), replaced)...)
	return file.Ino(out.GetGone()), err
}

// SetAttr changes attributes and gives them as they are then.
func (d *Data) SetAttr(ctx context.Context, ino file.Ino, a file.SetAttr) (file.Attr, error) {
	q := &dcpb.DataSetAttrRequest{
		Ino: uint64(ino), Mode: a.Mode, Uid: a.UID, Gid: a.GID, Size: a.Size, Atime: a.Atime, Mtime: a.Mtime, TimesNow: a.Now, Open: a.Open, Now: d.now(),
	}
	own := d.cache.begin(ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.SetAttr(ctx, q)
	})
	own.end(out, err, nil)
	return attrOf(out.GetAttr()), err
}

// Xattr reads an extended attribute; dc.NoAttr if there is none.
func (d *Data) Xattr(ctx context.Context, ino file.Ino, name string) ([]byte, error) {
	var out *dcpb.DataXattrReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		out, err = s.GetXattr(ctx, &dcpb.DataXattrRequest{Header: h, Ino: uint64(ino), Name: []byte(name)})
		return err
	})
	return out.GetValue(), err
}

// Xattrs lists the names of extended attributes.
func (d *Data) Xattrs(ctx context.Context, ino file.Ino) ([]string, error) {
	var out *dcpb.DataListXattrReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		out, err = s.ListXattr(ctx, &dcpb.DataStatRequest{Header: h, Ino: uint64(ino)})
		return err
	})
	return out.GetNames(), err
}

// SetXattr sets an extended attribute; flags are setxattr(2)'s.
func (d *Data) SetXattr(ctx context.Context, ino file.Ino, name string, value []byte, flags uint32) error {
	own := d.cache.begin(ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		return s.SetXattr(ctx, &dcpb.DataSetXattrRequest{Header: h, Ino: uint64(ino), Name: []byte(name), Value: value, Flags: flags})
	})
	own.end(out, err, nil)
	return err
}

// RemoveXattr removes an extended attribute.
func (d *Data) RemoveXattr(ctx context.Context, ino file.Ino, name string) error {
	own := d.cache.begin(ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		return s.RemoveXattr(ctx, &dcpb.DataXattrRequest{Header: h, Ino: uint64(ino), Name: []byte(name)})
	})
	own.end(out, err, nil)
	return err
}
