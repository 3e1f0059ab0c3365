package lock_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/lock"
	"missingos/srv/replica"
	"missingos/srv/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 2

// A cluster is the lock service over one replica in memory, as nodes reach it through wires that can fail.
type cluster struct {
	t     *testing.T
	svc   *lock.Service
	rep   *replica.Memory
	local *rpc.Local
	start time.Time
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, svc: lock.New(lock.Config{}), local: rpc.NewLocal(), start: time.Now()}
	kind := c.svc.Kind()
	kind.Register(c.local)
	c.rep = replica.NewMemory(group, kind)
	t.Cleanup(c.rep.Close)
	synctest.Wait()
	return c
}

// A wire is how one node reaches the service.
type wire struct {
	grpc.ClientConnInterface
	cut   atomic.Bool
	calls atomic.Int64
	mu    sync.Mutex
	after func(method string) // runs between the service's answer and its arrival
}

func (w *wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w, nil }
func (w *wire) Group(string) (dc.GroupID, error)                 { return group, nil }
func (w *wire) Replicas(dc.GroupID) []dc.NodeID                  { return []dc.NodeID{1} }

func (w *wire) delayed(fn func(method string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.after = fn
}

func (w *wire) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	w.calls.Add(1)
	if w.cut.Load() {
		return dc.Errorf(dc.Unavailable, "", "", "the wire is cut")
	}
	err := w.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	w.mu.Lock()
	after := w.after
	w.mu.Unlock()
	if after != nil {
		after(method)
	}
	if w.cut.Load() {
		return dc.Errorf(dc.Unavailable, "", "", "the wire was cut")
	}
	return err
}

// A node is a client with its wire.
type node struct {
	*client.Lock
	wire *wire
}

func (c *cluster) node(id dc.NodeID) node {
	w := &wire{ClientConnInterface: c.local}
	l := client.NewLockAt(client.New(client.Config{Node: id, Nodes: w, Directory: w}), func() time.Duration { return time.Since(c.start) })
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.Close(ctx) // the wire may be cut
	})
	return node{l, w}
}

func (n node) take(t *testing.T, path string, exclusive, wait bool) *client.LockLease {
	t.Helper()
	x, err := n.Acquire(t.Context(), path, exclusive, wait)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// waiting starts to wait for a lock and returns once it is queued.
func (n node) waiting(t *testing.T, ctx context.Context, path string) <-chan got {
	t.Helper()
	out := make(chan got, 1)
	go func() {
		x, err := n.Acquire(ctx, path, true, true)
		out <- got{x, err, time.Now()}
	}()
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
	return out
}

type got struct {
	lease *client.LockLease
	err   error
	at    time.Time
}

func wantKind(t *testing.T, err error, kind dc.Kind) {
	t.Helper()
	if err == nil || dc.KindOf(err) != kind {
		t.Fatalf("got %v, want kind %v", err, kind)
	}
}

func TestLockPassesFromNodeToNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		if _, err := one.Create(t.Context(), "leader", false, 0); err != nil {
			t.Fatal(err)
		}
		a := one.take(t, "leader", true, false)
		_, err := two.Acquire(t.Context(), "leader", true, false)
		wantKind(t, err, dc.Again)
		w := two.waiting(t, t.Context(), "leader")
		if f, err := one.Fence(t.Context(), "leader"); err != nil || f != a.Fence() {
			t.Fatalf("fence %d, %v, want %d", f, err, a.Fence())
		}
		released := time.Now()
		if err := a.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := <-w
		if b.err != nil || b.lease.Fence() <= a.Fence() || b.at.Sub(released) > time.Second {
			t.Fatalf("waiter got %v, %v after %v", b.lease, b.err, b.at.Sub(released))
		}
		if err := b.lease.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = one.Fence(t.Context(), "leader")
		wantKind(t, err, dc.NoAttr)
	})
}

func TestInterruptedWaiterLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two, three := c.node(1), c.node(2), c.node(3)
		a := one.take(t, "l", true, false)
		ctx, cancel := context.WithCancel(t.Context())
		gone := two.waiting(t, ctx, "l")
		next := three.waiting(t, t.Context(), "l")
		cancel()
		wantKind(t, (<-gone).err, dc.Interrupted)
		synctest.Wait()
		if waiters, _, err := one.Holds(t.Context(), true, nil); err != nil || len(waiters) != 1 || waiters[0].Node != 3 {
			t.Fatalf("waiters %v, %v, want node 3's only", waiters, err)
		}
		_ = a.Release(t.Context())
		if g := <-next; g.err != nil {
			t.Fatal(g.err)
		}
	})
}

// An attempt whose answer is still under way when its caller gives up must not leave a lock behind.
func TestAbandonedAttemptIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		one.take(t, "warm", true, false) // a session is open
		one.wire.delayed(func(method string) {
			if strings.HasSuffix(method, "Acquire") {
				time.Sleep(2 * time.Second)
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := one.Acquire(ctx, "l", true, false); err == nil {
			t.Fatal("answered before the wire delivered")
		}
		_, err := two.Acquire(t.Context(), "l", true, false)
		wantKind(t, err, dc.Again) // it is granted, though nobody knows
		time.Sleep(3 * time.Second)
		two.take(t, "l", true, false)
	})
}

