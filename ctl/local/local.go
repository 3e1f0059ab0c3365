package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says which cluster.
type Config struct {
	Dir   string // holds everything
	Nodes int    // how many daemons; kept from the first Up on
	Mount string // where node 1 mounts; the others at Dir/n<i>/dc
	Dcd   string // the daemon's binary
	// Args are added to every `dcd run` (for tests: reserves, grace periods).
	Args []string
	// Out is told what happens, a line each.
	Out io.Writer
	// Dial gives node status over an admin socket (package ctl has it; injected to keep transport out of here).
	Status func(ctx context.Context, socket string) (Status, error)
	// Token makes a join token over an admin socket.
	Token func(ctx context.Context, socket string) (string, error)
}

// Status is what Up and Wait need to know of a cluster.
type Status struct {
	Nodes  int  // nodes that are up
	Groups int  // groups with a leader and all wanted replicas voting and caught up
	Total  int  // groups
	Stale  bool // the answering node has no quorum
	Text   string
}

// How long things may take before they count as failed.
const (
	startTimeout = 60 * time.Second
	readyTimeout = 3 * time.Minute
	stopTimeout  = 25 * time.Second
)

// Cluster is a local cluster's directory.
type Cluster struct {
	cfg   Config
	state state
}

// state is what Dir/cluster.json keeps.
type state struct {
	Mount string      `json:"mount"`
	Nodes []nodeState `json:"nodes"`
}

type nodeState struct {
	Address string `json:"address"`
}

// Open reads the cluster of cfg.Dir; it need not exist yet.
func Open(cfg Config) (*Cluster, error) {
	abs, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = abs
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	c := &Cluster{cfg: cfg}
	b, err := os.ReadFile(c.stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &c.state); err != nil {
		return nil, fmt.Errorf("%s: %w", c.stateFile(), err)
	}
	return c, nil
}

func (c *Cluster) stateFile() string { return filepath.Join(c.cfg.Dir, "cluster.json") }

// Nodes is how many nodes the cluster has.
func (c *Cluster) Nodes() int { return len(c.state.Nodes) }

// NodeDir is node n's data directory.
func (c *Cluster) NodeDir(n int) string { return filepath.Join(c.cfg.Dir, fmt.Sprintf("n%d", n)) }

// Socket is node n's admin socket.
func (c *Cluster) Socket(n int) string { return filepath.Join(c.NodeDir(n), "dcd.sock") }

// Mount is where node n is mounted.
func (c *Cluster) Mount(n int) string {
	if n == 1 {
		return c.state.Mount
	}
	return filepath.Join(c.NodeDir(n), "dc")
}

// LogFile is node n's log.
func (c *Cluster) LogFile(n int) string { return filepath.Join(c.NodeDir(n), "dcd.log") }

// Up makes the cluster if there is none, starts the daemons that do not run, and waits until every group has all its replicas and every mount
// answers. Running it again changes nothing.
func (c *Cluster) Up(ctx context.Context) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.define(); err != nil {
		return err
	}
	for n := 1; n <= c.Nodes(); n++ { // the members first: they have a quorum only together
		if c.admitted(n) {
			if err := c.start(ctx, n); err != nil {
				return err
			}
		}
	}
	for n := 1; n <= c.Nodes(); n++ {
		if err := c.admit(ctx, n); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
		if err := c.start(ctx, n); err != nil {
			return err
		}
		if n == 1 {
			if err := c.waitSocket(ctx, 1); err != nil {
				return err
			}
		}
	}
	return c.waitReady(ctx)
}

// define chooses addresses for nodes that have none yet and keeps them.
func (c *Cluster) define() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return err
	}
	if len(c.state.Nodes) > 0 && c.cfg.Mount != "" && c.cfg.Mount != c.state.Mount && c.running(1) {
		return fmt.Errorf("node 1 runs and is mounted at %s; `dcctl local down` first to mount it at %s", c.state.Mount, c.cfg.Mount)
	}
	if c.cfg.Mount != "" {
		abs, err := filepath.Abs(c.cfg.Mount)
		if err != nil {
			return err
		}
		c.state.Mount = abs
	}
	for len(c.state.Nodes) < c.cfg.Nodes {
		addr, err := freeAddress(c.state.Nodes)
		if err != nil {
			return err
		}
		c.state.Nodes = append(c.state.Nodes, nodeState{Address: addr})
	}
	b, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	tmp := c.stateFile() + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.stateFile())
}

