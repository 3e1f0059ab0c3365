package restore

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"missingos/srv/dc"
	"missingos/storage"
)

// behind makes a cluster whose node 3 needs the whole state, and is down.
func behind(t *testing.T, dice *rand.Rand) *cluster {
	t.Helper()
	c := newCluster(t)
	c.put(5, dice)
	c.level(3)
	c.stop(3)
	c.put(200, dice)
	c.compact()
	return c
}

// Connections break again and again while the leader goes on writing: what has come is not sent again.
func TestAReplicaCatchesUpOverConnectionsThatBreak(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 1))
	c := behind(t, dice)
	c.cut = func(_ int, _ dc.NodeID, bytes int) bool { return bytes > 900_000 }
	c.start(3, c.home(3))
	c.put(30, dice)
	c.level(3)
	streams, bytes := c.pulled()
	if len(streams) < 3 {
		t.Errorf("only %d streams: the test is too small", len(streams))
	}
	if most := 3_500_000 + len(streams)*400_000; bytes > most {
		t.Errorf("%d bytes were sent in %d streams, want %d at most", bytes, len(streams), most)
	}
}

// The sender dies in the middle: another goes on with the same version.
func TestAReplicaCatchesUpThoughItsSenderDies(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	c := behind(t, dice)
	lead := c.leader().node
	died := make(chan struct{})
	c.cut = func(n int, from dc.NodeID, bytes int) bool {
		if n > 0 || from != lead || bytes < 900_000 {
			return false
		}
		<-died
		return true
	}
	c.start(3, c.home(3))
	other := c.process(3 - lead)
	eventually(t, func() bool { return other.group.Status().Held > 0 }) // it was asked to
	go func() { c.stop(lead); close(died) }()
	<-died
	c.put(10, dice)
	c.level(3)
	streams, bytes := c.pulled()
	if len(streams) != 2 || !strings.HasSuffix(streams[1], other.node.String()) || bytes > 5_000_000 {
		t.Errorf("pulled %q, %d bytes", streams, bytes)
	}
}

// A sender of the earlier version can only begin anew, and does.
func TestASenderOfTheEarlierVersion(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 4))
	c := behind(t, dice)
	c.old = true
	c.cut = func(n int, _ dc.NodeID, bytes int) bool { return n < 2 && bytes > 900_000 }
	c.start(3, c.home(3))
	c.put(10, dice)
	c.level(3)
	if streams, _ := c.pulled(); len(streams) != 3 {
		t.Errorf("pulled %q", streams)
	}
}

// A receiver that dies at any step has the old state or the new, gets the rest of what it has begun with, and does not begin again with what it has.
func TestCrashesOfTheReceiver(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 3))
	c := behind(t, dice)
	type crash struct{ step, dir string }
	var crashes []crash
	c.step = func(name string) { crashes = append(crashes, crash{name, clone(t, c.home(3))}) }
	c.cut = func(n int, _ dc.NodeID, bytes int) bool { return n == 0 && bytes > 900_000 }
	old := peek(t, clone(t, c.home(3)))
	c.start(3, c.home(3))
	c.level(3)
	current := c.hash(c.process(3))
	_, whole := c.pulled()
	c.stop(3)
	crashes = append(crashes, crash{"done", clone(t, c.home(3))})
	c.mu.Lock()
	c.step, c.cut = nil, nil
	c.mu.Unlock()
	var steps []string
	for _, crash := range crashes {
		steps = append(steps, crash.step)
		isNew := crash.step == "restored, not recorded" || crash.step == "done"
		if got := peek(t, clone(t, crash.dir)); isNew && got != current || !isNew && got != old {
			t.Errorf("a crash at %q leaves another state", crash.step)
		}
		c.start(3, crash.dir)
		c.put(1, dice)
		c.level(3)
		streams, bytes := c.pulled()
		c.stop(3)
		switch {
		case isNew && len(streams) > 0:
			t.Errorf("after a crash at %q the state was pulled again: %q", crash.step, streams)
		case crash.step == "fetch, goes on true" && bytes > whole-600_000:
			t.Errorf("after a crash at %q %d of %d bytes were sent again", crash.step, bytes, whole)
		}
	}
	want := "asked; fetch, goes on false; fetch, goes on true; restored, not recorded; done"
	if got := strings.Join(steps, "; "); got != want {
		t.Errorf("the steps were %s; want %s", got, want)
	}
}

// peek is the state in a directory.
func peek(t *testing.T, dir string) [32]byte {
	t.Helper()
	s, err := storage.Open(filepath.Join(dir, "shard"), table{}, storage.Config{MemTableBytes: 4 * dc.MiB})
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.Hash()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}
