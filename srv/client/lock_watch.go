package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// LockWatch says what to watch.
type LockWatch struct {
	From      dc.Revision // the first revision to tell; 0: from now on
	Path      string      // the path and what is directly in it
	Recursive bool        // everything below it as well
	Before    bool        // tell what files were before
}

// LockRevision is what one revision changed of what is watched. Without events it is a progress marker: everything up to
// Revision has been told, so a later watch may begin after it.
type LockRevision struct {
	Revision dc.Revision
	Time     time.Time
	Events   []LockEvent
	// Compacted, if not 0, says that what was to be told next is gone, with everything up to here; Watch ends with dc.Stale after it. Read the
	// files again and watch from the next revision on. Revision is 0 then.
	Compacted dc.Revision
}

// LockEvent is one change.
type LockEvent struct {
	Kind string // put, delete, mkdir, rmdir, attr, lock, unlock
	Path string
	File LockFile // put (with the value), mkdir, attr
	// Before is what the file was, with its value, if it was asked for and noted; Absent if there was none.
	Before *LockFile
	Hold   LockHold // lock, unlock
	Lost   bool     // an unlock by the end of a session
}

var lockEventKinds = map[dcpb.LockWatchEvent_Kind]string{
	dcpb.LockWatchEvent_KIND_PUT: "put", dcpb.LockWatchEvent_KIND_DELETE: "delete", dcpb.LockWatchEvent_KIND_MKDIR: "mkdir",
	dcpb.LockWatchEvent_KIND_RMDIR: "rmdir", dcpb.LockWatchEvent_KIND_ATTR: "attr", dcpb.LockWatchEvent_KIND_LOCK: "lock",
	dcpb.LockWatchEvent_KIND_UNLOCK: "unlock",
}

// watchSilence is how long a stream may be silent before it is given up: leaders send a progress marker every 10 s.
const watchSilence = 25 * time.Second

// Watch calls fn with every revision that concerns w, in order, each once, over changes of leader. It begins with a progress marker and ends when
// ctx does, when fn returns an error (which it returns), or when what is to be told next is compacted away (dc.Stale, naming the oldest
// revision kept).
func (l *Lock) Watch(ctx context.Context, w LockWatch, fn func(LockRevision) error) error {
	backoff := firstBackoff
	for {
		var stopped error
		told := false
		err := l.watchOnce(ctx, w, func(rev LockRevision) error {
			told = true
			if rev.Compacted != 0 {
				stopped = fn(rev)
				return stopped
			}
			if w.From != 0 && rev.Revision < w.From-1 || len(rev.Events) > 0 && rev.Revision < w.From {
				return nil
			}
			w.From = rev.Revision + 1
			stopped = fn(rev)
			return stopped
		})
		switch {
		case stopped != nil:
			return stopped
		case ctx.Err() != nil:
			return dc.Errorf(dc.KindOf(ctx.Err()), "lock.watch", w.Path, "%w", ctx.Err())
		case err != nil && !retriable(err) && dc.KindOf(err) != dc.Interrupted:
			return err
		}
		if told {
			backoff = firstBackoff
		}
		if err := sleep(ctx, backoff); err != nil {
			return dc.Errorf(dc.KindOf(err), "lock.watch", w.Path, "%w", err)
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// watchOnce watches until the stream breaks.
func (l *Lock) watchOnce(ctx context.Context, w LockWatch, fn func(LockRevision) error) error {
	g, err := l.c.Group(LockGroup)
	if err != nil {
		return err
	}
	return l.c.Stream(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		silence := time.AfterFunc(watchSilence, cancel)
		defer silence.Stop()
		st, err := dcpb.NewLockClient(cc).Watch(ctx, &dcpb.LockWatchRequest{Header: h, From: uint64(w.From), Path: w.Path, Recursive: w.Recursive, Before: w.Before})
		if err != nil {
			return err
		}
		for {
			msg, err := st.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return rpc.FromStatus(err)
			}
			silence.Reset(watchSilence)
			rev := LockRevision{Revision: dc.Revision(msg.Revision), Time: time.UnixMilli(msg.ClockMs), Compacted: dc.Revision(msg.Compacted)}
			for _, ev := range msg.Events {
				x := LockEvent{Kind: lockEventKinds[ev.Kind], Path: ev.Path, File: lockFile(ev.File), Hold: lockHold(ev.Hold), Lost: ev.Lost}
				if ev.Before != nil {
					before := lockFile(ev.Before)
					x.Before = &before
				}
				rev.Events = append(rev.Events, x)
			}
			if err := fn(rev); err != nil {
				return dc.Errorf(dc.Interrupted, "lock.watch", w.Path, "%w", err) // stops; Watch returns fn's own error
			}
		}
	})
}
