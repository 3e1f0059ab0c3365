package filelock

import (
	"slices"
	"sync"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// A Table holds the locks of all files. The zero Table is ready for use; all methods may be called concurrently and none blocks.
type Table struct {
	mu       sync.Mutex
	files    map[file.Ino]*locked
	sessions map[uint64]*session
	waits    map[*Wait]bool // for fcntl locks
}

// locked is a file with locks or waiters.
type locked struct {
	held  file.Locks
	queue []*Wait
}

// session is where a session has locks or waits.
type session struct {
	files map[file.Ino]bool
	waits int
}

// A Wait is a place in the queue of a file.
type Wait struct {
	Lock   file.Lock
	number uint64
	done   chan struct{}
}

// Done is closed when the lock has been granted, or the place in the queue is gone.
func (w *Wait) Done() <-chan struct{} { return w.done }

// Lock takes l, in place of what its owner held of those bytes. If another holder is in the way it returns dc.Again, or, with wait, a place in the queue under
// number, unless that would close a circle of waiting owners of fcntl locks: dc.Deadlock. The place of a number that waits already is given again.
// As in Linux, who waits for a flock has given up the one they had; other waits leave what is held alone.
func (t *Table) Lock(l file.Lock, number uint64, wait bool) (*Wait, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fileLocked(l.Ino)
	defer t.tidyLocked(l.Ino, f)
	s := t.sessionLocked(l.Session)
	s.files[l.Ino] = true
	defer t.leaveLocked(l.Session, l.Ino, f)
	if w := f.waiting(l.Session, number); w != nil {
		return w, nil
	}
	holder, conflict := f.held.Conflict(l)
	switch {
	case !conflict:
		f.held = f.held.Take(l)
		t.serveLocked(f) // a downgrade may let others in
		return nil, nil
	case !wait:
		return nil, dc.Errorf(dc.Again, "lock", l.Ino.String(), "process %d holds the lock", holder.PID)
	case s.waits >= file.MaxLockWaits:
		return nil, dc.Errorf(dc.NoSpace, "lock", l.Ino.String(), "%d processes of the mount wait for locks, which is the limit", s.waits)
	case !l.Flock && t.blockedLocked(l, l, map[holderKey]bool{}):
		return nil, dc.Errorf(dc.Deadlock, "lock", l.Ino.String(), "who holds the lock waits, perhaps by way of others, for one that the caller holds")
	}
	w := &Wait{Lock: l, number: number, done: make(chan struct{})}
	s.waits++
	f.queue = append(f.queue, w)
	if l.Flock {
		f.held = f.held.Remove(l)
		t.serveLocked(f)
	} else {
		if t.waits == nil {
			t.waits = map[*Wait]bool{}
		}
		t.waits[w] = true
	}
	return w, nil
}

// Unlock gives up what l's owner holds of the bytes of l.
func (t *Table) Unlock(l file.Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[l.Ino]
	if f == nil {
		return
	}
	f.held = f.held.Remove(l)
	t.serveLocked(f)
	t.leaveLocked(l.Session, l.Ino, f)
	t.tidyLocked(l.Ino, f)
}

// Cancel takes back the wait for l under number. It tells whether l is held: it may have been granted a moment before.
func (t *Table) Cancel(l file.Lock, number uint64) (held bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[l.Ino]
	if f == nil {
		return false
	}
	if w := f.waiting(l.Session, number); w != nil {
		t.unqueueLocked(f, func(x *Wait) bool { return x == w })
		t.leaveLocked(l.Session, l.Ino, f)
		t.tidyLocked(l.Ino, f)
		return false
	}
	return f.held.Holds(l)
}

// Waiting finds a place in a queue, nil if there is none.
func (t *Table) Waiting(ino file.Ino, session, number uint64) *Wait {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[ino]; f != nil {
		return f.waiting(session, number)
	}
	return nil
}

// Replace makes what a session holds of a file exactly held, and leaves it of its places in the queue those of waiting. It tells whether that could be:
// other holders may be in the way only if the caller has claimed what it was never granted.
func (t *Table) Replace(ino file.Ino, id uint64, held []file.Lock, waiting []uint64) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.replaceLocked(ino, id, held, waiting)
}

func (t *Table) replaceLocked(ino file.Ino, id uint64, held []file.Lock, waiting []uint64) (ok bool) {
	f := t.fileLocked(ino)
	t.sessionLocked(id).files[ino] = true
	f.held = slices.DeleteFunc(f.held, func(h file.Lock) bool { return h.Session == id })
	ok = true
	for _, l := range held {
		l.Ino, l.Session = ino, id
		if _, conflict := f.held.Conflict(l); conflict {
			ok = false
			continue
		}
		f.held = f.held.Take(l)
	}
	t.unqueueLocked(f, func(w *Wait) bool { return w.Lock.Session == id && !slices.Contains(waiting, w.number) })
	t.serveLocked(f)
	t.leaveLocked(id, ino, f)
	t.tidyLocked(ino, f)
	return ok
}

