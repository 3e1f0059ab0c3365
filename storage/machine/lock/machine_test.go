package lock

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func TestFilesReadBackWhatWasWritten(t *testing.T) {
	m := newMemory()
	m.must(t, &command.LockCreate{Path: "a", Dir: true, Mode: 0o755})
	one := m.must(t, &command.LockPut{Path: "a/f", Value: []byte("one"), Mode: 0o644})
	two := m.must(t, &command.LockPut{Path: "a/f", Value: []byte("+two"), Append: true})
	if got := string(Value(m, "a/f")); got != "one+two" || two.Version <= one.Version {
		t.Fatalf("value %q, versions %d then %d", got, one.Version, two.Version)
	}
	if f := Stat(m, "a/f"); f.Size != 7 || f.Created != one.Version || f.Version != two.Version {
		t.Fatalf("stat %v", f)
	}
	m.fails(t, dc.Conflict, &command.LockPut{Path: "a/f", Value: []byte("x"), IfVersion: one.Version})
	m.must(t, &command.LockPut{Path: "a/f", Value: []byte("x"), IfVersion: two.Version})
	m.fails(t, dc.NotEmpty, &command.LockRemove{Path: "a", Dir: true})
	m.must(t, &command.LockRemove{Path: "a/f"})
	m.must(t, &command.LockRemove{Path: "a", Dir: true})
	if st := Totals(m); st.Files != 0 || st.Bytes != 0 {
		t.Fatalf("empty store counts %d files, %d bytes", st.Files, st.Bytes)
	}
}

func TestBadPathsAndValuesAreRefusedByName(t *testing.T) {
	m := newMemory()
	m.must(t, &command.LockPut{Path: "f", Value: []byte("x")})
	for _, c := range []struct {
		path string
		size int
		kind dc.Kind
		text string
	}{
		{"g", dc.MaxLockBytes + 1, dc.TooLarge, "MaxLockBytes"},
		{strings.Repeat("n", 256), 1, dc.NameTooLong, "MaxNameBytes"},
		{strings.Repeat("d/", 2100) + "x", 1, dc.NameTooLong, "MaxPathBytes"},
		{"no/such", 1, dc.NotFound, "no directory no"},
		{"f/g", 1, dc.NotDir, "f is a file"},
		{".dc", 1, dc.Invalid, "reserved"},
		{"a//b", 1, dc.Invalid, "single slashes"},
		{"a\x00b", 1, dc.Invalid, "NUL"},
		{"", 1, dc.IsDir, ""},
	} {
		err := m.fails(t, c.kind, &command.LockPut{Path: c.path, Value: make([]byte, c.size)})
		if !strings.Contains(err.Error(), c.text) {
			t.Errorf("put %.20q: %v, want it to say %q", c.path, err, c.text)
		}
	}
	m.must(t, &command.LockPut{Path: "full", Value: make([]byte, dc.MaxLockBytes)})
	m.fails(t, dc.TooLarge, &command.LockPut{Path: "full", Value: []byte("x"), Append: true})
}

func TestCreateExclusive(t *testing.T) {
	m := newMemory()
	m.must(t, &command.LockCreate{Path: "f", Exclusive: true})
	m.fails(t, dc.Exists, &command.LockCreate{Path: "f", Exclusive: true})
	m.must(t, &command.LockCreate{Path: "f"})
	m.fails(t, dc.Exists, &command.LockCreate{Path: "f", Dir: true})
}

func TestWriteThroughARemovedFileIsStale(t *testing.T) {
	m := newMemory()
	f := m.must(t, &command.LockCreate{Path: "f"}).File
	m.must(t, &command.LockRemove{Path: "f"})
	m.fails(t, dc.Stale, &command.LockPut{Path: "f", Value: []byte("x"), IfCreated: f.Created})
	m.must(t, &command.LockCreate{Path: "f"})
	m.fails(t, dc.Stale, &command.LockPut{Path: "f", Value: []byte("x"), IfCreated: f.Created})
}

