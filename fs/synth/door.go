package synth

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// InterruptGrace is how long a bounded operation may go on after a signal interrupted its caller. A signal need not mean
// that the caller gives up (the Go runtime sends itself signals all the time), and a change that is cancelled on its way has an unknown outcome.
const InterruptGrace = time.Second

// A Door is what all requests of one mount come in through and all errors go out through. It is shared by the
// synthetic files and datafs. Its methods may be called concurrently.
type Door struct {
	node    dc.NodeID
	log     *slog.Logger
	errors  errorLog
	names   commandNames
	blocked atomic.Int64
}

// NewDoor makes the door of one mount of node; log may be nil.
func NewDoor(node dc.NodeID, log *slog.Logger) *Door {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Door{node: node, log: log}
}

// Context makes the ctx of one operation: it carries the caller's dc.Principal and ends after timeout (dc.OpTimeout for
// everything that is bounded) or, InterruptGrace after it, by the kernel's interrupt. With timeout 0 the operation may
// block for ever, and an interrupt ends it at once. With a nil cancel nothing interrupts it: flushes and
// releases must be made so. The CancelFunc must be called when the operation is over.
func (d *Door) Context(cancel <-chan struct{}, h *fuse.InHeader, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx := context.WithValue(context.Background(), visitKey{}, visit{door: d, uid: h.Uid, pid: h.Pid})
	ctx = dc.WithPrincipal(ctx, d.Principal(h))
	var stop context.CancelFunc
	grace := InterruptGrace
	if timeout > 0 {
		ctx, stop = context.WithTimeout(ctx, timeout)
	} else {
		ctx, stop = context.WithCancel(ctx)
		grace = 0
	}
	if cancel != nil {
		go watchInterrupt(ctx, stop, cancel, grace)
	}
	return ctx, stop
}

// watchInterrupt lives as long as its operation.
func watchInterrupt(ctx context.Context, stop context.CancelFunc, cancel <-chan struct{}, grace time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-cancel:
	}
	if grace > 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	stop()
}

// Principal is who a request speaks for.
func (d *Door) Principal(h *fuse.InHeader) dc.Principal {
	return dc.Principal{UID: h.Uid, GID: h.Gid, Node: d.node, PID: h.Pid, Command: d.names.of(h.Pid)}
}

// Status is the errno for err (nil: OK). It records err's text for the caller's /dc/.dc/errors, except for
// what is no news: a missing attribute, nothing there yet, an interrupt. For a name that does not exist use [Errno] alone.
func (d *Door) Status(ctx context.Context, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	kind := dc.KindOf(err)
	if ctx.Err() == context.Canceled && (kind == dc.Unavailable || kind == dc.Internal) {
		kind = dc.Interrupted // whatever the room made of it, the caller gave up
	}
	switch kind {
	case dc.NoAttr, dc.Again, dc.Interrupted, dc.Deadlock:
	default:
		d.record(ctx, err)
	}
	if kind == dc.Internal || kind == dc.Corrupt {
		d.log.Error("operation of the mount", "err", err)
	}
	return fuse.Status(Errno(kind))
}

// Report records an error that no system call is waiting for in the /dc/.dc/errors of ctx's caller.
func Report(ctx context.Context, err error) {
	if v, ok := ctx.Value(visitKey{}).(visit); ok && err != nil {
		v.door.record(ctx, err)
	}
}

func (d *Door) record(ctx context.Context, err error) {
	v, _ := ctx.Value(visitKey{}).(visit)
	d.errors.add(v.uid, Mishap{Time: time.Now(), PID: v.pid, Command: d.names.of(v.pid), UID: v.uid, Text: err.Error()})
}

// Errors are the recent errors that the caller of ctx may see, newest first: their own, or everybody's for root.
func (d *Door) Errors(ctx context.Context) []Mishap {
	p, ok := dc.PrincipalOf(ctx)
	if !ok {
		return nil
	}
	return d.errors.list(p.UID)
}

