package fs

import (
	"bytes"
	"context"
	"os/user"
	"strconv"

	"missingos/fs/synth"
	"missingos/srv/dc"
)

// newRoot makes the root directory: the rooms, data if there is one, and .dc.
func newRoot(cfg Config, door *synth.Door) synth.Dir {
	children := []synth.Named{{Name: ".dc", Node: newControl(cfg, door), Hidden: true}}
	for name, dir := range cfg.Rooms {
		children = append(children, synth.Named{Name: name, Node: dir})
	}
	return &root{Dir: synth.Static("dc", children...), data: cfg.Data != nil}
}

// root adds the entry of /dc/data, which is no synthetic file, to the listing.
type root struct {
	synth.Dir
	data bool
}

func (r *root) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	list, err := r.Dir.List(ctx, after, limit)
	if err != nil || !r.data || after >= dataName {
		return list, err
	}
	at := 0
	for at < len(list) && list[at].Name < dataName {
		at++
	}
	if at == limit {
		return list, nil
	}
	list = append(list, synth.DirEntry{})
	copy(list[at+1:], list[at:])
	list[at] = synth.DirEntry{Name: dataName, IsDir: true, Ino: DataRoot}
	return list[:min(len(list), limit)], nil
}

// newControl makes /dc/.dc.
func newControl(cfg Config, door *synth.Door) synth.Dir {
	stat := cfg.Stat
	if stat == nil {
		stat = func(context.Context) ([]synth.Pair, error) { return nil, nil }
	}
	commands := append([]synth.Command{{
		Name: "forget-errors",
		Do: func(ctx context.Context, _ []string) error {
			door.ForgetErrors(ctx)
			return nil
		},
	}}, cfg.Commands...)
	children := []synth.Named{
		{Name: "errors", Node: synth.Value(".dc/errors", synth.ValueSpec{Read: func(ctx context.Context) ([]byte, error) {
			var b bytes.Buffer
			for _, m := range door.Errors(ctx) {
				b.WriteString(m.String() + "\n")
			}
			return b.Bytes(), nil
		}})},
		{Name: "ctl", Node: synth.Ctl(".dc/ctl", synth.CtlSpec{Commands: commands})},
	}
	children = append(children, synth.StatusFiles("whoami", ".dc/whoami", whoami)...)
	children = append(children, synth.StatusFiles("stat", ".dc/stat", stat)...)
	return synth.Static(".dc", children...)
}

// whoami tells the principal that the reader speaks for.
func whoami(ctx context.Context) ([]synth.Pair, error) {
	p, ok := dc.PrincipalOf(ctx)
	if !ok {
		return nil, dc.Errorf(dc.Internal, "whoami", "", "the request has no principal")
	}
	name := strconv.FormatUint(uint64(p.UID), 10)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	pairs := []synth.Pair{{Key: "user", Value: name}, {Key: "uid", Value: p.UID}, {Key: "gid", Value: p.GID}, {Key: "node", Value: p.Node}}
	if p.Job != "" {
		pairs = append(pairs, synth.Pair{Key: "job", Value: p.Job})
	}
	return append(pairs, synth.Pair{Key: "pid", Value: p.PID}, synth.Pair{Key: "command", Value: p.Command}), nil
}
