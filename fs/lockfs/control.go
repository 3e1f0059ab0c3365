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
		{Name: "at", Node: &past{store: s, key: k + "/at", base: path}},
		{Name: "stale", Node: &viewDir{view: s.StaleView(), key: k + "/stale", path: path}},
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
		children = append(children, synth.StatusFiles("session", k+"/session", func(context.Context) ([]synth.Pair, error) { return standing(s), nil })...)
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
		{Key: "past-from", Value: uint64(t.PastFrom)},
	}, nil
}

// standing tells of the session of the node that is asked, from what it knows itself: it can be read while no leader answers.
func standing(s Store) []synth.Pair {
	x := s.Standing()
	out := []synth.Pair{
		{Key: "state", Value: string(x.State)},
		{Key: "session", Value: x.Session},
		{Key: "ttl", Value: x.TTL},
		{Key: "left", Value: x.Left.Round(time.Millisecond)},
		{Key: "users", Value: x.Users},
	}
	if x.Err != nil {
		out = append(out, synth.Pair{Key: "reason", Value: oneLine(x.Err.Error())})
	}
	return out
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
			{Name: "history-age", Usage: "DURATION|unlimited", Do: func(ctx context.Context, args []string) error { return setAge(ctx, s, args) }},
			{Name: "history-bytes", Usage: "SIZE|default", Do: func(ctx context.Context, args []string) error {
				n, err := bound(args, size)
				if err != nil {
					return err
				}
				return s.SetHistory(ctx, client.LockHistory{Bytes: &n})
			}},
			{Name: "history-revisions", Usage: "N|default", Do: func(ctx context.Context, args []string) error {
				n, err := bound(args, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) })
				if err != nil {
					return err
				}
				return s.SetHistory(ctx, client.LockHistory{Revisions: &n})
			}},
			{Name: "lock-delay", Usage: "DURATION", Do: func(ctx context.Context, args []string) error { return setDelay(ctx, s, args) }},
		}
	}
	return synth.Ctl(k, spec)
}

func settings(ctx context.Context, s Store, path string) ([]byte, error) {
	if path == "" {
		t, err := s.Totals(ctx)
		age := "unlimited"
		if t.HistoryAge > 0 {
			age = t.HistoryAge.String()
		}
		return fmt.Appendf(nil, "lock-delay %s\nhistory-age %s\nhistory-bytes %d\nhistory-revisions %d\n", t.Delay, age, t.MaxHistoryBytes, t.MaxHistoryRevisions), err
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

func setAge(ctx context.Context, s Store, args []string) error {
	var age time.Duration
	if len(args) != 1 {
		return dc.Errorf(dc.Invalid, "", "", "want one duration, as 24h, or unlimited")
	}
	if args[0] != "unlimited" {
		var err error
		if age, err = time.ParseDuration(args[0]); err != nil || age < time.Second {
			return dc.Errorf(dc.Invalid, "", "", "%q is not a duration of at least a second; say 24h or 90m", args[0])
		}
	}
	return s.SetHistory(ctx, client.LockHistory{Age: &age})
}

// bound reads one positive number; 0 stands for "default".
func bound(args []string, parse func(string) (uint64, error)) (uint64, error) {
	if len(args) != 1 {
		return 0, dc.Errorf(dc.Invalid, "", "", "want one number, or default")
	}
	if args[0] == "default" {
		return 0, nil
	}
	n, err := parse(args[0])
	if err != nil || n == 0 {
		return 0, dc.Errorf(dc.Invalid, "", "", "%q is not a number over 0; say default for the default", args[0])
	}
	return n, nil
}

// size reads bytes with K, M or G behind them, if any.
func size(s string) (uint64, error) {
	shift := 0
	if i := strings.IndexAny(s, "KMG"); i == len(s)-1 && i > 0 {
		shift = map[byte]int{'K': 10, 'M': 20, 'G': 30}[s[i]]
		s = s[:i]
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err == nil && n > (1<<63)>>shift {
		err = strconv.ErrRange
	}
	return n << shift, err
}
