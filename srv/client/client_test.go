package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// fakeCluster answers for nodes 1..3; the zero conn is enough because calls look at the node only through asked.
type fakeCluster struct{ asked []dc.NodeID }

type fakeConn struct {
	grpc.ClientConnInterface
	node dc.NodeID
}

func (f *fakeCluster) Conn(n dc.NodeID) (grpc.ClientConnInterface, error) {
	f.asked = append(f.asked, n)
	return fakeConn{node: n}, nil
}
func (f *fakeCluster) Group(string) (dc.GroupID, error) { return 7, nil }
func (f *fakeCluster) Replicas(dc.GroupID) []dc.NodeID  { return []dc.NodeID{1, 2, 3} }
func nodeOf(cc grpc.ClientConnInterface) dc.NodeID      { return cc.(fakeConn).node }
func newFake() (*fakeCluster, *Client) {
	f := &fakeCluster{}
	return f, New(Config{Node: 1, Nodes: f, Directory: f})
}

func notLeader(hint dc.NodeID) error { return &dc.Error{Kind: dc.NotLeader, Leader: hint} }

func errIs(t *testing.T, err error, kind dc.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want kind %v", err, kind)
	}
}

func TestMutateFollowsTheLeaderUnderOneRequestID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake()
		var seqs []uint64
		call := func(_ context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
			seqs = append(seqs, h.Seq)
			if nodeOf(cc) != 3 {
				return notLeader(3)
			}
			return nil
		}
		if err := c.Mutate(t.Context(), 7, call); err != nil {
			t.Fatal(err)
		}
		if len(seqs) != 2 || seqs[0] != seqs[1] {
			t.Fatalf("attempts ran under request ids %v, want the same id twice", seqs)
		}
		f.asked = nil
		if err := c.Mutate(t.Context(), 7, call); err != nil {
			t.Fatal(err)
		}
		if len(f.asked) != 1 || f.asked[0] != 3 {
			t.Fatalf("second mutation asked %v, want the remembered leader n3 only", f.asked)
		}
	})
}

func TestHintsInACircleEndAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake()
		start := time.Now()
		err := c.Query(t.Context(), 7, func(_ context.Context, cc grpc.ClientConnInterface, _ *dcpb.Header) error {
			return notLeader(nodeOf(cc)%3 + 1)
		})
		errIs(t, err, dc.Unavailable)
		if took := time.Since(start); took != dc.OpTimeout {
			t.Fatalf("gave up after %v, want %v", took, dc.OpTimeout)
		}
		if len(f.asked) > 2000 {
			t.Fatalf("asked %d times in %v: no backoff", len(f.asked), dc.OpTimeout)
		}
	})
}

func TestHungNodeDoesNotUseUpTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := newFake()
		start := time.Now()
		err := c.Query(t.Context(), 7, func(ctx context.Context, cc grpc.ClientConnInterface, _ *dcpb.Header) error {
			if nodeOf(cc) == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		if err != nil || time.Since(start) > 4*time.Second {
			t.Fatalf("err %v after %v, want an answer from the next node in about 3 s", err, time.Since(start))
		}
	})
}

func TestServiceErrorsAreNotRetried(t *testing.T) {
	_, c := newFake()
	n := 0
	err := c.Mutate(t.Context(), 7, func(context.Context, grpc.ClientConnInterface, *dcpb.Header) error {
		n++
		return dc.Errorf(dc.Exists, "kv.put", "users/ada", "")
	})
	errIs(t, err, dc.Exists)
	if n != 1 {
		t.Fatalf("%d attempts, want 1", n)
	}
}

func TestCancelIsInterrupted(t *testing.T) {
	_, c := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Query(ctx, 7, func(ctx context.Context, _ grpc.ClientConnInterface, _ *dcpb.Header) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	errIs(t, err, dc.Interrupted)
}

func TestWindowBoundsTheSpanOfUnanswered(t *testing.T) {
	w := newWindow(1, 3)
	a, _ := w.begin(t.Context())
	b, _ := w.begin(t.Context())
	w.end(b)
	if got := w.done(); got != a {
		t.Fatalf("done %d while %d is unanswered", got, a)
	}
	if _, err := w.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	full, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := w.begin(full); err == nil {
		t.Fatal("a full window handed out a number")
	}
	w.end(a)
	if got := w.done(); got != b+1 {
		t.Fatalf("done %d, want %d", got, b+1)
	}
	if _, err := w.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
}
