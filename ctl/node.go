package ctl

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"missingos/srv/dcpb"
)

func nodeCommands() []*Command {
	type tokenOpts struct{ ttl time.Duration }
	return []*Command{
		{
			Noun: "node", Verb: "ls", Short: "list the nodes", Long: "With plain tools: ls /dc/nodes; cat /dc/nodes/*/status",
			Example: "dcctl node ls", Run: runNodeLs,
		},
		{
			Noun: "node", Verb: "token", Short: "make a token that admits one node, once",
			Long:    "Give it to `dcd join --token` on the new machine.",
			Example: "dcctl node token\ndcd join --dir /var/lib/dc --listen 10.0.0.2:7770 --name second --token ...",
			Flags: func(fs *flag.FlagSet) any {
				o := &tokenOpts{}
				fs.DurationVar(&o.ttl, "ttl", time.Hour, "how long it is good for")
				return o
			},
			Run: func(ctx context.Context, env *Env, opts any, args []string) error {
				if len(args) > 0 {
					return usagef("node token takes no arguments")
				}
				return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
					r, err := c.Token(ctx, &dcpb.AdminTokenRequest{Header: &dcpb.Header{}, TtlMs: opts.(*tokenOpts).ttl.Milliseconds()})
					if err == nil {
						fmt.Fprintln(env.Stdout, r.Token)
						fmt.Fprintln(env.Stderr, "dcctl: good for one node until", time.UnixMilli(r.ExpiresMs).UTC().Format(time.RFC3339))
					}
					return err
				})
			},
		},
		emptyCommand("drain", "empty a node: its tasks, leaderships and replicas move to others",
			"Leaderships leave at once, replicas one by one while other nodes are open to take them, tasks as their jobs allow. The command shows what is left\n"+
				"and ends when that is nothing; interrupting it does not stop the drain, `undrain` does. Blocks of /dc/data are\n"+
				"copied to other nodes first, as far as there are any for them, and then leave; `dcctl data status` shows how that goes.",
			&dcpb.AdminDrainRequest{Drain: true}),
		{
			Noun: "node", Verb: "undrain", Args: "NODE", Short: "let a node that drains or is being decommissioned have tasks, leaderships and replicas again",
			Long: "With plain tools: echo undrain > /dc/nodes/NODE/ctl", Example: "dcctl node undrain third",
			Run: func(ctx context.Context, env *Env, _ any, args []string) error {
				if len(args) != 1 {
					return usagef("node undrain needs one node")
				}
				return mark(ctx, env, args[0], &dcpb.AdminDrainRequest{})
			},
		},
		emptyCommand("decommission", "empty a node, and remove it when nothing is left on it",
			"Like drain; when neither replicas nor blocks of /dc/data are left on it, the node is removed for ever. Refused if too few nodes would stay for the\n"+
				"replicas of some group. `dcctl data status` shows how its blocks move to other nodes; a node that died instead is removed with `dcctl node rm`.",
			&dcpb.AdminDrainRequest{Drain: true, Decommission: true}),
		{
			Noun: "node", Verb: "rm", Args: "NODE", Short: "remove a node from the cluster for ever",
			Long: "Its replicas are placed on other nodes at once, its certificate is refused from now on. What only it held is lost;\n" +
				"with three replicas of everything and a majority up, nothing is. To bring the machine back, empty its directory and join it anew.",
			Example: "dcctl node rm third",
			Run: func(ctx context.Context, env *Env, _ any, args []string) error {
				if len(args) != 1 {
					return usagef("node rm needs one node")
				}
				return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
					_, err := c.Remove(ctx, &dcpb.AdminRemoveRequest{Header: &dcpb.Header{}, Node: args[0]})
					return err
				})
			},
		},
	}
}

// emptyEvery is how often drain and decommission look what is left.
const emptyEvery = 500 * time.Millisecond

