package data_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"missingos/srv/data/datatest"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/machine/data"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func as(t *testing.T, node dc.NodeID) context.Context {
	return dc.WithPrincipal(t.Context(), dc.Principal{Node: node})
}

func create(t *testing.T, c *datatest.Cluster, name string) file.Attr {
	t.Helper()
	a, _, err := c.Client(1).Make(as(t, 1), file.Make{Dir: file.Root, Name: name, Mode: file.Regular | 0o644, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// write puts p at off through a block and commits it.
func write(t *testing.T, c *datatest.Cluster, node dc.NodeID, ino file.Ino, off int64, p []byte) file.Location {
	t.Helper()
	d := c.Client(node)
	l, err := d.WriteBlock(as(t, node), ino, p)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Commit(as(t, node), file.Commit{
		Ino: ino, Mtime: 1, Blocks: []file.Location{l}, Pieces: []file.Piece{{Off: off, Len: int64(len(p)), Block: l.Block}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// read gives the whole of a file that has one extent at most.
func read(t *testing.T, c *datatest.Cluster, node dc.NodeID, ino file.Ino) ([]byte, error) {
	t.Helper()
	d := c.Client(node)
	content, err := d.Content(as(t, node), ino, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, content.Attr.Size)
	copy(p[min(content.InlineOff, content.Attr.Size):], content.Inline)
	for _, e := range content.Extents {
		if _, err := d.ReadBlock(as(t, node), e.Block, e.Nodes, e.BlockOff, p[e.Off:e.End()]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(file.OpenGrace + 10*time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestBlocksAreOnThreeNodesAndReadableFromAll(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	p := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	l := write(t, c, 2, a.Ino, 0, p)
	if l.Nodes[0] != 2 && len(l.Nodes) != 3 {
		t.Fatalf("replicas on %v, want this node first and three in all", l.Nodes)
	}
	for _, n := range c.Nodes() {
		if got, err := read(t, c, n, a.Ino); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("from %s: %d bytes, %v", n, len(got), err)
		}
		if err := c.Client(n).SyncBlocks(as(t, n), [][]dc.NodeID{l.Nodes}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWritesGoRoundADeadNodeAndReadsToo(t *testing.T) {
	c := datatest.New(t, 4)
	a := create(t, c, "f")
	c.Cut(3, true)
	l := write(t, c, 1, a.Ino, 0, []byte("hello"))
	if len(l.Nodes) != 3 || slices.Contains(l.Nodes, 3) {
		t.Fatalf("replicas on %v, want three without node 3", l.Nodes)
	}
	c.Cut(3, false)
	for _, n := range l.Nodes {
		if n != 1 {
			c.Cut(n, true)
			if got, err := read(t, c, 3, a.Ino); err != nil || string(got) != "hello" {
				t.Fatalf("with %s gone: %q, %v", n, got, err)
			}
		}
	}
}

func TestAStalledNodeIsWaitedForOnce(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	c.Stall(3, true)
	write(t, c, 1, a.Ino, 0, []byte("the first write finds out"))
	start := time.Now()
	for range 10 {
		if l := write(t, c, 1, a.Ino, 0, []byte("the others know")); slices.Contains(l.Nodes, 3) || len(l.Nodes) != 2 {
			t.Fatalf("replicas on %v", l.Nodes)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Fatalf("ten writes beside a stalled node took %v", took)
	}
	c.Stall(3, false)
	wait(t, "the node gets blocks again", func() bool {
		return len(write(t, c, 1, a.Ino, 0, []byte("x")).Nodes) == 3
	})
}

func TestOneReplicaIsNotEnoughOfThree(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	c.Cut(2, true)
	c.Cut(3, true)
	start := time.Now()
	if _, err := c.Client(1).WriteBlock(as(t, 1), a.Ino, []byte("x")); !errors.Is(err, dc.Unavailable) {
		t.Fatalf("got %v, want %v", err, dc.Unavailable)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("it took %v", took)
	}
	one := datatest.New(t, 1)
	b := create(t, one, "f")
	if l := write(t, one, 1, b.Ino, 0, []byte("x")); len(l.Nodes) != 1 {
		t.Fatalf("a one-node cluster wrote to %v", l.Nodes)
	}
}

func TestFullStoresAnswerNoSpace(t *testing.T) {
	c := datatest.New(t, 3, datatest.StoreBytes(dc.MiB))
	a := create(t, c, "f")
	var err error
	for i := 0; err == nil && i < 10; i++ {
		_, err = c.Client(1).WriteBlock(as(t, 1), a.Ino, make([]byte, 300_000))
	}
	if !errors.Is(err, dc.NoSpace) {
		t.Fatalf("got %v, want %v", err, dc.NoSpace)
	}
	if _, err := c.Client(2).Stat(as(t, 2), a.Ino, 0); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedReplicaIsPassedOver(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	l := write(t, c, 1, a.Ino, 0, []byte("precious"))
	if err := c.Store(1).Delete([]file.BlockID{l.Block}); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, c, 1, a.Ino); err != nil || string(got) != "precious" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestOverwrittenBlocksAreDeletedEverywhere(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	c.Cut(3, true)
	c.Cut(3, false)
	old := write(t, c, 1, a.Ino, 0, []byte("old"))
	write(t, c, 2, a.Ino, 0, []byte("new"))
	for _, n := range old.Nodes {
		wait(t, "the old block goes from "+n.String(), func() bool {
			_, err := c.Store(n).Read(old.Block, 0, make([]byte, 1))
			return errors.Is(err, dc.NotFound)
		})
	}
	if got, err := read(t, c, 3, a.Ino); err != nil || string(got) != "new" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestOpenFilesOutliveTheirNames(t *testing.T) {
	c := datatest.New(t, 3, datatest.Grace(time.Second))
	a := create(t, c, "open")
	b := create(t, c, "closed")
	write(t, c, 1, a.Ino, 0, []byte("still here"))
	if _, err := c.Client(3).Open(as(t, 3), a.Ino, data.WantRead); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"open", "closed"} {
		if gone, err := c.Client(2).Unlink(as(t, 2), file.Root, name, false); err != nil || gone == 0 {
			t.Fatal(err)
		}
	}
	gone := func(ino file.Ino) func() bool {
		return func() bool {
			if err := c.Client(3).Report(as(t, 3)); err != nil {
				t.Error(err)
			}
			_, err := c.Client(1).Stat(as(t, 1), ino, 0)
			return errors.Is(err, dc.Stale)
		}
	}
	wait(t, "the closed file is purged", gone(b.Ino))
	if got, err := read(t, c, 3, a.Ino); err != nil || string(got) != "still here" {
		t.Fatalf("open and unlinked: %q, %v", got, err)
	}
	if _, err := c.Client(2).Open(as(t, 2), b.Ino, data.WantRead); !errors.Is(err, dc.Stale) {
		t.Fatalf("a purged file was opened: %v", err)
	}
	if _, err := c.Client(2).Open(as(t, 2), a.Ino, data.WantRead); err != nil { // whoever found its name before may come late
		t.Fatal(err)
	}
	c.Client(3).Closed(a.Ino)
	if err := c.Client(3).Report(as(t, 3)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if got, err := read(t, c, 2, a.Ino); err != nil || string(got) != "still here" {
		t.Fatalf("open on another node: %q, %v", got, err)
	}
	c.Client(2).Closed(a.Ino)
	if err := c.Client(2).Report(as(t, 2)); err != nil {
		t.Fatal(err)
	}
	wait(t, "the file is purged once it is closed", gone(a.Ino))
	wait(t, "its block is deleted", func() bool { return c.Store(2).Stats().Blocks == 0 })
	space, err := c.Client(1).Space(as(t, 1))
	if err != nil || space.Inodes != 1 || space.Used != 0 || space.Free == 0 {
		t.Fatalf("space %+v, %v", space, err)
	}
}

func TestBlocksOfADeadWriterAreCollected(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "f")
	kept := write(t, c, 1, a.Ino, 0, []byte("kept"))
	lost, err := c.Client(2).WriteBlock(as(t, 2), a.Ino, []byte("never committed"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.Blocks(3).CollectOrphans(as(t, 3), c.Client(3), time.Hour)
	if err != nil || n != 0 {
		t.Fatalf("young blocks: %d deleted, %v", n, err)
	}
	n, err = c.Blocks(3).CollectOrphans(as(t, 3), c.Client(3), 0)
	if err != nil || n != 1 {
		t.Fatalf("%d deleted, %v", n, err)
	}
	if _, err := c.Store(3).Read(kept.Block, 0, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Store(3).Read(lost.Block, 0, make([]byte, 1)); !errors.Is(err, dc.NotFound) {
		t.Fatal(err)
	}
	c.Cut(1, true)
	if n, err := c.Blocks(2).CollectOrphans(shortly(t), c.Client(2), 0); err == nil || n != 0 {
		t.Fatalf("without an answer from the leader %d were deleted, %v", n, err)
	}
}

func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(as(t, 2), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestAppendsFromTwoNodesKeepAllLines(t *testing.T) {
	c := datatest.New(t, 3)
	a := create(t, c, "log")
	const lines = 40
	done := make(chan error, 2)
	for _, n := range []dc.NodeID{1, 2} {
		go func() {
			for i := range lines {
				line := fmt.Appendf(nil, "node %d line %d %s\n", n, i, bytes.Repeat([]byte("."), 300))
				_, _, err := c.Client(n).Append(as(t, n), file.Append{Ino: a.Ino, Mtime: 1, Inline: line})
				if errors.Is(err, dc.Conflict) {
					var l file.Location
					if l, err = c.Client(n).WriteBlock(as(t, n), a.Ino, line); err == nil {
						_, _, err = c.Client(n).Append(as(t, n), file.Append{Ino: a.Ino, Mtime: 1, Block: l})
					}
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	got, err := read(t, c, 3, a.Ino)
	if err != nil {
		t.Fatal(err)
	}
	next := map[byte]int{}
	for _, line := range bytes.Split(bytes.TrimSuffix(got, []byte("\n")), []byte("\n")) {
		var n byte
		var i int
		if _, err := fmt.Sscanf(string(line), "node %d line %d .", &n, &i); err != nil || next[n] != i {
			t.Fatalf("line %q: %v, want line %d of its node", line[:min(20, len(line))], err, next[n])
		}
		next[n]++
	}
	if next[1] != lines || next[2] != lines {
		t.Fatalf("lines %v", next)
	}
}

func TestLongTruncateIsOneCallForTheClient(t *testing.T) {
	c := datatest.New(t, 1)
	a := create(t, c, "f")
	d := c.Client(1)
	l, err := d.WriteBlock(as(t, 1), a.Ino, make([]byte, 4096))
	if err != nil {
		t.Fatal(err)
	}
	commit := file.Commit{Ino: a.Ino, Mtime: 1, Blocks: []file.Location{l}}
	for i := range 3000 {
		commit.Pieces = append(commit.Pieces, file.Piece{Off: int64(i) * 10, Len: 1, Block: l.Block, BlockOff: int64(i)})
	}
	if _, err := d.Commit(as(t, 1), commit); err != nil {
		t.Fatal(err)
	}
	size := int64(15)
	got, err := d.SetAttr(as(t, 1), a.Ino, file.SetAttr{Size: &size})
	if err != nil || got.Size != size || got.Allocated != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	_ = c.Meta.Local(func(rd storage.Reader) error {
		if ext, _ := data.Extents(rd, a.Ino, 0, 10); len(ext) != 2 {
			t.Errorf("%d extents are left", len(ext))
		}
		return nil
	})
}