func TestRename(t *testing.T) {
	m := newMemory()
	for _, d := range []string{"a", "a/b", "z"} {
		m.must(t, &command.LockCreate{Path: d, Dir: true})
	}
	m.must(t, &command.LockPut{Path: "a/b/f", Value: []byte("v")})
	m.must(t, &command.LockPut{Path: "g", Value: []byte("old")})
	m.fails(t, dc.Invalid, &command.LockRename{From: "a", To: "a/b/c"})
	m.fails(t, dc.IsDir, &command.LockRename{From: "g", To: "a"})
	m.fails(t, dc.NotDir, &command.LockRename{From: "a", To: "g"})
	m.fails(t, dc.NotEmpty, &command.LockRename{From: "z", To: "a"})
	m.fails(t, dc.Exists, &command.LockRename{From: "a/b/f", To: "g", NoReplace: true})
	before := Totals(m).Revision
	m.must(t, &command.LockRename{From: "a", To: "z"})
	if got := string(Value(m, "z/b/f")); got != "v" || Stat(m, "a") != nil || Stat(m, "a/b/f") != nil {
		t.Fatalf("after rename: %q, old %v", got, Stat(m, "a"))
	}
	if st := Totals(m); st.Revision != before+1 || st.Files != 4 {
		t.Fatalf("rename of a directory took revisions %d to %d, %d files", before, st.Revision, st.Files)
	}
	m.must(t, &command.LockRename{From: "z/b/f", To: "g"})
	if got := string(Value(m, "g")); got != "v" || Totals(m).Bytes != 1 {
		t.Fatalf("replaced file holds %q, store %d bytes", got, Totals(m).Bytes)
	}
	for i := range dc.MaxLockMove {
		m.must(t, &command.LockCreate{Path: fmt.Sprintf("z/b/%d", i)})
	}
	m.fails(t, dc.TooLarge, &command.LockRename{From: "z", To: "y"})
}

func TestTxn(t *testing.T) {
	m := newMemory()
	v := m.must(t, &command.LockPut{Path: "a", Value: []byte("1")}).Version
	swap := &command.LockTxn{
		Conditions: []*command.LockCondition{{Path: "a", Version: &v}, {Path: "b", Absent: true}},
		Then: []*command.LockTxnOp{
			{Kind: command.LockTxnOp_KIND_PUT, Path: "a", Value: []byte("2")},
			{Kind: command.LockTxnOp_KIND_PUT, Path: "b", Value: []byte("new")},
			{Kind: command.LockTxnOp_KIND_READ, Path: "a"},
		},
		Otherwise: []*command.LockTxnOp{{Kind: command.LockTxnOp_KIND_READ, Path: "a"}, {Kind: command.LockTxnOp_KIND_READ, Path: "none"}},
	}
	res := m.must(t, swap)
	if !res.Then || len(res.Reads) != 1 || string(res.Reads[0].Value) != "2" || Stat(m, "a").Version != Stat(m, "b").Version {
		t.Fatalf("first run: %v", res)
	}
	res = m.must(t, swap)
	if res.Then || string(res.Reads[0].Value) != "2" || !res.Reads[1].Absent {
		t.Fatalf("second run: %v", res)
	}
	before := Totals(m)
	m.fails(t, dc.NotEmpty, &command.LockTxn{Then: []*command.LockTxnOp{
		{Kind: command.LockTxnOp_KIND_MKDIR, Path: "d"}, {Kind: command.LockTxnOp_KIND_PUT, Path: "d/f"}, {Kind: command.LockTxnOp_KIND_DELETE, Path: "d"},
	}})
	if !proto.Equal(before, Totals(m)) || Stat(m, "d") != nil {
		t.Fatal("a refused transaction left something")
	}
	m.fails(t, dc.TooLarge, &command.LockTxn{Then: make([]*command.LockTxnOp, dc.MaxLockTxnOps+1)})
}

func acquire(path string, session, owner uint64, exclusive, wait bool) *command.LockAcquire {
	return &command.LockAcquire{Path: path, Session: session, Owner: owner, Exclusive: exclusive, Wait: wait, Node: session, Pid: 7, Command: "test"}
}