// emptyCommand is drain or decommission: it sets the mark and waits until the node is empty, or removed.
func emptyCommand(verb, short, long string, req *dcpb.AdminDrainRequest) *Command {
	type opts struct {
		noWait  bool
		timeout time.Duration
	}
	return &Command{
		Noun: "node", Verb: verb, Args: "NODE", Short: short,
		Long:    long + "\nWith plain tools: echo " + verb + " > /dc/nodes/NODE/ctl; grep left /dc/nodes/NODE/status",
		Example: "dcctl node " + verb + " third",
		Exits:   ", 3 something is left after --timeout (standard output says what; it goes on)",
		Flags: func(fs *flag.FlagSet) any {
			o := &opts{}
			fs.BoolVar(&o.noWait, "no-wait", false, "set the mark and do not wait")
			fs.DurationVar(&o.timeout, "timeout", 0, "how long to wait; default: for ever")
			return o
		},
		Run: func(ctx context.Context, env *Env, o any, args []string) error {
			if len(args) != 1 {
				return usagef("node %s needs one node", verb)
			}
			opts := o.(*opts)
			if opts.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, opts.timeout)
				defer cancel()
			}
			if err := mark(ctx, env, args[0], req); err != nil || opts.noWait {
				return err
			}
			return waitEmpty(ctx, env, args[0], req.Decommission)
		},
	}
}

func mark(ctx context.Context, env *Env, node string, req *dcpb.AdminDrainRequest) error {
	return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
		_, err := c.Drain(ctx, &dcpb.AdminDrainRequest{Header: &dcpb.Header{}, Node: node, Drain: req.Drain, Decommission: req.Decommission})
		return err
	})
}

// waitEmpty tells on standard error, at each change, what is left on a node, until nothing is.
func waitEmpty(ctx context.Context, env *Env, name string, decommission bool) error {
	var left []string
	told := ""
	for {
		st, err := status(ctx, env)
		if err == nil && !st.Stale {
			n := nodeIn(st, name)
			switch {
			case n == nil || n.State == "removed":
				if !decommission {
					return fmt.Errorf("node %s has been removed", name)
				}
				return nil
			case !n.Drain:
				return fmt.Errorf("node %s: somebody has undrained it", name)
			case n.Replicas == 0 && n.Leaders == 0 && n.Blocks == 0 && !decommission && !groupsOn(st, n.Id):
				return nil
			}
			left = n.Waits
			now := fmt.Sprintf("%s: leads %d groups, %d replicas, %d blocks left", n.Name, n.Leaders, n.Replicas, n.Blocks)
			if now != told {
				fmt.Fprintln(env.Stderr, "dcctl:", now)
				told = now
			}
		}
		select {
		case <-ctx.Done():
			for _, l := range append(left, reasonsFor(st, name)...) {
				fmt.Fprintln(env.Stdout, l)
			}
			return exitError(3)
		case <-time.After(emptyEvery):
		}
	}
}

func nodeIn(st *dcpb.AdminStatusReply, name string) *dcpb.AdminNode {
	var found *dcpb.AdminNode
	for _, n := range st.GetNodes() {
		if n.Name == name || fmt.Sprintf("n%d", n.Id) == name {
			if found == nil || n.State != "removed" {
				found = n
			}
		}
	}
	return found
}

// groupsOn tells whether a group still counts a node among its members.
func groupsOn(st *dcpb.AdminStatusReply, id uint64) bool {
	for _, g := range st.Groups {
		for _, r := range g.Replicas {
			if r.Node == id {
				return true
			}
		}
	}
	return false
}

// reasonsFor collects what groups say of a node by name.
func reasonsFor(st *dcpb.AdminStatusReply, name string) []string {
	n := nodeIn(st, name)
	if n == nil {
		return nil
	}
	var all []string
	for _, g := range st.Groups {
		for _, r := range g.Reasons {
			if strings.HasPrefix(r, n.Name+" ") {
				all = append(all, "group "+g.Name+": "+r)
			}
		}
	}
	return all
}

func runNodeLs(ctx context.Context, env *Env, _ any, args []string) error {
	if len(args) > 0 {
		return usagef("node ls takes no arguments")
	}
	st, err := status(ctx, env)
	if err != nil {
		return err
	}
	st.Groups = nil
	if env.JSON {
		return writeJSON(env, st)
	}
	t := tabwriter.NewWriter(env.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tID\tADDRESS\tSTATE\tREPLICAS\tLEADERS\tBLOCKS\tLABELS")
	for _, n := range st.Nodes {
		state := n.State
		if n.Decommission && state != "removed" {
			state += ", to be removed"
		}
		fmt.Fprintf(t, "%s\tn%d\t%s\t%s\t%d\t%d\t%d\t%s\n", n.Name, n.Id, n.Address, state, n.Replicas, n.Leaders, n.Blocks, labelsText(n.Labels))
	}
	return t.Flush()
}