// Claim makes what a session holds of all files exactly held. Its waits end.
func (t *Table) Claim(id uint64, held []file.Lock) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	byFile := map[file.Ino][]file.Lock{}
	if s := t.sessions[id]; s != nil {
		for ino := range s.files {
			byFile[ino] = nil
		}
	}
	for _, l := range held {
		byFile[l.Ino] = append(byFile[l.Ino], l)
	}
	ok = true
	for ino, ls := range byFile {
		ok = t.replaceLocked(ino, id, ls, nil) && ok
	}
	return ok
}

// Conflict finds a lock that is in the way of l.
func (t *Table) Conflict(l file.Lock) (file.Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[l.Ino]; f != nil {
		return f.held.Conflict(l)
	}
	return file.Lock{}, false
}

// List gives up to limit locks that are held and up to limit that are waited for, in the order of their files; those of a file in the order in which they were taken and
// asked for.
func (t *Table) List(limit int) (held, waiting []file.Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	inos := make([]file.Ino, 0, len(t.files))
	for ino := range t.files {
		inos = append(inos, ino)
	}
	slices.Sort(inos)
	for _, ino := range inos {
		f := t.files[ino]
		held = append(held, f.held...)
		for _, w := range f.queue {
			waiting = append(waiting, w.Lock)
		}
		if len(held) >= limit && len(waiting) >= limit {
			break
		}
	}
	return held[:min(limit, len(held))], waiting[:min(limit, len(waiting))]
}

func (t *Table) fileLocked(ino file.Ino) *locked {
	if t.files == nil {
		t.files = map[file.Ino]*locked{}
	}
	f := t.files[ino]
	if f == nil {
		f = &locked{}
		t.files[ino] = f
	}
	return f
}

func (t *Table) tidyLocked(ino file.Ino, f *locked) {
	if len(f.held) == 0 && len(f.queue) == 0 {
		delete(t.files, ino)
	}
}

func (t *Table) sessionLocked(id uint64) *session {
	if t.sessions == nil {
		t.sessions = map[uint64]*session{}
	}
	s := t.sessions[id]
	if s == nil {
		s = &session{files: map[file.Ino]bool{}}
		t.sessions[id] = s
	}
	return s
}

// leaveLocked forgets that a session has something of a file, if it has not.
func (t *Table) leaveLocked(id uint64, ino file.Ino, f *locked) {
	s := t.sessions[id]
	if s == nil || slices.ContainsFunc(f.held, func(h file.Lock) bool { return h.Session == id }) ||
		slices.ContainsFunc(f.queue, func(w *Wait) bool { return w.Lock.Session == id }) {
		return
	}
	if delete(s.files, ino); len(s.files) == 0 {
		delete(t.sessions, id)
	}
}

func (f *locked) waiting(session, number uint64) *Wait {
	for _, w := range f.queue {
		if w.Lock.Session == session && w.number == number {
			return w
		}
	}
	return nil
}

// serveLocked grants what has become free, to the first in the queue first.
func (t *Table) serveLocked(f *locked) {
	t.unqueueLocked(f, func(w *Wait) bool {
		if _, conflict := f.held.Conflict(w.Lock); conflict {
			return false
		}
		f.held = f.held.Take(w.Lock)
		return true
	})
}

// unqueueLocked takes from the queue, in its order, the places that which tells.
func (t *Table) unqueueLocked(f *locked, which func(*Wait) bool) {
	f.queue = slices.DeleteFunc(f.queue, func(w *Wait) bool {
		if !which(w) {
			return false
		}
		delete(t.waits, w)
		if s := t.sessions[w.Lock.Session]; s != nil {
			s.waits--
		}
		close(w.done)
		return true
	})
}

type holderKey struct{ session, owner uint64 }

// blockedLocked tells whether target's owner holds what l wants, or what somebody waits for who does, by way of owners not yet passed. An owner
// that waits does not give up what it holds: its threads are taken for one, as the kernel takes them.
func (t *Table) blockedLocked(l, target file.Lock, passed map[holderKey]bool) bool {
	f := t.files[l.Ino]
	if f == nil {
		return false
	}
	for _, h := range f.held {
		k := holderKey{h.Session, h.Owner}
		switch {
		case !h.Conflicts(l):
			continue
		case h.SameHolder(target):
			return true
		case passed[k]:
			continue
		}
		passed[k] = true
		for w := range t.waits {
			if w.Lock.SameHolder(h) && t.blockedLocked(w.Lock, target, passed) {
				return true
			}
		}
	}
	return false
}