func TestQueueIsFairAndFencesGrow(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	first := m.must(t, acquire("l", s, 1, true, false)).Fence
	if again := m.must(t, acquire("l", s, 1, true, false)).Fence; first == 0 || again != first {
		t.Fatalf("repeated acquisition got %d, first %d", again, first)
	}
	err := m.fails(t, dc.Again, acquire("l", s, 2, true, false))
	if !strings.Contains(err.Error(), "process 7 (test) of node n1") {
		t.Errorf("a refused try does not name the holder: %v", err)
	}
	for owner := uint64(2); owner <= 6; owner++ { // shared, shared, exclusive, shared, shared
		if !m.must(t, acquire("l", s, owner, owner == 4, true)).Queued {
			t.Fatalf("owner %d was not queued", owner)
		}
	}
	release := func(owner uint64) { m.must(t, &command.LockRelease{Path: "l", Session: s, Owner: owner}) }
	want := func(holders ...uint64) {
		t.Helper()
		last := first
		for _, o := range holders {
			h := Holder(m, "l", s, o)
			if h == nil || h.Fence <= last {
				t.Fatalf("owner %d holds %v, want a fence above %d", o, h, last)
			}
			last = h.Fence
		}
		if q := Queue(m, "l"); int(q.GetHolders()) != len(holders) {
			t.Fatalf("%d holders, want %v", q.GetHolders(), holders)
		}
	}
	release(1)
	want(2, 3)
	m.fails(t, dc.Again, acquire("l", s, 9, false, false)) // a shared try does not pass a waiting exclusive one
	release(2)
	want(3)
	release(3)
	want(4)
	release(5) // a waiter that gives up
	release(4)
	want(6)
	release(6)
	if q := Queue(m, "l"); q != nil {
		t.Fatalf("a free lock left %v", q)
	}
}

func TestRemovedExclusiveWaiterLetsTheSharedBehindItIn(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	m.must(t, acquire("l", s, 1, false, false))
	m.must(t, acquire("l", s, 2, true, true))
	m.must(t, acquire("l", s, 3, false, true))
	m.must(t, &command.LockRelease{Path: "l", Session: s, Owner: 2})
	if Holder(m, "l", s, 3) == nil {
		t.Fatal("the shared waiter was not let in")
	}
}

func TestConversion(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	shared := m.must(t, acquire("l", s, 1, false, false)).Fence
	up := m.must(t, acquire("l", s, 1, true, false)).Fence
	if up <= shared || !Queue(m, "l").Exclusive {
		t.Fatalf("upgrade of the only holder: fence %d after %d", up, shared)
	}
	m.must(t, acquire("l", s, 2, false, true))
	if down := m.must(t, acquire("l", s, 1, false, false)).Fence; down <= up || Holder(m, "l", s, 2) == nil {
		t.Fatalf("downgrade did not let the shared waiter in")
	}
	m.fails(t, dc.Again, acquire("l", s, 1, true, false))
	if Holder(m, "l", s, 1) == nil {
		t.Fatal("a refused conversion lost the lock")
	}
	for o := uint64(1); o <= 2; o++ { // both want to upgrade: no deadlock, one after the other
		m.must(t, acquire("l", s, o, true, true))
	}
	one, two := Holder(m, "l", s, 1), Holder(m, "l", s, 2)
	if (one == nil) == (two == nil) {
		t.Fatalf("after two upgrades: %v and %v", one, two)
	}
}

func TestRemovingALockedFileDoesNotFreeTheName(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	m.must(t, &command.LockCreate{Path: "l"})
	m.must(t, acquire("l", s, 1, true, false))
	m.must(t, &command.LockRemove{Path: "l"})
	m.must(t, &command.LockCreate{Path: "l"})
	m.fails(t, dc.Again, acquire("l", s, 2, true, false))
}

func TestLostSessionsLocksWaitForTheDelay(t *testing.T) {
	m := newMemory()
	one, two := m.session(t, 1), m.session(t, 2)
	fence := m.must(t, acquire("l", one, 1, true, false)).Fence
	m.must(t, acquire("l", two, 1, true, true))
	m.must(t, &command.LockEndSession{Session: one, Lost: true})
	if Holder(m, "l", two, 1) != nil || Session(m, one) != nil {
		t.Fatal("the lock passed on without its delay, or the session stayed")
	}
	m.fails(t, dc.Again, acquire("l", two, 2, true, false))
	dues := Dues(m, 10)
	if len(dues) != 1 || dues[0].AtMs != m.clock+dc.LockDelay.Milliseconds() {
		t.Fatalf("due %v", dues)
	}
	if !m.must(t, &command.LockAdvance{Path: "l"}).More {
		t.Fatal("advanced before its time")
	}
	m.clock = dues[0].AtMs
	m.must(t, &command.LockAdvance{Path: "l"})
	if h := Holder(m, "l", two, 1); h == nil || h.Fence <= fence {
		t.Fatalf("after the delay the waiter holds %v", h)
	}
	m.fails(t, dc.Stale, acquire("m", one, 1, true, true))
	m.fails(t, dc.Stale, &command.LockPut{Path: "f", Value: []byte("late"), Guard: &command.LockGuard{Path: "l", Session: one, Owner: 1}})
	m.must(t, &command.LockPut{Path: "f", Value: []byte("mine"), Guard: &command.LockGuard{Path: "l", Session: two, Owner: 1}})
}