// admit runs `dcd init` or `dcd join` for a node whose directory is not a member's yet.
func (c *Cluster) admit(ctx context.Context, n int) error {
	if c.admitted(n) {
		return nil
	}
	// A join that was cut off half-way cannot be taken up again (its token is spent): start the node afresh.
	if err := os.RemoveAll(c.NodeDir(n)); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Mount(n), 0o755); err != nil {
		return err
	}
	args := []string{"--dir", c.NodeDir(n), "--listen", c.state.Nodes[n-1].Address, "--name", fmt.Sprintf("n%d", n), "--mount", c.Mount(n)}
	if n == 1 {
		c.say("node 1: making a new cluster at %s", c.cfg.Dir)
		args = append([]string{"init"}, args...)
	} else {
		c.say("node %d: joining", n)
		token, err := c.cfg.Token(ctx, c.Socket(1))
		if err != nil {
			return fmt.Errorf("no join token from node 1 (does it run?): %w", err)
		}
		args = append([]string{"join", "--token", token}, args...)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.cfg.Dcd, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dcd %s: %w\n%s", args[0], err, out)
	}
	return os.WriteFile(c.marker(n), nil, 0o644)
}

// marker is the file that says that a node was admitted.
func (c *Cluster) marker(n int) string { return filepath.Join(c.NodeDir(n), "admitted") }

func (c *Cluster) admitted(n int) bool {
	_, err := os.Stat(c.marker(n))
	return err == nil
}

// lock makes sure that one command at a time works on the directory.
func (c *Cluster) lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another dcctl local works on %s", c.cfg.Dir)
	}
	return func() { f.Close() }, nil
}

func (c *Cluster) say(format string, args ...any) { fmt.Fprintf(c.cfg.Out, format+"\n", args...) }

// waitSocket waits until node n answers on its admin socket.
func (c *Cluster) waitSocket(ctx context.Context, n int) error {
	return c.poll(ctx, startTimeout, n, func(ctx context.Context) (string, bool) {
		st, err := c.cfg.Status(ctx, c.Socket(n))
		if err != nil {
			return err.Error(), false
		}
		return "no quorum yet", !st.Stale
	})
}

// waitReady waits until all groups are whole and all mounts of running nodes answer.
func (c *Cluster) waitReady(ctx context.Context) error {
	last := ""
	err := c.poll(ctx, readyTimeout, 1, func(ctx context.Context) (string, bool) {
		st, err := c.cfg.Status(ctx, c.Socket(1))
		if err != nil {
			return err.Error(), false
		}
		text := fmt.Sprintf("%d of %d nodes up, %d of %d groups whole", st.Nodes, c.Nodes(), st.Groups, st.Total)
		if text != last {
			c.say("%s", text)
			last = text
		}
		return text + "\n" + st.Text, !st.Stale && st.Nodes >= c.Nodes() && st.Total > 1 && st.Groups == st.Total
	})
	if err != nil {
		return err
	}
	var g errgroup.Group
	for n := 1; n <= c.Nodes(); n++ {
		g.Go(func() error { return c.waitMount(ctx, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for n := 1; n <= c.Nodes(); n++ {
		c.say("node %d is mounted at %s", n, c.Mount(n))
	}
	return nil
}

// waitMount waits until node n's mount answers. The look is done in a goroutine of its own because a dead mount may hang it.
func (c *Cluster) waitMount(ctx context.Context, n int) error {
	return c.poll(ctx, startTimeout, n, func(ctx context.Context) (string, bool) {
		got := make(chan error, 1)
		go func() {
			_, err := os.Stat(filepath.Join(c.Mount(n), ".dc/stat"))
			got <- err
		}()
		select {
		case err := <-got:
			return fmt.Sprintf("mount %s: %v", c.Mount(n), err), err == nil
		case <-ctx.Done():
			return fmt.Sprintf("mount %s hangs", c.Mount(n)), false
		}
	})
}

// poll asks again and again until done, ctx ends, limit passes, or node n's daemon dies.
func (c *Cluster) poll(ctx context.Context, limit time.Duration, n int, ask func(context.Context) (string, bool)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		text, done := ask(once)
		cancel()
		if done {
			return nil
		}
		if !c.running(n) {
			return fmt.Errorf("node %d ended; the end of %s:\n%s", n, c.LogFile(n), tail(c.LogFile(n)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %d: not ready after %v: %s", n, limit, text)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tail gives the last lines of a log, for an error text.
func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}
