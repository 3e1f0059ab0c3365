package script

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// cluster is the three daemons that all scripts of a run share.
type cluster struct {
	bin, dir string
	foreign  bool // somebody else's, to be left running
	err      error
}

const nodes = 3

var (
	shared struct {
		once sync.Once
		c    *cluster
	}
	faults sync.Mutex // one fault script at a time
	serial atomic.Int64
)

func TestMain(m *testing.M) {
	status := m.Run()
	if c := shared.c; c != nil && !c.foreign {
		if err := c.down(); err != nil {
			fmt.Fprintln(os.Stderr, "script:", err)
			status = 1
		}
	}
	os.Exit(status)
}

func TestTrees(t *testing.T) { run(t, "testdata/trees", false) }

func TestFaults(t *testing.T) { run(t, "testdata/faults", true) }

func run(t *testing.T, dir string, alone bool) {
	if testing.Short() {
		t.Skip("runs real daemons")
	}
	c := up(t)
	testscript.Run(t, testscript.Params{
		Dir:             dir,
		ContinueOnError: true,
		Setup: func(e *testscript.Env) error {
			if alone {
				faults.Lock()
				e.Defer(func() {
					defer faults.Unlock()
					if err := c.whole(); err != nil {
						t.Errorf("after %s: %v", e.WorkDir, err)
					}
				})
			}
			e.Setenv("PATH", c.bin+":"+os.Getenv("PATH"))
			e.Setenv("DC_DIR", c.dir)
			e.Setenv("DC_MOUNT", c.mount(1))
			e.Setenv("T", fmt.Sprintf("%d-%d", os.Getpid(), serial.Add(1)))
			e.Setenv("LC_ALL", "C")
			for n := 1; n <= nodes; n++ {
				e.Setenv("DC"+strconv.Itoa(n), c.mount(n))
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"session": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: session FILE")
				}
				begin := time.Now()
				err := play(ts.MkAbs("."), environ(ts, args[0]), ts.ReadFile(args[0]), c.resume)
				ts.Logf("session %s took %v", args[0], time.Since(begin).Round(time.Millisecond))
				if err != nil {
					ts.Fatalf("%s: %v\n%s", args[0], err, c.state())
				}
			},
		},
	})
}

// environ is what Setup set, and what programs expect besides.
func environ(ts *testscript.TestScript, session string) []string {
	env := []string{"HOME=" + ts.MkAbs("."), "TMPDIR=" + ts.MkAbs("."), "TERM=dumb", "T=" + session + "-" + ts.Getenv("T")}
	for _, name := range []string{"PATH", "DC_DIR", "DC_MOUNT", "LC_ALL", "DC1", "DC2", "DC3"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

func (c *cluster) mount(n int) string {
	if n == 1 {
		return filepath.Join(c.dir, "dc")
	}
	return filepath.Join(c.dir, "n"+strconv.Itoa(n), "dc")
}

// up builds the binaries and starts the cluster, once a run.
func up(t *testing.T) *cluster {
	t.Helper()
	shared.once.Do(func() { shared.c = start(t) })
	if shared.c.err != nil {
		t.Fatal(shared.c.err)
	}
	return shared.c
}

const dirPrefix = "dc-script-"

// start starts a cluster, or uses the one of `dcctl local up` whose directory DC_SCRIPT_DIR names (its binaries in PATH).
func start(t *testing.T) *cluster {
	if dir := os.Getenv("DC_SCRIPT_DIR"); dir != "" {
		bin, err := exec.LookPath("dcctl")
		return &cluster{bin: filepath.Dir(bin), dir: dir, err: err, foreign: true}
	}
	clearAway(t)
	tmp := filepath.Join(os.TempDir(), dirPrefix+strconv.Itoa(os.Getpid()))
	c := &cluster{bin: filepath.Join(tmp, "bin"), dir: filepath.Join(tmp, "c")}
	if c.err = os.MkdirAll(c.bin, 0o755); c.err != nil {
		return c
	}
	build := exec.Command("go", "build", "-o", c.bin+"/", "./cmd/dcd", "./cmd/dcctl")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		c.err = fmt.Errorf("go build: %w\n%s", err, out)
		return c
	}
	begin := time.Now()
	if out, err := c.dcctl("local", "up", "--nodes", strconv.Itoa(nodes), "--mount", c.mount(1)); err != nil {
		c.err = fmt.Errorf("dcctl local up: %w\n%s\n%s", err, out, c.state())
		return c
	}
	t.Logf("three nodes up in %v", time.Since(begin).Round(time.Millisecond))
	return c
}

// whole starts what a script has stopped, and waits until all is well; in a foreign cluster it only starts.
func (c *cluster) whole() error {
	if !c.foreign {
		out, err := c.dcctl("local", "up")
		if err != nil {
			err = fmt.Errorf("the cluster does not become whole: %w\n%s", err, out)
		}
		return err
	}
	for n := 1; n <= nodes; n++ {
		if out, err := c.dcctl("local", "start", strconv.Itoa(n)); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
}

// resume lets paused daemons go on: processes that wait for one cannot even be killed.
func (c *cluster) resume() {
	for n := 1; n <= nodes; n++ {
		_, _ = c.dcctl("local", "resume", strconv.Itoa(n))
	}
}

// dcctl runs dcctl on the cluster's directory.
func (c *cluster) dcctl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "dcctl"), args...)
	cmd.Env = append(os.Environ(), "DC_DIR="+c.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// state is for the text of a failure: the ends of the daemons' logs, and their last errors.
func (c *cluster) state() string {
	var b strings.Builder
	for n := 1; n <= nodes; n++ {
		log, err := os.ReadFile(filepath.Join(c.dir, "n"+strconv.Itoa(n), "dcd.log"))
		if err != nil {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(log)), "\n")
		fmt.Fprintf(&b, "--- the end of node %d's log\n%s\n", n, strings.Join(all[max(0, len(all)-12):], "\n"))
	}
	return b.String()
}

// down stops the daemons and makes sure that nothing is left of them.
func (c *cluster) down() error {
	if !exists(filepath.Join(c.bin, "dcd")) { // it was not built
		return os.RemoveAll(filepath.Dir(c.dir))
	}
	out, err := c.dcctl("local", "down")
	if err != nil {
		err = fmt.Errorf("dcctl local down: %w\n%s", err, out)
	}
	if left := sweep(filepath.Dir(c.dir)); len(left) > 0 && err == nil {
		err = fmt.Errorf("left over after `dcctl local down`: %s", strings.Join(left, ", "))
	}
	return err
}

// clearAway removes what runs that were killed have left.
func clearAway(t *testing.T) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), dirPrefix))
		if err != nil || exists(fmt.Sprintf("/proc/%d", pid)) {
			continue
		}
		t.Logf("clearing away %s: %v", dir, sweep(dir))
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// sweep kills the daemons that run on a directory, detaches the mounts below it and removes it. It tells what it found.
func sweep(dir string) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range procs {
		cmdline, err := os.ReadFile(file)
		args := strings.Split(string(cmdline), "\x00")
		if err != nil || args[0] != filepath.Join(dir, "bin", "dcd") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		found = append(found, fmt.Sprintf("process %d", pid))
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, "mount "+fields[4])
			_ = exec.Command("umount", "-l", fields[4]).Run()
			_ = exec.Command("fusermount3", "-uz", fields[4]).Run()
		}
	}
	_ = os.RemoveAll(dir)
	return found
}
