package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// LockGroup is the name of the group that holds /dc/lock.
const LockGroup = "lock"

// Lock is the front of /dc/lock: files under one revision, locks with fencing tokens, watches. Paths are relative to /dc/lock; "" is its root.
//
// It keeps this node's session: opened when the first lock is wanted, kept alive while something is held or waited for, and let lapse after that,
// so that an idle node costs nothing. A node has one Lock; whoever makes it must Close it.
type Lock struct {
	c     *Client
	owner atomic.Uint64        // the last (session, owner) identity handed out
	now   func() time.Duration // a clock that also runs while the machine sleeps
	ttl   time.Duration        // asked for its sessions; 0: the default

	// base is the lifetime of everything that goes on in the background; stop ends it.
	base context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	opening chan struct{} // holds a token while nobody opens a session

	mu      sync.Mutex
	session *lockSession // the latest, perhaps ended
	closed  bool
}

// NewLock makes the front. It sends nothing yet.
func NewLock(c *Client) *Lock { return NewLockAt(c, bootTime) }

// NewLockWithTTL is NewLock with a time to live of its sessions, from dc.MinSessionTTL to dc.MaxSessionTTL. 0 is dc.SessionTTL.
func NewLockWithTTL(c *Client, ttl time.Duration) *Lock {
	l := NewLock(c)
	l.ttl = ttl
	return l
}

// NewLockAt is NewLock with a clock of the caller's, which must not go back; for tests.
func NewLockAt(c *Client, now func() time.Duration) *Lock {
	base, stop := context.WithCancel(context.Background())
	l := &Lock{c: c, now: now, base: base, stop: stop, opening: make(chan struct{}, 1)}
	l.opening <- struct{}{}
	return l
}

// LockFile is a file or directory of /dc/lock.
type LockFile struct {
	Path      string // in a listing: the name
	Dir       bool
	Created   dc.Revision // tells this file from another of the same name
	Version   dc.Revision // of the last change of the value
	Size      int64
	Mode      uint32
	UID, GID  uint32
	ModTime   time.Time
	Ephemeral bool   // a directory: files made in it live while held open; a file: it does
	Value     []byte // from Read and Txn only
	Absent    bool   // from Txn: there is no such file
	Entries   int    // from Txn: a directory that was listed; so many of its files follow
}

func lockFile(f *dcpb.LockFileInfo) LockFile {
	return LockFile{
		Path: f.GetPath(), Dir: f.GetDir(), Created: dc.Revision(f.GetCreated()), Version: dc.Revision(f.GetVersion()), Size: int64(f.GetSize()),
		Mode: f.GetMode(), UID: f.GetUid(), GID: f.GetGid(), ModTime: time.UnixMilli(f.GetMtimeMs()), Ephemeral: f.GetEphemeral(),
		Value: f.GetValue(), Absent: f.GetAbsent(), Entries: int(f.GetEntries()),
	}
}

// A LockPut says how a value is written.
type LockPut struct {
	Value     []byte
	Append    bool
	MustExist bool
	IfVersion dc.Revision // dc.Conflict unless the file is at this version
	IfCreated dc.Revision // dc.Stale unless it is the file made at this revision
	Guard     *LockLease  // dc.Stale unless this lock is still held when the write is applied
	Mode      uint32      // of a file that is made by it; 0: 0666
}

// lockCall runs one request in the lock group.
func lockCall[R any](ctx context.Context, l *Lock, mutate bool, call func(context.Context, dcpb.LockClient, *dcpb.Header) (R, error)) (out R, err error) {
	g, err := l.c.Group(LockGroup)
	if err != nil {
		return out, err
	}
	run := l.c.Query
	if mutate {
		run = l.c.Mutate
	}
	err = run(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		out, err = call(ctx, dcpb.NewLockClient(cc), h)
		return err
	})
	return out, err
}

// Stat tells of a file without its value.
func (l *Lock) Stat(ctx context.Context, path string) (LockFile, error) {
	f, _, err := l.stat(ctx, path, false)
	return f, err
}

// Read gives a file with its value.
func (l *Lock) Read(ctx context.Context, path string) (LockFile, error) {
	f, _, err := l.stat(ctx, path, true)
	return f, err
}

