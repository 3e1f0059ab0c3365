package locktable

import (
	"context"
	"math"
	"sync"

	"missingos/srv/dc"
)

// End is the last byte of a whole-file lock, as the kernel gives it.
const End uint64 = math.MaxInt64

// A Lock is a lock held or wanted on the bytes Start..End (inclusive) of a file.
type Lock struct {
	Start, End uint64
	Exclusive  bool
	Flock      bool   // flock(2), always the whole file; otherwise fcntl(2)
	Owner      uint64 // the kernel's number for the open file (flock) or the process's files (fcntl)
	PID        uint32 // of the process, for showing
}

func (l Lock) overlaps(o Lock) bool { return l.Start <= o.End && o.Start <= l.End }

func (l Lock) conflicts(o Lock) bool {
	return l.Flock == o.Flock && l.Owner != o.Owner && (l.Exclusive || o.Exclusive) && l.overlaps(o)
}

func (l Lock) sameHolder(o Lock) bool { return l.Flock == o.Flock && l.Owner == o.Owner }

// A Table holds the locks of the files of one mount, which are named by K (an inode number, a key). The zero Table is
// ready for use; all methods may be called concurrently.
type Table[K comparable] struct {
	mu    sync.Mutex
	files map[K]*file
	waits map[*wait[K]]bool // for fcntl locks
}

// A wait is an owner's for a lock that it wants.
type wait[K comparable] struct {
	name K
	lock Lock
}

type file struct {
	locks   []Lock
	changed chan struct{} // closed and replaced when a lock goes
	waiting int
}

// Lock takes l on the file, replacing what its owner held of those bytes (so it also upgrades and downgrades). If another
// owner is in the way it waits, until ctx ends, or without block returns dc.Again. It returns dc.Deadlock if owners of fcntl locks would then wait for each other
// in a circle. A wait that ends without the lock leaves what the owner held before.
func (t *Table[K]) Lock(ctx context.Context, name K, l Lock, block bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		t.files = make(map[K]*file)
	}
	f := t.files[name]
	if f == nil {
		f = &file{changed: make(chan struct{})}
		t.files[name] = f
	}
	for f.conflict(l) != nil {
		if !block {
			return dc.Errorf(dc.Again, "lock", "", "another process holds the lock")
		}
		if err := t.waitLocked(ctx, name, f, l); err != nil {
			t.tidyLocked(name, f)
			return err
		}
	}
	f.remove(l)
	f.locks = append(f.locks, l)
	f.wake() // a downgrade may let others in
	return nil
}

// waitLocked waits until a lock of the file goes. It gives t.mu back meanwhile.
func (t *Table[K]) waitLocked(ctx context.Context, name K, f *file, l Lock) error {
	w := &wait[K]{name, l}
	if !l.Flock {
		if t.blockedLocked(w, l.Owner, map[uint64]bool{}) {
			return dc.Errorf(dc.Deadlock, "lock", "", "who holds the lock waits, perhaps by way of others, for one that the caller holds")
		}
		if t.waits == nil {
			t.waits = map[*wait[K]]bool{}
		}
		t.waits[w] = true
		defer delete(t.waits, w)
	}
	changed := f.changed
	f.waiting++
	t.mu.Unlock()
	select {
	case <-changed:
	case <-ctx.Done():
	}
	t.mu.Lock()
	f.waiting--
	if err := ctx.Err(); err != nil {
		return dc.Errorf(dc.KindOf(err), "lock", "", "gave up waiting for the lock")
	}
	return nil
}

// blockedLocked tells whether target holds what w waits for, or what somebody waits for who does, by way of owners not yet passed. An owner that waits does
// not give up what it holds: its threads are taken for one, as the kernel takes them.
func (t *Table[K]) blockedLocked(w *wait[K], target uint64, passed map[uint64]bool) bool {
	for _, h := range t.files[w.name].locks {
		switch {
		case !h.conflicts(w.lock):
			continue
		case h.Owner == target:
			return true
		case passed[h.Owner]:
			continue
		}
		passed[h.Owner] = true
		for other := range t.waits {
			if other.lock.Owner == h.Owner && t.blockedLocked(other, target, passed) {
				return true
			}
		}
	}
	return false
}

// Unlock gives up what l's owner holds of the bytes of l.
func (t *Table[K]) Unlock(name K, l Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[name]; f != nil {
		f.remove(l)
		f.wake()
		t.tidyLocked(name, f)
	}
}

// Release gives up everything that owner holds of the file by flock, or by fcntl.
func (t *Table[K]) Release(name K, owner uint64, flock bool) {
	t.Unlock(name, Lock{Start: 0, End: math.MaxUint64, Owner: owner, Flock: flock})
}

// Conflict finds a lock that is in the way of l.
func (t *Table[K]) Conflict(name K, l Lock) (Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[name]; f != nil {
		if c := f.conflict(l); c != nil {
			return *c, true
		}
	}
	return Lock{}, false
}

// Len is the number of files with locks or waiters.
func (t *Table[K]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.files)
}

func (t *Table[K]) tidyLocked(name K, f *file) {
	if len(f.locks) == 0 && f.waiting == 0 {
		delete(t.files, name)
	}
}

func (f *file) conflict(l Lock) *Lock {
	for i := range f.locks {
		if f.locks[i].conflicts(l) {
			return &f.locks[i]
		}
	}
	return nil
}

// remove cuts the bytes of l out of what its holder has.
func (f *file) remove(l Lock) {
	var kept []Lock
	for _, h := range f.locks {
		if !h.sameHolder(l) || !h.overlaps(l) {
			kept = append(kept, h)
			continue
		}
		if h.Start < l.Start {
			left := h
			left.End = l.Start - 1
			kept = append(kept, left)
		}
		if h.End > l.End {
			right := h
			right.Start = l.End + 1
			kept = append(kept, right)
		}
	}
	f.locks = kept
}

func (f *file) wake() {
	if f.waiting > 0 {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}
