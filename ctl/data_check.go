package ctl

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"missingos/srv/dcpb"
)

type checkOptions struct {
	repair, read bool
	timeout      time.Duration
}

func dataCheckCommand() *Command {
	return &Command{
		Noun: "data", Verb: "check", Short: "check files and blocks of /dc/data, while they are used",
		Long: "Metadata: every name leads to a file, link counts, extents and sums are right. Blocks: every node has what it should have (missing, few, lost copies; with --read also\n" +
			"corrupt ones, all blocks are read), and nothing else (surplus, orphan copies; those of the last hour may be of a file being written and are not told).\n" +
			"With --repair copies are made, put right and deleted, and blocks are checked again when that is done; wrong metadata are only told: please report them.\n" +
			"One line a finding: what, where, text.",
		Example: "dcctl data check\ndcctl data check --read --repair",
		Exits:   ", 3 something is wrong (with --repair: still), or a node could not be asked",
		Flags: func(fs *flag.FlagSet) any {
			o := &checkOptions{}
			fs.BoolVar(&o.repair, "repair", false, "mend what is safe to mend")
			fs.BoolVar(&o.read, "read", false, "have the nodes read all blocks")
			fs.DurationVar(&o.timeout, "timeout", checkTimeout, "how long all of it may take")
			return o
		},
		Run: runDataCheck,
	}
}

func runDataCheck(ctx context.Context, env *Env, opts any, args []string) error {
	if len(args) > 0 {
		return usagef("data check takes no arguments")
	}
	o := opts.(*checkOptions)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) error {
		found, err := checkData(ctx, env, c, &dcpb.AdminDataCheckRequest{Header: &dcpb.Header{}, Read: o.read, Repair: o.repair})
		if err != nil {
			return err
		}
		if o.repair && found > 0 {
			if err := waitCare(ctx, c); err != nil {
				return err
			}
			fmt.Fprintln(env.Stderr, "dcctl: checking again")
			if found, err = checkData(ctx, env, c, &dcpb.AdminDataCheckRequest{Header: &dcpb.Header{}, Read: o.read}); err != nil {
				return err
			}
		}
		if found > 0 {
			return exitError(3)
		}
		return nil
	})
}

// checkData shows one check and counts what it found and did not mend.
func checkData(ctx context.Context, env *Env, c dcpb.AdminClient, q *dcpb.AdminDataCheckRequest) (found int, err error) {
	stream, err := c.DataCheck(ctx, q)
	if err != nil {
		return 0, err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		for _, f := range r.Findings {
			if !f.Mended {
				found++
			}
		}
		if env.JSON {
			if err := writeJSON(env, r); err != nil {
				return found, err
			}
			continue
		}
		for _, f := range r.Findings {
			mended := ""
			if f.Mended {
				mended = " (mended)"
			}
			fmt.Fprintf(env.Stdout, "%s\t%s\t%s%s\n", f.What, f.Where, f.Text, mended)
		}
		if r.Done {
			fmt.Fprintf(env.Stderr, "dcctl: %s: %d checked\n", r.Part, r.Checked)
		}
	}
}

const careEvery = 500 * time.Millisecond

// waitCare waits until nothing is queued or under way any more. What cannot be done now is not waited for.
func waitCare(ctx context.Context, c dcpb.AdminClient) error {
	for idle := 0; idle < 4; { // what was reported is taken up a moment later
		st, err := c.DataStatus(ctx, &dcpb.AdminDataStatusRequest{Header: &dcpb.Header{}})
		if err != nil {
			return err
		}
		if idle++; st.Queued+st.Moving > 0 || st.Doing != "" {
			idle = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(careEvery):
		}
	}
	return nil
}