// Fence gives the fencing token of the lock's holder; dc.NoAttr if nobody holds it.
func (l *Lock) Fence(ctx context.Context, path string) (dc.Revision, error) {
	_, fence, err := l.stat(ctx, path, false)
	if err == nil && fence == 0 {
		return 0, dc.Errorf(dc.NoAttr, "lock.fence", path, "nobody holds this lock")
	}
	return fence, err
}

// HeldUnder tells whether the lock of a fence is held under its token: nil, or dc.Stale if it is not. A shared hold has no successor that its token could
// be told from, so it conditions nothing: dc.Invalid.
func (l *Lock) HeldUnder(ctx context.Context, f dc.Fence) error {
	const op = "fence"
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockStatReply, error) {
		return c.Stat(ctx, &dcpb.LockStatRequest{Header: h, Path: f.Lock})
	})
	switch {
	case dc.KindOf(err) == dc.NotFound:
		return dc.Errorf(dc.Stale, op, f.Lock, "there is no such lock in /dc/lock")
	case err != nil:
		return err
	case r.Fence == 0:
		return dc.Errorf(dc.Stale, op, f.Lock, "nobody holds the lock; the write came under fencing token %d", f.Token)
	case r.Fence == f.Token && r.Shared:
		return dc.Errorf(dc.Invalid, op, f.Lock, "the lock is held shared: only the token of an exclusive hold conditions writes")
	case r.Fence != f.Token:
		return dc.Errorf(dc.Stale, op, f.Lock, "the write came under fencing token %d, but the lock is held under %d", f.Token, r.Fence)
	}
	return nil
}

func (l *Lock) stat(ctx context.Context, path string, value bool) (LockFile, dc.Revision, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockStatReply, error) {
		return c.Stat(ctx, &dcpb.LockStatRequest{Header: h, Path: path, Value: value})
	})
	return lockFile(r.GetFile()), dc.Revision(r.GetFence()), err
}

// List gives up to limit children of a directory, in name order after the name `after`; fewer mean the end.
func (l *Lock) List(ctx context.Context, path, after string, limit int) ([]LockFile, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockListReply, error) {
		return c.List(ctx, &dcpb.LockListRequest{Header: h, Path: path, After: after, Limit: uint32(max(0, min(limit, dc.MaxScanPage)))})
	})
	if err != nil {
		return nil, err
	}
	out := make([]LockFile, 0, len(r.Files))
	for _, f := range r.Files {
		out = append(out, lockFile(f))
	}
	return out, nil
}

// Create opens a file, making it if there is none; with exclusive an existing one is dc.Exists. In an ephemeral directory use Keep.
func (l *Lock) Create(ctx context.Context, path string, exclusive bool, mode uint32) (LockFile, error) {
	return l.create(ctx, &dcpb.LockCreateRequest{Path: path, Exclusive: exclusive, Mode: mode})
}

// Mkdir makes a directory.
func (l *Lock) Mkdir(ctx context.Context, path string, mode uint32) (LockFile, error) {
	return l.create(ctx, &dcpb.LockCreateRequest{Path: path, Dir: true, Mode: mode})
}

func (l *Lock) create(ctx context.Context, r *dcpb.LockCreateRequest) (LockFile, error) {
	out, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Create(ctx, &dcpb.LockCreateRequest{
			Header: h, Path: r.Path, Dir: r.Dir, Exclusive: r.Exclusive, Mode: r.Mode, Session: r.Session, Owner: r.Owner,
		})
	})
	return lockFile(out.GetFile()), err
}

// Put writes a value. The answer has the file's Created, Version and Size.
func (l *Lock) Put(ctx context.Context, path string, p LockPut) (LockFile, error) {
	if p.Mode == 0 {
		p.Mode = 0o666
	}
	var guard *dcpb.LockGuard
	if p.Guard != nil {
		if err := p.Guard.Err(); err != nil {
			return LockFile{}, err
		}
		guard = &dcpb.LockGuard{Path: p.Guard.path, Session: p.Guard.session.id, Owner: p.Guard.owner}
	}
	out, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Put(ctx, &dcpb.LockPutRequest{
			Header: h, Path: path, Value: p.Value, Append: p.Append, MustExist: p.MustExist, IfVersion: uint64(p.IfVersion),
			IfCreated: uint64(p.IfCreated), Guard: guard, Mode: p.Mode,
		})
	})
	return lockFile(out.GetFile()), err
}

