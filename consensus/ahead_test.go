package consensus

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/srv/dc"
)

// A heldLog is a log whose appends wait while it is held, as on a slow disk.
type heldLog struct {
	logstore.Store
	mu     sync.Mutex
	free   sync.Cond
	held   bool
	fail   error
	writes [][]uint64 // indexes of each append
}

func newHeldLog(beneath logstore.Store) *heldLog {
	h := &heldLog{Store: beneath}
	h.free.L = &h.mu
	return h
}

func (h *heldLog) hold(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = on
	h.free.Broadcast()
}

func (h *heldLog) StoreLogs(logs []*raft.Log) error {
	h.mu.Lock()
	for h.held {
		h.free.Wait()
	}
	var indexes []uint64
	for _, l := range logs {
		indexes = append(indexes, l.Index)
	}
	h.writes = append(h.writes, indexes)
	err := h.fail
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.Store.StoreLogs(logs)
}

func (h *heldLog) StoreLog(l *raft.Log) error { return h.StoreLogs([]*raft.Log{l}) }

func (h *heldLog) written() [][]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.writes)
}

func openAhead(t *testing.T) (*aheadLog, *heldLog) {
	t.Helper()
	s, err := openOwnLog(logstore.Config{Dir: t.TempDir(), Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	h := newHeldLog(s)
	a := newAheadLog(h)
	a.mayRun = func() bool { return true }
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a, h
}

func command(i uint64) *raft.Log { return &raft.Log{Index: i, Term: 1, Data: []byte{byte(i)}} }

func mustStore(t *testing.T, a *aheadLog, logs ...*raft.Log) {
	t.Helper()
	if err := a.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// notYet wants that index is not durable now.
func notYet(t *testing.T, a *aheadLog, index uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := a.durable(ctx, index); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("durable(%d) = %v while the disk is held", index, err)
	}
}

func TestALeadersEntriesAreReadableBeforeTheyAreOnDisk(t *testing.T) {
	a, h := openAhead(t)
	mustStore(t, a, command(1))
	if err := a.drain(); err != nil {
		t.Fatal(err)
	}
	h.hold(true)
	mustStore(t, a, command(2))
	mustStore(t, a, command(3), command(4))
	mustStore(t, a, command(5))
	if last, err := a.LastIndex(); last != 5 || err != nil {
		t.Errorf("last is %d, %v", last, err)
	}
	if first, err := a.FirstIndex(); first != 1 || err != nil {
		t.Errorf("first is %d, %v", first, err)
	}
	for i := uint64(1); i <= 5; i++ {
		var l raft.Log
		if err := a.GetLog(i, &l); err != nil || l.Index != i || l.Data[0] != byte(i) {
			t.Errorf("entry %d: %v, %v", i, l, err)
		}
	}
	if err := a.durable(t.Context(), 1); err != nil {
		t.Error(err)
	}
	for i := uint64(2); i <= 5; i++ {
		notYet(t, a, i)
	}
	h.hold(false)
	if err := a.durable(t.Context(), 5); err != nil {
		t.Error(err)
	}
	if got := h.written(); len(got) > 3 || !slices.Equal(slices.Concat(got...), []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("appends %v, want all in order, and those that waited in one", got)
	}
}

func TestOtherChangesOfTheLogWaitForTheDisk(t *testing.T) {
	for name, change := range map[string]func(a *aheadLog) error{
		"truncation": func(a *aheadLog) error { return a.DeleteRange(1, 1) },
		"a change of voters": func(a *aheadLog) error {
			return a.StoreLogs([]*raft.Log{{Index: 3, Term: 1, Type: raft.LogConfiguration}})
		},
		"a follower's append": func(a *aheadLog) error {
			a.mayRun = func() bool { return false }
			return a.StoreLogs([]*raft.Log{command(3)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, h := openAhead(t)
			h.hold(true)
			mustStore(t, a, command(1), command(2))
			done := make(chan error, 1)
			go func() { done <- change(a) }()
			select {
			case err := <-done:
				t.Errorf("returned %v while the disk is held", err)
				done <- err
			case <-time.After(20 * time.Millisecond):
			}
			h.hold(false)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAFailedWriteOfALeaderFailsEverythingAfterIt(t *testing.T) {
	a, h := openAhead(t)
	h.fail = errors.New("the disk is gone")
	mustStore(t, a, command(1))
	if err := a.drain(); !errors.Is(err, h.fail) {
		t.Errorf("durable: %v", err)
	}
	if err := a.StoreLogs([]*raft.Log{command(2)}); !errors.Is(err, h.fail) {
		t.Errorf("append: %v", err)
	}
	if err := a.DeleteRange(1, 1); !errors.Is(err, h.fail) {
		t.Errorf("truncation: %v", err)
	}
}

// heldCluster is three nodes whose logs can be held.
func heldCluster(t *testing.T) (*cluster, map[dc.NodeID]*heldLog) {
	t.Helper()
	var mu sync.Mutex
	logs := map[string]*heldLog{}
	c := newClusterOn(t, 3, fast, func(cfg logstore.Config) (logstore.Store, error) {
		s, err := openOwnLog(cfg)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		logs[filepath.Base(cfg.Dir)] = newHeldLog(s)
		return logs[filepath.Base(cfg.Dir)], nil
	})
	c.leader()
	byNode := map[dc.NodeID]*heldLog{}
	for id := range c.nodes {
		byNode[id] = logs[id.String()]
	}
	t.Cleanup(func() { // before the nodes close
		for _, h := range byNode {
			h.hold(false)
		}
	})
	return c, byNode
}

// A majority of others has the entry, and the leader knows; it must not count its own copy in with one of theirs before it has it on disk.
func TestNothingIsAcknowledgedBeforeTheLeadersOwnDiskHasIt(t *testing.T) {
	c, logs := heldCluster(t)
	c.propose("first")
	id, m := c.leader()
	logs[id].hold(true)
	done := make(chan error, 1)
	go func() {
		_, err := m.group.Propose(t.Context(), []byte("held"))
		done <- err
	}()
	eventually(t, func() bool { // the others have it
		n := 0
		for other, h := range logs {
			if last, err := h.LastIndex(); other != id && err == nil && last >= m.group.raft.LastIndex() {
				n++
			}
		}
		return n == 2 && m.group.raft.LastIndex() > m.group.raft.CommitIndex()
	})
	select {
	case err := <-done:
		t.Fatalf("acknowledged (%v) while the leader's disk is held", err)
	case <-time.After(100 * time.Millisecond):
	}
	logs[id].hold(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A leader that could not write steps down with an entry in memory. What it then answers to the next leader must not count that as its copy.
func TestAFormerLeaderAcknowledgesOnlyWhatIsOnItsDisk(t *testing.T) {
	c, logs := heldCluster(t)
	c.propose("first")
	id, m := c.leader()
	logs[id].hold(true)
	ctx, cancel := context.WithCancel(t.Context())
	lost := make(chan struct{})
	go func() { defer close(lost); _, _ = m.group.Propose(ctx, []byte("held")) }()
	eventually(t, func() bool { return m.group.raft.LastIndex() > m.group.raft.CommitIndex() })
	cancel()
	<-lost
	r := replica{m.group}
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := r.Durable(short, m.group.raft.LastIndex()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an answer would go out: %v", err)
	}
	logs[id].hold(false)
	if err := r.Durable(t.Context(), m.group.raft.LastIndex()); err != nil {
		t.Error(err)
	}
}

// One slow disk among the followers holds up nothing.
func TestASlowFollowerHoldsUpNothing(t *testing.T) {
	c, logs := heldCluster(t)
	id, _ := c.leader()
	for other, h := range logs {
		if other != id {
			h.hold(true)
			break
		}
	}
	c.propose("second")
	if !slices.Contains(c.nodes[id].machine.commands(), "second") {
		t.Error("acknowledged and not applied")
	}
}