func TestCleanEndHasNoDelay(t *testing.T) {
	m := newMemory()
	one, two := m.session(t, 1), m.session(t, 2)
	m.must(t, acquire("l", one, 1, true, false))
	m.must(t, acquire("l", two, 1, true, true))
	m.must(t, &command.LockEndSession{Session: one})
	if Holder(m, "l", two, 1) == nil {
		t.Fatal("a clean end did not pass the lock on at once")
	}
}

func TestSessionEndsByTheNodesNextOneInOrderOnly(t *testing.T) {
	m := newMemory()
	old := m.session(t, 1)
	m.must(t, acquire("l", old, 1, true, false))
	fresh := m.session(t, 1)
	if Session(m, old) != nil || Session(m, fresh) == nil {
		t.Fatal("the node's next session did not end the earlier one")
	}
	m.must(t, acquire("k", fresh, 1, true, false))
	// A late copy of the earlier daemon's request must not end the later session.
	m.fails(t, dc.Conflict, &command.LockOpenSession{Node: 1, Generation: 1, TtlMs: 1})
	m.fails(t, dc.Conflict, &command.LockOpenSession{Node: 1, Generation: 2, TtlMs: 1})
	if Holder(m, "k", fresh, 1) == nil {
		t.Fatal("the lock is gone")
	}
}

func TestEndCountedByADeposedLeaderDoesNothing(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	epoch := m.must(t, &command.LockTakeOver{}).Epoch
	m.must(t, &command.LockTakeOver{})
	m.fails(t, dc.Conflict, &command.LockEndSession{Session: s, Lost: true, Epoch: epoch})
	m.must(t, &command.LockEndSession{Session: s, Lost: true, Epoch: epoch + 1})
}

func TestReapingIsBoundedAndGrantsNothingToTheDead(t *testing.T) {
	m := newMemory()
	m.must(t, &command.LockSettings{LockDelayMs: proto.Uint32(0)})
	dead, alive := m.session(t, 1), m.session(t, 2)
	const locks = 3 * reapRows
	for i := range uint64(locks) {
		path := fmt.Sprintf("l%d", i)
		m.must(t, acquire(path, dead, 1, true, false))
		m.must(t, acquire(path, dead, 2, true, true)) // the dead node waits for itself, ahead of the living
		m.must(t, acquire(path, alive, 1, true, true))
	}
	m.must(t, &command.LockEndSession{Session: dead, Lost: true})
	m.fails(t, dc.Stale, acquire("new", dead, 1, true, true))
	for n := 0; Session(m, dead) != nil; n++ {
		m.must(t, &command.LockReap{Session: dead})
		if n > 20 {
			t.Fatal("reaping does not end")
		}
	}
	for i := range uint64(locks) {
		path := fmt.Sprintf("l%d", i)
		if q := Queue(m, path); Holder(m, path, alive, 1) == nil || q.Holders != 1 || q.Waiters != 0 {
			t.Fatalf("%s: %v", path, q)
		}
	}
}

func TestALongSharedQueueGoesOnInSteps(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	m.must(t, acquire("l", s, 0, true, false))
	const n = 3*promoteSteps + 1
	for o := range uint64(n) {
		m.must(t, acquire("l", s, o+1, false, true))
	}
	m.must(t, &command.LockRelease{Path: "l", Session: s})
	for len(Dues(m, 1)) > 0 {
		m.must(t, &command.LockAdvance{Path: "l"})
	}
	if q := Queue(m, "l"); q.Holders != n || q.Waiters != 0 {
		t.Fatalf("%v, want %d holders", q, n)
	}
}