// Remove removes a file, or with dir an empty directory.
func (l *Lock) Remove(ctx context.Context, path string, dir bool) error {
	_, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Remove(ctx, &dcpb.LockRemoveRequest{Header: h, Path: path, Dir: dir})
	})
	return err
}

// Rename moves a file or directory atomically; it replaces a file unless noReplace.
func (l *Lock) Rename(ctx context.Context, from, to string, noReplace bool) error {
	_, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Rename(ctx, &dcpb.LockRenameRequest{Header: h, From: from, To: to, NoReplace: noReplace})
	})
	return err
}

// SetAttr changes what is not nil.
func (l *Lock) SetAttr(ctx context.Context, path string, mode, uid, gid *uint32, mtime *time.Time) error {
	r := &dcpb.LockSetAttrRequest{Path: path, Mode: mode, Uid: uid, Gid: gid}
	if mtime != nil {
		ms := mtime.UnixMilli()
		r.MtimeMs = &ms
	}
	return l.setAttr(ctx, r)
}

// SetEphemeral marks an empty directory: files made in it live while they are held open.
func (l *Lock) SetEphemeral(ctx context.Context, path string, on bool) error {
	return l.setAttr(ctx, &dcpb.LockSetAttrRequest{Path: path, Ephemeral: &on})
}

func (l *Lock) setAttr(ctx context.Context, r *dcpb.LockSetAttrRequest) error {
	_, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.SetAttr(ctx, &dcpb.LockSetAttrRequest{
			Header: h, Path: r.Path, Mode: r.Mode, Uid: r.Uid, Gid: r.Gid, Ephemeral: r.Ephemeral, MtimeMs: r.MtimeMs,
		})
	})
	return err
}

// LockTotals tells of the store as a whole.
type LockTotals struct {
	Revision, Compacted        dc.Revision
	Files, Bytes, HistoryBytes int64
	Delay                      time.Duration
	// How much history is kept (no age: no bound of it), and since which revision the past can be read; 0: not at all.
	HistoryAge          time.Duration
	MaxHistoryBytes     int64
	MaxHistoryRevisions int64
	PastFrom            dc.Revision
}

// Totals reads them.
func (l *Lock) Totals(ctx context.Context) (LockTotals, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockTotalsReply, error) {
		return c.Totals(ctx, &dcpb.LockTotalsRequest{Header: h})
	})
	return LockTotals{
		Revision: dc.Revision(r.GetRevision()), Compacted: dc.Revision(r.GetCompacted()), Files: int64(r.GetFiles()), Bytes: int64(r.GetBytes()),
		HistoryBytes: int64(r.GetHistoryBytes()), Delay: time.Duration(r.GetLockDelayMs()) * time.Millisecond,
		HistoryAge: time.Duration(r.GetHistoryAgeMs()) * time.Millisecond, MaxHistoryBytes: int64(r.GetMaxHistoryBytes()),
		MaxHistoryRevisions: int64(r.GetMaxHistoryRevisions()), PastFrom: dc.Revision(r.GetPastFrom()),
	}, err
}

// Compact forgets history up to and including a revision.
func (l *Lock) Compact(ctx context.Context, through dc.Revision) error {
	for {
		r, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
			return c.Compact(ctx, &dcpb.LockCompactRequest{Header: h, Through: uint64(through)})
		})
		if err != nil || !r.More {
			return err
		}
	}
}

// A LockHistory says how much history is to be kept; nil leaves a bound as it is, 0 makes it the default, which for the age is none.
type LockHistory struct {
	Age       *time.Duration
	Bytes     *uint64
	Revisions *uint64
}

