package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"missingos/srv/dc"
)

const (
	nodes = 3
	// memberEnv makes this program one of the nodes; its value is the memberConfig.
	memberEnv = "DC_BENCH_GROUPS_MEMBER"
)

func main() {
	if served, err := serveIfMember(); served {
		if err != nil {
			fatal(err)
		}
		return
	}
	var c config
	flag.IntVar(&c.groups, "groups", 1000, "how many groups")
	flag.DurationVar(&c.settle, "settle", 50*time.Second, "how long the nodes are left alone before their idle cost is measured")
	flag.DurationVar(&c.watch, "watch", 20*time.Second, "how long that is measured")
	flag.DurationVar(&c.shelveAfter, "shelve-after", 20*time.Second, "how long idle shards keep their files open; storage's own default is longer")
	flag.DurationVar(&c.patience, "patience", 3*time.Minute, "how long to wait for leaders")
	flag.BoolVar(&c.short, "short", false, "only start new groups and look at them idle")
	flag.StringVar(&c.profile, "profile", "", "write profiles of the idle nodes to files of this name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := measure(ctx, c); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bench-groups:", err)
		os.Exit(1)
	}
}

// serveIfMember runs a node if this process was started as one.
func serveIfMember() (bool, error) {
	text := os.Getenv(memberEnv)
	if text == "" {
		return false, nil
	}
	var cfg memberConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return true, err
	}
	return true, runMember(cfg, os.Stdin, os.Stdout)
}

type config struct {
	groups                  int
	settle, watch, patience time.Duration
	shelveAfter             time.Duration
	profile                 string
	short                   bool
}

// figures is what a run measures; of nodes, the greatest.
type figures struct {
	fresh, restart time.Duration // from the start of the processes to all leaders
	cpuPercent     float64       // of one core
	anonBytes      int64         // resident, without pages of files
	rssBytes       int64
	goroutines     int
	failover       time.Duration // from a node's death to all leaders
}

// measure makes one run and prints it as it goes.
func measure(ctx context.Context, c config) (f figures, err error) {
	dir, err := os.MkdirTemp(os.Getenv("DC_BENCH_TMP"), "dc-bench-groups-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d groups on %d nodes on one machine of %d processors; load before: %s", c.groups, nodes, runtime.NumCPU(), load)
	cl := &cluster{config: c, dir: dir}
	defer func() { err = errors.Join(err, cl.kill()) }()
	if f.fresh, err = cl.start(ctx); err != nil {
		return f, fmt.Errorf("first start: %w", err)
	}
	fmt.Printf("all leaders, new groups      %8.1f s\n", f.fresh.Seconds())
	if c.short {
		return f, errors.Join(cl.idle(ctx, &f), cl.stop())
	}
	if err := cl.writeAll(ctx, "first write of each group"); err != nil {
		return f, err
	}
	if err := cl.stop(); err != nil {
		return f, fmt.Errorf("stop: %w", err)
	}
	if f.restart, err = cl.start(ctx); err != nil {
		return f, fmt.Errorf("restart: %w", err)
	}
	fmt.Printf("all leaders, after a restart %8.1f s\n", f.restart.Seconds())
	if err := cl.idle(ctx, &f); err != nil {
		return f, err
	}
	if err := cl.writeAll(ctx, "a write of each idle group"); err != nil {
		return f, err
	}
	if err := cl.writeAll(ctx, "one more"); err != nil {
		return f, err
	}
	fmt.Println("idle again:")
	cl.profile = ""
	if err := cl.idle(ctx, &f); err != nil {
		return f, err
	}
	began := time.Now()
	if err := cl.killLast(); err != nil {
		return f, err
	}
	if err := cl.allLed(ctx); err != nil {
		return f, fmt.Errorf("after the death of a node: %w", err)
	}
	f.failover = time.Since(began)
	fmt.Printf("all leaders, a node killed   %8.1f s\n", f.failover.Seconds())
	if err := cl.writeAll(ctx, "a write, without that node"); err != nil {
		return f, err
	}
	return f, cl.stop()
}

// cluster is the nodes' processes.
type cluster struct {
	config
	dir     string
	members []*process

	answered, doubtful int // writes so far
}

type process struct {
	cmd     *exec.Cmd
	orders  *json.Encoder
	answers *json.Decoder
}

// start starts the processes and waits until every group has a leader.
func (c *cluster) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	peers := map[dc.NodeID]string{}
	for n := dc.NodeID(1); n <= nodes; n++ {
		p, err := spawn(memberConfig{Node: n, Dir: filepath.Join(c.dir, n.String()), Groups: c.groups, ShelveAfter: c.shelveAfter})
		if err != nil {
			return 0, err
		}
		c.members = append(c.members, p)
		var hello answer
		if err := p.answers.Decode(&hello); err != nil {
			return 0, err
		}
		peers[n] = hello.Address
	}
	if _, err := c.all(order{Do: "start", Peers: peers}); err != nil {
		return 0, err
	}
	fmt.Printf("  opened after               %8.1f s\n", time.Since(began).Seconds())
	err := c.allLed(ctx)
	return time.Since(began), err
}

