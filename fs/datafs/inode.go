package datafs

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	maxInodeDirty = 16 * dc.MiB  // written and not published, of one file; a writer waits for the flush beyond it
	flushFrom     = 8 * dc.MiB   // from here on a flush is started in the background
	maxTail       = 1 * dc.MiB   // pending appends
	maxDirty      = 256 * dc.MiB // of all files of the mount; beyond it every writer publishes its own
)

// An inode is a file that is open on this node.
type inode struct {
	fs   *FS
	ino  file.Ino
	refs int           // handles; under fs.mu
	turn chan struct{} // holds a token while somebody publishes or truncates

	mu       sync.Mutex
	last     file.Attr     // of the highest version heard of
	content  *file.Content // nil: unknown. Never changed, only replaced
	dirty    buffer        // written, not being published
	flushing buffer        // being published; runs do not change
	// tail and flushingTail are the same for appends, which have no place yet. Appends and other writes do not wait at the same time.
	tail, flushingTail []byte
	counted            int64
	mtime              int64     // of the last write that is not published
	since              time.Time // of the first one
	writer             dc.Principal
	fence              dc.Fence           // what all that is not published is conditioned on
	lost               map[dc.Fence]error // data that is gone, by its condition, not yet told to its writers
	unsynced           map[string][]dc.NodeID
	fresh              bool // opened soon after a change, by when its blocks may not be on disk
	nameless           bool
}

// acquire gives the state of ino with one more reference. c is what its open answered.
func (f *FS) acquire(c *file.Content) *inode {
	f.mu.Lock()
	n := f.inodes[c.Attr.Ino]
	if n == nil {
		n = &inode{fs: f, ino: c.Attr.Ino, turn: make(chan struct{}, 1), unsynced: map[string][]dc.NodeID{}}
		n.fresh = time.Since(time.Unix(0, c.Attr.Ctime)) < time.Minute
		f.inodes[n.ino] = n
	}
	n.refs++
	f.mu.Unlock()
	n.learn(c)
	return n
}

// release takes a reference back. What is still not published with the last one is lost, which the caller has prevented or reported.
func (f *FS) release(n *inode) (last bool) {
	f.mu.Lock()
	n.refs--
	if last = n.refs == 0; last {
		delete(f.inodes, n.ino)
	}
	f.mu.Unlock()
	if last && n.dirtySince(0) {
		n.turn <- struct{}{} // whoever has it is done within dc.OpTimeout
		defer n.end()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.dropLocked()
	}
	return last
}

// dropLocked gives up what is not published. The caller has the turn.
func (n *inode) dropLocked() {
	n.dirty, n.flushing, n.tail, n.flushingTail = buffer{}, buffer{}, nil, nil
	n.accountLocked()
}

// learn takes in content just heard, unless something newer is known.
func (n *inode) learn(c *file.Content) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.Attr.Version < n.last.Version {
		return
	}
	n.last, n.content = c.Attr, c
}

// saw takes in attributes just heard and gives them as this node's processes must see them: with what is written and not published.
func (n *inode) saw(a file.Attr) file.Attr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sawLocked(a)
}

func (n *inode) sawLocked(a file.Attr) file.Attr {
	if a.Version < n.last.Version {
		a = n.last // an answer that was overtaken by a commit of ours
	} else {
		n.last = a
	}
	if n.content != nil && n.content.Attr.Version != a.Version {
		n.content = nil
	}
	pending := n.counted
	if pending == 0 {
		return a
	}
	if n.writer.UID != 0 { // as the machine will when it is published
		if a.Mode&0o010 != 0 {
			a.Mode &^= unix.S_ISGID
		}
		a.Mode &^= unix.S_ISUID
	}
	a.Size = max(a.Size, n.dirty.end(), n.flushing.end()) + int64(len(n.tail)+len(n.flushingTail))
	a.Allocated += pending
	a.Mtime, a.Ctime = max(a.Mtime, n.mtime), max(a.Ctime, n.mtime)
	return a
}

// settled does as saw. While a tail is being published it cannot be told whether attributes count it: then it waits, and asks again.
func (n *inode) settled(ctx context.Context, a file.Attr) (file.Attr, error) {
	for {
		n.mu.Lock()
		if len(n.flushingTail) == 0 {
			defer n.mu.Unlock()
			return n.sawLocked(a), nil
		}
		n.mu.Unlock()
		if err := n.begin(ctx); err != nil {
			return a, err
		}
		n.end()
		var err error
		if a, err = n.fs.cfg.Service.Stat(ctx, n.ino, 0); err != nil {
			return a, err
		}
	}
}

// begin takes the turn to publish; end gives it back.
func (n *inode) begin(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.KindOf(ctx.Err()), "write", n.ino.String(), "waited for earlier data to be published: %w", ctx.Err())
	}
}

func (n *inode) end() { <-n.turn }

// dirtySince tells whether something was written at least age ago and not published.
func (n *inode) dirtySince(age time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counted > 0 && time.Since(n.since) >= age
}

// accountLocked keeps the mount's count of unpublished bytes.
func (n *inode) accountLocked() {
	now := n.dirty.bytes + n.flushing.bytes + int64(len(n.tail)+len(n.flushingTail))
	n.fs.dirtyBytes.Add(now - n.counted)
	n.counted = now
}

