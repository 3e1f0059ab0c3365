package storage

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// fencedShard applies puts of the toy machine, an entry each.
type fencedShard struct {
	t     *testing.T
	apply func([]Entry) [][]Result
	index dc.Index
	clock int64
	seq   uint64
}

func (s *fencedShard) put(lock string, token uint64) error {
	s.t.Helper()
	s.seq++
	return s.send(dc.RequestID{Client: 1, Seq: s.seq, Done: s.seq, Issued: s.clock, Fence: dc.Fence{Lock: lock, Token: token}})
}

func (s *fencedShard) send(id dc.RequestID) error {
	s.t.Helper()
	s.index++
	return s.apply([]Entry{{Index: s.index, Term: 1, Clock: s.clock, Commands: [][]byte{command.Encode(id, []byte("set k v"))}}})[0][0].Err
}

// fill writes under n locks that were not seen before.
func (s *fencedShard) fill(n int) {
	s.t.Helper()
	for i := range n {
		if err := s.put(fmt.Sprintf("%d/%d", s.clock, i), 5); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestAnOlderFenceIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, testConfig(t))
	f := &fencedShard{t: t, apply: s.Apply, clock: 1000}
	for _, step := range []struct {
		lock  string
		token uint64
		ok    bool
	}{
		{"a", 5, true},
		{"a", 5, true},
		{"b", 3, true},  // another lock
		{"a", 7, true},  // its next holder
		{"a", 5, false}, // the one before
		{"a", 0, false}, // denied by the lock store
		{"a", 7, true},
		{"", 0, true}, // without a condition
	} {
		err := f.put(step.lock, step.token)
		if step.ok != (err == nil) || err != nil && dc.KindOf(err) != dc.Stale {
			t.Errorf("put under %d@%s: %v", step.token, step.lock, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, testConfig(t)) // after a restart
	defer s.Close()
	f.apply = s.Apply
	if err := f.put("a", 6); dc.KindOf(err) != dc.Stale {
		t.Errorf("after a restart an older token is answered %v, want ESTALE", err)
	}
	if token, err := s.Fence("a"); token != 7 || err != nil {
		t.Errorf("the shard knows token %d (%v), want 7", token, err)
	}
}

// A request that was denied once stays denied, and one that was done stays done, whatever a retry of it says.
func TestARequestHasOneAnswerWhateverItsFence(t *testing.T) {
	f := &fencedShard{t: t, apply: NewVolatile(toy{}, nil).Apply, clock: 1000}
	id := dc.RequestID{Client: 1, Seq: 1, Done: 1, Issued: 1000, Fence: dc.Fence{Lock: "a", Token: 0}}
	if err := f.send(id); dc.KindOf(err) != dc.Stale {
		t.Fatal(err)
	}
	id.Fence.Token = 9
	if err := f.send(id); dc.KindOf(err) != dc.Stale {
		t.Errorf("the first attempt came after its refusal and was done: %v", err)
	}
	id.Seq = 2
	if err := f.send(id); err != nil {
		t.Fatal(err)
	}
	id.Fence.Token = 0
	if err := f.send(id); err != nil {
		t.Errorf("the retry of what was done: %v", err)
	}
}

// A command may be issued a window ahead of the log and come a window after that: the fence that refuses it must still be there.
func TestAFenceOutlivesEveryCommandThatWasAdmittedBeforeIt(t *testing.T) {
	f := &fencedShard{t: t, apply: NewVolatile(toy{}, nil).Apply, clock: 1000}
	window := dc.DedupeWindow.Milliseconds()
	late := dc.RequestID{Client: 2, Seq: 1, Done: 1, Issued: f.clock + window, Fence: dc.Fence{Lock: "0", Token: 5}}
	if err := f.put("0", 7); err != nil {
		t.Fatal(err)
	}
	f.fill(fencesKept)
	f.clock += 2 * window
	f.fill(10)
	if err := f.send(late); dc.KindOf(err) != dc.Stale {
		t.Errorf("what was admitted before the lock was taken is answered %v, want ESTALE", err)
	}
}

func TestFencesAreForgottenWhenNoCommandCanComeBefore(t *testing.T) {
	v := NewVolatile(toy{}, nil)
	f := &fencedShard{t: t, apply: v.Apply, clock: 1000}
	for range fencesKept + 10 { // all are young: none may go
		f.fill(1)
		f.clock++
	}
	known := v.ledger.fences.known
	if n := len(known); n != fencesKept+10 {
		t.Errorf("%d fences are known, want all %d", n, fencesKept+10)
	}
	f.clock += 2 * dc.DedupeWindow.Milliseconds()
	for range 100 {
		f.fill(1)
		f.clock++
	}
	if n := len(known); n != fencesKept {
		t.Errorf("%d fences are known when most are old, want %d", n, fencesKept)
	}
}

// A replica that started again, or got a snapshot, goes on as one that did not.
func TestReplicasForgetTheSameFences(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := NewVolatile(toy{}, nil)
		f := &fencedShard{t: t, apply: v.Apply, clock: 1000}
		f.fill(fencesKept) // of one age
		for range rapid.IntRange(1, 60).Draw(rt, "commands") {
			f.clock += rapid.SampledFrom([]int64{0, 0, 1, dc.DedupeWindow.Milliseconds()}).Draw(rt, "time")
			lock := rapid.SampledFrom([]string{"1000/3", "1000/7", "a", "b", "c", "d", "e", "f", "g", "h"}).Draw(rt, "lock")
			_ = f.put(lock, uint64(rapid.IntRange(1, 20).Draw(rt, "token")))
			if rapid.IntRange(0, 3).Draw(rt, "restart") == 0 {
				again := newFences()
				if err := again.load((*stateReader)(&v.state)); err != nil {
					rt.Fatal(err)
				}
				live := v.ledger.fences
				if len(again.known) != len(live.known) {
					rt.Fatalf("%d fences are stored, %d known", len(again.known), len(live.known))
				}
				late := f.clock + 2*dc.DedupeWindow.Milliseconds()
				over := func() *overlay { return &overlay{base: (*stateReader)(&v.state)} }
				again.forget(over(), late)
				live.forget(over(), late)
				if diff := cmp.Diff(tokens(again), tokens(live)); diff != "" {
					rt.Fatalf("what a replica knows that started again, and what it would know (-+): %s", diff)
				}
				return // live is no longer what is stored
			}
		}
	})
}

