package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

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
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tID\tADDRESS\tSTATE\tFREE\tOF\tVERSION\tLABELS")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\tn%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Id, n.Address, n.State, bytesText(n.FreeBytes), bytesText(n.TotalBytes), n.Version, labelsText(n.Labels))
	}
	_ = t.Flush()
	fmt.Fprintln(w)
	writeGroups(w, st)
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

func writeJSON(env *Env, st proto.Message) error {
	b, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true, UseProtoNames: true}.Marshal(st)
	if err == nil {
		_, err = fmt.Fprintln(env.Stdout, string(b))
	}
	return err
}
