package transport

import (
	"testing"
	"testing/synctest"
	"time"
)

// What a follower has acknowledged is not sent again but for one time in repeatEvery, as long as nothing changes, it is the same process and answers
// heartbeats.
func TestRepeatedMessagesAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lane{t: New(Config{Pulse: 750 * time.Millisecond, Gather: 150 * time.Millisecond})}
		const life = 99
		r := func(commit uint64) *AppendRequest {
			return &AppendRequest{Term: 3, PrevIndex: 7, PrevTerm: 2, Commit: commit}
		}
		if l.repeats(2, r(7), life) {
			t.Error("nothing was acknowledged yet")
		}
		l.acknowledged(2, r(7), life)
		if l.repeats(2, r(7), life) {
			t.Error("it has answered no heartbeat")
		}
		saved := 0
		for range 2 * repeatEvery {
			l.answered(2, 3)
			time.Sleep(time.Second)
			if l.repeats(2, r(7), life) {
				saved++
			}
		}
		if saved != 2*repeatEvery-2 {
			t.Errorf("%d of %d messages were saved", saved, 2*repeatEvery)
		}
		l.answered(2, 3)
		other := r(7)
		other.Term = 4
		withEntry := r(7)
		withEntry.Entries = []*Entry{{}}
		for _, news := range []*AppendRequest{r(8), other, withEntry, {Term: 3, PrevIndex: 8, PrevTerm: 2, Commit: 7}, {Term: 3, PrevIndex: 7, PrevTerm: 3, Commit: 7}} {
			if l.repeats(2, news, life) {
				t.Errorf("taken for a repetition: %v", news)
			}
		}
		if l.repeats(3, r(7), life) {
			t.Error("another follower has not acknowledged it")
		}
		if l.repeats(2, r(7), life+1) || l.repeats(2, r(7), 0) {
			t.Error("its next process has not acknowledged it")
		}
		if !l.repeats(2, r(7), life) {
			t.Error("nothing has changed")
		}
		time.Sleep(1100 * time.Millisecond)
		if l.repeats(2, r(7), life) {
			t.Error("it answers no heartbeats any more")
		}
		l.answered(2, 3)
		l.forget(2)
		l.answered(2, 3)
		if l.repeats(2, r(7), life) {
			t.Error("it has failed since")
		}
	})
}
