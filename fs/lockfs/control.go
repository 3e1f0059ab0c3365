package lockfs

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// control is the hidden directory of a directory of the store.
func control(s Store, path string) synth.Dir {
	k := key(path, true)
	k = strings.TrimSuffix(k, "/") + "/" + controlName
	children := []synth.Named{
		{Name: "watch", Node: watchFile(s, k+"/watch", path)},
		{Name: "events", Node: eventsFile(s, k+"/events", path)},
		{Name: "locks", Node: synth.Value(k+"/locks", synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) { return locks(ctx, s, path) }})},
		{Name: "ctl", Node: ctlFile(s, k+"/ctl", path)},
	}
	if path == "" {
		children = append(children,
			synth.Named{Name: "txn", Node: txnFile(s, k+"/txn")},
			synth.Named{Name: "sessions", Node: synth.Value(k+"/sessions", synth.ValueSpec{
				Read: func(ctx context.Context) ([]byte, error) { return sessions(ctx, s) },
			})},
		)
		children = append(children, synth.StatusFiles("stat", k+"/stat", func(ctx context.Context) ([]synth.Pair, error) { return stat(ctx, s) })...)
	}
	return synth.Static(k, children...)
}

func stat(ctx context.Context, s Store) ([]synth.Pair, error) {
	t, err := s.Totals(ctx)
	if err != nil {
		return nil, err
	}
	return []synth.Pair{
		{Key: "revision", Value: uint64(t.Revision)},
		{Key: "compacted", Value: uint64(t.Compacted)},
		{Key: "files", Value: t.Files},
		{Key: "bytes", Value: t.Bytes},
		{Key: "history-bytes", Value: t.HistoryBytes},
		{Key: "lock-delay", Value: t.Delay},
	}, nil
}

// maxShown bounds the lines of locks and sessions.
const maxShown = 100_000

// locks lists who holds, then who waits, for the locks in and below a directory. Columns, by tabs: path, held or waiting, mode,
// node, pid, command, fencing token (0: none yet), since.
func locks(ctx context.Context, s Store, dir string) ([]byte, error) {
	var b bytes.Buffer
	shown := 0
	for _, waiting := range []bool{false, true} {
		for cursor := []byte(nil); ; {
			page, next, err := s.Holds(ctx, waiting, cursor)
			if err != nil {
				return nil, err
			}
			for _, h := range page {
				if dir == "" || strings.HasPrefix(h.Path, dir+"/") {
					lockLine(&b, h, waiting)
					shown++
				}
			}
			if cursor = next; cursor == nil || shown >= maxShown {
				break
			}
		}
	}
	return b.Bytes(), nil
}

func lockLine(b *bytes.Buffer, h client.LockHold, waiting bool) {
	state, mode := "held", "exclusive"
	if waiting {
		state = "waiting"
	}
	if !h.Exclusive {
		mode = "shared"
	}
	fmt.Fprintf(b, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n", oneLine(h.Path), state, mode, h.Node, h.PID, oneLine(h.Command), h.Fence, h.Since.UTC().Format(time.RFC3339))
}

// oneLine makes a name fit for a column.
func oneLine(s string) string {
	return strings.NewReplacer("\t", "%09", "\n", "%0A").Replace(s)
}

// sessions lists the nodes' sessions. Columns, by tabs: node, session, live or ended, time to live, time left, since.
func sessions(ctx context.Context, s Store) ([]byte, error) {
	var b bytes.Buffer
	for after, shown := uint64(0), 0; shown < maxShown; {
		page, err := s.Sessions(ctx, after)
		if err != nil {
			return nil, err
		}
		for _, x := range page {
			state := "live"
			if x.Ended {
				state = "ended"
			}
			fmt.Fprintf(&b, "%s\t%d\t%s\t%s\t%s\t%s\n", x.Node, x.Session, state, x.TTL, x.Left.Round(time.Millisecond), x.Opened.UTC().Format(time.RFC3339))
			after = x.Session
		}
		if shown += len(page); len(page) < dc.MaxScanPage {
			break
		}
	}
	return b.Bytes(), nil
}

// ctlFile is the control file of a directory; the root's also sets what is the whole store's.
func ctlFile(s Store, k, path string) synth.File {
	spec := synth.CtlSpec{
		Commands: []synth.Command{{Name: "ephemeral", Usage: "[on|off]", Do: func(ctx context.Context, args []string) error {
			on, err := onOff(args)
			if err != nil {
				return err
			}
			return s.SetEphemeral(ctx, path, on)
		}}},
		Settings: func(ctx context.Context) ([]byte, error) { return settings(ctx, s, path) },
	}
	if path == "" {
		spec.Commands = []synth.Command{
			{Name: "compact", Usage: "REV", Do: func(ctx context.Context, args []string) error { return compact(ctx, s, args) }},
			{Name: "lock-delay", Usage: "DURATION", Do: func(ctx context.Context, args []string) error { return setDelay(ctx, s, args) }},
		}
	}
	return synth.Ctl(k, spec)
}

func settings(ctx context.Context, s Store, path string) ([]byte, error) {
	if path == "" {
		t, err := s.Totals(ctx)
		return fmt.Appendf(nil, "lock-delay %s\n", t.Delay), err
	}
	f, err := s.Stat(ctx, path)
	if err != nil {
		return nil, err
	}
	if f.Ephemeral {
		return []byte("ephemeral on\n"), nil
	}
	return []byte("ephemeral off\n"), nil
}

func onOff(args []string) (bool, error) {
	switch strings.Join(args, " ") {
	case "", "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, dc.Errorf(dc.Invalid, "", "", "want on or off, not %q", strings.Join(args, " "))
}

func compact(ctx context.Context, s Store, args []string) error {
	if len(args) != 1 {
		return dc.Errorf(dc.Invalid, "", "", "want one revision")
	}
	rev, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return dc.Errorf(dc.Invalid, "", "", "%q is not a revision", args[0])
	}
	return s.Compact(ctx, dc.Revision(rev))
}

func setDelay(ctx context.Context, s Store, args []string) error {
	if len(args) != 1 {
		return dc.Errorf(dc.Invalid, "", "", "want one duration, as 1s")
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return dc.Errorf(dc.Invalid, "", "", "%q is not a duration; say 1s or 500ms", args[0])
	}
	return s.SetDelay(ctx, d)
}
