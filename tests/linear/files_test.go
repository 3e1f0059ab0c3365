package linear

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// daemons are three dcd processes on this machine, made by `dcctl local up`.
type daemons struct {
	t        *testing.T
	bin, dir string
	up       [3]atomic.Bool
}

// startDaemons builds the binaries and starts the cluster; it is gone after the test. DC_LINEAR_DIR names the directory of a running
// cluster of `dcctl local up` to use instead, with the binaries in PATH.
func startDaemons(t *testing.T) *daemons {
	t.Helper()
	d := &daemons{t: t, dir: os.Getenv("DC_LINEAR_DIR")}
	for i := range d.up {
		d.up[i].Store(true)
	}
	if d.dir != "" {
		dcctl, err := exec.LookPath("dcctl")
		if err != nil {
			t.Fatal(err)
		}
		d.bin = filepath.Dir(dcctl)
		return d
	}
	tmp, err := os.MkdirTemp("", "dc-linear-")
	if err != nil {
		t.Fatal(err)
	}
	d.bin, d.dir = filepath.Join(tmp, "bin"), filepath.Join(tmp, "c")
	t.Cleanup(func() {
		d.dcctl("local", "down")
		if err := os.RemoveAll(tmp); err != nil {
			t.Error(err)
		}
	})
	build := exec.Command("go", "build", "-o", d.bin+"/", "./cmd/dcd", "./cmd/dcctl")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	d.dcctl("local", "up", "--nodes", strconv.Itoa(len(d.up)), "--mount", d.mount(1))
	return d
}

func (d *daemons) mount(n int) string {
	if n == 1 {
		return filepath.Join(d.dir, "dc")
	}
	return filepath.Join(d.dir, fmt.Sprint("n", n), "dc")
}

func (d *daemons) dcctl(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "dcctl"), args...)
	cmd.Env = append(os.Environ(), "DC_DIR="+d.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Errorf("dcctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// trouble kills the leaders of kv and lock in turn with SIGKILL and starts them again, until ctx ends.
func (d *daemons) trouble(ctx context.Context) {
	for n := 0; pause(ctx, time.Second); n++ {
		i := d.leader([]string{"kv/0", "lock"}[n%2])
		if i == 0 {
			continue
		}
		d.t.Logf("kill node %d", i)
		d.dcctl("local", "kill", strconv.Itoa(i))
		d.up[i-1].Store(false)
		pause(ctx, 2500*time.Millisecond)
		d.dcctl("local", "start", strconv.Itoa(i))
		d.up[i-1].Store(true)
	}
}

// leader reads a group's leader from the table of `dcctl status`: NAME ID LEADER ...
func (d *daemons) leader(group string) int {
	for line := range strings.Lines(d.dcctl("status")) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == group {
			n, _ := strconv.Atoi(strings.TrimPrefix(f[2], "n"))
			return n
		}
	}
	return 0
}

func TestHistoriesThroughMounts(t *testing.T) {
	if testing.Short() {
		t.Skip("runs real daemons")
	}
	d := startDaemons(t)
	name := fmt.Sprint("linear", os.Getpid())
	dir := func(n int, tree string) string { return filepath.Join(d.mount(n%len(d.up)+1), tree, name) }
	for _, tree := range []string{"kv", "lock"} {
		if err := os.Mkdir(dir(0, tree), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir(0, tree)) })
	}
	load := Load{
		Clients: 6, Duration: 10 * time.Second, Pause: 10 * time.Millisecond, EmptyCreate: true,
		Table: func(n int) Table {
			if d.up[n%len(d.up)].Load() {
				return fileTable{dir(n, "kv")}
			}
			return nil
		},
		Locker: func(n int) Locker {
			if d.up[n%len(d.up)].Load() {
				return fileLocker{dir(n, "lock")}
			}
			return nil
		},
	}
	if long() {
		load.Duration = 3 * time.Minute
	}
	rows, locked := load.Run(t.Context(), d.trouble)
	rows.Check(t, Rows, 200)
	locked.Check(t, Locks, 20)
}
