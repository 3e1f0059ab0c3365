package data_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	srvdata "missingos/srv/data"
	"missingos/srv/data/datatest"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/machine/data"
)

// noise gives n bytes that nothing else has.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// holders are the nodes that should have a block.
func holders(t *testing.T, c *datatest.Cluster, id file.BlockID) []dc.NodeID {
	t.Helper()
	var nodes []dc.NodeID
	if err := c.Meta.Local(func(rd storage.Reader) error {
		h, _ := data.Held(rd, 0, id)
		nodes = h.Nodes
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return nodes
}

// isOn tells whether exactly these many nodes should have a block, none of not, and have it, whole.
func isOn(t *testing.T, c *datatest.Cluster, id file.BlockID, n int, not ...dc.NodeID) bool {
	t.Helper()
	nodes := holders(t, c, id)
	for _, x := range nodes {
		if slices.Contains(not, x) || c.Store(x).Verify(id) != nil {
			return false
		}
	}
	return len(nodes) == n
}

// besides gives the holders of a block but node 1, which leads the group.
func besides(l file.Location) []dc.NodeID {
	return slices.DeleteFunc(slices.Sorted(slices.Values(l.Nodes)), func(n dc.NodeID) bool { return n == 1 })
}

func readsAs(t *testing.T, c *datatest.Cluster, ino file.Ino, want []byte) {
	t.Helper()
	for _, n := range c.Nodes() {
		if got, err := read(t, c, n, ino); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("from %s: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestBlocksOfADeadNodeAreCopiedAndItsSurplusGoesWhenItIsBack(t *testing.T) {
	c := datatest.New(t, 5, datatest.Care(-1))
	a := create(t, c, "f")
	want := noise(1, 300_000)
	l := write(t, c, 1, a.Ino, 0, want)
	victim := besides(l)[0]
	c.Cut(victim, true)
	c.Say(victim, srvdata.Member{})
	write(t, c, 1, create(t, c, "other").Ino, 0, []byte("x"))
	if nodes := holders(t, c, l.Block); !slices.Contains(nodes, victim) {
		t.Fatalf("on %v: a node that is down and not dead counts", nodes)
	}
	c.Say(victim, srvdata.Member{Dead: true})
	wait(t, "three copies elsewhere", func() bool { return isOn(t, c, l.Block, 3, victim) })
	c.Cut(victim, false)
	c.Say(victim, srvdata.Member{Up: true})
	readsAs(t, c, a.Ino, want)
	if n, err := c.Blocks(victim).CollectOrphans(as(t, victim), c.Client(victim), 0); err != nil || n != 1 {
		t.Fatalf("%d surplus copies collected, %v", n, err)
	}
	if !isOn(t, c, l.Block, 3, victim) {
		t.Fatalf("on %v", holders(t, c, l.Block))
	}
}

func TestTheLastCopyIsSavedFirstAndAllBecomeThree(t *testing.T) {
	c := datatest.New(t, 5, datatest.Care(4*dc.MiB))
	a := create(t, c, "f")
	blocks := map[file.BlockID]file.Ino{}
	contents := map[file.Ino][]byte{}
	for i := range 20 {
		f := create(t, c, "f"+string(rune('a'+i)))
		contents[f.Ino] = noise(uint64(i), 50_000)
		blocks[write(t, c, 1, f.Ino, 0, contents[f.Ino]).Block] = f.Ino
	}
	last := write(t, c, 1, a.Ino, 0, []byte("precious"))
	one, two := besides(last)[0], besides(last)[1]
	for _, n := range []dc.NodeID{one, two} {
		c.Cut(n, true)
		c.Say(n, srvdata.Member{Dead: true})
	}
	wait(t, "all blocks on three nodes", func() bool {
		for id := range blocks {
			if !isOn(t, c, id, 3, one, two) {
				return false
			}
		}
		return isOn(t, c, last.Block, 3, one, two)
	})
	for _, n := range []dc.NodeID{one, two} {
		c.Cut(n, false)
	}
	for ino, want := range contents {
		readsAs(t, c, ino, want)
	}
}

func TestCareGoesOnUnderTheNextLeader(t *testing.T) {
	c := datatest.New(t, 4, datatest.Care(512*dc.KiB))
	a := create(t, c, "f")
	var blocks []file.BlockID
	for i := range 8 {
		blocks = append(blocks, write(t, c, 1, a.Ino, int64(i)*100_000, noise(uint64(i), 100_000)).Block)
	}
	c.Cut(2, true)
	c.Say(2, srvdata.Member{Dead: true})
	for range 5 {
		c.Meta.Resign()
		c.Meta.Lead()
	}
	wait(t, "all blocks on three nodes", func() bool {
		for _, id := range blocks {
			if !isOn(t, c, id, 3, 2) {
				return false
			}
		}
		return true
	})
}

// flip changes one byte of a block's data on the disk of a node.
func flip(t *testing.T, c *datatest.Cluster, n dc.NodeID, content []byte) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(c.Dir(n), "seg-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range segments {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(b, content[:64]); at >= 0 {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{content[10] ^ 0x40}, int64(at)+10); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("node %s has no such content", n)
}

func TestAFlippedByteIsReadRightAndMended(t *testing.T) {
	c := datatest.New(t, 3, datatest.Care(-1))
	a := create(t, c, "f")
	want := noise(2, 200_000)
	l := write(t, c, 1, a.Ino, 0, want)
	flip(t, c, 1, want)
	if err := c.Store(1).Verify(l.Block); !errors.Is(err, dc.Corrupt) {
		t.Fatalf("got %v, want %v", err, dc.Corrupt)
	}
	if got, err := read(t, c, 1, a.Ino); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	wait(t, "the copy is mended", func() bool { return c.Store(1).Verify(l.Block) == nil })
	if nodes := holders(t, c, l.Block); !slices.Equal(nodes, l.Nodes) {
		t.Fatalf("on %v, was on %v", nodes, l.Nodes)
	}
}

func TestAMissingCopyIsPutBackInItsPlace(t *testing.T) {
	c := datatest.New(t, 3, datatest.Care(-1))
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("precious"))
	if err := c.Store(2).Delete([]file.BlockID{l.Block}); err != nil {
		t.Fatal(err)
	}
	c.Say(3, srvdata.Member{Up: true, Rack: "elsewhere"}) // any change of a node begins a round
	wait(t, "the copy is back", func() bool { return c.Store(2).Verify(l.Block) == nil })
	readsAs(t, c, a.Ino, []byte("precious"))
}

func TestBlocksWrittenToTwoNodesGetTheThirdCopy(t *testing.T) {
	c := datatest.New(t, 3, datatest.Care(-1))
	a := create(t, c, "f")
	c.Stall(3, true)
	l := write(t, c, 1, a.Ino, 0, []byte("two will do"))
	if len(l.Nodes) != 2 {
		t.Fatalf("on %v", l.Nodes)
	}
	c.Stall(3, false)
	wait(t, "three copies", func() bool { return isOn(t, c, l.Block, 3) })
}

func TestADrainingNodeIsEmptiedAndOldLocationsAreFollowed(t *testing.T) {
	c := datatest.New(t, 6, datatest.Care(-1))
	a := create(t, c, "f")
	want := noise(3, 100_000)
	l := write(t, c, 1, a.Ino, 0, want)
	for _, n := range l.Nodes { // one after the other, until none of the old places is left
		c.Say(n, srvdata.Member{Up: true, Drain: true})
		wait(t, n.String()+" is empty", func() bool { return c.Store(n).Stats().Blocks == 0 && isOn(t, c, l.Block, 3, n) })
	}
	for _, n := range c.Nodes() {
		got := make([]byte, len(want))
		if k, err := c.Client(n).ReadBlock(as(t, n), l.Block, l.Nodes, 0, got); err != nil || !bytes.Equal(got[:k], want) {
			t.Fatalf("from %s by its old places %v: %d bytes, %v", n, l.Nodes, k, err)
		}
	}
}

func TestANodeThatHasJustFetchedIsEmptiedAtOnce(t *testing.T) {
	c := datatest.New(t, 5, datatest.Care(-1))
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("here and gone"))
	first := besides(l)[0]
	c.Say(first, srvdata.Member{Up: true, Drain: true})
	wait(t, "the block has moved", func() bool { return isOn(t, c, l.Block, 3, first) })
	for _, n := range holders(t, c, l.Block) {
		if !slices.Contains(l.Nodes, n) {
			c.Say(n, srvdata.Member{Up: true, Drain: true})
			wait(t, n.String()+" is empty", func() bool { return c.Store(n).Stats().Blocks == 0 && isOn(t, c, l.Block, 3, first, n) })
			return
		}
	}
	t.Fatal("no node has fetched the block")
}

func TestTooFewNodesLeaveADrainingNodeAsItIs(t *testing.T) {
	c := datatest.New(t, 3, datatest.Care(-1))
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("nowhere to go"))
	c.Say(2, srvdata.Member{Up: true, Drain: true})
	care := func() *dcpb.DataCareReply {
		s, err := c.Client(1).Care(as(t, 1))
		if err != nil {
			return &dcpb.DataCareReply{}
		}
		return s
	}
	wait(t, "a round is over", func() bool {
		s := care()
		return s.CountedMs != 0 && s.Doing == "" && slices.ContainsFunc(s.Stores, func(x *dcpb.DataStore) bool { return x.State == "draining" })
	})
	if !isOn(t, c, l.Block, 3) {
		t.Fatalf("on %v", holders(t, c, l.Block))
	}
}

func TestALateDeletionOfABlockThatIsWantedDoesNothing(t *testing.T) {
	c := datatest.New(t, 4, datatest.Care(-1))
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("precious"))
	if err := c.Client(1).DeleteBlocks(as(t, 1), l.Nodes[1], []file.BlockID{l.Block}); err != nil {
		t.Fatal(err)
	}
	if !isOn(t, c, l.Block, 3) {
		t.Fatal("a block that a file needs was deleted")
	}
	other := dc.NodeID(10 - l.Nodes[0] - l.Nodes[1] - l.Nodes[2])
	each, err := c.Client(1).FetchBlocks(as(t, 1), other, []file.Fetch{{Block: l.Block, Bytes: l.Bytes, From: l.Nodes}})
	if err != nil || each[0] != nil {
		t.Fatal(err, each)
	}
	if err := c.Client(1).DeleteBlocks(as(t, 1), other, []file.BlockID{l.Block}); !errors.Is(err, dc.Busy) {
		t.Fatalf("a copy that was fetched a moment ago: got %v, want %v", err, dc.Busy)
	}
	if n, err := c.Blocks(other).CollectOrphans(as(t, other), c.Client(other), 0); err != nil || n != 0 {
		t.Fatalf("%d collected, %v", n, err)
	}
}

