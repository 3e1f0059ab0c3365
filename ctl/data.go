package ctl

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"missingos/srv/dcpb"
)

func dataCommands() []*Command {
	return []*Command{
		{
			Noun: "data", Verb: "status", Short: "how the blocks of /dc/data are, and what is being done for them",
			Long: "Blocks by the number of good copies left, what is queued, how fast it goes and how long it will take, and what each node's store holds. The leader of the data\n" +
				"group counts when a node joins, dies, drains or comes back, and once an hour; `counted` says when that was.",
			Example: "dcctl data status\nwatch dcctl data status",
			Exits:   ", 3 blocks have fewer copies than they should, 4 blocks have no copy on a node that is up",
			Run:     runDataStatus,
		},
		dataCheckCommand(),
	}
}

func runDataStatus(ctx context.Context, env *Env, _ any, args []string) error {
	if len(args) > 0 {
		return usagef("data status takes no arguments")
	}
	var st *dcpb.DataCareReply
	err := env.withAdmin(ctx, func(ctx context.Context, c dcpb.AdminClient) (err error) {
		st, err = c.DataStatus(ctx, &dcpb.AdminDataStatusRequest{Header: &dcpb.Header{}})
		return err
	})
	if err != nil {
		return err
	}
	if env.JSON {
		err = writeJSON(env, st)
	} else {
		err = writeDataStatus(env.Stdout, st)
	}
	switch {
	case err != nil:
		return err
	case st.Lost > 0:
		return exitError(4)
	case few(st) > 0:
		return exitError(3)
	}
	return nil
}

// few counts the blocks with fewer copies than they should have.
func few(st *dcpb.DataCareReply) uint64 {
	n := uint64(0)
	for _, c := range st.Copies {
		if uint64(c.Copies) < st.Wanted {
			n += c.Blocks
		}
	}
	return n
}

func writeDataStatus(w io.Writer, st *dcpb.DataCareReply) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if st.CountedMs == 0 {
		fmt.Fprintln(t, "blocks\tbeing counted")
	} else {
		ago := time.Since(time.UnixMilli(st.CountedMs)).Round(time.Second)
		fmt.Fprintf(t, "blocks\t%d, %s, counted %s ago\n", st.Blocks, sizeText(float64(st.Bytes)), max(ago, 0))
		for _, c := range st.Copies {
			mark := ""
			if uint64(c.Copies) < st.Wanted {
				mark = ", too few"
			}
			fmt.Fprintf(t, "with %d copies\t%d%s\n", c.Copies, c.Blocks, mark)
		}
		if st.Short > 0 {
			fmt.Fprintf(t, "wait for a node\t%d: none that is up has room and not a copy already\n", st.Short)
		}
		if st.Lost > 0 {
			fmt.Fprintf(t, "no copy up\t%d, such as %s\n", st.Lost, st.LostBlocks[0])
		}
	}
	doing := st.Doing
	if doing == "" {
		doing = "nothing to do"
	}
	fmt.Fprintf(t, "doing\t%s\n", doing)
	if st.Queued+st.Moving > 0 {
		fmt.Fprintf(t, "queued\t%d blocks, %s, %d under way\n", st.Queued, sizeText(float64(st.QueuedBytes)), st.Moving)
		if rate := st.Rate; rate > 0 {
			left := time.Duration(float64(st.QueuedBytes) / rate * float64(time.Second)).Round(time.Second)
			fmt.Fprintf(t, "rate\t%s/s, about %s left\n", sizeText(rate), left)
		}
	}
	fmt.Fprintf(t, "copied\t%d blocks, %s, %d failed\n", st.Done, sizeText(float64(st.DoneBytes)), st.Failed)
	if st.LastError != "" {
		fmt.Fprintf(t, "last error\t%s\n", st.LastError)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATE\tBLOCKS\tUSED\tFREE")
	for _, s := range st.Stores {
		if !s.Known {
			fmt.Fprintf(t, "%s\t%s\t-\t-\t-\n", s.Name, s.State)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", s.Name, s.State, s.Blocks, sizeText(float64(s.Used)), sizeText(float64(s.Free)))
	}
	return t.Flush()
}

// sizeText writes bytes for people.
func sizeText(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			return fmt.Sprintf("%.4g %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.4g TiB", n)
}