// ForgetErrors empties what [Door.Errors] gives the caller of ctx.
func (d *Door) ForgetErrors(ctx context.Context) {
	if p, ok := dc.PrincipalOf(ctx); ok {
		d.errors.forget(p.UID)
	}
}

// block counts one more blocking operation; done takes it back. It refuses over the limit.
func (d *Door) block(what string) (done func(), err error) {
	if d.blocked.Add(1) > dc.MaxBlockedReads {
		d.blocked.Add(-1)
		return nil, dc.Errorf(dc.Again, what, "", "%d reads and lock waits already block in this mount, which is the limit", dc.MaxBlockedReads)
	}
	return func() { d.blocked.Add(-1) }, nil
}

// A visit is what the door knows of one operation; it travels in its ctx.
type visit struct {
	door *Door
	uid  uint32
	pid  uint32
}

type visitKey struct{}

type nonBlockingKey struct{}

// withNonBlocking marks a ctx for [NonBlocking].
func withNonBlocking(ctx context.Context) context.Context {
	return context.WithValue(ctx, nonBlockingKey{}, true)
}

// NonBlocking says that the caller's file was opened with O_NONBLOCK: a read with nothing to give answers dc.Again at once.
func NonBlocking(ctx context.Context) bool {
	v, _ := ctx.Value(nonBlockingKey{}).(bool)
	return v
}

// Errno is the one translation from kind to errno.
func Errno(k dc.Kind) syscall.Errno {
	if e, ok := errnos[k]; ok {
		return e
	}
	return unix.EIO
}

var errnos = map[dc.Kind]syscall.Errno{
	dc.Invalid:      unix.EINVAL,
	dc.NotFound:     unix.ENOENT,
	dc.Exists:       unix.EEXIST,
	dc.NotEmpty:     unix.ENOTEMPTY,
	dc.NotDir:       unix.ENOTDIR,
	dc.IsDir:        unix.EISDIR,
	dc.Denied:       unix.EACCES,
	dc.NotOwner:     unix.EPERM,
	dc.TooLarge:     unix.EFBIG,
	dc.NameTooLong:  unix.ENAMETOOLONG,
	dc.NoSpace:      unix.ENOSPC,
	dc.Busy:         unix.EBUSY,
	dc.Stale:        unix.ESTALE,
	dc.Again:        unix.EAGAIN,
	dc.Interrupted:  unix.EINTR,
	dc.Unsupported:  unix.EOPNOTSUPP,
	dc.NoAttr:       unix.ENODATA,
	dc.Conflict:     unix.EBUSY,
	dc.TooManyLinks: unix.EMLINK,
	dc.Range:        unix.ERANGE,
	dc.NoDevice:     unix.ENXIO,
	dc.BadHandle:    unix.EBADF,
	dc.CrossDevice:  unix.EXDEV,
	dc.Deadlock:     unix.EDEADLK,
	// Internal, Unavailable, NotLeader and Corrupt are EIO.
}

// commandNames remembers the command names of processes for a moment: a process makes many calls, and names are only for showing.
type commandNames struct {
	mu    sync.Mutex
	names map[uint32]commandName
}

type commandName struct {
	name    string
	expires time.Time
}

const (
	commandNameTTL  = 2 * time.Second
	maxCommandNames = 1024
)

// of reads /proc/PID/comm, which takes none of the locks that a process may hold while it waits for its own file operation (cmdline does).
func (c *commandNames) of(pid uint32) string {
	if pid == 0 {
		return ""
	}
	now := time.Now()
	c.mu.Lock()
	n, ok := c.names[pid]
	c.mu.Unlock()
	if ok && now.Before(n.expires) {
		return n.name
	}
	comm, _ := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/comm")
	name := strings.TrimSuffix(string(comm), "\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil || len(c.names) >= maxCommandNames {
		c.names = make(map[uint32]commandName)
	}
	c.names[pid] = commandName{name, now.Add(commandNameTTL)}
	return name
}
