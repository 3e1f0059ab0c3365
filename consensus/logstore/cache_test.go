package logstore

import (
	"testing"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// The cache holds entries as they are, not as they are compressed on disk; its limit is one on memory.
func TestTheCacheCountsWhatEntriesTakeInMemory(t *testing.T) {
	c := cache{limit: dc.MiB}
	g := &group{}
	for i := uint64(1); i <= 100; i++ {
		c.put(g, &raft.Log{Index: i, Data: make([]byte, 100*dc.KiB)})
	}
	if n := len(c.logs); n != 10 {
		t.Errorf("%d entries of 100 KiB in a cache of 1 MiB, want 10", n)
	}
	if c.get(g, 100) == nil || c.get(g, 90) != nil {
		t.Error("the cache does not hold the latest entries")
	}
	c.put(g, &raft.Log{Index: 101, Data: make([]byte, 2*dc.MiB)})
	if len(c.logs) != 0 || c.bytes != 0 {
		t.Errorf("after an entry above the limit %d entries and %d bytes are held", len(c.logs), c.bytes)
	}
}
