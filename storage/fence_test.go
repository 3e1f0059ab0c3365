package storage

import (
	"fmt"
	"testing"

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

func TestFencesAreForgottenWhenNoCommandCanComeBefore(t *testing.T) {
	v := NewVolatile(toy{}, nil)
	f := &fencedShard{t: t, apply: v.Apply, clock: 1000}
	fill := func(n int) {
		for i := range n {
			if err := f.put(fmt.Sprintf("%d/%d", f.clock, i), 5); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(maxFences + 10) // all are young: none may go
	if n := len(v.ledger.fences.known); n != maxFences+10 {
		t.Errorf("%d fences are known, want all %d", n, maxFences+10)
	}
	f.clock += dc.DedupeWindow.Milliseconds() + 1
	fill(1)
	if n := len(v.ledger.fences.known); n > maxFences/2+20 {
		t.Errorf("%d fences are known when most are old", n)
	}
	l := newFences()
	if err := l.load((*stateReader)(&v.state)); err != nil || len(l.known) != len(v.ledger.fences.known) {
		t.Errorf("%d fences are stored, %d known (%v)", len(l.known), len(v.ledger.fences.known), err)
	}
}
