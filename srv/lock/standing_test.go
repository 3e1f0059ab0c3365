package lock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
)

func (n node) stands(t *testing.T, want client.LockState) client.LockStanding {
	t.Helper()
	x := n.Standing()
	if x.State != want {
		t.Fatalf("got %+v, want %s", x, want)
	}
	return x
}

func TestSessionIsSafeThenInJeopardyThenExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newCluster(t).node(1)
		one.stands(t, client.LockNone)
		a := one.take(t, "l", true, false)
		for range 60 {
			time.Sleep(time.Second)
			if x := one.stands(t, client.LockSafe); x.Users != 1 || x.TTL != dc.SessionTTL || x.Left < dc.SessionTTL/2 {
				t.Fatalf("got %+v", x)
			}
		}
		one.wire.cut.Store(true)
		time.Sleep(dc.SessionTTL * 6 / 10)
		if x := one.stands(t, client.LockJeopardy); x.Left <= 0 || a.Err() != nil {
			t.Fatalf("got %+v, the lock: %v", x, a.Err())
		}
		time.Sleep(dc.SessionTTL)
		x := one.stands(t, client.LockExpired)
		wantKind(t, x.Err, dc.Stale)
		wantKind(t, a.Err(), dc.Stale)

		one.wire.cut.Store(false)
		time.Sleep(time.Minute)
		one.stands(t, client.LockExpired) // for ever: only a new session is safe
		one.take(t, "m", true, false)
		if y := one.stands(t, client.LockSafe); y.Session <= x.Session {
			t.Fatalf("session %d after %d", y.Session, x.Session)
		}
	})
}

func TestSessionInJeopardyThatIsAnsweredIsSafeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newCluster(t).node(1)
		a := one.take(t, "l", true, false)
		one.wire.cut.Store(true)
		time.Sleep(dc.SessionTTL * 6 / 10)
		one.stands(t, client.LockJeopardy)
		one.wire.cut.Store(false)
		time.Sleep(dc.SessionTTL / 4)
		one.stands(t, client.LockSafe)
		time.Sleep(time.Minute)
		if x := one.stands(t, client.LockSafe); a.Err() != nil {
			t.Fatalf("got %+v, the lock: %v", x, a.Err())
		}
	})
}

func TestSessionThatLapsesUnusedIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newCluster(t).node(1)
		a := one.take(t, "l", true, false)
		if err := a.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		one.stands(t, client.LockNone)
		one.wire.cut.Store(true)
		time.Sleep(3 * dc.SessionTTL)
		if x := one.stands(t, client.LockNone); x.Err != nil || x.Left != 0 {
			t.Fatalf("got %+v", x)
		}
	})
}
