package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"missingos/srv/dcpb"
)

func groupCommands() []*Command {
	return []*Command{
		{
			Noun: "group", Verb: "ls", Short: "list the Raft groups: leader, replicas with role and health, lag, the change under way",
			Long: "LAG is how many entries the replica that is furthest behind has still to apply. A replica is a voter unless it says otherwise; health is shown unless it is ok.\n" +
				"With plain tools: grep ^group /dc/.dc/stat",
			Example: "dcctl group ls\ndcctl group ls --json | jq '.groups[] | select(.change != \"\") | .name'",
			Run:     runGroupLs,
		},
		{
			Noun: "group", Verb: "show", Args: "GROUP", Short: "show one group, replica by replica, and why it is as it is",
			Example: "dcctl group show kv/0",
			Run:     runGroupShow,
		},
		{
			Noun: "group", Verb: "check", Args: "[GROUP...]", Short: "compare the content of a group's replicas now",
			Long: "All replicas sum up every row as it was after one entry of the log, and the sums are compared. It takes as long as reading the rows, at a quarter of a processor on\n" +
				"each node, while the group goes on working. Leaders do it by themselves every hour for groups that were written to (dcd run --compare-every). A replica that has\n" +
				"something else than a majority is named and the exit status is 1. Without a group all are compared.",
			Example: "dcctl group check kv/0",
			Run:     runGroupCheck,
		},
		{
			Noun: "group", Verb: "move", Args: "GROUP", Short: "move a replica of a group from one node to another, or its leadership",
			Long: "The new replica is added without a vote, catches up, gets its vote, and only then the old one goes; nothing acknowledged is lost at any step. The command\n" +
				"returns at once, `dcctl group show` tells how far it is. A replica that was moved stays where it was put, and a leadership goes back to the node that it was\n" +
				"given to whenever that is up, until --auto; only a node's death, drain or removal moves the replica. One change at a time a group: a second is refused.",
			Example: "dcctl group move kv/0 --from n1 --to n4\ndcctl group move meta --leader n2\ndcctl group move kv/0 --auto",
			Flags: func(fs *flag.FlagSet) any {
				m := &dcpb.AdminMoveGroupRequest{}
				fs.StringVar(&m.From, "from", "", "the `node` that gives its replica")
				fs.StringVar(&m.To, "to", "", "the `node` that gets it")
				fs.StringVar(&m.Leader, "leader", "", "the `node` that is to lead")
				fs.BoolVar(&m.Automatic, "auto", false, "let the cluster place the group again")
				fs.BoolVar(&m.Force, "force", false, "also if more replicas then share a zone or rack")
				return m
			},
			Run: runGroupMove,
		},
	}
}

// nodeNames gives what people call the nodes of a status.
func nodeNames(st *dcpb.AdminStatusReply) func(id uint64) string {
	names := map[uint64]string{}
	for _, n := range st.Nodes {
		names[n.Id] = n.Name
	}
	return func(id uint64) string {
		if n := names[id]; n != "" {
			return n
		}
		if id == 0 {
			return "-"
		}
		return fmt.Sprintf("n%d", id)
	}
}

func writeGroups(w io.Writer, st *dcpb.AdminStatusReply) {
	name := nodeNames(st)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tID\tKIND\tLEADER\tTERM\tCOMMIT\tLAG\tREPLICAS\tCHANGE")
	for _, g := range st.Groups {
		var rs []string
		lag := uint64(0)
		for _, r := range g.Replicas {
			s := name(r.Node)
			if r.Role != "voter" {
				s += "(" + r.Role + ")"
			}
			switch {
			case r.Receiving != nil:
				s += "=receiving"
			case r.Health != "ok":
				s += "=" + r.Health
			}
			rs, lag = append(rs, s), max(lag, r.Lag)
		}
		change := g.Change
		if change == "" {
			change = "-"
		}
		fmt.Fprintf(t, "%s\tg%d\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", g.Name, g.Id, g.Kind, name(g.Leader), g.Term, g.Commit, lag, strings.Join(rs, " "), change)
	}
	_ = t.Flush()
}

func runGroupLs(ctx context.Context, env *Env, _ any, args []string) error {
	if len(args) > 0 {
		return usagef("group ls takes no arguments")
	}
	st, err := status(ctx, env)
	if err != nil {
		return err
	}
	if env.JSON {
		st.Nodes = nil
		return writeJSON(env, st)
	}
	writeGroups(env.Stdout, st)
	return nil
}

func runGroupShow(ctx context.Context, env *Env, _ any, args []string) error {
	if len(args) != 1 {
		return usagef("group show needs one group")
	}
	st, err := status(ctx, env)
	if err != nil {
		return err
	}
	var g *dcpb.AdminGroup
	for _, other := range st.Groups {
		if other.Name == args[0] || fmt.Sprintf("g%d", other.Id) == args[0] {
			g = other
		}
	}
	if g == nil {
		return fmt.Errorf("there is no group %s; `dcctl group ls` lists them", args[0])
	}
	if env.JSON {
		st.Nodes, st.Groups = nil, []*dcpb.AdminGroup{g}
		return writeJSON(env, st)
	}
	writeGroup(env.Stdout, g, st)
	return nil
}

func writeGroup(w io.Writer, g *dcpb.AdminGroup, st *dcpb.AdminStatusReply) {
	name := nodeNames(st)
	fmt.Fprintf(w, "group %s  id g%d  kind %s  leader %s  term %d  commit %d\n", g.Name, g.Id, g.Kind, name(g.Leader), g.Term, g.Commit)
	fmt.Fprintf(w, "replicas %d of %d\n\n", len(g.Replicas), g.Want)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tHEALTH\tAPPLIED\tLAG\tZONE\tRACK")
	for _, r := range g.Replicas {
		role := r.Role
		if r.Node == g.Leader {
			role = "leader"
		}
		labels := nodeIn(st, fmt.Sprintf("n%d", r.Node)).GetLabels()
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", name(r.Node), role, health(r, name), r.Applied, r.Lag, dash(labels["zone"]), dash(labels["rack"]))
	}
	_ = t.Flush()
	change := g.Change
	if change == "" {
		change = "none"
	}
	fmt.Fprintf(w, "\nchange under way: %s\n", change)
	for _, r := range g.Reasons {
		fmt.Fprintf(w, "- %s\n", r)
	}
}

// health says how a replica is, and how far if it gets the whole state.
func health(r *dcpb.AdminReplica, name func(uint64) string) string {
	g := r.Receiving
	switch {
	case g == nil:
		return r.Health
	case g.Whole:
		return "restoring " + bytesText(g.Bytes)
	}
	s := "receiving " + bytesText(g.Bytes)
	if g.Size > 0 {
		s += fmt.Sprintf(" of about %s (%d%%)", bytesText(g.Size), min(99, g.Bytes*100/g.Size))
	}
	if g.From != 0 {
		s += " from " + name(g.From)
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func runGroupMove(ctx context.Context, env *Env, opts any, args []string) error {
	if len(args) != 1 {
		return usagef("group move needs one group")
	}
	m := opts.(*dcpb.AdminMoveGroupRequest)
	m.Header, m.Group = &dcpb.Header{}, args[0]
	return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
		_, err := c.MoveGroup(ctx, m)
		return err
	})
}
