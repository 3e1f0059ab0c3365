package data_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"missingos/srv/data/datatest"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// A mounted is a mount's side of locking, as plain as can be: each call is one request to the leader.
type mounted struct {
	t       *testing.T
	c       *datatest.Cluster
	node    dc.NodeID
	session uint64
	epoch   uint64
	number  uint64
}

func (m *mounted) header() *dcpb.Header {
	return &dcpb.Header{Group: uint64(datatest.Group), Principal: rpc.PrincipalHeader(dc.Principal{Node: m.node})}
}

// keep speaks up; what a leader who has only just begun cannot say yet it asks again.
func (m *mounted) keep(q *dcpb.DataKeepLocksRequest) *dcpb.DataKeepLocksReply {
	m.t.Helper()
	q.Header, q.Session = m.header(), m.session
	var out *dcpb.DataKeepLocksReply
	wait(m.t, "an answer to KeepLocks", func() bool {
		var err error
		out, err = m.c.Service.KeepLocks(m.t.Context(), q)
		if err != nil && !errors.Is(err, dc.Unavailable) && !errors.Is(err, dc.NotLeader) {
			m.t.Fatal(err)
		}
		return err == nil
	})
	return out
}

func mount(t *testing.T, c *datatest.Cluster, node dc.NodeID) *mounted {
	t.Helper()
	m := &mounted{t: t, c: c, node: node, session: uint64(node) * 100}
	out := m.keep(&dcpb.DataKeepLocksRequest{Register: true})
	if !out.Known || out.Epoch == 0 {
		t.Fatalf("registered: %v", out)
	}
	m.epoch = out.Epoch
	return m
}

// claim tells a new leader what the mount holds.
func (m *mounted) claim(held ...*dcpb.DataFileLock) {
	m.t.Helper()
	m.epoch = m.keep(&dcpb.DataKeepLocksRequest{Epoch: m.epoch}).Epoch
	m.number++
	if out := m.keep(&dcpb.DataKeepLocksRequest{Epoch: m.epoch, Claim: true, Held: held, Number: m.number}); !out.Known {
		m.t.Fatalf("claimed: %v", out)
	}
}

func (m *mounted) do(op dcpb.DataLockOp, l *dcpb.DataFileLock, place uint64) (*dcpb.DataLockReply, error) {
	m.number++
	return m.c.Service.Lock(m.t.Context(), &dcpb.DataLockRequest{
		Header: m.header(), Session: m.session, Epoch: m.epoch, Number: m.number, Settled: m.number, Op: op, Lock: l, Place: place,
	})
}

const (
	try    = dcpb.DataLockOp_DATA_LOCK_OP_TRY
	queue  = dcpb.DataLockOp_DATA_LOCK_OP_WAIT
	unlock = dcpb.DataLockOp_DATA_LOCK_OP_UNLOCK
	ask    = dcpb.DataLockOp_DATA_LOCK_OP_ASK
)

func bytesOf(ino file.Ino, start, end uint64) *dcpb.DataFileLock {
	return &dcpb.DataFileLock{Ino: uint64(ino), Owner: 1, Start: start, End: end, Exclusive: true, Pid: 42}
}

func (m *mounted) take(l *dcpb.DataFileLock) {
	m.t.Helper()
	if out, err := m.do(try, l, 0); err != nil || !out.Granted {
		m.t.Fatalf("%v, %v; want the lock", out, err)
	}
}

func TestALockIsHandedFromNodeToNode(t *testing.T) {
	c := datatest.New(t, 2)
	a, b := mount(t, c, 1), mount(t, c, 2)
	l := bytesOf(7, 0, 9)
	a.take(l)
	if _, err := b.do(try, l, 0); !errors.Is(err, dc.Again) {
		t.Fatalf("%v; want Again", err)
	}
	if out, err := b.do(ask, l, 0); err != nil || out.Conflict.GetNode() != 1 || out.Conflict.GetPid() != 42 {
		t.Fatalf("in the way: %v, %v", out, err)
	}
	if out, err := b.do(queue, l, 3); err != nil || !out.Queued {
		t.Fatalf("%v, %v; want a place", out, err)
	}
	list, err := c.Service.Locks(t.Context(), &dcpb.DataLocksRequest{Header: a.header()})
	if err != nil || len(list.Held) != 1 || len(list.Waiting) != 1 || list.Waiting[0].Node != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if _, err := a.do(unlock, l, 0); err != nil {
		t.Fatal(err)
	}
	out, err := c.Service.AwaitLock(t.Context(), &dcpb.DataLockRequest{Header: b.header(), Session: b.session, Epoch: b.epoch, Lock: l, Place: 3})
	if err != nil || out.Queued || out.Unknown {
		t.Fatalf("%v, %v; want to be served", out, err)
	}
	if out, err := b.do(queue, l, 4); err != nil || !out.Granted {
		t.Fatalf("%v, %v; want the lock", out, err)
	}
}

