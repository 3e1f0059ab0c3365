package fs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// Config says what to mount, and where. Mountpoint is needed.
type Config struct {
	Mountpoint string // a directory; made if it does not exist, refused if it holds files
	Node       dc.NodeID
	// Door is shared with Data; nil makes one.
	Door *synth.Door
	// Rooms are the directories below the root, by name: kv, topics, lock, jobs, nodes. The first element of each Node.Key in
	// a room is the room's own: renames do not cross it.
	Rooms map[string]synth.Dir
	// Data serves /dc/data: its node ids are inode numbers below 1<<63, its root directory is [DataRoot]. Optional.
	Data fuse.RawFileSystem
	// KillPriv says that Data itself clears set-id bits on write, truncate and chown, so that the kernel need not ask for
	// security.capability before each write (FUSE_HANDLE_KILLPRIV_V2).
	KillPriv bool
	// Stat gives the lines of /dc/.dc/stat and stat.json. Optional.
	Stat func(ctx context.Context) ([]synth.Pair, error)
	// Commands are those of /dc/.dc/ctl, beyond forget-errors.
	Commands []synth.Command
	Log      *slog.Logger // optional
}

const (
	maxWriteBytes = 1 * dc.MiB
	maxBackground = 64
	typeName      = "dc" // mounts show as type fuse.dc
)

// Mounted is an attached tree.
type Mounted struct {
	path   string
	server *fuse.Server
	synth  *synth.Server
	log    *slog.Logger
	done   chan struct{} // closed when the last request has been served
}

// Mount attaches the tree and returns when it can be used. A mount that a killed daemon left behind is cleared away; a
// live one, anything else mounted there, and a directory that is not empty are refused.
func Mount(cfg Config) (*Mounted, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	path, err := prepare(cfg.Mountpoint, log)
	if err != nil {
		return nil, err
	}
	door := cfg.Door
	if door == nil {
		door = synth.NewDoor(cfg.Node, log)
	}
	files := synth.NewServer(door, newRoot(cfg, door))
	server, err := fuse.NewServer(&dispatch{synth: files, data: cfg.Data}, path, mountOptions(cfg, log))
	if err != nil {
		return nil, dc.Errorf(dc.Unavailable, "mount", path, "%w (ordinary users need fusermount3, from the package fuse3, and a mount point of their own)", err)
	}
	if err := keepFromChildren(); err != nil {
		log.Warn("child processes inherit the mount's descriptor", "err", err)
	}
	m := &Mounted{path: path, server: server, synth: files, log: log, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		server.Serve()
		files.Close()
	}()
	if err := server.WaitMount(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), dc.OpTimeout)
		defer cancel()
		return nil, errors.Join(dc.Errorf(dc.Internal, "mount", path, "%w", err), m.Unmount(ctx))
	}
	log.Info("mounted", "path", path)
	return m, nil
}

// keepFromChildren marks the descriptors of /dev/fuse close-on-exec, which go-fuse's direct mount leaves out. A child that
// inherits one keeps the connection alive when this process is killed, and everything that waits for an answer then waits for ever.
func keepFromChildren() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || target != "/dev/fuse" {
			continue // gone meanwhile (the directory's own descriptor), or another file
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		unix.CloseOnExec(fd)
	}
	return nil
}

