package lock

import (
	"strings"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
)

const (
	watchBatch    = 256     // revisions taken from the hub or from history at a time
	watchBytes    = 1 << 20 // of stored history read at a time
	progressEvery = 10 * time.Second
)

// Watch tells every change of a path from a revision on, in order, each revision whole and once. It begins with a progress marker, which
// tells where it starts, and sends one now and then when nothing happens. It ends when this node stops leading; the client resumes elsewhere.
// A revision that is compacted away (before or while it is needed) is dc.Stale.
func (s *Service) Watch(r *dcpb.LockWatchRequest, out dcpb.Lock_WatchServer) error {
	const op = "lock.watch"
	if err := lock.CheckPath(op, r.Path); err != nil {
		return err
	}
	t, _, err := s.admit(op, r.Header)
	if err != nil {
		return err
	}
	if n := t.watches.Add(1); n > dc.MaxLockWatchers {
		t.watches.Add(-1)
		return dc.Errorf(dc.Busy, op, r.Path, "%d watches are open, the limit (MaxLockWatchers)", dc.MaxLockWatchers)
	}
	defer t.watches.Add(-1)

	w := &watch{term: t, hub: s.hub(t.replica.Group()), next: r.From, path: r.Path, recursive: r.Recursive, before: r.Before, out: out}
	err = t.replica.View(out.Context(), func(rd storage.Reader) error {
		st := lock.Totals(rd)
		if w.next == 0 {
			w.next = st.Revision + 1
		}
		return w.retained(st)
	})
	if err == nil {
		err = w.run()
	}
	if w.compacted != 0 {
		_ = out.Send(&dcpb.LockWatchReply{Compacted: w.compacted}) // the error that follows says it too, in words
	}
	return err
}

// A watch is one open Watch: a cursor.
type watch struct {
	term      *term
	hub       *hub
	next      uint64 // the next revision to tell
	path      string
	recursive bool
	before    bool // tell also what files were before
	out       dcpb.Lock_WatchServer
	compacted uint64 // why it ended: history up to here is gone
}

func (w *watch) retained(st *command.LockState) error {
	if w.next <= st.Compacted {
		w.compacted = st.Compacted
		return dc.Errorf(dc.Stale, "lock.watch", w.path, "revision %d is compacted away; the oldest that is kept is %d: read the files again and watch from there",
			w.next, st.Compacted+1)
	}
	return nil
}

func (w *watch) run() error {
	if err := w.progress(); err != nil {
		return err
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		revs, behind, grown := w.hub.since(w.next, watchBatch)
		if behind {
			var err error
			if revs, err = w.stored(); err != nil {
				return err
			}
		}
		if len(revs) > 0 {
			if err := w.tell(revs); err != nil {
				return err
			}
			continue
		}
		select {
		case <-grown:
		case <-tick.C:
			if err := w.progress(); err != nil {
				return err
			}
		case <-w.term.over:
			return dc.Errorf(dc.NotLeader, "lock.watch", w.path, "this node no longer leads the lock group")
		case <-w.out.Context().Done():
			return w.out.Context().Err()
		}
	}
}

// stored reads on in the history of this replica. All that is there is committed.
func (w *watch) stored() (revs []*command.LockHistory, err error) {
	err = w.term.replica.Local(func(rd storage.Reader) error {
		if err := w.retained(lock.Totals(rd)); err != nil {
			return err
		}
		left := watchBytes
		lock.History(rd, dc.Revision(w.next), func(h *command.LockHistory) bool {
			revs = append(revs, h)
			left -= size(h)
			return len(revs) < watchBatch && left > 0
		})
		return nil
	})
	return revs, err
}

// tell sends what concerns the watch of revs, a message a revision, and moves the cursor past them.
func (w *watch) tell(revs []*command.LockHistory) error {
	skipped := false
	for _, rev := range revs {
		if rev.Revision < w.next {
			continue
		}
		msg := &dcpb.LockWatchReply{Revision: rev.Revision, ClockMs: rev.ClockMs}
		for _, ev := range rev.Events {
			if w.concerns(ev.Path) {
				msg.Events = append(msg.Events, w.eventInfo(ev))
			}
		}
		w.next = rev.Revision + 1
		if skipped = len(msg.Events) == 0; skipped {
			continue
		}
		if err := w.out.Send(msg); err != nil {
			return err
		}
	}
	if skipped && len(revs) == watchBatch {
		return w.progress() // a long stretch of others' changes: let the client resume after it
	}
	return nil
}

// progress says that everything before the cursor has been told.
func (w *watch) progress() error { return w.out.Send(&dcpb.LockWatchReply{Revision: w.next - 1}) }

// concerns tells whether a change of path is for this watch: of the path itself or directly in it, or anywhere below it.
func (w *watch) concerns(path string) bool {
	if path == w.path || w.path == "" && w.recursive {
		return true
	}
	rest := path
	if w.path != "" {
		var ok bool
		if rest, ok = strings.CutPrefix(path, w.path+"/"); !ok {
			return false
		}
	}
	return w.recursive || !strings.Contains(rest, "/")
}

func (w *watch) eventInfo(ev *command.LockEvent) *dcpb.LockWatchEvent {
	out := &dcpb.LockWatchEvent{Kind: dcpb.LockWatchEvent_Kind(ev.Kind), Path: ev.Path, Lost: ev.Lost}
	if ev.File != nil {
		out.File = fileInfo(ev.File)
	}
	if w.before && ev.Before != nil {
		out.Before = fileInfo(ev.Before)
	}
	if ev.Hold != nil {
		out.Hold = holdInfo(ev.Hold)
	}
	return out
}
