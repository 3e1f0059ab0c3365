package ctl

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"missingos/srv/dcpb"
)

// checkTimeout is for all groups together.
const checkTimeout = 12 * time.Hour

// errReplicasDiffer is the exit status of a check that found something.
var errReplicasDiffer = errors.New("replicas differ")

func runGroupCheck(ctx context.Context, env *Env, _ any, args []string) error {
	st, err := status(ctx, env)
	if err != nil {
		return err
	}
	for _, a := range args {
		if !slices.ContainsFunc(st.Groups, func(g *dcpb.AdminGroup) bool { return named(g, a) }) {
			return fmt.Errorf("there is no group %s; `dcctl group ls` lists them", a)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
		var found error
		for _, g := range st.Groups {
			if len(args) > 0 && !slices.ContainsFunc(args, func(a string) bool { return named(g, a) }) {
				continue
			}
			r, err := c.CompareGroup(ctx, &dcpb.AdminCompareGroupRequest{Header: &dcpb.Header{}, Group: g.Id})
			if err != nil {
				found = errors.Join(found, fmt.Errorf("group %s: %w", g.Name, err))
				continue
			}
			if env.JSON {
				err = writeJSON(env, r)
			} else {
				err = writeComparison(env.Stdout, g, st, r)
			}
			if err != nil {
				return err
			}
			if r.Undecided || slices.ContainsFunc(r.Replicas, func(x *dcpb.AdminComparedReplica) bool { return x.Differs }) {
				found = errors.Join(found, fmt.Errorf("group %s: %w", g.Name, errReplicasDiffer))
			}
		}
		return found
	})
}

// named tells whether people call a group so.
func named(g *dcpb.AdminGroup, name string) bool {
	return g.Name == name || fmt.Sprintf("g%d", g.Id) == name
}

func writeComparison(w io.Writer, g *dcpb.AdminGroup, st *dcpb.AdminStatusReply, r *dcpb.AdminCompareGroupReply) error {
	name := nodeNames(st)
	fmt.Fprintf(w, "group %s after entry %d\n", g.Name, r.Index)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROWS\tBYTES\tSUM\tVERDICT")
	for _, x := range r.Replicas {
		verdict := "same"
		switch {
		case x.Err != "":
			verdict = "did not tell: " + x.Err
		case x.Differs:
			verdict = "DIFFERS"
		case r.Undecided:
			verdict = "undecided: no majority has the same"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", name(x.Node), x.Rows, x.Bytes, hex.EncodeToString(x.Sum[:min(8, len(x.Sum))]), verdict)
	}
	return t.Flush()
}