func TestCopiesGoWhereLeastFailsTogether(t *testing.T) {
	c := datatest.New(t, 6, datatest.Care(-1))
	racks := map[dc.NodeID]string{1: "a", 2: "a", 3: "a", 4: "b", 5: "b", 6: "c"}
	for n, r := range racks {
		c.Say(n, srvdata.Member{Up: true, Rack: r})
	}
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("spread"))
	victim := besides(l)[0]
	c.Cut(victim, true)
	c.Say(victim, srvdata.Member{Dead: true})
	wait(t, "three copies elsewhere", func() bool { return isOn(t, c, l.Block, 3, victim) })
	beside := func(n dc.NodeID) (same int) {
		for _, o := range l.Nodes {
			if o != victim && o != n && racks[o] == racks[n] {
				same++
			}
		}
		return same
	}
	for _, n := range holders(t, c, l.Block) {
		if slices.Contains(l.Nodes, n) {
			continue
		}
		for other := range racks {
			if other != victim && !slices.Contains(l.Nodes, other) && beside(other) < beside(n) {
				t.Fatalf("the new copy is on %s, in rack %s with %d others; %s was free", n, racks[n], beside(n), other)
			}
		}
	}
}

func TestBlocksMoveToANewNodeUntilTheDifferenceIsSmall(t *testing.T) {
	c := datatest.New(t, 4, datatest.Care(-1), datatest.StoreBytes(8*dc.MiB))
	c.Cut(4, true)
	c.Say(4, srvdata.Member{})
	a := create(t, c, "f")
	for i := range 40 {
		write(t, c, 1, a.Ino, int64(i)*100_000, noise(uint64(i), 100_000))
	}
	c.Cut(4, false)
	c.Say(4, srvdata.Member{Up: true})
	wait(t, "the new node has its share", func() bool {
		least, most := int64(1<<62), int64(0)
		for _, n := range c.Nodes() {
			used := c.Store(n).Stats().Bytes
			least, most = min(least, used), max(most, used)
		}
		return most-least < 8*dc.MiB/10
	})
	s, err := c.Client(1).Care(as(t, 1))
	if err != nil || s.Done == 0 || s.Done > 40*3/4 {
		t.Fatalf("%d of 120 copies have moved, a quarter is enough; %v", s.Done, err)
	}
}

