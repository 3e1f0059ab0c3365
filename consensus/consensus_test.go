package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"missingos/srv/dc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEntriesRoundTrip(t *testing.T) {
	for _, commands := range [][][]byte{{}, {[]byte("a")}, {[]byte("a"), {}, make([]byte, 70000)}} {
		clock, got, err := decodeEntry(encodeEntry(42, commands))
		if err != nil || clock != 42 || len(got) != len(commands) {
			t.Fatalf("got clock %d, %d commands, %v", clock, len(got), err)
		}
		for i := range got {
			if string(got[i]) != string(commands[i]) {
				t.Errorf("command %d differs", i)
			}
		}
	}
	whole := encodeEntry(1, [][]byte{[]byte("hello"), []byte("world")})
	for n := range len(whole) {
		if _, _, err := decodeEntry(whole[:n]); err == nil {
			t.Errorf("an entry cut off at %d of %d bytes decodes", n, len(whole))
		}
	}
	whole[0] = 99
	if _, _, err := decodeEntry(whole); err == nil {
		t.Error("an entry of version 99 decodes")
	}
}

func TestOneNode(t *testing.T) {
	c := newCluster(t, 1, fast)
	_, m := c.leader()
	r, err := m.group.Propose(t.Context(), []byte("a"))
	if err != nil || string(r.Body) != "1" {
		t.Fatalf("got %q, %v", r.Body, err)
	}
	if err := m.group.ReadBarrier(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestProposalsAreAppliedOnceInOneOrderEverywhere(t *testing.T) {
	c := newCluster(t, 3, fast)
	_, m := c.leader()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if _, err := m.group.Propose(t.Context(), fmt.Appendf(nil, "c%d", i)); err != nil {
				t.Errorf("propose %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	want := m.machine.commands()
	if len(want) != 200 {
		t.Fatalf("%d commands applied, want 200", len(want))
	}
	for id, n := range c.nodes {
		eventually(t, func() bool { return len(n.machine.commands()) == 200 })
		if diff := cmp.Diff(n.machine.commands(), want); diff != "" {
			t.Errorf("node %s differs: %s", id, diff)
		}
	}
}

func TestFollowersNameTheLeader(t *testing.T) {
	c := newCluster(t, 3, fast)
	lead, _ := c.leader()
	for id, m := range c.nodes {
		if id == lead {
			continue
		}
		eventually(t, func() bool {
			_, err := m.group.Propose(t.Context(), []byte("x"))
			e, ok := errors.AsType[*dc.Error](err)
			return ok && e.Kind == dc.NotLeader && e.Leader == lead
		})
		if err := m.group.ReadBarrier(t.Context()); !errors.Is(err, dc.NotLeader) {
			t.Errorf("a follower's read barrier: %v", err)
		}
	}
}

func TestNothingAcknowledgedIsLostWithTheLeader(t *testing.T) {
	c := newCluster(t, 3, fast)
	for i := range 20 {
		c.propose(fmt.Sprint(i))
	}
	lead, _ := c.leader()
	c.stop(lead)
	start := time.Now()
	c.propose("after")
	t.Logf("first write %v after the leader's end", time.Since(start))
	_, m := c.leader()
	if err := m.group.ReadBarrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := m.machine.commands()
	if len(got) < 21 {
		t.Fatalf("%d commands survive, want 21", len(got))
	}
}

func TestWithoutAMajorityNothingIsAcknowledgedAndNothingHangs(t *testing.T) {
	c := newCluster(t, 3, fast)
	lead, m := c.leader()
	for id := range c.nodes {
		if id != lead {
			c.stop(id)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := m.group.Propose(ctx, []byte("x")); err == nil {
		t.Error("a proposal was acknowledged by one of three")
	}
	if err := m.group.ReadBarrier(ctx); err == nil {
		t.Error("a read was confirmed by one of three")
	}
}

func TestRestartAppliesNothingTwice(t *testing.T) {
	c := newCluster(t, 3, fast)
	for i := range 10 {
		c.propose(fmt.Sprint(i))
	}
	lead, _ := c.leader()
	id := lead%3 + 1
	machine := c.stop(id)
	c.propose("while away")
	m := c.start(id, machine, nil)
	eventually(t, func() bool { return len(m.machine.commands()) == 11 })
	_, now := c.leader()
	if diff := cmp.Diff(m.machine.commands(), now.machine.commands()); diff != "" {
		t.Error(diff)
	}
}

func TestALaggingFollowerGetsASnapshot(t *testing.T) {
	timing := fast
	timing.TrailingEntries = 1
	c := newCluster(t, 3, timing)
	c.propose("0")
	lead, m := c.leader()
	id := lead%3 + 1
	c.stop(id)
	for i := range 20 {
		c.propose(fmt.Sprint(i))
	}
	if err := m.group.Snapshot(); err != nil {
		t.Fatal(err)
	}
	fresh := &journal{} // its state is lost, its log is short

	late := c.start(id, fresh, nil)
	eventually(t, func() bool { return len(late.machine.commands()) == 21 })
	if fresh.restored() == 0 {
		t.Error("the follower caught up without a snapshot: the log was not truncated")
	}
	c.propose("more")
	eventually(t, func() bool { return len(late.machine.commands()) == 22 })
	// And it starts again from what it got.
	machine := c.stop(id)
	again := c.start(id, machine, nil)
	c.propose("last")
	eventually(t, func() bool { return len(again.machine.commands()) == 23 })
}

func TestAFollowerFarBehindCatchesUpByMessagesOfBoundedSize(t *testing.T) {
	c := newCluster(t, 3, fast)
	c.propose("0")
	lead, _ := c.leader()
	id := lead%3 + 1
	machine := c.stop(id)
	big := strings.Repeat("x", 1<<20)
	for range 12 { // more than one message may hold
		c.propose(big)
	}
	late := c.start(id, machine, nil)
	eventually(t, func() bool { return len(late.machine.commands()) == 13 })
}

func TestMembershipGrowsMovesAndShrinks(t *testing.T) {
	c := newCluster(t, 1, fast)
	c.propose("first")
	for _, id := range []dc.NodeID{2, 3, 4} {
		c.start(id, &journal{}, nil)
		_, m := c.leader()
		if err := m.group.AddNonVoter(t.Context(), id, m.group.Status().ConfIndex); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool {
			lag, err := m.group.Lag(t.Context(), id)
			return err == nil && lag == 0
		})
		if err := m.group.Promote(t.Context(), id, m.group.Status().ConfIndex); err != nil {
			t.Fatal(err)
		}
	}
	_, m := c.leader()
	if err := m.group.Promote(t.Context(), 2, 1); err == nil {
		t.Error("a change on top of an old configuration was accepted")
	}
	if err := m.group.TransferTo(t.Context(), 9); err == nil {
		t.Errorf("handed over to a node that is not there")
	}
	if err := m.group.TransferTo(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { id, _ := c.leader(); return id == 3 })
	_, m = c.leader()
	if err := m.group.Remove(t.Context(), 1, m.group.Status().ConfIndex); err != nil {
		t.Fatal(err)
	}
	c.stop(1)
	c.propose("last")
	if got := m.machine.commands(); got[0] != "first" || got[len(got)-1] != "last" {
		t.Errorf("state %v", got)
	}
}

func TestLeadRunsOncePerTermAndEndsWithIt(t *testing.T) {
	c := newCluster(t, 1, fast)
	c.stop(1)
	var mu sync.Mutex
	begun, ended := 0, 0
	host := NewHost(HostConfig{Node: 7, LogDir: t.TempDir(), Timing: fast, Fatal: func(err error) { t.Error(err) }})
	_, err := host.Open(GroupConfig{
		ID: 1, Dir: t.TempDir(), Machine: &journal{}, Bootstrap: []dc.NodeID{7},
		Lead: func(ctx context.Context) {
			mu.Lock()
			begun++
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			ended++
			mu.Unlock()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return begun == 1 })
	if err := host.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if begun != 1 || ended != 1 {
		t.Errorf("begun %d, ended %d", begun, ended)
	}
}

func TestAHungDiskCostsLeadership(t *testing.T) {
	timing := fast
	timing.StallSilent = 300 * time.Millisecond
	c := newCluster(t, 3, timing)
	lead, m := c.leader()
	release := make(chan struct{})
	var once sync.Once
	m.machine.mu.Lock()
	m.machine.applied = func() { <-release }
	m.machine.mu.Unlock()
	defer once.Do(func() { close(release) })
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = m.group.Propose(ctx, []byte("stuck"))
	}()
	eventually(t, func() bool {
		for id, n := range c.nodes {
			if id != lead && n.group.IsLeader() {
				return true
			}
		}
		return false
	})
	once.Do(func() { close(release) })
}

func TestAFullDiskRefusesBeforeTheLog(t *testing.T) {
	full := dc.Errorf(dc.NoSpace, "propose", "", "the disk has reached its reserve")
	host := NewHost(HostConfig{Node: 1, LogDir: t.TempDir(), Timing: fast, Fatal: func(err error) { t.Error(err) }, Space: func() error { return full }})
	defer host.Close(t.Context())
	g, err := host.Open(GroupConfig{ID: 1, Dir: t.TempDir(), Machine: &journal{}, Bootstrap: []dc.NodeID{1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, g.IsLeader)
	if _, err := g.Propose(t.Context(), []byte("x")); !errors.Is(err, dc.NoSpace) {
		t.Errorf("got %v, want no space", err)
	}
	if _, err := g.Propose(t.Context(), make([]byte, dc.MaxCommandBytes+1)); !errors.Is(err, dc.TooLarge) {
		t.Errorf("got %v, want too large", err)
	}
}
