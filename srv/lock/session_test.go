package lock_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/lock"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage/command"
)

func header(n dc.NodeID, seq uint64) *dcpb.Header {
	return &dcpb.Header{
		Group: uint64(group), Principal: rpc.PrincipalHeader(dc.System(n)), Client: uint64(n) + 100, Seq: seq, Done: seq, IssuedMs: time.Now().UnixMilli(),
	}
}

func endSession(t *testing.T, n node, session uint64) error {
	t.Helper()
	_, err := dcpb.NewLockClient(n.wire).EndSession(t.Context(), &dcpb.LockEndSessionRequest{Header: header(2, 1), Session: session})
	return err
}

// lateEnd is a replica whose leader loses the answer to the proposal that ends a session: the proposal is applied later.
type lateEnd struct {
	replica.Replica
	mu   sync.Mutex
	held []func()
}

func (r *lateEnd) Propose(ctx context.Context, id dc.RequestID, body []byte) ([]byte, error) {
	var c command.LockCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	if c.GetEndSession() == nil {
		return r.Replica.Propose(ctx, id, body)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, func() { _, _ = r.Replica.Propose(context.Background(), id, body) })
	return nil, dc.Errorf(dc.Unavailable, "", "", "the outcome is unknown")
}

func TestSessionIsNotRenewedOnceItsEndMayBeOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := lock.New(lock.Config{})
		kind := svc.Kind()
		late := &lateEnd{}
		lead := kind.Lead
		kind.Lead = func(ctx context.Context, r replica.Replica) {
			late.Replica = r
			lead(ctx, late)
		}
		local := rpc.NewLocal()
		kind.Register(local)
		rep := replica.NewMemory(group, kind)
		t.Cleanup(rep.Close)
		synctest.Wait()
		c := dcpb.NewLockClient(local)

		for _, ttl := range []time.Duration{dc.MinSessionTTL - 1e6, dc.MaxSessionTTL + 1e6} {
			_, err := c.OpenSession(t.Context(), &dcpb.LockOpenSessionRequest{Header: header(1, 1), Node: 1, Generation: 1, TtlMs: uint32(ttl.Milliseconds())})
			wantKind(t, err, dc.Invalid)
		}
		const ttl = dc.MinSessionTTL
		s, err := c.OpenSession(t.Context(), &dcpb.LockOpenSessionRequest{Header: header(1, 1), Node: 1, Generation: 1, TtlMs: uint32(ttl.Milliseconds())})
		if err != nil || s.TtlMs != uint32(ttl.Milliseconds()) {
			t.Fatal(s, err)
		}
		keepAlive := func() error {
			_, err := c.KeepAlive(t.Context(), &dcpb.LockKeepAliveRequest{Header: header(1, 0), Session: s.Session})
			return err
		}
		if err := keepAlive(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ttl + time.Second) // silence: the leader proposes the end and does not hear what became of it
		wantKind(t, keepAlive(), dc.Unavailable)
		late.mu.Lock()
		held := late.held
		late.mu.Unlock()
		if len(held) == 0 {
			t.Fatal("the leader did not count the session out")
		}
		held[0]()
		wantKind(t, keepAlive(), dc.Stale)
	})
}