func TestEphemeralFilesLiveWhileHeld(t *testing.T) {
	m := newMemory()
	m.must(t, &command.LockCreate{Path: "members", Dir: true})
	m.must(t, &command.LockSetAttr{Path: "members", Ephemeral: proto.Bool(true)})
	m.fails(t, dc.Invalid, &command.LockPut{Path: "members/x", Value: []byte("x")})
	one, two := m.session(t, 1), m.session(t, 2)
	open := func(s, owner uint64) {
		m.must(t, &command.LockCreate{Path: "members/h", Session: s, Owner: owner})
	}
	open(one, 1)
	open(one, 1)
	open(two, 1)
	m.must(t, &command.LockPut{Path: "members/h", Value: []byte("addr")})
	m.fails(t, dc.Invalid, &command.LockRename{From: "members/h", To: "h"})
	m.must(t, &command.LockRelease{Path: "members/h", Session: one, Owner: 1, Ephemeral: true})
	if Stat(m, "members/h") == nil {
		t.Fatal("gone while the second node holds it")
	}
	m.must(t, &command.LockEndSession{Session: two, Lost: true})
	if Stat(m, "members/h") != nil || Totals(m).Files != 1 {
		t.Fatalf("an ephemeral file outlived its sessions: %v", Stat(m, "members/h"))
	}
	// A hold on a removed file does not count for a later one of the same name.
	open(one, 1)
	m.must(t, &command.LockRemove{Path: "members/h"})
	open(one, 2)
	m.must(t, &command.LockRelease{Path: "members/h", Session: one, Owner: 1, Ephemeral: true})
	if Stat(m, "members/h") == nil {
		t.Fatal("an old hold removed a new file")
	}
}

func TestCompactionForgetsAPrefixOnly(t *testing.T) {
	m := newMemory()
	for i := range 3 * sweepRows {
		m.must(t, &command.LockPut{Path: "f", Value: []byte(fmt.Sprint(i))})
	}
	m.must(t, &command.LockRemove{Path: "f"})
	last := Totals(m).Revision
	m.fails(t, dc.Invalid, &command.LockCompact{Through: last + 1})
	bytes := Totals(m).HistoryBytes
	for m.must(t, &command.LockCompact{Through: last - 1}).More {
	}
	st := Totals(m)
	if st.Revision != last || st.Compacted != last-1 || st.HistoryBytes >= bytes || st.HistoryBytes == 0 {
		t.Fatalf("after compaction %v", st)
	}
	var kept []*command.LockHistory
	History(m, 1, func(h *command.LockHistory) bool { kept = append(kept, h); return true })
	// The deletion at the first retained revision is still told (etcd #18089, #19179).
	if len(kept) != 1 || kept[0].Revision != last || kept[0].Events[0].Kind != command.LockEvent_KIND_DELETE {
		t.Fatalf("retained history %v", kept)
	}
	m.must(t, &command.LockCompact{Through: 1}) // an older bound changes nothing (etcd #17780: revisions never go back)
	if after := Totals(m); after.Compacted != last-1 || after.Revision != last {
		t.Fatalf("an older compaction changed %v to %v", st, after)
	}
}

func TestEveryRevisionHasOneRowOfHistory(t *testing.T) {
	m := newMemory()
	s := m.session(t, 1)
	m.must(t, acquire("l", s, 1, true, false))
	m.must(t, acquire("l", s, 2, false, true))
	m.must(t, acquire("l", s, 3, false, true))
	m.must(t, &command.LockCreate{Path: "d", Dir: true})
	m.must(t, &command.LockPut{Path: "d/f", Value: []byte("x")})
	m.must(t, &command.LockRename{From: "d", To: "e"})
	m.must(t, &command.LockSetAttr{Path: "e", Mode: proto.Uint32(0o700)})
	m.must(t, &command.LockEndSession{Session: s})
	next := uint64(1)
	History(m, 1, func(h *command.LockHistory) bool {
		if h.Revision != next || len(h.Events) == 0 {
			t.Fatalf("history %v, want revision %d", h, next)
		}
		next++
		return true
	})
	if st := Totals(m); next != st.Revision+1 {
		t.Fatalf("history ends at %d, the store is at %d", next-1, st.Revision)
	}
	var emitted uint64
	for _, ev := range m.events {
		if h, ok := ev.(*command.LockHistory); ok {
			if emitted++; h.Revision != emitted {
				t.Fatalf("emitted revision %d as number %d", h.Revision, emitted)
			}
		}
	}
}

func TestUnknownCommandsStopTheReplica(t *testing.T) {
	for _, body := range [][]byte{{0xff}, encode(&command.LockCommand{Version: 99}), encode(&command.LockCommand{Version: Version})} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%x was accepted", body)
				}
			}()
			_, err := Machine{}.Apply(newMemory(), body)
			t.Errorf("%x returned %v", body, errors.Unwrap(err))
		}()
	}
}