// SetHistory sets bounds of the history. The leader compacts what is beyond them, in its own time.
func (l *Lock) SetHistory(ctx context.Context, h LockHistory) error {
	r := &dcpb.LockSettingsRequest{HistoryBytes: h.Bytes, HistoryRevisions: h.Revisions}
	if h.Age != nil {
		ms := h.Age.Milliseconds()
		r.HistoryAgeMs = &ms
	}
	_, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Settings(ctx, &dcpb.LockSettingsRequest{
			Header: h, HistoryAgeMs: r.HistoryAgeMs, HistoryBytes: r.HistoryBytes, HistoryRevisions: r.HistoryRevisions,
		})
	})
	return err
}

// SetDelay sets how long a lock stays free that was lost with its session.
func (l *Lock) SetDelay(ctx context.Context, d time.Duration) error {
	if d < 0 || d > dc.MaxLockDelay {
		return dc.Errorf(dc.Invalid, "lock.ctl", "", "a lock-delay is between 0 and %s (MaxLockDelay)", dc.MaxLockDelay)
	}
	ms := uint32(d.Milliseconds())
	_, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
		return c.Settings(ctx, &dcpb.LockSettingsRequest{Header: h, LockDelayMs: &ms})
	})
	return err
}

// LockHold is a holder of a lock, or a waiter.
type LockHold struct {
	Path           string
	Exclusive      bool
	Fence          dc.Revision // 0: waiting
	Since          time.Time
	Session, Owner uint64
	Node           dc.NodeID
	PID            uint32
	Command        string
}

func lockHold(h *dcpb.LockHoldInfo) LockHold {
	return LockHold{
		Path: h.GetPath(), Exclusive: h.GetExclusive(), Fence: dc.Revision(h.GetFence()), Since: time.UnixMilli(h.GetSinceMs()),
		Session: h.GetSession(), Owner: h.GetOwner(), Node: dc.NodeID(h.GetNode()), PID: h.GetPid(), Command: h.GetCommand(),
	}
}

// Holds gives a page of all holders by path, or of all waiters in the order they will be served, and the cursor of the next page (nil: none).
func (l *Lock) Holds(ctx context.Context, waiting bool, cursor []byte) ([]LockHold, []byte, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockHoldsReply, error) {
		return c.Holds(ctx, &dcpb.LockHoldsRequest{Header: h, Waiting: waiting, Cursor: cursor})
	})
	if err != nil {
		return nil, nil, err
	}
	out := make([]LockHold, 0, len(r.Holds))
	for _, h := range r.Holds {
		out = append(out, lockHold(h))
	}
	if len(r.Cursor) == 0 {
		return out, nil, nil
	}
	return out, r.Cursor, nil
}

// Holders gives who holds the lock named path, at most dc.MaxLockHolders; none if it is free.
func (l *Lock) Holders(ctx context.Context, path string) ([]LockHold, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockHoldsReply, error) {
		return c.Holds(ctx, &dcpb.LockHoldsRequest{Header: h, Path: path})
	})
	if err != nil {
		return nil, err
	}
	out := make([]LockHold, 0, len(r.Holds))
	for _, h := range r.Holds {
		out = append(out, lockHold(h))
	}
	return out, nil
}

// LockSessionInfo is a node's session.
type LockSessionInfo struct {
	Session, Generation uint64
	Node                dc.NodeID
	TTL, Left           time.Duration // Left: until the leader ends it, if it hears nothing
	Opened              time.Time
	Ended               bool // what it held is being released
}

// Sessions gives a page of the sessions after the id `after`, up to dc.MaxScanPage.
func (l *Lock) Sessions(ctx context.Context, after uint64) ([]LockSessionInfo, error) {
	r, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockSessionsReply, error) {
		return c.Sessions(ctx, &dcpb.LockSessionsRequest{Header: h, After: after})
	})
	if err != nil {
		return nil, err
	}
	out := make([]LockSessionInfo, 0, len(r.Sessions))
	for _, s := range r.Sessions {
		out = append(out, LockSessionInfo{
			Session: s.Session, Generation: s.Generation, Node: dc.NodeID(s.Node), TTL: time.Duration(s.TtlMs) * time.Millisecond,
			Left: time.Duration(s.LeftMs) * time.Millisecond, Opened: time.UnixMilli(s.OpenedMs), Ended: s.Ended,
		})
	}
	return out, nil
}
