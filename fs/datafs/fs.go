package datafs

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"missingos/fs/locktable"
	"missingos/fs/synth"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	opLookup = 1 // FUSE_LOOKUP, in a header's Opcode

	flushAfter   = 2 * time.Second        // how long written data stays on this node only
	flushLook    = 500 * time.Millisecond // how often that is looked for
	flushWorkers = 4
	// An operation that follows one which got no answer in dc.OpTimeout waits no longer than afterFailure: the kernel asks twice
	// before it reports that a name cannot be looked up.
	afterFailure  = 4 * time.Second
	failureRecent = 10 * time.Second
	blockBytes    = 4096 // st_blksize; a larger one would become the kernel's block size for its cache
	nameMax       = dc.MaxNameBytes
)

// Config is what the room needs.
type Config struct {
	Service Service
	Door    *synth.Door // the mount's
	Node    dc.NodeID
	Log     *slog.Logger // default: discard
}

// FS serves /dc/data. It is a fuse.RawFileSystem for node ids below 1<<63, of which [file.Root] is its root.
type FS struct {
	fuse.RawFileSystem // ENOSYS for what is not here
	cfg                Config
	locks              locktable.Table[file.Ino]
	recent             recentLookups
	blocks             *blockCache
	dirtyBytes         atomic.Int64
	failed             atomic.Int64 // when an operation last got no answer, Unix nanoseconds; 0 once one did
	stop               context.CancelFunc
	done               sync.WaitGroup

	mu      sync.Mutex
	inodes  map[file.Ino]*inode
	handles map[uint64]*handle
	dirs    map[uint64]*dirHandle
	last    uint64 // handle number
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New makes the room and starts its background flushing; Close ends it. Hand it to fs.Mount as Config.Data, with KillPriv: set-id bits
// are cleared by the machine.
func New(cfg Config) *FS {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Door == nil {
		cfg.Door = synth.NewDoor(cfg.Node, cfg.Log)
	}
	ctx, stop := context.WithCancel(dc.WithPrincipal(context.Background(), dc.System(cfg.Node)))
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), cfg: cfg, stop: stop,
		inodes: map[file.Ino]*inode{}, handles: map[uint64]*handle{}, dirs: map[uint64]*dirHandle{},
	}
	f.blocks = newBlockCache(cfg.Service, cfg.Node)
	f.done.Go(func() { f.background(ctx) })
	return f
}

// Close publishes what has been written, as far as ctx allows, and ends the background work. The mount must be gone by then.
func (f *FS) Close(ctx context.Context) error {
	f.stop()
	f.done.Wait()
	defer f.blocks.close()
	return f.flushAll(dc.WithPrincipal(ctx, dc.System(f.cfg.Node)), 0)
}

func (f *FS) String() string { return "datafs" }

// Flush everything that has been dirty for at least age.
func (f *FS) flushAll(ctx context.Context, age time.Duration) error {
	f.mu.Lock()
	all := make([]*inode, 0, len(f.inodes))
	for _, n := range f.inodes {
		all = append(all, n)
	}
	f.mu.Unlock()
	all = slices.DeleteFunc(all, func(n *inode) bool { return !n.dirtySince(age) })
	var first error
	var mu sync.Mutex
	var wg sync.WaitGroup
	turns := make(chan struct{}, flushWorkers)
	for _, n := range all {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			one, cancel := context.WithTimeout(ctx, dc.OpTimeout)
			defer cancel()
			if err := n.flush(one); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
		})
	}
	wg.Wait()
	return first
}

// background publishes data that its writer keeps to itself, and tells the leader what is open.
func (f *FS) background(ctx context.Context) {
	tick := time.NewTicker(flushLook)
	defer tick.Stop()
	reported := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if f.dirtyBytes.Load() > 0 {
			if err := f.flushAll(ctx, flushAfter); err != nil && ctx.Err() == nil {
				f.cfg.Log.Warn("written data could not be published yet", "err", err)
			}
		}
		if time.Since(reported) >= file.OpenReport {
			reported = time.Now()
			f.report(ctx)
		}
	}
}

// report tells the leader what is open on this node.
func (f *FS) report(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, file.OpenReport)
	defer cancel()
	if err := f.cfg.Service.Report(ctx); err != nil && ctx.Err() == nil {
		f.cfg.Log.Debug("open files not reported", "err", err)
	}
}

// begin makes the ctx of one operation. Whatever the thread looked up before, it has gone on to something else.
func (f *FS) begin(cancel <-chan struct{}, h *fuse.InHeader) (context.Context, context.CancelFunc) {
	f.recent.drop(h.Pid)
	return f.context(cancel, h, f.patience())
}

// patience is how long an operation may take now.
func (f *FS) patience() time.Duration {
	if at := f.failed.Load(); at != 0 && time.Since(time.Unix(0, at)) < failureRecent {
		return afterFailure
	}
	return dc.OpTimeout
}

func (f *FS) context(cancel <-chan struct{}, h *fuse.InHeader, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, stop := f.cfg.Door.Context(cancel, h, timeout)
	if h.Uid != 0 {
		p := f.cfg.Door.Principal(h)
		p.Groups = f.recent.groups(h.Pid, h.Uid, h.Gid)
		ctx = dc.WithPrincipal(ctx, p)
	}
	return ctx, stop
}

// status is the errno for err. Names that do not exist are no news.
func (f *FS) status(ctx context.Context, err error) fuse.Status {
	if err == nil {
		f.failed.Store(0)
		return fuse.OK
	}
	switch dc.KindOf(err) {
	case dc.NotFound:
		f.failed.Store(0)
		return fuse.ENOENT
	case dc.Unavailable:
		f.failed.Store(time.Now().UnixNano())
	}
	return f.cfg.Door.Status(ctx, err)
}

// open gives the state of an inode that is open here, or nil.
func (f *FS) open(ino file.Ino) *inode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inodes[ino]
}

// saw corrects an attribute just heard by what this node knows better, and lets the inode's state know.
func (f *FS) saw(a file.Attr) file.Attr {
	if n := f.open(a.Ino); n != nil {
		return n.saw(a)
	}
	return a
}

func fillAttr(out *fuse.Attr, a *file.Attr) {
	*out = fuse.Attr{
		Ino: uint64(a.Ino), Size: uint64(a.Size), Blocks: uint64(a.Allocated+511) / 512, Mode: a.Mode, Nlink: a.Nlink,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID}, Rdev: a.Rdev, Blksize: blockBytes,
	}
	if a.IsDir() {
		out.Size, out.Blocks = blockBytes, blockBytes/512
	}
	out.Atime, out.Atimensec = uint64(a.Atime/1e9), uint32(a.Atime%1e9)
	out.Mtime, out.Mtimensec = uint64(a.Mtime/1e9), uint32(a.Mtime%1e9)
	out.Ctime, out.Ctimensec = uint64(a.Ctime/1e9), uint32(a.Ctime%1e9)
}

// fillEntry answers a request that found or made a. Nothing may be cached, so the times to live stay 0.
func fillEntry(out *fuse.EntryOut, a file.Attr) {
	*out = fuse.EntryOut{NodeId: uint64(a.Ino), Generation: 1}
	fillAttr(&out.Attr, &a)
}