func mountOptions(cfg Config, log *slog.Logger) *fuse.MountOptions {
	asRoot := os.Geteuid() == 0
	o := &fuse.MountOptions{
		AllowOther:    asRoot, // others need user_allow_other in /etc/fuse.conf
		DirectMount:   asRoot,
		Options:       []string{"default_permissions"},
		FsName:        typeName,
		Name:          typeName,
		MaxWrite:      maxWriteBytes,
		MaxBackground: maxBackground,
		EnableLocks:   true,
		// A handle learns from its Open that it replaces its file, instead of from a later call that names no handle.
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK,
		EnableAcl:         true, // with modes to which the umask has not been applied, see dispatch
		Logger:            slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		PanicHandler: func(v any) fuse.Status {
			log.Error("panic in a file operation", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
	if cfg.KillPriv {
		o.ExtraCapabilities |= fuse.CAP_HANDLE_KILLPRIV_V2
	}
	return o
}

// Path is the mount point, absolute and without symbolic links.
func (m *Mounted) Path() string { return m.path }

// Done is closed when the tree is detached, by Unmount or from outside, and everything of it has ended.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Unmount detaches the tree and waits until all its goroutines have ended, at most as long as ctx lasts. While somebody holds
// files open (or is inside as their working directory), it takes the tree out of their way and cuts the connection: their calls fail with ENOTCONN.
func (m *Mounted) Unmount(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	dev, mounted := deviceOf(m.path)
	if !mounted {
		return m.wait(ctx, dev)
	}
	err := unmount(m.path, false)
	if err == nil {
		return m.wait(ctx, dev)
	}
	m.log.Info("mount is in use, cutting it off", "path", m.path, "err", err)
	if err := unmount(m.path, true); err != nil {
		return dc.Errorf(dc.Busy, "unmount", m.path, "%w", err)
	}
	if err := abort(dev); err != nil {
		m.log.Warn("connection cannot be aborted, waiting for its users", "path", m.path, "err", err)
	}
	return m.wait(ctx, dev)
}

// wait waits for the server to end; towards the end of its patience it cuts the connection.
func (m *Mounted) wait(ctx context.Context, dev string) error {
	patience := time.NewTimer(abortAfter)
	defer patience.Stop()
	for {
		select {
		case <-m.done:
			m.log.Info("unmounted", "path", m.path)
			return nil
		case <-patience.C:
			if err := abort(dev); err != nil {
				m.log.Warn("connection cannot be aborted", "path", m.path, "err", err)
			}
		case <-ctx.Done():
			return dc.Errorf(dc.Unavailable, "unmount", m.path, "file operations are still running after the deadline: %w", ctx.Err())
		}
	}
}

// abortAfter is how long an unmounted tree's last operations may take before its connection is cut.
const abortAfter = 2 * time.Second

// prepare makes sure that path is an empty directory that nothing is mounted on, clearing away what a killed daemon left.
func prepare(path string, log *slog.Logger) (string, error) {
	if path == "" {
		return "", dc.Errorf(dc.Invalid, "mount", "", "no mount point given")
	}
	path, err := resolve(path)
	if err != nil {
		return "", err
	}
	const tries = 8 // several daemons may have died here
	for range tries {
		at, ok, err := mountAt(path)
		if err != nil {
			return "", err
		}
		if !ok {
			return path, emptyDir(path)
		}
		if at.fstype != "fuse."+typeName {
			return "", dc.Errorf(dc.Busy, "mount", path, "a file system of type %s (%s) is mounted there; choose another mount point", at.fstype, at.source)
		}
		if alive(path) {
			return "", dc.Errorf(dc.Busy, "mount", path, "a running daemon is mounted there; stop it first, or choose another mount point")
		}
		log.Info("clearing away the mount of a daemon that is gone", "path", path)
		if err := unmount(path, true); err != nil {
			return "", dc.Errorf(dc.Busy, "mount", path, "the mount of a daemon that is gone cannot be removed: %w; try: fusermount3 -uz %s", err, path)
		}
	}
	return "", dc.Errorf(dc.Busy, "mount", path, "more than %d dead mounts are stacked there", tries)
}

// resolve makes path absolute, following symbolic links in all but its last element, which may be a dead mount that cannot be looked at.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", dc.Errorf(dc.Invalid, "mount", path, "%w", err)
	}
	parent := filepath.Dir(abs)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", dc.Errorf(dc.Denied, "mount", path, "%w", err)
	}
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return "", dc.Errorf(dc.Invalid, "mount", path, "%w", err)
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

func emptyDir(path string) error {
	if err := os.Mkdir(path, 0o755); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrExist) {
		return dc.Errorf(dc.Denied, "mount", path, "%w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return dc.Errorf(dc.Invalid, "mount", path, "%w", err)
	}
	if len(entries) > 0 {
		return dc.Errorf(dc.NotEmpty, "mount", path, "the directory holds files (%s, ...), which a mount would hide; choose an empty one", entries[0].Name())
	}
	return nil
}

// alive tells a live mount from one whose daemon is gone, which answers ENOTCONN at once. A daemon that does not answer lives.
func alive(path string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Stat(path, &st)
	}()
	timer := time.NewTimer(probeTimeout)
	defer timer.Stop()
	select {
	case err := <-answer:
		return !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED)
	case <-timer.C:
		return true
	}
}

const probeTimeout = 3 * time.Second

// A mountEntry is a line of /proc/self/mountinfo, proc(5).
type mountEntry struct {
	dev    string // the number of its connection, for FUSE
	path   string
	fstype string
	source string
}

// mountAt finds the mount on top at path.
func mountAt(path string) (at mountEntry, ok bool, err error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountEntry{}, false, dc.Errorf(dc.Internal, "mount", path, "%w", err)
	}
	for line := range strings.Lines(string(table)) {
		if e, valid := parseMount(line); valid && e.path == path {
			at, ok = e, true
		}
	}
	return at, ok, nil
}

func parseMount(line string) (mountEntry, bool) {
	before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
	front, back := strings.Fields(before), strings.Fields(after)
	if !ok || len(front) < 5 || len(back) < 2 {
		return mountEntry{}, false
	}
	_, minor, _ := strings.Cut(front[2], ":")
	return mountEntry{dev: minor, path: unescape.Replace(front[4]), fstype: back[0], source: unescape.Replace(back[1])}, true
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// deviceOf is the number of the FUSE connection mounted at path.
func deviceOf(path string) (dev string, ok bool) {
	at, ok, err := mountAt(path)
	return at.dev, ok && err == nil && at.fstype == "fuse."+typeName
}
