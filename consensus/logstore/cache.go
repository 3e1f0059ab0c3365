package logstore

import "github.com/hashicorp/raft"

// cache keeps the entries that were written last, of all groups: followers are sent what was just appended.
type cache struct {
	limit, bytes int
	logs         map[cacheKey]*raft.Log
	order        []cached // from head on, oldest first
	head         int
}

type cacheKey struct {
	group *group
	index uint64
}

type cached struct {
	cacheKey
	log  *raft.Log
	size int
}

func (c *cache) get(g *group, index uint64) *raft.Log { return c.logs[cacheKey{g, index}] }

// entryOverhead is about what an entry takes in memory beside its data.
const entryOverhead = 256

// put counts an entry as it is in memory: compressed, it may be a hundredth of that.
func (c *cache) put(g *group, l *raft.Log) {
	size := len(l.Data) + len(l.Extensions) + entryOverhead
	if c.logs == nil {
		c.logs = map[cacheKey]*raft.Log{}
	}
	k := cacheKey{g, l.Index}
	c.logs[k] = l
	c.order = append(c.order, cached{k, l, size})
	c.bytes += size
	for c.bytes > c.limit {
		old := c.order[c.head]
		if c.logs[old.cacheKey] == old.log {
			delete(c.logs, old.cacheKey)
		}
		c.bytes -= old.size
		c.order[c.head] = cached{}
		c.head++
	}
	if c.head > len(c.order)/2 {
		c.order, c.head = append([]cached(nil), c.order[c.head:]...), 0
	}
}

func (c *cache) remove(g *group, index uint64) { delete(c.logs, cacheKey{g, index}) }
