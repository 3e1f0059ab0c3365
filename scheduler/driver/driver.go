package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// Config says where tasks run.
type Config struct {
	// Dir holds a directory a task: its script, its working directory and its output. Two drivers must not share one.
	Dir string
	// Shim is the command that runs [ShimMain] in a process of its own: {"/proc/self/exe", "shim"} by default.
	Shim []string
	// MountPoint is where this node's tree is mounted, "" for nowhere.
	MountPoint string
	Log        *slog.Logger
}

// Driver starts tasks and reads their output.
type Driver struct {
	cfg   Config
	node  string // name of this driver's cgroups
	alive *os.File
	log   *slog.Logger
}

const (
	lockName = "alive"
	// clearWait bounds the wait for what an earlier daemon has left. Its shims end when it does; the kernel may need time to kill.
	clearWait = 15 * time.Second
	workDir   = "files"
)

// New prepares a driver. When it returns nothing that an earlier driver of the same directory has started runs any more.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Shim) == 0 {
		cfg.Shim = []string{"/proc/self/exe", "shim"}
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, dc.Errorf(dc.KindOf(err), "tasks", cfg.Dir, "%w", err)
	}
	cfg.Dir = dir
	sum := sha256.Sum256([]byte(dir))
	d := &Driver{cfg: cfg, node: hex.EncodeToString(sum[:6]), log: cfg.Log}
	if err := d.clear(); err != nil {
		return nil, dc.Errorf(dc.Busy, "tasks", dir, "%w", err)
	}
	return d, nil
}

// clear waits until all shims of an earlier daemon have gone (each holds the lock file shared) and ends what they may have left.
func (d *Driver) clear() error {
	path := filepath.Join(d.cfg.Dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	hier := detect()
	for begin := Now(); ; time.Sleep(5 * time.Millisecond) {
		if err := hier.clear(d.node, clearWait); err != nil {
			f.Close()
			return err
		}
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if Now()-begin > clearWait {
			f.Close()
			return errors.New("tasks of an earlier daemon still run")
		}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		f.Close()
		return err
	}
	d.alive = f
	return nil
}

// Close releases the driver. Tasks that still run are killed as their pipes end.
func (d *Driver) Close() error {
	detect().group(d.node, "").remove()
	return d.alive.Close()
}

func (d *Driver) taskDir(id string) string { return filepath.Join(d.cfg.Dir, id) }

// A Kept is what is kept of a task.
type Kept struct {
	ID    string
	Bytes int64     // of output
	Last  time.Time // of its last change
	// Running tells that it has not ended, or that its end is not all done.
	Running bool
}

// Kept lists the tasks that this machine has output of.
func (d *Driver) Kept() []Kept {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil
	}
	var out []Kept
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		k := Kept{ID: e.Name(), Running: exists(filepath.Join(d.taskDir(e.Name()), workDir))}
		files, _ := os.ReadDir(d.taskDir(k.ID))
		for _, f := range files {
			if st, err := f.Info(); err == nil {
				if st.Mode().IsRegular() {
					k.Bytes += st.Size()
				}
				if st.ModTime().After(k.Last) {
					k.Last = st.ModTime()
				}
			}
		}
		out = append(out, k)
	}
	return out
}

// Remove forgets the output and the working directory of a task that has ended.
func (d *Driver) Remove(id string) error { return os.RemoveAll(d.taskDir(id)) }

// Size gives the present size of a task's Stdout or Stderr; dc.NotFound if nothing of it is here.
func (d *Driver) Size(id string, stream string) (int64, error) {
	v, err := d.view(id, stream)
	if err != nil {
		return 0, err
	}
	defer v.close()
	return v.size(), nil
}

// ReadAt reads a task's Stdout or Stderr; short only at its present end.
func (d *Driver) ReadAt(id string, stream string, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, dc.Errorf(dc.Invalid, "task.output", stream, "offset %d", off)
	}
	v, err := d.view(id, stream)
	if err != nil {
		return 0, err
	}
	defer v.close()
	return v.readAt(p, off)
}

func (d *Driver) view(id string, stream string) (*view, error) {
	if stream != Stdout && stream != Stderr {
		return nil, dc.Errorf(dc.Invalid, "task.output", stream, "a task's outputs are stdout and stderr")
	}
	return openView(d.taskDir(id), stream)
}