func TestSilentNodeLosesItsLocksAfterItStoppedBelievingInThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		if _, err := one.Create(t.Context(), "l", false, 0); err != nil {
			t.Fatal(err)
		}
		a := one.take(t, "l", true, false)
		w := two.waiting(t, t.Context(), "l")
		time.Sleep(time.Minute) // keep-alives hold it
		if err := a.Err(); err != nil {
			t.Fatalf("lost with a working wire: %v", err)
		}
		one.wire.cut.Store(true)
		cut, believed := time.Now(), time.Duration(0)
		for a.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			believed = time.Since(cut)
		}
		select {
		case <-w:
			t.Fatal("the lock passed on while its holder still believed in it")
		default:
		}
		b := <-w
		took := b.at.Sub(cut)
		if b.err != nil || took < believed+dc.LockDelay || took > dc.SessionTTL+dc.LockDelay+2*time.Second {
			t.Fatalf("passed on after %v (%v), the holder believed for %v", took, b.err, believed)
		}
		// The wire heals: the old lease stays dead for ever, and a write under it is refused by the store itself.
		one.wire.cut.Store(false)
		wantKind(t, a.Err(), dc.Stale)
		_, err := one.Put(t.Context(), "l", client.LockPut{Value: []byte("late"), Guard: a})
		wantKind(t, err, dc.Stale)
		if _, err := two.Put(t.Context(), "l", client.LockPut{Value: []byte("mine"), Guard: b.lease}); err != nil {
			t.Fatal(err)
		}
		wantKind(t, a.Release(t.Context()), dc.Stale)
		one.take(t, "other", true, false) // under a new session
	})
}

func TestAnswerThatArrivesTooLateRenewsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one := c.node(1)
		a := one.take(t, "l", true, false)
		one.wire.delayed(func(method string) {
			if strings.HasSuffix(method, "KeepAlive") {
				time.Sleep(dc.SessionTTL) // the node was stopped (SIGSTOP) with the answer in its socket
			}
		})
		time.Sleep(dc.SessionTTL + dc.SessionTTL/2)
		wantKind(t, a.Err(), dc.Stale)
	})
}

func TestWaiterAndHolderSurviveAChangeOfLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		a := one.take(t, "l", true, false)
		w := two.waiting(t, t.Context(), "l")
		for range 3 {
			time.Sleep(7 * time.Second)
			c.rep.Resign()
			time.Sleep(5 * time.Second)
			c.rep.Lead()
		}
		if err := a.Err(); err != nil {
			t.Fatalf("the holder lost its lock to elections of 5 s: %v", err)
		}
		if err := a.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := <-w; g.err != nil || g.lease.Fence() <= a.Fence() {
			t.Fatalf("the waiter got %v, %v", g.lease, g.err)
		}
	})
}

func TestNewLeaderGivesEveryoneTheFullTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		one.take(t, "l", true, false)
		one.wire.cut.Store(true)
		time.Sleep(dc.SessionTTL - time.Second)
		c.rep.Resign()
		c.rep.Lead()
		led := time.Now()
		if g := <-two.waiting(t, t.Context(), "l"); g.err != nil || g.at.Sub(led) < dc.SessionTTL {
			t.Fatalf("%v: passed on %v after the new leader began", g.err, g.at.Sub(led))
		}
	})
}

func TestRestartedNodeEndsItsEarlierSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		before, two := c.node(1), c.node(2)
		before.take(t, "l", true, false)
		before.wire.cut.Store(true) // killed
		w := two.waiting(t, t.Context(), "l")
		restarted := time.Now()
		after := c.node(1)
		x := after.take(t, "other", true, false)
		if g := <-w; g.err != nil || g.at.Sub(restarted) > 2*dc.LockDelay {
			t.Fatalf("%v: passed on after %v, want the lock-delay only", g.err, g.at.Sub(restarted))
		}
		time.Sleep(2 * dc.SessionTTL)
		if err := x.Err(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestIdleCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one := c.node(1)
		if _, err := one.Put(t.Context(), "f", client.LockPut{Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if s, err := one.Sessions(t.Context(), 0); err != nil || len(s) != 0 {
			t.Fatalf("sessions %v, %v before any lock", s, err)
		}
		_ = one.take(t, "l", true, false).Release(t.Context())
		time.Sleep(2 * dc.SessionTTL)
		calls := one.wire.calls.Load()
		time.Sleep(time.Hour)
		if n := one.wire.calls.Load() - calls; n != 0 {
			t.Fatalf("%d requests in an hour in which nothing was held", n)
		}
		if s, err := one.Sessions(t.Context(), 0); err != nil || len(s) != 0 {
			t.Fatalf("sessions %v, %v after the last one lapsed", s, err)
		}
		one.take(t, "l", true, false)
	})
}

func TestDeadServiceIsAnErrorInBoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one := c.node(1)
		one.take(t, "warm", true, false)
		one.wire.cut.Store(true)
		start := time.Now()
		for _, wait := range []bool{false, true} {
			_, err := one.Acquire(t.Context(), "l", true, wait)
			wantKind(t, err, dc.Unavailable)
		}
		if took := time.Since(start); took > 5*dc.OpTimeout/2 {
			t.Fatalf("two attempts took %v", took)
		}
	})
}

func TestConversionOfALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		a, b := one.take(t, "l", false, false), two.take(t, "l", false, false)
		wantKind(t, a.Convert(t.Context(), true, false), dc.Again)
		if a.Err() != nil {
			t.Fatal("a refused conversion ended the lease")
		}
		_ = b.Release(t.Context())
		fence := a.Fence()
		if err := a.Convert(t.Context(), true, false); err != nil || a.Fence() <= fence {
			t.Fatalf("upgrade: %v, fence %d after %d", err, a.Fence(), fence)
		}
		if err := a.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		two.take(t, "l", true, false)
	})
}

func TestEphemeralFilesGoWithTheirNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		if _, err := two.Mkdir(t.Context(), "members", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := two.SetEphemeral(t.Context(), "members", true); err != nil {
			t.Fatal(err)
		}
		if _, _, err := one.Keep(t.Context(), "members/one", true, 0o644); err != nil {
			t.Fatal(err)
		}
		_, x, err := two.Keep(t.Context(), "members/two", true, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		names := func() string {
			list, err := two.List(t.Context(), "members", "", 10)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, f := range list {
				out = append(out, f.Path)
			}
			return strings.Join(out, " ")
		}
		time.Sleep(time.Minute)
		if got := names(); got != "one two" {
			t.Fatalf("members %q", got)
		}
		one.wire.cut.Store(true)
		time.Sleep(2 * dc.SessionTTL)
		if got := names(); got != "two" {
			t.Fatalf("members %q after node 1 fell silent", got)
		}
		if err := x.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := names(); got != "" {
			t.Fatalf("members %q after the release", got)
		}
	})
}

func TestCompareAndSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one := c.node(1)
		v, err := one.Swap(t.Context(), "f", 0, []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = one.Swap(t.Context(), "f", 0, []byte("b"))
		wantKind(t, err, dc.Conflict)
		if v, err = one.Swap(t.Context(), "f", v, []byte("c")); err != nil {
			t.Fatal(err)
		}
		if f, err := one.Read(t.Context(), "f"); err != nil || string(f.Value) != "c" || f.Version != v {
			t.Fatalf("%+v, %v", f, err)
		}
	})
}

func TestNodesCannotTouchEachOthersSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		one.take(t, "l", true, false)
		info, err := one.Sessions(t.Context(), 0)
		if err != nil || len(info) != 1 {
			t.Fatal(info, err)
		}
		wantKind(t, endSession(t, two, info[0].Session), dc.Denied)
	})
}

func TestManyCallersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		var inside atomic.Int32
		var last atomic.Uint64
		var wg sync.WaitGroup
		for i := range 3 {
			n := c.node(dc.NodeID(i + 1))
			for range 20 {
				wg.Go(func() {
					x, err := n.Acquire(t.Context(), "l", true, true)
					if err != nil {
						t.Error(err)
						return
					}
					if inside.Add(1) != 1 {
						t.Error("two holders")
					}
					if f := uint64(x.Fence()); f <= last.Swap(f) {
						t.Errorf("fence %d does not grow", f)
					}
					time.Sleep(300 * time.Millisecond)
					inside.Add(-1)
					if err := x.Release(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if f, _, _ := c.node(9).Holds(t.Context(), false, nil); len(f) != 0 {
			t.Fatalf("left over: %v", fmt.Sprint(f))
		}
	})
}

func TestWhoseTokensConditionWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		one, two := c.node(1), c.node(2)
		under := func(token dc.Revision) error {
			return two.HeldUnder(t.Context(), dc.Fence{Lock: "l", Token: uint64(token)})
		}
		wantKind(t, under(1), dc.Stale) // there is no such lock
		if _, err := one.Create(t.Context(), "l", false, 0); err != nil {
			t.Fatal(err)
		}
		wantKind(t, under(1), dc.Stale) // nobody holds it
		a := one.take(t, "l", true, false)
		if err := under(a.Fence()); err != nil {
			t.Fatal(err)
		}
		wantKind(t, under(a.Fence()-1), dc.Stale)
		wantKind(t, under(a.Fence()+1), dc.Stale) // made up
		_ = a.Release(t.Context())
		wantKind(t, under(a.Fence()), dc.Stale)
		b := two.take(t, "l", true, false)
		wantKind(t, under(a.Fence()), dc.Stale)
		if err := under(b.Fence()); err != nil {
			t.Fatal(err)
		}
		_ = b.Release(t.Context())
		shared := one.take(t, "l", false, false)
		wantKind(t, under(shared.Fence()), dc.Invalid)
		wantKind(t, under(b.Fence()), dc.Stale)
		later := two.take(t, "l", false, false)
		wantKind(t, under(shared.Fence()), dc.Stale)
		wantKind(t, under(later.Fence()), dc.Invalid)
	})
}