func TestASilentMountsLocksGoToOthers(t *testing.T) {
	c := datatest.New(t, 2)
	a, b := mount(t, c, 1), mount(t, c, 2)
	l := bytesOf(7, 0, 9)
	a.take(l)
	began := time.Now()
	wait(t, "the lock of the silent mount", func() bool {
		b.keep(&dcpb.DataKeepLocksRequest{Epoch: b.epoch})
		out, err := b.do(try, l, 0)
		return err == nil && out.Granted
	})
	if took := time.Since(began); took < datatest.LockExpiry/2 {
		t.Errorf("taken after %s already", took)
	}
	if out := a.keep(&dcpb.DataKeepLocksRequest{Epoch: a.epoch}); !out.Lost {
		t.Errorf("%v; want it to hear that its locks are lost", out)
	}
	if out, err := a.do(try, bytesOf(8, 0, 0), 0); err != nil || !out.Unknown {
		t.Errorf("%v, %v; want that it is unknown", out, err)
	}
}

// A new leader knows no locks. It gives none before all mounts have said what they hold.
func TestANewLeaderGivesNothingThatIsHeld(t *testing.T) {
	c := datatest.New(t, 2)
	a, b := mount(t, c, 1), mount(t, c, 2)
	l := bytesOf(7, 0, 9)
	a.take(l)
	for range 3 {
		c.Meta.Resign()
		c.Meta.Lead()
		old := b.epoch
		b.claim()
		if b.epoch <= old {
			t.Fatalf("epoch %d after %d", b.epoch, old)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		out, err := c.Service.Lock(ctx, &dcpb.DataLockRequest{Header: b.header(), Session: b.session, Epoch: b.epoch, Number: 1000, Op: try, Lock: l})
		cancel()
		if !errors.Is(err, dc.Unavailable) {
			t.Fatalf("%v, %v; want it to wait for the other mount", out, err)
		}
		if out, err := a.do(unlock, l, 0); err != nil || !out.Unknown {
			t.Fatalf("%v, %v; want no word for who has not claimed", out, err)
		}
		a.claim(l)
		if _, err := b.do(try, l, 0); !errors.Is(err, dc.Again) {
			t.Fatalf("%v; want Again", err)
		}
	}
}

func TestANewLeaderDoesNotWaitForTheDead(t *testing.T) {
	c := datatest.New(t, 2)
	a, b := mount(t, c, 1), mount(t, c, 2)
	l := bytesOf(7, 0, 9)
	a.take(l)
	c.Meta.Resign()
	c.Meta.Lead()
	b.claim()
	wait(t, "the dead mount's lock", func() bool {
		b.keep(&dcpb.DataKeepLocksRequest{Epoch: b.epoch})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // it must go on speaking up
		defer cancel()
		out, err := c.Service.Lock(ctx, &dcpb.DataLockRequest{Header: b.header(), Session: b.session, Epoch: b.epoch, Number: 1000, Op: try, Lock: l})
		return err == nil && out.Granted
	})
}

func TestWhatIsLateOnItsWayDoesNothing(t *testing.T) {
	c := datatest.New(t, 1)
	a := mount(t, c, 1)
	l := bytesOf(7, 0, 9)
	late := a.number + 1
	a.number++
	a.take(l)
	_, err := c.Service.Lock(t.Context(), &dcpb.DataLockRequest{Header: a.header(), Session: a.session, Epoch: a.epoch, Number: late, Op: unlock, Lock: l})
	if !errors.Is(err, dc.Stale) {
		t.Fatalf("%v; want Stale", err)
	}
	if out, err := a.do(ask, &dcpb.DataFileLock{Ino: 7, Owner: 2, End: 9}, 0); err != nil || out.Conflict == nil {
		t.Fatalf("%v, %v; want it held", out, err)
	}
}

func TestAnEndedSessionFreesItsLocks(t *testing.T) {
	c := datatest.New(t, 2)
	a, b := mount(t, c, 1), mount(t, c, 2)
	l := bytesOf(7, 0, 9)
	a.take(l)
	if out := a.keep(&dcpb.DataKeepLocksRequest{Epoch: a.epoch, End: true}); !out.Lost {
		t.Fatalf("%v", out)
	}
	b.take(l)
}

func TestNobodySpeaksForAnothersSession(t *testing.T) {
	c := datatest.New(t, 2)
	a := mount(t, c, 1)
	a.node = 2
	if _, err := a.do(try, bytesOf(7, 0, 9), 0); !errors.Is(err, dc.Denied) {
		t.Fatalf("%v; want Denied", err)
	}
}
