package file

import (
	"math"
	"slices"
	"time"
)

// LockEnd is the last byte of a lock on a whole file, as the kernel gives it.
const LockEnd uint64 = math.MaxInt64

// Times and limits of locks; docs/design/0028 says how they work together.
const (
	// LockTTL is how long a mount may believe in its locks after it sent the last question that the leader answered.
	LockTTL = 10 * time.Second
	// LockExpiry is how long a leader waits for a silent mount before it gives its locks to others.
	LockExpiry = LockTTL + 2*time.Second
	// LockRenew is how often a mount that takes part in locking speaks up.
	LockRenew = 2 * time.Second
	// LockIdle is how long a mount goes on doing so when it holds nothing.
	LockIdle = time.Minute
	// MaxLocks is how many byte ranges the processes of one mount may hold.
	MaxLocks = 32_768
	// MaxLockWaits is how many of them may wait.
	MaxLockWaits = 4096
)

// A Lock is a lock held or wanted on the bytes Start..End (inclusive) of a file.
type Lock struct {
	Ino        Ino
	Session    uint64 // of the mount; 0 inside a mount
	Owner      uint64 // the kernel's number for the open file (flock) or the process's files (fcntl)
	Start, End uint64
	Exclusive  bool
	Flock      bool   // flock(2), always the whole file; otherwise fcntl(2)
	PID        uint32 // of the process, for showing
}

// SameHolder tells whether l and o belong to one owner, who never is in their own way.
func (l Lock) SameHolder(o Lock) bool {
	return l.Flock == o.Flock && l.Session == o.Session && l.Owner == o.Owner
}

// Overlaps tells whether l and o have bytes in common.
func (l Lock) Overlaps(o Lock) bool { return l.Start <= o.End && o.Start <= l.End }

// Conflicts tells whether l and o cannot be held together. flock and fcntl ignore each other, as in the kernel.
func (l Lock) Conflicts(o Lock) bool {
	return l.Flock == o.Flock && (l.Exclusive || o.Exclusive) && l.Overlaps(o) && !l.SameHolder(o)
}

// Locks are what is held of one file. No two locks of a holder overlap, nor do those of one mode touch.
type Locks []Lock

// Conflict finds a lock that is in the way of l.
func (ls Locks) Conflict(l Lock) (Lock, bool) {
	for _, h := range ls {
		if h.Conflicts(l) {
			return h, true
		}
	}
	return Lock{}, false
}

// Holds tells whether l is held, in its mode.
func (ls Locks) Holds(l Lock) bool {
	for _, h := range ls {
		if h.SameHolder(l) && h.Exclusive == l.Exclusive && h.Start <= l.Start && l.End <= h.End {
			return true
		}
	}
	return false
}

// Take gives ls with l in place of what its holder had of those bytes. ls must not be used any more.
func (ls Locks) Take(l Lock) Locks {
	ls = ls.Remove(l)
	return append(slices.DeleteFunc(ls, func(h Lock) bool {
		touch := h.Start <= l.End+1 && l.Start <= h.End+1 // no lock ends at the greatest number
		if !touch || !h.SameHolder(l) || h.Exclusive != l.Exclusive {
			return false
		}
		l.Start, l.End = min(l.Start, h.Start), max(l.End, h.End)
		return true
	}), l)
}

// Remove gives ls without the bytes of l, as far as l's holder has them. ls must not be used any more.
func (ls Locks) Remove(l Lock) Locks {
	var right []Lock
	kept := ls[:0]
	for _, h := range ls {
		if !h.SameHolder(l) || !h.Overlaps(l) {
			kept = append(kept, h)
			continue
		}
		if h.End > l.End {
			r := h
			r.Start = l.End + 1
			right = append(right, r)
		}
		if h.Start < l.Start {
			h.End = l.Start - 1
			kept = append(kept, h)
		}
	}
	return append(kept, right...)
}