func TestTooManyFencesAreRefused(t *testing.T) {
	v := NewVolatile(toy{}, nil)
	v.ledger.fences.most = fencesKept + 5
	f := &fencedShard{t: t, apply: v.Apply, clock: 1000}
	f.fill(fencesKept + 5)
	if err := f.put("one more", 1); dc.KindOf(err) != dc.NoSpace {
		t.Errorf("a lock more is answered %v, want ENOSPC", err)
	}
	if err := f.put("1000/0", 6); err != nil {
		t.Errorf("the next holder of a known lock: %v", err)
	}
	if err := f.put("1000/0", 5); dc.KindOf(err) != dc.Stale {
		t.Errorf("the one before: %v", err)
	}
	if err := f.put("", 0); err != nil {
		t.Errorf("without a condition: %v", err)
	}
	f.clock += 2*dc.DedupeWindow.Milliseconds() + 1
	if err := f.put("one more", 1); err != nil {
		t.Errorf("when there are old ones: %v", err)
	}
}

func tokens(f *fences) map[string][2]int64 {
	out := map[string][2]int64{}
	for lock, have := range f.known {
		out[lock] = [2]int64{int64(have.token), have.clock}
	}
	return out
}

// As TestStoredEnvelopesAreRead: these rows are in the shards of clusters.
func TestStoredFencesAreRead(t *testing.T) {
	v := NewVolatile(toy{}, nil)
	f := &fencedShard{t: t, apply: v.Apply, clock: 1000}
	if err := f.put("a/b", 700); err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for key, value := range (*stateReader)(&v.state).Scan(Span{Start: []byte(fencePrefix), End: []byte(fenceEnd)}) {
		rows[string(key)] = string(value)
	}
	if diff := cmp.Diff(rows, map[string]string{"!fa/b": "\xbc\x05\xd0\x0f"}); diff != "" {
		t.Errorf("stored (-got +want):\n%s", diff)
	}
	l := newFences()
	if err := l.load((*stateReader)(&v.state)); err != nil || l.known["a/b"] == nil || l.known["a/b"].token != 700 || l.known["a/b"].clock != 1000 {
		t.Errorf("read as %+v, %v", l.known["a/b"], err)
	}
}