// takeLost gives the error of lost data that was written under f, once. But a fence that was refused is refused for ever, and told to everybody under it:
// the first who hears of it may be a close that nobody looks at, of a duplicate.
func (n *inode) takeLost(f dc.Fence) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.lost[f]
	if f.IsZero() || err != nil && dc.KindOf(err) != dc.Stale {
		delete(n.lost, f)
	}
	return err
}

// loseLocked notes that what is not published will not be.
func (n *inode) loseLocked(err error) {
	if n.lost == nil {
		n.lost = map[dc.Fence]error{}
	}
	n.lost[n.fence] = err
}

// concerns gives what of err, which publishing gave, is to be told to a caller under f. That something was refused for good concerns those who wrote it;
// for the others what they ask for goes on, and finds out by itself if the file is gone.
func (n *inode) concerns(f dc.Fence, err error) error {
	if err == nil || dc.KindOf(err) != dc.Stale {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost[f]
}

// told is concerns for what tells of lost data, see takeLost, even if nothing was published now.
func (n *inode) told(f dc.Fence, err error) error {
	if lost := n.takeLost(f); err == nil || dc.KindOf(err) == dc.Stale {
		return lost
	}
	return err
}

// write takes p, which is copied. An append goes to the end of the file, wherever that is when it is published.
func (n *inode) write(ctx context.Context, who dc.Principal, fence dc.Fence, appending bool, off int64, p []byte) error {
	for {
		if err := n.takeLost(fence); err != nil {
			return err
		}
		if n.take(who, fence, appending, off, p) {
			break
		}
		if err := n.flush(ctx); err != nil && dc.KindOf(err) != dc.Stale { // whose data is gone is told by takeLost
			return err
		}
	}
	if n.fs.dirtyBytes.Load() > maxDirty {
		return n.flush(ctx)
	}
	return nil
}

// take buffers p, or says no: something must be published first.
func (n *inode) take(who dc.Principal, fence dc.Fence, appending bool, off int64, p []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.counted > 0 && (n.counted+int64(len(p)) > maxInodeDirty || n.fence != fence) {
		return false
	}
	if appending {
		if !n.dirty.empty() || !n.flushing.empty() || len(n.tail) > 0 && len(n.tail)+len(p) > maxTail {
			return false
		}
		n.tail = append(n.tail, p...)
	} else {
		if len(n.tail) > 0 || len(n.flushingTail) > 0 {
			return false
		}
		n.dirty.write(off, p)
	}
	now := time.Now()
	if n.counted == 0 {
		n.since = now
	}
	n.mtime, n.writer, n.fence = now.UnixNano(), who, fence
	n.accountLocked()
	if n.dirty.bytes >= flushFrom {
		n.flushBehind()
	}
	return true
}

// flushBehind starts publishing in the background unless somebody is at it.
func (n *inode) flushBehind() {
	select {
	case n.turn <- struct{}{}:
	default:
		return
	}
	n.fs.done.Go(func() {
		defer n.end()
		ctx, cancel := context.WithTimeout(context.Background(), dc.OpTimeout)
		defer cancel()
		if err := n.publish(ctx); err != nil {
			n.fs.cfg.Log.Warn("written data could not be published yet", "inode", uint64(n.ino), "err", err)
		}
	})
}

// setAttr publishes what was written and then changes attributes.
func (n *inode) setAttr(ctx context.Context, set file.SetAttr) (file.Attr, error) {
	if err := n.begin(ctx); err != nil {
		return file.Attr{}, err
	}
	defer n.end()
	if set.Size != nil || set.Mtime != nil {
		if err := n.concerns(dc.FenceOf(ctx), n.publish(ctx)); err != nil {
			return file.Attr{}, err
		}
	}
	a, err := n.fs.cfg.Service.SetAttr(ctx, n.ino, set)
	if err != nil {
		return a, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.Version >= n.last.Version {
		empty := set.Size != nil && *set.Size == 0 && a.Version == n.last.Version+1
		n.last = a
		if n.content != nil && n.content.Attr.Version != a.Version {
			n.content = nil
		}
		if empty {
			n.content = &file.Content{Attr: a, To: 1 << 62}
		}
	}
	return a, nil
}

// flush publishes everything written so far.
func (n *inode) flush(ctx context.Context) error {
	if err := n.begin(ctx); err != nil {
		return err
	}
	defer n.end()
	return n.publish(ctx)
}

// sync publishes everything and makes it durable. What was refused for good (dc.Stale) does not keep what was published before from becoming durable.
func (n *inode) sync(ctx context.Context) error {
	refused := n.flush(ctx)
	if refused != nil && dc.KindOf(refused) != dc.Stale {
		return refused
	}
	n.mu.Lock()
	var keys []string
	var placed [][]dc.NodeID
	for k, nodes := range n.unsynced {
		keys, placed = append(keys, k), append(placed, nodes)
	}
	if n.fresh && n.content != nil {
		for _, e := range n.content.Extents {
			if !slices.ContainsFunc(placed, func(p []dc.NodeID) bool { return slices.Equal(p, e.Nodes) }) {
				placed = append(placed, e.Nodes)
			}
		}
	}
	n.mu.Unlock()
	if len(placed) == 0 {
		return refused
	}
	if err := n.fs.cfg.Service.SyncBlocks(ctx, placed); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range keys {
		delete(n.unsynced, k)
	}
	n.fresh = false
	return refused
}
