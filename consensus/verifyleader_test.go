package consensus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// A holder stands between the old leader and the others, in both directions.
type holder struct {
	old dc.NodeID

	mu   sync.Mutex
	held chan struct{} // closed to let answers of heartbeats go; nil if they are not kept back
	kept int           // how many are
	cut  bool          // nothing passes but what is kept back, orders to stand for election, and confirmations
}

func (h *holder) set(f func()) { h.mu.Lock(); defer h.mu.Unlock(); f() }

func (h *holder) keptBack() (n int) { h.set(func() { n = h.kept }); return n }

func (h *holder) release() {
	h.set(func() {
		if h.held != nil {
			close(h.held)
			h.held = nil
		}
	})
}

// between wraps a connection if it is one of the old leader.
func (h *holder) between(from, to dc.NodeID, cc grpc.ClientConnInterface) grpc.ClientConnInterface {
	if from != h.old && to != h.old {
		return cc
	}
	return heldConn{h, from == h.old, cc}
}

type heldConn struct {
	h        *holder
	outgoing bool
	grpc.ClientConnInterface
}

func (c heldConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	var held chan struct{}
	var cut bool
	c.h.set(func() { held, cut = c.h.held, c.h.cut })
	passes := c.outgoing && (method == transport.Raft_TimeoutNow_FullMethodName || method == transport.Raft_Confirm_FullMethodName)
	if cut && !passes {
		return dc.Errorf(dc.Unavailable, "test", method, "cut off")
	}
	err := c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	if held == nil || !c.outgoing || method != transport.Raft_Beat_FullMethodName || err != nil {
		return err
	}
	c.h.set(func() { c.h.kept++ })
	select {
	case <-held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The counter-example to hashicorp/raft's VerifyLeader as a read barrier: heartbeats of the old leader are answered, the answers are on
// their way; another leader is elected and commits; now a reader asks the old leader to verify itself, and the old answers arrive. VerifyLeader
// takes them for the proof that it still leads, and the state read is stale. ReadBarrier asks anew and is refused.
func TestVerifyLeaderReadsStaleStateWhereReadBarrierIsRefused(t *testing.T) {
	for range 10 { // the schedule has to fit into the answers' deadline; on a machine that stalls it may not
		if verifyLeaderIsWrong(t) {
			return
		}
	}
	t.Error("VerifyLeader never vouched for the deposed leader: if raft has mended that, the explanation in readindex.go needs an update")
}

func verifyLeaderIsWrong(t *testing.T) bool {
	// The long lease keeps the old leader in office while it hears nothing.
	c := newCluster(t, 3, Timing{Heartbeat: 4 * time.Second, Election: 4 * time.Second, Commit: 50 * time.Millisecond})
	defer c.stopAll()
	const first, second = dc.NodeID(1), dc.NodeID(2)
	h := &holder{old: first}
	defer h.release()
	c.mu.Lock()
	c.wrap = h.between
	old, next := c.nodes[first], c.nodes[second]
	c.mu.Unlock()
	c.stand(first)
	eventually(t, old.group.IsLeader)
	if _, err := old.group.Propose(t.Context(), []byte("old")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return next.group.raft.LastIndex() == old.group.raft.LastIndex() })

	h.set(func() { h.held = make(chan struct{}) })
	eventually(t, func() bool { return h.keptBack() == 2 })
	h.set(func() { h.cut = true })
	_ = old.group.raft.LeadershipTransferToServer(serverID(second), serverAddress(second))
	eventually(t, next.group.IsLeader)
	if _, err := next.group.Propose(t.Context(), []byte("new")); err != nil {
		t.Fatal(err)
	}

	verified := old.group.raft.VerifyLeader()
	time.Sleep(20 * time.Millisecond) // for raft to take note of it
	h.release()
	outcome := make(chan error, 1)
	go func() { outcome <- verified.Error() }()

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := old.group.ReadBarrier(ctx)
	if !errors.Is(err, dc.NotLeader) && !errors.Is(err, dc.Unavailable) {
		t.Errorf("ReadBarrier on a deposed leader: %v, want a refusal", err)
	}
	select {
	case err := <-outcome:
		got := old.machine.commands()
		return err == nil && got[len(got)-1] == "old"
	case <-time.After(time.Second):
		return false
	}
}
