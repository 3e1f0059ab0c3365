package client

import (
	"container/list"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

const (
	cachedFiles     = 65_536      // inodes kept
	cachedNames     = 262_144     // names kept, those that do not exist among them
	cachedBytes     = 64 * dc.MiB // of content kept with the inodes
	cachedListing   = 16_384      // names of a directory that is kept as a whole
	cachedEvictions = 128_000     // after so many the connection is begun anew: the leader believes that what was evicted is still held
	evictShare      = 16          // one of so many goes when there are too many
	unlimitedOffset = int64(1) << 62
)

// fileCache keeps what this node holds leases of. See docs/design/0030-leases-on-files.md for when it may answer. There is one lock; nothing under it blocks.
type fileCache struct {
	now   func() time.Duration // bootTime; tests have others
	until atomic.Int64         // of now: it may answer before that
	used  atomic.Int64         // of now: when it was last asked
	want  func()               // called when it was asked and has no lease; must not block

	mu      sync.Mutex
	conn    uint64 // of the leases; 0: none
	seq     uint64 // of events that make answers under way worthless
	floor   uint64 // answers to questions before this event are worthless, whatever they are about
	lost    map[file.Ino]uint64
	busy    map[file.Ino]*busyFile
	files   map[file.Ino]*cachedFile
	order   *list.List // of *cachedFile, the latest used first
	names   int
	bytes   int
	evicted int
}

// A cachedFile is one inode; a part that is not known is zero.
type cachedFile struct {
	ino     file.Ino
	at      *list.Element
	attr    *file.Attr
	content *file.Content
	target  []byte
	names   map[string]file.Ino // of a directory; 0: there is no such name
	upTo    string              // names up to here are all known
	listed  bool                // all are
	sorted  []string            // the names there are, made when needed
}

// busyFile is an inode about which changes of this node are under way.
type busyFile struct {
	changes    int
	overlapped bool // there were two at once
	revoked    bool
	unknown    bool // a change did not bring the attributes
}

func newFileCache(now func() time.Duration, want func()) *fileCache {
	c := &fileCache{now: now, want: want, busy: map[file.Ino]*busyFile{}, order: list.New()}
	c.resetLocked()
	return c
}

// resetLocked forgets everything; answers under way are worthless.
func (c *fileCache) resetLocked() {
	c.seq++
	c.floor = c.seq
	c.lost, c.files = map[file.Ino]uint64{}, map[file.Ino]*cachedFile{}
	c.order.Init()
	c.names, c.bytes, c.evicted = 0, 0, 0
	for _, b := range c.busy {
		b.revoked = true
	}
}

// connected begins to keep what is granted to a connection, once it is renewed.
func (c *fileCache) connected(conn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until.Store(0)
	c.conn = conn
	c.resetLocked()
}

// disconnect forgets everything.
func (c *fileCache) disconnect() { c.connected(0) }

// renewed lets the cache answer until a time. What it had when an earlier time ran out is worthless.
func (c *fileCache) renewed(until time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == 0 {
		return
	}
	if old := c.until.Load(); int64(c.now()) >= old {
		c.resetLocked()
	}
	c.until.Store(max(c.until.Load(), int64(until)))
}

// revoke forgets inodes.
func (c *fileCache) revoke(inos []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	for _, n := range inos {
		ino := file.Ino(n)
		c.loseLocked(ino)
		if b := c.busy[ino]; b != nil {
			b.revoked = true
		}
		c.dropLocked(c.files[ino])
	}
}

// loseLocked makes answers about ino that are under way worthless.
func (c *fileCache) loseLocked(ino file.Ino) {
	if len(c.lost) >= cachedFiles {
		c.floor = c.seq
		clear(c.lost)
	}
	c.lost[ino] = c.seq
}

func (c *fileCache) dropLocked(f *cachedFile) {
	if f == nil {
		return
	}
	c.forgetNamesLocked(f)
	c.setContentLocked(f, nil)
	c.order.Remove(f.at)
	delete(c.files, f.ino)
}

func (c *fileCache) forgetNamesLocked(f *cachedFile) {
	c.names -= len(f.names)
	f.names, f.upTo, f.listed, f.sorted = nil, "", false, nil
}

func (c *fileCache) setContentLocked(f *cachedFile, content *file.Content) {
	c.bytes += contentBytes(content) - contentBytes(f.content)
	f.content = content
}

func contentBytes(c *file.Content) int {
	if c == nil {
		return 0
	}
	return len(c.Inline) + 96*len(c.Extents)
}

// valid tells whether the cache may answer, and notes that it was asked.
func (c *fileCache) valid() bool {
	now := int64(c.now())
	c.used.Store(now)
	if now < c.until.Load() {
		return true
	}
	c.want()
	return false
}

// A ticket is for one question to the leader, so that nothing is kept of its answer that was revoked meanwhile.
type ticket struct{ conn, seq uint64 }

// ask begins a question about inos.
func (c *fileCache) ask(inos ...file.Ino) ticket {
	if !c.valid() {
		return ticket{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ino := range inos {
		if c.busy[ino] != nil {
			return ticket{}
		}
	}
	return ticket{c.conn, c.seq}
}

// hold is what the question says.
func (t ticket) hold() *dcpb.Hold {
	if t.conn == 0 {
		return nil
	}
	return &dcpb.Hold{Connection: t.conn}
}

// keep calls fn, under the lock, if the answer to t was granted and is still good; ok tells it of which inodes.
func (c *fileCache) keep(t ticket, g *dcpb.DataGrant, fn func(ok func(file.Ino) bool)) {
	if t.conn == 0 || g.GetConnection() != t.conn {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != t.conn || t.seq < c.floor {
		return
	}
	fn(func(ino file.Ino) bool {
		return c.lost[ino] <= t.seq && c.busy[ino] == nil && !slices.Contains(g.Refused, uint64(ino))
	})
	c.trimLocked()
}

// fileLocked gives the entry of ino, a new one if there is none.
func (c *fileCache) fileLocked(ino file.Ino) *cachedFile {
	if f := c.files[ino]; f != nil {
		c.order.MoveToFront(f.at)
		return f
	}
	f := &cachedFile{ino: ino}
	f.at = c.order.PushFront(f)
	c.files[ino] = f
	return f
}

// trimLocked forgets what was not used for longest if there is too much.
func (c *fileCache) trimLocked() {
	if len(c.files) <= cachedFiles && c.names <= cachedNames && c.bytes <= cachedBytes {
		return
	}
	for range max(1, len(c.files)/evictShare) {
		last := c.order.Back()
		if last == nil {
			break
		}
		c.dropLocked(last.Value.(*cachedFile))
		c.evicted++
	}
}

// wornOut tells that the leader believes of too much that this node holds it.
func (c *fileCache) wornOut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evicted > cachedEvictions
}

// setAttrLocked takes in attributes that were granted.
func (c *fileCache) setAttrLocked(a file.Attr) *cachedFile {
	f := c.fileLocked(a.Ino)
	if f.attr == nil || a.Version >= f.attr.Version {
		f.attr = &a
	}
	if f.content != nil && f.content.Attr.Version != f.attr.Version {
		c.setContentLocked(f, nil)
	}
	return f
}

// setNameLocked takes in what a name names; 0: it does not exist.
func (c *fileCache) setNameLocked(dir *cachedFile, name string, ino file.Ino) {
	if dir.names == nil {
		dir.names = map[string]file.Ino{}
	}
	old, known := dir.names[name]
	if !known {
		c.names++
	}
	dir.names[name] = ino
	if (old != 0) != (ino != 0) {
		dir.sorted = nil
	}
}

// knownLocked gives the entry of ino if nothing is under way about it.
func (c *fileCache) knownLocked(ino file.Ino) *cachedFile {
	f := c.files[ino]
	if f == nil || c.busy[ino] != nil {
		return nil
	}
	c.order.MoveToFront(f.at)
	return f
}

// lookup answers what a name in a directory names; absent: nothing does.
func (c *fileCache) lookup(dir file.Ino, name string) (a file.Attr, absent, known bool) {
	if !c.valid() {
		return a, false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.knownLocked(dir)
	if d == nil {
		return a, false, false
	}
	ino, named := d.names[name]
	switch {
	case !named && !d.listed:
		return a, false, false
	case ino == 0:
		return a, true, true
	}
	f := c.knownLocked(ino)
	if f == nil || f.attr == nil {
		return a, false, false
	}
	return *f.attr, false, true
}

// stat answers with the attributes of ino.
func (c *fileCache) stat(ino file.Ino) (a file.Attr, known bool) {
	if !c.valid() {
		return a, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.knownLocked(ino)
	if f == nil || f.attr == nil {
		return a, false
	}
	return *f.attr, true
}

// read answers with the beginning of the content of ino.
func (c *fileCache) read(ino file.Ino) (content file.Content, known bool) {
	if !c.valid() {
		return content, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.knownLocked(ino)
	switch {
	case f == nil:
		return content, false
	case f.content != nil && f.attr != nil:
		content = *f.content
		content.Attr = *f.attr
		return content, true
	case f.attr != nil && (f.attr.IsDir() || f.attr.Size == 0 && f.attr.Allocated == 0):
		return file.Content{Attr: *f.attr, To: unlimitedOffset}, true
	}
	return content, false
}

// readlink answers with the target of a symbolic link.
func (c *fileCache) readlink(ino file.Ino) (target []byte, known bool) {
	if !c.valid() {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.knownLocked(ino)
	if f == nil || f.attr == nil || f.target == nil {
		return nil, false
	}
	return f.target, true
}

// list answers with a page of a directory.
func (c *fileCache) list(dir file.Ino, after string, limit int) (page []file.Entry, known bool) {
	if !c.valid() {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.knownLocked(dir)
	if d == nil || !d.listed {
		return nil, false
	}
	if d.sorted == nil {
		d.sorted = make([]string, 0, len(d.names))
		for name, ino := range d.names {
			if ino != 0 {
				d.sorted = append(d.sorted, name)
			}
		}
		slices.Sort(d.sorted)
	}
	from, found := slices.BinarySearch(d.sorted, after)
	if found {
		from++
	}
	rest := d.sorted[from:]
	rest = rest[:min(len(rest), limit)]
	page = make([]file.Entry, 0, len(rest))
	for _, name := range rest {
		f := c.knownLocked(d.names[name])
		if f == nil || f.attr == nil {
			return nil, false
		}
		page = append(page, file.Entry{Name: name, Attr: *f.attr})
	}
	return page, true
}

// found keeps the answer to a lookup; a nil attribute: there is no such name.
func (c *fileCache) found(t ticket, g *dcpb.DataGrant, dir file.Ino, name string, a *file.Attr) {
	c.keep(t, g, func(ok func(file.Ino) bool) {
		if a != nil && ok(a.Ino) {
			c.setAttrLocked(*a)
		}
		if ok(dir) {
			d := c.fileLocked(dir)
			if a == nil {
				c.setNameLocked(d, name, 0)
			} else {
				c.setNameLocked(d, name, a.Ino)
			}
		}
	})
}

// heard keeps attributes, and of files also content and of links the target if they are given.
func (c *fileCache) heard(t ticket, g *dcpb.DataGrant, a file.Attr, content *file.Content) {
	c.keep(t, g, func(ok func(file.Ino) bool) {
		if !ok(a.Ino) {
			return
		}
		f := c.setAttrLocked(a)
		if content != nil && content.From == 0 && !a.IsDir() && content.Attr.Version == f.attr.Version && contentBytes(content) <= cachedBytes/evictShare {
			kept := *content
			c.setContentLocked(f, &kept)
		}
	})
}

// heardTarget keeps the target of a link, which never changes.
func (c *fileCache) heardTarget(t ticket, g *dcpb.DataGrant, ino file.Ino, target []byte) {
	c.keep(t, g, func(ok func(file.Ino) bool) {
		if ok(ino) {
			c.fileLocked(ino).target = target
		}
	})
}

// listed keeps a page of a directory; whole if it is the last.
func (c *fileCache) listed(t ticket, g *dcpb.DataGrant, dir file.Ino, after string, page []file.Entry, whole bool) {
	c.keep(t, g, func(ok func(file.Ino) bool) {
		for _, e := range page {
			if ok(e.Attr.Ino) {
				c.setAttrLocked(e.Attr)
			}
		}
		if !ok(dir) {
			return
		}
		d := c.fileLocked(dir)
		for _, e := range page {
			c.setNameLocked(d, e.Name, e.Attr.Ino)
		}
		switch {
		case after > d.upTo || len(d.names) > cachedListing:
		case whole:
			d.listed = true
		case len(page) > 0:
			d.upTo = max(d.upTo, page[len(page)-1].Name)
		}
	})
}