// allLed waits until every group has a leader that is ready.
func (c *cluster) allLed(ctx context.Context) error {
	for began := time.Now(); ; {
		states, err := c.all(order{Do: "state"})
		if err != nil {
			return err
		}
		led := 0
		for _, s := range states {
			led += s.Led
		}
		if led == c.groups {
			return nil
		}
		if took := time.Since(began); took > c.patience {
			return fmt.Errorf("after %v %d of %d groups have a leader", took.Round(time.Second), led, c.groups)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func spawn(cfg memberConfig) (*process, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), memberEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &process{cmd: cmd, orders: json.NewEncoder(in), answers: json.NewDecoder(out)}, cmd.Start()
}

// all gives every node an order and waits for all answers.
func (c *cluster) all(o order) ([]answer, error) {
	for _, p := range c.members {
		if err := p.orders.Encode(o); err != nil {
			return nil, err
		}
	}
	return c.collect()
}

func (c *cluster) collect() ([]answer, error) {
	answers := make([]answer, len(c.members))
	for i, p := range c.members {
		if err := p.answers.Decode(&answers[i]); err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		if answers[i].Err != "" {
			return nil, fmt.Errorf("node %d: %s", i+1, answers[i].Err)
		}
	}
	return answers, nil
}

// idle leaves the nodes alone, and then watches what they cost.
func (c *cluster) idle(ctx context.Context, f *figures) error {
	if err := sleep(ctx, c.settle); err != nil {
		return err
	}
	var before [nodes]usage
	for i, p := range c.members {
		var err error
		if before[i], err = usageOf(p.cmd.Process.Pid); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := sleep(ctx, c.watch); err != nil {
		return err
	}
	for i, p := range c.members {
		u, err := usageOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		cpu := 100 * float64(u.cpu-before[i].cpu) / float64(time.Since(began))
		f.cpuPercent, f.anonBytes, f.rssBytes = max(f.cpuPercent, cpu), max(f.anonBytes, u.anon), max(f.rssBytes, u.rss)
		fmt.Printf("idle node %d: processor %.1f%% of a core, memory %d MiB (%d MiB with pages of files)\n", i+1, cpu, u.anon>>20, u.rss>>20)
	}
	states, err := c.all(order{Do: "state"})
	if err != nil {
		return err
	}
	for i, s := range states {
		f.goroutines = max(f.goroutines, s.Goroutines)
		fmt.Printf("  node %d: leads %d, %d goroutines, heap %d MiB, stacks %d MiB\n", i+1, s.Led, s.Goroutines, s.Heap>>20, s.Stacks>>20)
	}
	if c.profile == "" {
		return nil
	}
	for i, p := range c.members {
		if err := p.orders.Encode(order{Do: "profile", File: fmt.Sprintf("%s.%d", c.profile, i+1), Time: c.watch}); err != nil {
			return err
		}
	}
	_, err = c.collect()
	return err
}

// writeAll makes one write in every group. What is refused is said; a group that forgets a write that it answered, or makes one twice, is an error.
func (c *cluster) writeAll(ctx context.Context, what string) error {
	if err := c.allLed(ctx); err != nil {
		return err
	}
	answers, err := c.all(order{Do: "write"})
	if err != nil {
		return err
	}
	var sum answer
	for _, a := range answers {
		sum.Writes, sum.Refused, sum.Wrong, sum.Sum = sum.Writes+a.Writes, sum.Refused+a.Refused, sum.Wrong+a.Wrong, sum.Sum+a.Sum
		sum.Took, sum.Slowest = max(sum.Took, a.Took), max(sum.Slowest, a.Slowest)
	}
	fmt.Printf("%-28s %8.1f s (slowest %v; %d answered, %d refused)\n", what, sum.Took.Seconds(), sum.Slowest.Round(time.Millisecond), sum.Writes, sum.Refused)
	c.answered, c.doubtful = c.answered+sum.Writes, c.doubtful+c.groups-sum.Writes
	if sum.Wrong > 0 || sum.Writes == c.groups && (sum.Sum < c.answered || sum.Sum > c.answered+c.doubtful) {
		return fmt.Errorf("%s: %d counts are wrong; %d writes were answered so far, %d may have been made, and the groups count %d", what, sum.Wrong, c.answered, c.doubtful, sum.Sum)
	}
	return nil
}

// stop ends the processes in good order.
func (c *cluster) stop() error {
	began := time.Now()
	_, err := c.all(order{Do: "stop"})
	for _, p := range c.members {
		err = errors.Join(err, p.cmd.Wait())
	}
	c.members = nil
	fmt.Printf("  stopped in                 %8.1f s\n", time.Since(began).Seconds())
	return err
}

// killLast kills a node.
func (c *cluster) killLast() error {
	last := c.members[len(c.members)-1]
	c.members = c.members[:len(c.members)-1]
	err := last.cmd.Process.Kill()
	_ = last.cmd.Wait() // says that it was killed
	return err
}

// kill ends what is left of the processes.
func (c *cluster) kill() (err error) {
	for _, p := range c.members {
		err = errors.Join(err, p.cmd.Process.Kill())
		_ = p.cmd.Wait() // says that it was killed
	}
	return err
}

// usage is what a process has used and holds.
type usage struct {
	cpu       time.Duration
	anon, rss int64
}

func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	u.cpu = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			u.rss = kib * dc.KiB
		case "RssAnon":
			u.anon = kib * dc.KiB
		}
	}
	return u, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
