package lease_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"missingos/srv/data/lease"
	"missingos/srv/dc/file"
)

const ttl = time.Second

// leading gives a table that has led for longer than earlier leases last.
func leading(t *testing.T) *lease.Table {
	x := lease.New(ttl)
	time.Sleep(4 * ttl) // nothing that changed before it was opened is unknown any more
	x.Lead()
	time.Sleep(ttl)
	t.Cleanup(x.Resign)
	return x
}

func connect(t *testing.T, x *lease.Table) *lease.Conn {
	t.Helper()
	c, err := x.Connect(7, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func grant(t *testing.T, x *lease.Table, c *lease.Conn, inos ...file.Ino) {
	t.Helper()
	if refused := c.Grant(x.Seq(), inos...); len(refused) > 0 {
		t.Fatalf("refused %v", refused)
	}
}

// change applies a command and tells how long an answer about ino waits then.
func change(x *lease.Table, ino file.Ino) time.Duration {
	x.Applying(0, []file.Ino{ino})
	x.Applied()
	return waits(x, ino)
}

func waits(x *lease.Table, ino file.Ino) time.Duration {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	_ = x.Settle(ctx, ino)
	return time.Since(start)
}

func TestAChangeWaitsForThoseWhoHoldIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		c := connect(t, x)
		grant(t, x, c, 2, 3)
		if d := change(x, 9); d != 0 {
			t.Errorf("a change of what nobody holds waits %s", d)
		}
		go func() {
			<-c.Kick()
			time.Sleep(ttl / 4)
			if inos, n := c.Told(); len(inos) != 1 || inos[0] != 2 {
				t.Errorf("told %v", inos)
			} else {
				c.Acknowledge(n)
			}
		}()
		if d := change(x, 2); d != ttl/4 {
			t.Errorf("waited %s for the acknowledgement", d)
		}
		if d := change(x, 2); d != 0 {
			t.Errorf("waits %s for who gave it up", d)
		}
	})
}

func TestAChangeWaitsNoLongerThanTheLeaseLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		var lost []file.Ino
		c, err := x.Connect(7, 0, func(_ *lease.Conn, inos []file.Ino) { lost = append(lost, inos...) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(ttl / 2)
		c.Renew()
		grant(t, x, c, 2, 3)
		time.Sleep(ttl / 4)
		if d := change(x, 2); d != 3*ttl/4 {
			t.Errorf("waited %s, the lease had %s left", d, 3*ttl/4)
		}
		if len(lost) != 1 || lost[0] != 2 {
			t.Errorf("nobody hears of what was not acknowledged: %v", lost)
		}
		if d := change(x, 3); d != 0 {
			t.Errorf("an expired connection holds, for %s", d)
		}
		if refused := c.Grant(x.Seq(), 5); len(refused) != 1 {
			t.Error("an expired connection is granted something")
		}
	})
}

func TestWhatChangedSinceItWasReadIsNotGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		c := connect(t, x)
		since := x.Seq()
		x.Applying(0, []file.Ino{2})
		if refused := c.Grant(x.Seq(), 2); len(refused) != 1 {
			t.Error("granted while a change is being committed")
		}
		x.Applied()
		if refused := c.Grant(since, 2, 3); len(refused) != 1 || refused[0] != 2 {
			t.Errorf("refused %v, want the one that changed", refused)
		}
		for i := range 100_000 { // more than is remembered
			change(x, file.Ino(10+i))
		}
		if refused := c.Grant(since, 3); len(refused) != 1 {
			t.Error("granted although what changed is forgotten")
		}
	})
}

func TestANodesOwnChangeRevokesNothingOfWhatItNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		c, other := connect(t, x), connect(t, x)
		grant(t, x, c, 2, 3)
		r := x.Begin(c, []uint64{2})
		x.Applying(r.ID, []file.Ino{2, 3})
		x.Applied()
		inos, n := c.Told()
		if len(inos) != 1 || inos[0] != 3 {
			t.Errorf("told %v, want what was not named", inos)
		}
		c.Acknowledge(n)
		if err := x.SettleRequest(context.Background(), r); err != nil {
			t.Error(err)
		}
		x.End(r)
		grant(t, x, other, 2)
		x.Applying(0, []file.Ino{2})
		x.Applied()
		for _, c := range []*lease.Conn{c, other} {
			inos, n := c.Told()
			if len(inos) != 1 {
				t.Error("it does not hold it any more")
			}
			c.Acknowledge(n)
		}
		late := x.Begin(c, []uint64{2})
		x.End(late) // nobody waits for it any more
		grant(t, x, c, 2)
		x.Applying(late.ID, []file.Ino{2})
		x.Applied()
		if inos, _ := c.Told(); len(inos) != 1 {
			t.Error("a change whose request is over revokes nothing")
		}
	})
}

func TestANewLeaderRespectsEarlierLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := lease.New(ttl)
		time.Sleep(4 * ttl)
		x.Applying(0, []file.Ino{2}) // by another leader
		x.Applied()
		x.Lead()
		if d := waits(x, 3); d != 0 {
			t.Errorf("what did not change lately waits %s", d)
		}
		time.Sleep(ttl / 4)
		if d := waits(x, 2); d != 3*ttl/4 {
			t.Errorf("what changed lately waits %s, want %s", d, 3*ttl/4)
		}
		if d := change(x, 3); d != 0 {
			t.Errorf("a change waits %s although all leases are over", d)
		}
		c := connect(t, x)
		grant(t, x, c, 3)
		x.Resign()
		if d := waits(x, 3); d != 0 {
			t.Errorf("waits %s after the end of the term", d)
		}
		if _, err := x.Connect(7, 0, nil); err == nil {
			t.Error("connected without a leader")
		}
		<-c.Gone()
		x.Lead()
		if d := change(x, 5); d != ttl {
			t.Errorf("a new term's first change waits %s, want %s", d, ttl)
		}
		x.Resign()
	})
}

func TestAReplicaThatHasJustStartedTakesEverythingForLeased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := lease.New(ttl)
		x.Lead()
		if d := waits(x, 3); d != ttl {
			t.Errorf("waited %s", d)
		}
		x.Resign()
	})
}

func TestAChangeThatIsBeingCommittedOutlivesTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		x.Applying(0, []file.Ino{2})
		x.Resign()
		x.Lead()
		start := time.Now()
		go func() {
			time.Sleep(5 * ttl)
			x.Applied()
		}()
		waits(x, 2)
		if d := time.Since(start); d != 5*ttl {
			t.Errorf("answered after %s, before the change was committed", d)
		}
	})
}

func TestAConnectionThatIsReplacedHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := leading(t)
		c := connect(t, x)
		grant(t, x, c, 2)
		x.Applying(0, []file.Ino{2})
		x.Applied()
		if _, err := x.Connect(7, c.ID, nil); err != nil {
			t.Fatal(err)
		}
		if d := waits(x, 2); d != 0 {
			t.Errorf("a change waits %s for a connection that was given up", d)
		}
		if x.Conn(c.ID) != nil {
			t.Error("it is still known")
		}
	})
}
