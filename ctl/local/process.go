package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func (c *Cluster) pidFile(n int) string { return filepath.Join(c.NodeDir(n), "dcd.pid") }

// start runs `dcd run` for node n unless it runs already.
func (c *Cluster) start(ctx context.Context, n int) error {
	if c.running(n) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	log, err := os.OpenFile(c.LogFile(n), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"run", "--dir", c.NodeDir(n), "--listen", c.state.Nodes[n-1].Address, "--mount", c.Mount(n)}, c.cfg.Args...)
	cmd := exec.Command(c.cfg.Dcd, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // survives this process and its terminal
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("node %d: %w", n, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it if this process outlives it
	started, err := startTime(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("node %d ended at once:\n%s", n, tail(c.LogFile(n)))
	}
	c.say("node %d: pid %d, %s", n, cmd.Process.Pid, c.state.Nodes[n-1].Address)
	return os.WriteFile(c.pidFile(n), fmt.Appendf(nil, "%d %d\n", cmd.Process.Pid, started), 0o644)
}

// startTime is a process' start in clock ticks since boot: with the pid it names a process for ever. A zombie counts as ended.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte(") ")) // the command's name, in parentheses, may hold spaces
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("pid %d: unreadable stat", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("pid %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// pid gives node n's process; ok is false if it does not run.
func (c *Cluster) pid(n int) (pid int, ok bool) {
	b, err := os.ReadFile(c.pidFile(n))
	if err != nil {
		return 0, false
	}
	var started uint64
	if _, err := fmt.Sscan(string(b), &pid, &started); err != nil {
		return 0, false
	}
	now, err := startTime(pid)
	return pid, err == nil && now == started
}

func (c *Cluster) running(n int) bool {
	_, ok := c.pid(n)
	return ok
}

func (c *Cluster) check(n int) error {
	if n < 1 || n > c.Nodes() {
		return fmt.Errorf("there is no node %d at %s (it has %d)", n, c.cfg.Dir, c.Nodes())
	}
	return nil
}

func (c *Cluster) signal(n int, sig syscall.Signal) error {
	if err := c.check(n); err != nil {
		return err
	}
	pid, ok := c.pid(n)
	if !ok {
		return fmt.Errorf("node %d does not run", n)
	}
	return syscall.Kill(pid, sig)
}

// Kill ends node n's daemon as a crash would: SIGKILL. It returns when the process is gone.
func (c *Cluster) Kill(ctx context.Context, n int) error {
	if err := c.signal(n, syscall.SIGKILL); err != nil {
		return err
	}
	return c.waitGone(ctx, n)
}

// Stop ends node n's daemon cleanly: SIGTERM.
func (c *Cluster) Stop(ctx context.Context, n int) error {
	if err := c.signal(n, syscall.SIGTERM); err != nil {
		return err
	}
	return c.waitGone(ctx, n)
}

// Pause stops node n's daemon where it is, as a stalled machine would; Resume lets it go on.
func (c *Cluster) Pause(n int) error { return c.signal(n, syscall.SIGSTOP) }

// Resume undoes Pause.
func (c *Cluster) Resume(n int) error { return c.signal(n, syscall.SIGCONT) }

// Start runs node n's daemon again and waits until its mount answers.
func (c *Cluster) Start(ctx context.Context, n int) error {
	if err := c.check(n); err != nil {
		return err
	}
	if err := c.start(ctx, n); err != nil {
		return err
	}
	return c.waitMount(ctx, n)
}

func (c *Cluster) waitGone(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for c.running(n) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %d is still there after %v", n, stopTimeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Down stops all daemons: SIGTERM, then SIGKILL for what does not end, and takes away mounts that are left over.
// Doing it again, or with nothing running, is fine.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	var g errgroup.Group
	for n := 1; n <= c.Nodes(); n++ {
		g.Go(func() error { return c.stopNode(ctx, n) })
	}
	err = g.Wait()
	for n := 1; n <= c.Nodes(); n++ {
		err = errors.Join(err, detach(c.Mount(n)))
	}
	return err
}

func (c *Cluster) stopNode(ctx context.Context, n int) error {
	pid, ok := c.pid(n)
	if !ok {
		return nil
	}
	_ = syscall.Kill(pid, syscall.SIGCONT) // a paused daemon cannot hear TERM
	if err := c.Stop(ctx, n); err == nil {
		c.say("node %d stopped", n)
		return nil
	}
	if !c.running(n) {
		return nil
	}
	c.say("node %d did not stop in %v: killed; see %s", n, stopTimeout, c.LogFile(n))
	return c.Kill(context.WithoutCancel(ctx), n)
}

// detach takes away a FUSE mount that a dead daemon left at dir.
func detach(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != dir || !strings.Contains(line, " - fuse") {
			continue
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err == nil {
			continue
		}
		if out, err := exec.Command("fusermount3", "-uz", dir).CombinedOutput(); err != nil {
			return fmt.Errorf("mount %s is left over: %w: %s", dir, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// NodeInfo is one line of List.
type NodeInfo struct {
	N       int
	PID     int // 0 when it does not run
	Address string
	Mount   string
	Log     string
}

// List gives the nodes and their processes.
func (c *Cluster) List() []NodeInfo {
	var all []NodeInfo
	for n := 1; n <= c.Nodes(); n++ {
		pid, ok := c.pid(n)
		if !ok {
			pid = 0
		}
		all = append(all, NodeInfo{N: n, PID: pid, Address: c.state.Nodes[n-1].Address, Mount: c.Mount(n), Log: c.LogFile(n)})
	}
	return all
}
