package consensus

import (
	"testing"
	"time"
)

// An apply that waits for its turn is no sign of a disk that hangs, and counts from when it has its turn.
func TestQueuedAppliesDoNotStall(t *testing.T) {
	j := &journal{}
	f := &fsm{g: &Group{cfg: GroupConfig{Machine: j}}}
	if d := f.stalled(); d != 0 {
		t.Errorf("idle: %v", d)
	}
	f.began.Store(time.Now().Add(-time.Hour).UnixNano())
	if d := f.stalled(); d < time.Hour {
		t.Errorf("under way: %v", d)
	}
	j.queued.Store(true)
	if d := f.stalled(); d != 0 {
		t.Errorf("queued: %v", d)
	}
	j.queued.Store(false)
	if d := f.stalled(); d > time.Minute {
		t.Errorf("after the queue: %v", d)
	}
}
