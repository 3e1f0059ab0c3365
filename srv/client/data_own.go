package client

import (
	"slices"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// An ownChange is a change of this node that is under way: meanwhile the cache does not answer about its inodes.
type ownChange struct {
	cache *fileCache
	conn  uint64
	seq   uint64 // of the cache when it began
	inos  []file.Ino
}

// begin begins a change about inos; 0 and repetitions do not count. end must follow.
func (c *fileCache) begin(inos ...file.Ino) *ownChange {
	c.used.Store(int64(c.now()))
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &ownChange{cache: c, conn: c.conn}
	c.seq++
	for _, ino := range inos {
		if ino == 0 || o.has(ino) {
			continue
		}
		o.inos = append(o.inos, ino)
		c.loseLocked(ino)
		b := c.busy[ino]
		if b == nil {
			b = &busyFile{}
			c.busy[ino] = b
		}
		b.changes++
		b.overlapped = b.overlapped || b.changes > 1
	}
	o.seq = c.seq
	return o
}

func (o *ownChange) has(ino file.Ino) bool {
	return slices.Contains(o.inos, ino)
}

// hold is what the request says.
func (o *ownChange) hold() *dcpb.Hold {
	if o.conn == 0 {
		return nil
	}
	h := &dcpb.Hold{Connection: o.conn}
	for _, ino := range o.inos {
		h.Own = append(h.Own, uint64(ino))
	}
	return h
}

// named gives what a name is known to name; 0 if that is not known.
func (c *fileCache) named(dir file.Ino, name string) file.Ino {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.files[dir]; d != nil {
		return d.names[name]
	}
	return 0
}

// moves gives what a rename, whose reply names moved, does to names. With RENAME_EXCHANGE what was replaced must be known, or the old name is not.
func (c *fileCache) moves(q *dcpb.DataRenameRequest, moved, replaced file.Ino) []named {
	from, to := named{dir: file.Ino(q.Parent), name: string(q.Name)}, named{dir: file.Ino(q.NewParent), name: string(q.NewName), ino: moved}
	switch {
	case q.Flags&unix.RENAME_EXCHANGE != 0:
		from.ino = replaced
		from.unknown = replaced == 0
	case from.dir == to.dir && from.name == to.name:
		return nil
	}
	to.unknown = moved == 0
	return []named{from, to}
}

// named is what a change does to a name; ino 0: it goes.
type named struct {
	dir     file.Ino
	name    string
	ino     file.Ino
	unknown bool // what it names now is not known
}

// end takes in the outcome: out is the reply, names what it did to names. update, if set, makes of the content that the first inode had what it has now; it is called, under the
// lock, if nothing else happened to it. An unknown outcome makes all leases worthless: the change may still come.
func (o *ownChange) end(out *dcpb.DataAttrReply, err error, update func(*file.Content) *file.Content, names ...named) {
	c := o.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	if err != nil && unknownOutcome(err) {
		if c.conn != 0 && c.conn == o.conn {
			c.conn = 0
			c.until.Store(0)
			c.resetLocked()
			c.want()
		}
		o.leaveLocked()
		return
	}
	if err == nil && c.conn == o.conn && o.conn != 0 {
		before := o.contentLocked()
		o.freshLocked(out)
		for _, n := range names {
			o.nameLocked(n)
		}
		if update != nil && before != nil {
			o.updateLocked(update(before))
		}
		c.trimLocked()
	}
	o.leaveLocked()
}

// contentLocked gives the content of the first inode as it was before the change, if that is known.
func (o *ownChange) contentLocked() *file.Content {
	f := o.cache.files[o.inos[0]]
	switch {
	case f == nil || f.attr == nil:
		return nil
	case f.content == nil && f.attr.Size == 0 && f.attr.Allocated == 0:
		return &file.Content{Attr: *f.attr, To: unlimitedOffset}
	}
	return f.content
}

// updateLocked keeps content as that of the first inode, if it is known to be of the version that it has now.
func (o *ownChange) updateLocked(content *file.Content) {
	c := o.cache
	b, f := c.busy[o.inos[0]], c.files[o.inos[0]]
	if content == nil || f == nil || f.attr == nil || b.overlapped || b.revoked || b.unknown || content.Attr.Version != f.attr.Version {
		return
	}
	c.setContentLocked(f, content)
}

// unknownOutcome tells whether a change that failed so may have been made, or may be yet.
func unknownOutcome(err error) bool {
	switch dc.KindOf(err) {
	case dc.Unavailable, dc.Interrupted, dc.Internal, dc.NotLeader, dc.Again, dc.Busy:
		return true
	}
	return false
}

// freshLocked takes in the attributes that the reply brings.
func (o *ownChange) freshLocked(out *dcpb.DataAttrReply) {
	c := o.cache
	granted := map[file.Ino]bool{}
	if out.GetGrant().GetConnection() == o.conn {
		for _, a := range out.Fresh {
			granted[file.Ino(a.Ino)] = true
		}
		for _, ino := range out.Grant.Refused {
			delete(granted, file.Ino(ino))
		}
		for _, m := range out.Fresh {
			a := attrOf(m)
			b := c.busy[a.Ino]
			switch {
			case !granted[a.Ino]:
			case b == nil && (c.lost[a.Ino] != 0 || o.seq < c.floor): // of an inode that was not thought of, which may have changed again
			case b == nil:
				c.setAttrLocked(a)
			case !b.revoked && o.has(a.Ino):
				c.setAttrLocked(a)
			}
		}
	}
	for _, ino := range o.inos {
		if !granted[ino] {
			c.busy[ino].unknown = true
		}
	}
}

// nameLocked takes in what the change did to a name.
func (o *ownChange) nameLocked(n named) {
	c := o.cache
	b, d := c.busy[n.dir], c.files[n.dir]
	if d == nil || b == nil || b.revoked {
		return
	}
	if b.overlapped || n.unknown {
		if _, known := d.names[n.name]; known {
			delete(d.names, n.name)
			c.names--
		}
		d.listed, d.upTo, d.sorted = false, "", nil
		return
	}
	c.setNameLocked(d, n.name, n.ino)
}

// leaveLocked ends the time in which the cache does not answer.
func (o *ownChange) leaveLocked() {
	c := o.cache
	for _, ino := range o.inos {
		c.loseLocked(ino)
		b := c.busy[ino]
		if b.changes--; b.changes > 0 {
			continue
		}
		delete(c.busy, ino)
		f := c.files[ino]
		switch {
		case f == nil:
		case b.revoked:
			c.dropLocked(f)
		case b.unknown:
			f.attr = nil
			c.setContentLocked(f, nil)
		}
	}
}
