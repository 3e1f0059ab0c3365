package lock

import (
	"context"
	"time"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
)

// Bounds of the stored history: the settings, or the defaults.

func maxBytes(st *command.LockState) uint64 {
	if st.MaxHistoryBytes > 0 {
		return st.MaxHistoryBytes
	}
	return dc.MaxLockHistoryB
}

func maxRevisions(st *command.LockState) uint64 {
	if st.MaxHistoryRevisions > 0 {
		return st.MaxHistoryRevisions
	}
	return dc.MaxLockHistory
}

// ageSteps keeps compaction by age from coming back for every single revision: what is at most this part of the age too old may stay.
const ageSteps = 16

// trim keeps the stored history within its bounds. The leader decides how far, and the log carries it.
func (t *term) trim(ctx context.Context) {
	var st *command.LockState
	var through uint64
	var oldest int64
	clock := t.replica.Clock()
	err := t.replica.Local(func(rd storage.Reader) error {
		st = lock.Totals(rd)
		through = excess(rd, st, clock)
		oldest = lock.RevisionClock(rd, max(through, st.Compacted)+1)
		return nil
	})
	if err != nil {
		return
	}
	t.mu.Lock()
	t.age = time.Duration(st.HistoryAgeMs) * time.Millisecond
	t.mu.Unlock()
	if st.HistoryAgeMs > 0 && oldest > 0 {
		due := oldest + st.HistoryAgeMs + st.HistoryAgeMs/ageSteps
		t.mu.Lock()
		t.aged = time.Now().Add(time.Duration(max(due-clock, retryAfter.Milliseconds())) * time.Millisecond)
		t.mu.Unlock()
		signal(t.woken)
	}
	for through > st.Compacted || st.Swept < st.Compacted {
		res, err := t.do(ctx, t.replica.NewID(), &command.LockCompact{Through: max(through, st.Compacted)})
		if err != nil || !res.More {
			return
		}
	}
}

// excess gives the revision up to which history is over its bounds; what is compacted already if it is not.
func excess(rd storage.Reader, st *command.LockState, clock int64) uint64 {
	through := st.Compacted
	kept := st.Revision - st.Compacted
	if most := maxRevisions(st); kept > most+min(compactSlack, most/8) {
		through = st.Revision - most
	} else if most := maxBytes(st); st.HistoryBytes > most {
		through += max(1, kept/8, kept*(st.HistoryBytes-most)/st.HistoryBytes) // the eighth so that it is not to be done again at once
	}
	if st.HistoryAgeMs > 0 {
		through = max(through, lock.RevisionBefore(rd, st, clock-st.HistoryAgeMs))
	}
	return min(through, st.Revision)
}
