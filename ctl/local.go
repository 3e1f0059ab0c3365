package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"missingos/ctl/local"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

func localCommands() []*Command {
	type upOpts struct{ nodes int }
	const plain = "The daemons are ordinary `dcd run` processes; --dir DIR holds their data, logs and pid files (default ./.dc-local)."
	number := func(verb, short string, do func(ctx context.Context, c *local.Cluster, n int) error) *Command {
		return &Command{
			Noun: "local", Verb: verb, Args: "N", Short: short, Example: "dcctl local " + verb + " 2",
			Run: func(ctx context.Context, env *Env, _ any, args []string) error {
				if len(args) != 1 {
					return usagef("local %s needs a node's number", verb)
				}
				n, err := strconv.Atoi(args[0])
				if err != nil {
					return usagef("local %s %s: not a number", verb, args[0])
				}
				c, err := LocalCluster(env, 0)
				if err != nil {
					return err
				}
				return do(ctx, c, n)
			},
		}
	}
	return []*Command{
		{
			Noun: "local", Verb: "up", Short: "run a cluster of real daemons on this machine",
			Long: plain + "\nNode 1 mounts at --mount (root: /dc, others: DIR/dc), node i at DIR/n<i>/dc. Returns when every group is whole and every mount answers.\n" +
				"Doing it again starts what does not run.",
			Example: "dcctl local up --nodes 3 --dir /tmp/c --mount /tmp/c/dc",
			Flags: func(fs *flag.FlagSet) any {
				o := &upOpts{}
				fs.IntVar(&o.nodes, "nodes", 3, "how many `nodes`")
				return o
			},
			Run: func(ctx context.Context, env *Env, opts any, args []string) error {
				if len(args) > 0 {
					return usagef("local up takes no arguments")
				}
				nodes := opts.(*upOpts).nodes
				if nodes < 1 || nodes > 32 {
					return usagef("local up --nodes %d: from 1 to 32", nodes)
				}
				c, err := LocalCluster(env, nodes)
				if err != nil {
					return err
				}
				return c.Up(ctx)
			},
		},
		{
			Noun: "local", Verb: "down", Short: "stop them and take away their mounts; the data stay", Long: plain, Example: "dcctl local down",
			Run: func(ctx context.Context, env *Env, _ any, args []string) error {
				if len(args) > 0 {
					return usagef("local down takes no arguments")
				}
				c, err := LocalCluster(env, 0)
				if err != nil {
					return err
				}
				return c.Down(ctx)
			},
		},
		{
			Noun: "local", Verb: "status", Short: "list them: pid, address, mount, log", Long: plain, Example: "dcctl local status",
			Run: func(_ context.Context, env *Env, _ any, _ []string) error {
				c, err := LocalCluster(env, 0)
				if err != nil {
					return err
				}
				t := tabwriter.NewWriter(env.Stdout, 0, 8, 2, ' ', 0)
				for _, n := range c.List() {
					pid := "-"
					if n.PID != 0 {
						pid = strconv.Itoa(n.PID)
					}
					fmt.Fprintf(t, "n%d\t%s\t%s\t%s\t%s\n", n.N, pid, n.Address, n.Mount, n.Log)
				}
				return t.Flush()
			},
		},
		number("kill", "kill -9 a node's daemon", func(ctx context.Context, c *local.Cluster, n int) error { return c.Kill(ctx, n) }),
		number("stop", "stop a node's daemon cleanly", func(ctx context.Context, c *local.Cluster, n int) error { return c.Stop(ctx, n) }),
		number("start", "start a node's daemon again", func(ctx context.Context, c *local.Cluster, n int) error { return c.Start(ctx, n) }),
		number("pause", "stop a node's daemon where it is (SIGSTOP)", func(_ context.Context, c *local.Cluster, n int) error { return c.Pause(n) }),
		number("resume", "let a paused daemon go on", func(_ context.Context, c *local.Cluster, n int) error { return c.Resume(n) }),
	}
}

// LocalCluster opens the local cluster that env names; nodes is for making one. Tests and benchmarks use it too.
func LocalCluster(env *Env, nodes int, runArgs ...string) (*local.Cluster, error) {
	dir := env.Dir
	if dir == "" {
		dir = defaultLocalDir
	}
	mount := env.Mount
	if mount == "" && nodes > 0 {
		if _, err := os.Stat(filepath.Join(dir, "cluster.json")); err != nil {
			mount = defaultMount(dir)
		}
	}
	dcd, err := findDcd()
	if err != nil {
		return nil, err
	}
	out := env.Stderr
	if out == nil {
		out = io.Discard
	}
	c, err := local.Open(local.Config{
		Dir: dir, Nodes: nodes, Mount: mount, Dcd: dcd, Args: runArgs, Out: out, Status: localStatus, Token: localToken,
	})
	if err != nil {
		return nil, err
	}
	if nodes == 0 && c.Nodes() == 0 {
		return nil, fmt.Errorf("there is no local cluster at %s; `dcctl local up` makes one", dir)
	}
	return c, nil
}

func defaultMount(dir string) string {
	if os.Geteuid() == 0 {
		return "/dc"
	}
	return filepath.Join(dir, "dc")
}

// findDcd takes the daemon beside this binary, or from PATH.
func findDcd() (string, error) {
	self, err := os.Executable()
	if err == nil {
		if beside := filepath.Join(filepath.Dir(self), "dcd"); isExecutable(beside) {
			return beside, nil
		}
	}
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if p := filepath.Join(d, "dcd"); isExecutable(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("no dcd beside dcctl nor in PATH; `make build` makes both")
}

func isExecutable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

func localStatus(ctx context.Context, socket string) (local.Status, error) {
	cc, err := dialAdmin(socket)
	if err != nil {
		return local.Status{}, err
	}
	defer cc.Close()
	st, err := dcpb.NewAdminClient(cc).Status(ctx, &dcpb.AdminStatusRequest{Header: &dcpb.Header{}})
	if err != nil {
		return local.Status{}, rpc.FromStatus(err)
	}
	var text strings.Builder
	writeStatus(&text, st)
	sum := local.Status{Total: len(st.Groups), Stale: st.Stale, Text: text.String()}
	up := 0
	for _, n := range st.Nodes {
		if n.State == "up" || n.State == "draining" {
			up++
		}
	}
	sum.Nodes = up
	for _, g := range st.Groups {
		if whole(g, min(len(st.Nodes), 3)) {
			sum.Groups++
		}
	}
	return sum, nil
}

// whole tells whether g has a leader and wanted voters, all caught up.
func whole(g *dcpb.AdminGroup, wanted int) bool {
	voters := 0
	for _, r := range g.Replicas {
		if r.Role == "voter" && r.Health == "ok" {
			voters++
		}
	}
	return g.Leader != 0 && voters >= wanted
}

func localToken(ctx context.Context, socket string) (string, error) {
	cc, err := dialAdmin(socket)
	if err != nil {
		return "", err
	}
	defer cc.Close()
	r, err := dcpb.NewAdminClient(cc).Token(ctx, &dcpb.AdminTokenRequest{Header: &dcpb.Header{}})
	return r.GetToken(), rpc.FromStatus(err)
}
