package lock

import (
	"sort"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Totals gives the group's record of totals.
func Totals(r storage.Reader) *command.LockState {
	st := &command.LockState{LockDelayMs: uint32(dc.LockDelay.Milliseconds())}
	if b, ok := r.Get(stateKey); ok {
		st = &command.LockState{}
		decode(b, st)
	}
	return st
}

// Stat gives the record of path without its value; nil if there is none. The root always has one.
func Stat(r storage.Reader, path string) *command.LockFile {
	b, ok := r.Get(fileKey(path))
	if !ok {
		if path == "" {
			return &command.LockFile{Dir: true, Mode: 0o1777}
		}
		return nil
	}
	f := &command.LockFile{}
	decode(b, f)
	f.Path = path
	return f
}

// Value gives the value of the file at path; nil if there is none.
func Value(r storage.Reader, path string) []byte {
	v, _ := r.Get(pathKey(rowValue, path))
	return v
}

// List gives up to limit children of dir in name order after the name `after`; their Path is the name.
func List(r storage.Reader, dir, after string, limit int) []*command.LockFile {
	prefix := childPrefix(dir)
	span := prefixed(prefix)
	if after != "" {
		span.Start = append(append(append([]byte(nil), prefix...), after...), 0)
	}
	var out []*command.LockFile
	for k, v := range r.Scan(span) {
		name := string(k[len(prefix):])
		if name == "" {
			continue // the root's own record
		}
		f := &command.LockFile{}
		decode(v, f)
		f.Path = name
		if out = append(out, f); len(out) == limit {
			break
		}
	}
	return out
}

// Queue gives the record of the lock named path; nil if nobody holds it, waits for it or has lately lost it.
func Queue(r storage.Reader, path string) *command.LockQueue {
	b, ok := r.Get(pathKey(rowQueue, path))
	if !ok {
		return nil
	}
	q := &command.LockQueue{}
	decode(b, q)
	return q
}

func hold(r storage.Reader, key []byte) *command.LockHold {
	b, ok := r.Get(key)
	if !ok {
		return nil
	}
	h := &command.LockHold{}
	decode(b, h)
	return h
}

// Holder gives what (session, owner) holds of the lock named path; nil if nothing.
func Holder(r storage.Reader, path string, session, owner uint64) *command.LockHold {
	return hold(r, holderKey(rowHold, path, session, owner))
}

// Waiter gives the place of (session, owner) in the queue for path; nil if it does not wait.
func Waiter(r storage.Reader, path string, session, owner uint64) *command.LockHold {
	b, ok := r.Get(ownedKey(session, rowWait, owner, path))
	if !ok {
		return nil
	}
	return hold(r, waiterKey(path, number(b)))
}

// Holds gives up to limit holders (or waiters, in the order they will be served) of all locks, by path, after the row named by cursor,
// and the cursor to go on from; a nil cursor starts, and ends.
func Holds(r storage.Reader, waiting bool, cursor []byte, limit int) ([]*command.LockHold, []byte) {
	span := prefixed([]byte{rowHold})
	if waiting {
		span = prefixed([]byte{rowWait})
	}
	if cursor != nil {
		span.Start = append(append([]byte(nil), cursor...), 0)
	}
	var out []*command.LockHold
	for k, v := range r.Scan(span) {
		if len(out) == limit {
			return out, cursor
		}
		h := &command.LockHold{}
		decode(v, h)
		out = append(out, h)
		cursor = append([]byte(nil), k...)
	}
	return out, nil
}

// HoldersOf gives up to limit holders of one lock.
func HoldersOf(r storage.Reader, path string, limit int) []*command.LockHold {
	var out []*command.LockHold
	for _, v := range r.Scan(prefixed(ofLock(rowHold, path))) {
		if len(out) == limit {
			break
		}
		h := &command.LockHold{}
		decode(v, h)
		out = append(out, h)
	}
	return out
}

// Session gives a session's record, also when it has ended and is not fully reaped; nil if there is none.
func Session(r storage.Reader, id uint64) *command.LockSession {
	b, ok := r.Get(numberKey(rowSession, id))
	if !ok {
		return nil
	}
	s := &command.LockSession{}
	decode(b, s)
	return s
}

// Sessions gives up to limit sessions after the id `after`.
func Sessions(r storage.Reader, after uint64, limit int) []*command.LockSession {
	var out []*command.LockSession
	span := prefixed([]byte{rowSession})
	span.Start = numberKey(rowSession, after+1)
	for _, v := range r.Scan(span) {
		s := &command.LockSession{}
		decode(v, s)
		if out = append(out, s); len(out) == limit {
			break
		}
	}
	return out
}

// Generation gives the number of the latest session that node opened; 0 if none.
func Generation(r storage.Reader, node dc.NodeID) uint64 {
	b, ok := r.Get(numberKey(rowNode, uint64(node)))
	if !ok {
		return 0
	}
	n := &command.LockNode{}
	decode(b, n)
	return n.Generation
}

// Dues gives up to limit locks whose queue must be looked at again, and when.
func Dues(r storage.Reader, limit int) []Due {
	var out []Due
	for k, v := range r.Scan(prefixed([]byte{rowDue})) {
		if out = append(out, Due{Path: string(k[1:]), AtMs: int64(number(v))}); len(out) == limit {
			break
		}
	}
	return out
}

// History calls fn with the changes from revision from on, in order, until fn says false or there are no more.
// The caller must have checked from against Totals.
func History(r storage.Reader, from dc.Revision, fn func(*command.LockHistory) bool) {
	span := prefixed([]byte{rowHistory})
	span.Start = numberKey(rowHistory, uint64(from))
	for _, v := range r.Scan(span) {
		h := &command.LockHistory{}
		decode(v, h)
		if !fn(h) {
			return
		}
	}
}

// RevisionClock gives the cluster clock of a revision, Unix milliseconds; 0 if it is not in the history.
func RevisionClock(r storage.Reader, rev uint64) int64 {
	b, ok := r.Get(numberKey(rowHistory, rev))
	if !ok {
		return 0
	}
	h := &command.LockHistory{}
	decode(b, h)
	return h.ClockMs
}

// RevisionBefore gives the last revision of the history from before a cluster clock; what is compacted if there is none. Clocks never go back
// from revision to revision, so it searches by halves.
func RevisionBefore(r storage.Reader, st *command.LockState, clockMs int64) uint64 {
	n := sort.Search(int(st.Revision-st.Compacted), func(i int) bool {
		return RevisionClock(r, st.Compacted+1+uint64(i)) >= clockMs
	})
	return st.Compacted + uint64(n)
}