func TestBlocksThatAreLargeBesideTheStoresDoNotMoveForEver(t *testing.T) {
	c := datatest.New(t, 4, datatest.Care(-1), datatest.StoreBytes(10*dc.MiB))
	c.Cut(4, true)
	c.Say(4, srvdata.Member{})
	a := create(t, c, "f")
	for i := range 6 {
		write(t, c, 1, a.Ino, int64(i)<<20, noise(uint64(i), 1<<20))
	}
	c.Cut(4, false)
	c.Say(4, srvdata.Member{Up: true})
	done := uint64(0)
	same := 0
	wait(t, "nothing moves any more", func() bool {
		s, err := c.Client(1).Care(as(t, 1))
		if err != nil || s.Done == 0 || s.Done != done || s.Doing != "" {
			done, same = s.GetDone(), 0
			return false
		}
		same++
		return same > 150 // longer than balance waits between looks
	})
	if done > 4 {
		t.Fatalf("%d copies have moved, 4 are enough", done)
	}
}

func TestAFullNodeIsPassedOverAndOthersTakeItsBlocks(t *testing.T) {
	c := datatest.New(t, 4, datatest.Care(-1), datatest.StoreBytesOf(3, 200_000))
	a := create(t, c, "f")
	for i := range 12 {
		l := write(t, c, 2, a.Ino, int64(i)*100_000, noise(uint64(i), 100_000))
		if len(l.Nodes) < 3 {
			t.Fatalf("block %d is on %v", i, l.Nodes)
		}
	}
	space, err := c.Client(1).Space(as(t, 1))
	if err != nil || space.Free == 0 {
		t.Fatalf("space %+v, %v", space, err)
	}
}
