package storage

import (
	"bytes"
	"iter"
	"sync"

	"missingos/srv/dc"
)

// A cache keeps rows that were read lately, present or known to be absent, so that hot rows cost no search through Badger's tables:
// measured, two thirds of what applying a small change cost. Only reads bring rows in; a write replaces what is kept of its row. So rows that are
// written and hardly ever read, such as history, never crowd it.
//
// A kept row is the row's state from the version `since` on until `through`, the version the whole cache is at. The apply path moves through
// forward together with the rows it writes, before the shard's applied index moves, so no reader is ever ahead of it; a reader that is
// behind since asks Badger.
//
// It has two halves: rows go into the young one and are moved there when they are used; when it is full it becomes the old one, and what was left in
// that is forgotten.
type cache struct {
	limit int // bytes of each half

	mu         sync.Mutex
	through    dc.Index
	young, old map[string]cachedRow
	bytes      int // of young
}

type cachedRow struct {
	value []byte // immutable
	there bool
	since dc.Index
}

const cachedRowBytes = 96 // about what a row costs beside its key and value

func newCache(limit int, at dc.Index) *cache {
	return &cache{limit: limit / 2, through: at, young: map[string]cachedRow{}}
}

// get finds a row as of version at.
func (c *cache) get(key []byte, at dc.Index) (row cachedRow, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row, ok = c.young[string(key)]
	if !ok {
		if row, ok = c.old[string(key)]; !ok {
			return row, false
		}
		delete(c.old, string(key))
		c.keepLocked(string(key), row)
	}
	return row, row.since <= at
}

// fill keeps what Badger said of a row as of version at, unless something was written since. value must not change any more.
func (c *cache) fill(key, value []byte, there bool, at dc.Index) {
	if key[0] == shardKeys || len(key)+len(value) > c.limit/16 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at == c.through {
		c.keepLocked(string(key), cachedRow{value: value, there: there, since: at})
	}
}

func (c *cache) keepLocked(key string, row cachedRow) {
	if was, ok := c.young[key]; ok {
		c.bytes -= len(was.value)
	} else {
		c.bytes += len(key) + cachedRowBytes
	}
	c.bytes += len(row.value)
	c.young[key] = row
	if c.bytes > c.limit {
		c.old, c.young, c.bytes = c.young, map[string]cachedRow{}, 0
	}
}

// advance takes over what was written up to version at.
func (c *cache) advance(rows *rowMap, at dc.Index) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.through = at
	rows.each(Span{}, func(r row) bool {
		_, young := c.young[string(r.key)]
		if _, old := c.old[string(r.key)]; !young && !old {
			return true
		}
		delete(c.old, string(r.key))
		if len(r.key)+len(r.value) > c.limit/16 {
			if was, ok := c.young[string(r.key)]; ok {
				c.bytes -= len(r.key) + len(was.value) + cachedRowBytes
				delete(c.young, string(r.key))
			}
			return true
		}
		c.keepLocked(string(r.key), cachedRow{value: r.value, there: !r.dropped, since: at})
		return true
	})
}

// A cachedReader reads a generation at one version, by way of its cache. Badger is asked only for what that lacks.
type cachedReader struct {
	g    *generation
	at   dc.Index
	disk reader // its transaction is begun when it is needed
}

func (r *cachedReader) badger() reader {
	if r.disk.txn == nil {
		r.disk = r.g.reader(r.at)
	}
	return r.disk
}

func (r *cachedReader) close() {
	if r.disk.txn != nil {
		r.disk.close()
	}
}

func (r *cachedReader) Get(key []byte) ([]byte, bool) {
	if row, ok := r.g.cache.get(key, r.at); ok {
		return bytes.Clone(row.value), row.there
	}
	value, there := r.badger().Get(key)
	r.g.cache.fill(key, bytes.Clone(value), there, r.at)
	return value, there
}

func (r *cachedReader) Scan(s Span) iter.Seq2[[]byte, []byte] { return r.badger().Scan(s) }
