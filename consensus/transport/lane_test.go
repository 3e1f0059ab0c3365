package transport

import "testing"

// What a follower has acknowledged is repeated as heartbeats but for one time in repeatEvery, until it changes or the follower fails.
func TestRepeatedMessagesGoAsHeartbeats(t *testing.T) {
	l := &Lane{}
	r := func(commit uint64) *AppendRequest {
		return &AppendRequest{Term: 3, PrevIndex: 7, PrevTerm: 2, Commit: commit}
	}
	if l.repeats("n2", r(7)) {
		t.Error("nothing was acknowledged yet")
	}
	l.remember("n2", r(7))
	saved := 0
	for range 2 * repeatEvery {
		if l.repeats("n2", r(7)) {
			saved++
		}
	}
	if saved != 2*repeatEvery-2 {
		t.Errorf("%d of %d messages were saved", saved, 2*repeatEvery)
	}
	other := r(7)
	other.Term = 4
	withEntry := r(7)
	withEntry.Entries = []*Entry{{}}
	for _, news := range []*AppendRequest{r(8), other, withEntry, {Term: 3, PrevIndex: 8, PrevTerm: 2, Commit: 7}, {Term: 3, PrevIndex: 7, PrevTerm: 3, Commit: 7}} {
		if l.repeats("n2", news) {
			t.Errorf("taken for a repetition: %v", news)
		}
	}
	if l.repeats("n3", r(7)) {
		t.Error("another follower has not acknowledged it")
	}
	l.remember("n2", nil)
	if l.repeats("n2", r(7)) {
		t.Error("the follower has failed since")
	}
}
