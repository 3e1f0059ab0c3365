package lock

import (
	"bytes"
	"encoding/binary"
	"iter"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// The past. Every event of a file notes what the file was before, with its value; an index row "p" dir NUL name NUL revision finds the events of a
// path. A file at revision R is therefore what the first event of it after R says it was before, or what it is now if there is none. That needs
// history from R+1 on and nothing older, so compaction just drops rows. Writing old values into history costs their bytes once more; an index of
// full versions, as etcd has, would need compaction to carry the last one before its edge along for ever.

func pastPrefix(path string) []byte {
	k := fileKey(path)
	k[0] = rowPast
	return append(k, 0)
}

func pastKey(path string, rev uint64) []byte {
	return binary.BigEndian.AppendUint64(pastPrefix(path), rev)
}

// ofFile tells whether an event changes a file, rather than a lock.
func ofFile(ev *command.LockEvent) bool {
	return ev.Kind != command.LockEvent_KIND_LOCK && ev.Kind != command.LockEvent_KIND_UNLOCK
}

// note completes a file's event by what was before it.
func (s *stage) note(ev *command.LockEvent) {
	if !s.past {
		s.state.PastFrom = 0 // a command of version 1 leaves a gap
		return
	}
	if s.state.PastFrom == 0 {
		s.state.PastFrom = s.begin()
	}
	before, again := s.noted[ev.Path]
	if !again {
		before = whole(s.tx, ev.Path)
	}
	ev.Before = before
	now := &command.LockFile{Absent: true}
	if ev.File != nil {
		now = ev.File
	}
	if ev.Kind == command.LockEvent_KIND_ATTR {
		now = clone(ev.File)
		now.Value = before.Value
	}
	if s.noted == nil {
		s.noted = map[string]*command.LockFile{}
	}
	s.noted[ev.Path] = now
}

// whole reads a file with its value, without its path; absent if there is none.
func whole(r storage.Reader, path string) *command.LockFile {
	f := Stat(r, path)
	if f == nil {
		return &command.LockFile{Absent: true}
	}
	if !f.Dir {
		f.Value = Value(r, path)
	}
	f.Path = ""
	return f
}

// index writes the rows that find a revision's events by path.
func (s *stage) index(h *command.LockHistory) {
	for _, ev := range h.Events {
		if ev.Before != nil {
			s.tx.Set(pastKey(ev.Path, h.Revision), nil)
		}
	}
}

// Past tells whether the state at a revision can be told: dc.Stale if it is compacted away, dc.Invalid if it is in the future.
func Past(r storage.Reader, rev dc.Revision) error {
	const op = "lock.at"
	st := Totals(r)
	oldest := max(st.Compacted, st.PastFrom-min(st.PastFrom, 1))
	switch {
	case uint64(rev) > st.Revision:
		return dc.Errorf(dc.Invalid, op, "", "revision %d is in the future: the store is at %d", rev, st.Revision)
	case uint64(rev) == st.Revision:
		return nil
	case st.PastFrom == 0:
		return dc.Errorf(dc.Stale, op, "", "what the store was before revision %d was not kept", st.Revision)
	case uint64(rev) < oldest:
		return dc.Errorf(dc.Stale, op, "", "revision %d is compacted away; the oldest that can be read is %d", rev, oldest)
	}
	return nil
}

// At gives the file at path as it was at a revision, with its value; nil if there was none. The revision must have passed [Past].
func At(r storage.Reader, path string, rev dc.Revision) *command.LockFile {
	prefix := pastPrefix(path)
	for k := range r.Scan(storage.Span{Start: pastKey(path, uint64(rev)+1), End: after(prefix), KeysOnly: true}) {
		return before(r, path, number(k[len(prefix):]))
	}
	f := whole(r, path)
	if f.Absent {
		return nil
	}
	f.Path = path
	return f
}

// before gives what a path was before the events of a revision; nil if there was nothing.
func before(r storage.Reader, path string, rev uint64) *command.LockFile {
	b, ok := r.Get(numberKey(rowHistory, rev))
	if !ok {
		return nil // compacted: not after Past
	}
	h := &command.LockHistory{}
	decode(b, h)
	for _, ev := range h.Events {
		if ev.Path == path && ev.Before != nil {
			if ev.Before.Absent {
				return nil
			}
			ev.Before.Path = path
			return ev.Before
		}
	}
	return nil
}

// ListAt gives up to limit children of dir as they were at a revision, in name order after the name `after`; their Path is the name and
// they have no values.
func ListAt(r storage.Reader, dir, after string, limit int, rev dc.Revision) []*command.LockFile {
	var out []*command.LockFile
	add := func(name string, f *command.LockFile) bool {
		if f != nil {
			f.Path, f.Value = name, nil
			out = append(out, f)
		}
		return len(out) < limit
	}
	changed, stop := iter.Pull2(changedSince(r, dir, after, rev))
	defer stop()
	name, first, more := changed()
	for _, f := range childrenAfter(r, dir, after) {
		for more && name < f.Path {
			if !add(name, before(r, join(dir, name), first)) {
				return out
			}
			name, first, more = changed()
		}
		if more && name == f.Path {
			f = before(r, join(dir, name), first)
			name, first, more = changed()
			if f == nil {
				continue
			}
			f.Path = lastName(f.Path)
		}
		if !add(f.Path, f) {
			return out
		}
	}
	for more {
		if !add(name, before(r, join(dir, name), first)) {
			return out
		}
		name, first, more = changed()
	}
	return out
}

func lastName(path string) string {
	_, name := split(path)
	return name
}

// childrenAfter yields the children there are now, in name order.
func childrenAfter(r storage.Reader, dir, after string) iter.Seq2[int, *command.LockFile] {
	return func(yield func(int, *command.LockFile) bool) {
		for n := 0; ; {
			page := List(r, dir, after, dc.MaxScanPage)
			for _, f := range page {
				if !yield(n, f) {
					return
				}
				n++
			}
			if len(page) < dc.MaxScanPage {
				return
			}
			after = page[len(page)-1].Path
		}
	}
}

// changedSince yields the names in dir that events after rev concern, in order, each with the first such revision.
func changedSince(r storage.Reader, dir, after string, rev dc.Revision) iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		prefix := childPrefix(dir)
		prefix[0] = rowPast
		span := prefixed(prefix)
		if after != "" {
			span.Start = append(append(append([]byte(nil), prefix...), after...), 1)
		}
		span.KeysOnly = true
		last := ""
		for k := range r.Scan(span) {
			rest := k[len(prefix):]
			end := bytes.IndexByte(rest, 0)
			name, at := string(rest[:end]), number(rest[end+1:])
			if name == "" || name == last || at <= uint64(rev) {
				continue // the directory's own, told already, or before
			}
			last = name
			if !yield(name, at) {
				return
			}
		}
	}
}
