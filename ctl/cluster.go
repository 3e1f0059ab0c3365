package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"missingos/srv/dcpb"
)

func clusterCommands() []*Command {
	return []*Command{
		{
			Noun: "status", Short: "show nodes, groups, leaders, replica health and space",
			Long: "Asks a node of this machine over its admin socket; answers also without a quorum, from what the node last knew (and says so).\n" +
				"With plain tools: cat /dc/.dc/stat /dc/nodes/*/status",
			Example: "dcctl status\ndcctl status --json | jq .groups",
			Exits:   ", 3 no quorum: what is shown is the last known state",
			Run:     runStatus,
		},
		{
			Noun: "why", Args: "[N]", Short: "explain the last error (or the last N) you got from the tree",
			Long:    "With plain tools: head -n 1 /dc/.dc/errors",
			Example: "cat /dc/kv/nosuch/row || dcctl why",
			Run:     runWhy,
		},
		{
			Noun: "call", Args: "FILE < REQUEST", Short: "write a request into a clone file and print its answer",
			Long: "FILE is a path, or relative to the mount. With plain tools: exec 3<>FILE; cat request >&3; cat <&3",
			Example: `echo 'prefix=a limit=10' | dcctl call kv/users/.dc/scan
dcctl call jobs/plan < job.yaml`,
			Run: runCall,
		},
	}
}

func status(ctx context.Context, env *Env) (*dcpb.AdminStatusReply, error) {
	var st *dcpb.AdminStatusReply
	err := env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) (err error) {
		st, err = c.Status(ctx, &dcpb.AdminStatusRequest{Header: &dcpb.Header{}})
		return err
	})
	return st, err
}

func runStatus(ctx context.Context, env *Env, _ any, args []string) error {
	if len(args) > 0 {
		return usagef("status takes no arguments")
	}
	st, err := status(ctx, env)
	if err != nil {
		return err
	}
	if env.JSON {
		if err := writeJSON(env, st); err != nil {
			return err
		}
	} else {
		writeStatus(env.Stdout, st)
	}
	if st.Stale {
		fmt.Fprintln(env.Stderr, "dcctl: no quorum: this is the last state that node", st.Node, "knew")
		return exitError(3)
	}
	return nil
}

func writeStatus(w io.Writer, st *dcpb.AdminStatusReply) {
	fmt.Fprintf(w, "cluster %s  version %s  answered by %s\n\n", st.Cluster, st.Version, st.Node)
	names := map[uint64]string{}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tID\tADDRESS\tSTATE\tFREE\tOF\tVERSION\tLABELS")
	for _, n := range st.Nodes {
		names[n.Id] = n.Name
		fmt.Fprintf(t, "%s\tn%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Id, n.Address, n.State, bytesText(n.FreeBytes), bytesText(n.TotalBytes), n.Version, labelsText(n.Labels))
	}
	_ = t.Flush()
	fmt.Fprintln(w)
	writeGroups(w, st.Groups, names)
}

func writeGroups(w io.Writer, groups []*dcpb.AdminGroup, names map[uint64]string) {
	name := func(id uint64) string {
		if n := names[id]; n != "" {
			return n
		}
		if id == 0 {
			return "-"
		}
		return fmt.Sprintf("n%d", id)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tID\tLEADER\tTERM\tCOMMIT\tREPLICAS")
	for _, g := range groups {
		var rs []string
		for _, r := range g.Replicas {
			s := name(r.Node)
			if r.Role != "voter" {
				s += "(" + r.Role + ")"
			}
			if r.Health != "ok" {
				s += "=" + r.Health
			}
			rs = append(rs, s)
		}
		fmt.Fprintf(t, "%s\tg%d\t%s\t%d\t%d\t%s\n", g.Name, g.Id, name(g.Leader), g.Term, g.Commit, strings.Join(rs, " "))
	}
	_ = t.Flush()
}

func labelsText(m map[string]string) string {
	var s []string
	for k, v := range m {
		s = append(s, k+"="+v)
	}
	sort.Strings(s)
	return strings.Join(s, ",")
}

func bytesText(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%dB", n)
	}
	div, exp := uint64(unit), 0
	for n/div >= unit && exp < 4 {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f%ciB", float64(n)/float64(div), "KMGTP"[exp])
}

func runWhy(_ context.Context, env *Env, _ any, args []string) error {
	n := 1
	if len(args) > 1 {
		return usagef("why takes one number at most")
	}
	if len(args) == 1 {
		if _, err := fmt.Sscan(args[0], &n); err != nil || n < 1 {
			return usagef("why %s: not a number of errors", args[0])
		}
	}
	mount, err := env.mount()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(mount, ".dc/errors"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if n--; n < 0 {
			break
		}
		fmt.Fprint(env.Stdout, line)
	}
	return nil
}

func runCall(_ context.Context, env *Env, _ any, args []string) error {
	if len(args) != 1 {
		return usagef("call needs one file")
	}
	path, err := env.inTree(args[0])
	if err != nil {
		return err
	}
	return call(env, path, env.Stdin)
}

// call writes a request into a clone file and copies the answer to standard output.
func call(env *Env, path string, request io.Reader) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(onlyWriter{f}, request); err != nil {
		return err
	}
	_, err = io.Copy(env.Stdout, onlyReader{f})
	return err
}

// onlyWriter and onlyReader keep io.Copy from splice and sendfile, which clone files do not have.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// inTree makes a path absolute: as it is if it is one or exists from here, else below the mount.
func (e *Env) inTree(path string) (string, error) {
	if filepath.IsAbs(path) {
		return path, nil
	}
	mount, err := e.mount()
	return filepath.Join(mount, path), err
}

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
		drainCommand("drain", true, "give a node no new tasks and move those it has"),
		drainCommand("undrain", false, "let a drained node have tasks again"),
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

func drainCommand(verb string, drain bool, short string) *Command {
	return &Command{
		Noun: "node", Verb: verb, Args: "NODE", Short: short,
		Long:    "With plain tools: echo " + verb + " > /dc/nodes/NODE/ctl",
		Example: "dcctl node " + verb + " third",
		Run: func(ctx context.Context, env *Env, _ any, args []string) error {
			if len(args) != 1 {
				return usagef("node %s needs one node", verb)
			}
			return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
				_, err := c.Drain(ctx, &dcpb.AdminDrainRequest{Header: &dcpb.Header{}, Node: args[0], Drain: drain})
				return err
			})
		},
	}
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
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\tn%d\t%s\t%s\t%s\n", n.Name, n.Id, n.Address, n.State, labelsText(n.Labels))
	}
	return t.Flush()
}

func groupCommands() []*Command {
	return []*Command{{
		Noun: "group", Verb: "ls", Short: "list the Raft groups, their leaders and replicas",
		Example: "dcctl group ls",
		Run: func(ctx context.Context, env *Env, _ any, args []string) error {
			if len(args) > 0 {
				return usagef("group ls takes no arguments")
			}
			st, err := status(ctx, env)
			if err != nil {
				return err
			}
			names := map[uint64]string{}
			for _, n := range st.Nodes {
				names[n.Id] = n.Name
			}
			st.Nodes = nil
			if env.JSON {
				return writeJSON(env, st)
			}
			writeGroups(env.Stdout, st.Groups, names)
			return nil
		},
	}}
}

func writeJSON(env *Env, st *dcpb.AdminStatusReply) error {
	b, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true, UseProtoNames: true}.Marshal(st)
	if err == nil {
		_, err = fmt.Fprintln(env.Stdout, string(b))
	}
	return err
}
