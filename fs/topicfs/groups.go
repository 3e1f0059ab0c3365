package topicfs

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

// groups is the directory of a topic's consumer groups.
type groups struct{ topic }

var (
	_ synth.Mkdirer = groups{}
	_ synth.Rmdirer = groups{}
)

func (g groups) Key() string { return g.topic.Key() + "/groups" }

func (g groups) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if _, err := g.store.Group(ctx, g.d, name); err != nil {
		return nil, err
	}
	return g.dir(name), nil
}

func (g groups) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	names, err := g.store.Groups(ctx, g.d, after, min(limit, dc.MaxScanPage))
	if err != nil {
		return nil, err
	}
	out := make([]synth.DirEntry, 0, len(names))
	for _, name := range names {
		out = append(out, synth.DirEntry{Name: name, IsDir: true, Key: g.Key() + "/" + name})
	}
	return out, nil
}

func (g groups) Mkdir(ctx context.Context, name string, _ uint32) (synth.Node, error) {
	if err := g.store.CreateGroup(ctx, g.d, name); err != nil {
		return nil, err
	}
	return g.dir(name), nil
}

func (g groups) Rmdir(ctx context.Context, name string) error {
	return g.store.DropGroup(ctx, g.d, name)
}

// A group is a consumer group's directory.
type group struct {
	topic
	name string
	key  string
}

func (g groups) dir(name string) synth.Dir {
	c := group{g.topic, name, g.Key() + "/" + name}
	children := []synth.Named{
		{Name: "next", Node: c.stream("next", false)},
		{Name: "take", Node: c.stream("take", true)},
		{Name: "ack", Node: settleFile{c, "ack", client.TopicAck}},
		{Name: "nack", Node: settleFile{c, "nack", client.TopicNack}},
		{Name: "offset", Node: synth.Value(c.key+"/offset", synth.ValueSpec{Attr: g.fileAttr(0o666), Read: c.offset, Write: c.seek, Max: dc.MaxCtlBytes})},
		{Name: "lag", Node: synth.Value(c.key+"/lag", synth.ValueSpec{Attr: g.fileAttr(0o444), Read: c.lag})},
		{Name: "members", Node: synth.Value(c.key+"/members", synth.ValueSpec{Attr: g.fileAttr(0o444), Read: c.members})},
		{Name: "ctl", Node: c.ctl()},
	}
	children = append(children, synth.StatusFiles("stat", c.key+"/stat", c.stat)...)
	return synth.Static(c.key, children...)
}

func (c group) stream(name string, ids bool) synth.File {
	return synth.Stream(c.key+"/"+name, synth.StreamSpec{
		Attr: c.fileAttr(0o444),
		Open: func(ctx context.Context, _ uint32) (synth.Source, error) { return newReader(ctx, c, ids), nil },
	})
}

func (c group) stat(ctx context.Context) ([]synth.Pair, error) {
	g, err := c.store.Group(ctx, c.d, c.name)
	if err != nil {
		return nil, err
	}
	return []synth.Pair{
		{Key: "offset", Value: g.Offset},
		{Key: "next", Value: g.Next},
		{Key: "lag", Value: g.Lag},
		{Key: "in-flight", Value: g.InFlight},
		{Key: "returned", Value: g.Returned},
		{Key: "acknowledged", Value: g.Acked},
		{Key: "dead", Value: g.Dead},
		{Key: "expired", Value: g.Expired},
		{Key: "created", Value: g.Created},
	}, nil
}

func (c group) offset(ctx context.Context) ([]byte, error) {
	g, err := c.store.Group(ctx, c.d, c.name)
	return fmt.Appendf(nil, "%d\n", g.Offset), err
}

func (c group) lag(ctx context.Context) ([]byte, error) {
	g, err := c.store.Group(ctx, c.d, c.name)
	return fmt.Appendf(nil, "%d\n", g.Lag), err
}

// seek moves the group: earliest, latest, an offset or a time.
func (c group) seek(ctx context.Context, data []byte) error {
	word := strings.TrimSpace(string(data))
	if word == "" {
		return nil
	}
	var to client.TopicPosition
	n, err := strconv.ParseUint(word, 10, 64)
	switch {
	case err == nil:
		to.Offset = n
	case word == "earliest":
		to.Earliest = true
	case word == "latest":
		to.Latest = true
	default:
		if to.Time, err = parseTime(word); err != nil {
			return dc.Wrap(err, "topic.seek", c.d.Name+"/groups/"+c.name)
		}
	}
	return c.store.Seek(ctx, c.d, c.name, to)
}

func parseTime(word string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, word); err == nil {
		return t, nil
	}
	return time.Time{}, dc.Errorf(dc.Invalid, "", "", "want earliest, latest, an offset or a time as 2006-01-02T15:04:05Z, not %q", word)
}

// members lists the readers. Columns, by tabs: reader, node, pid, command, messages held, waiting or working, since.
func (c group) members(ctx context.Context) ([]byte, error) {
	all, err := c.store.Members(ctx, c.d, c.name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, m := range all {
		state := "working"
		if m.Waiting {
			state = "waiting"
		}
		fmt.Fprintf(&b, "%016x\t%s\t%d\t%s\t%d\t%s\t%s\n", m.Reader, m.Node, m.PID, strings.NewReplacer("\t", "%09", "\n", "%0A").Replace(m.Command),
			m.Leased, state, m.Since.UTC().Format(time.RFC3339))
	}
	return b.Bytes(), nil
}

func (c group) ctl() synth.File {
	one := func(args []string) (string, error) {
		if len(args) != 1 {
			return "", dc.Errorf(dc.Invalid, "", "", "want one word after the name")
		}
		return args[0], nil
	}
	set := func(s client.TopicSettings) func(context.Context) error {
		return func(ctx context.Context) error { return c.store.SetGroup(ctx, c.d, c.name, s) }
	}
	parse := func(fn func(word string) (func(context.Context) error, error)) func(context.Context, []string) error {
		return func(ctx context.Context, args []string) error {
			word, err := one(args)
			if err != nil {
				return err
			}
			do, err := fn(word)
			if err != nil {
				return err
			}
			return do(ctx)
		}
	}
	return synth.Ctl(c.key+"/ctl", synth.CtlSpec{
		Attr: c.fileAttr(0o666),
		Commands: []synth.Command{
			{Name: "visibility", Usage: "DURATION", Do: parse(func(word string) (func(context.Context) error, error) {
				d, err := time.ParseDuration(word)
				if err != nil {
					return nil, dc.Errorf(dc.Invalid, "", "", "%q is not a duration; say 30s or 5m", word)
				}
				return set(client.TopicSettings{Visibility: &d}), nil
			})},
			{Name: "max-deliveries", Usage: "N (0: no limit)", Do: parse(func(word string) (func(context.Context) error, error) {
				n, err := strconv.ParseUint(word, 10, 32)
				if err != nil {
					return nil, dc.Errorf(dc.Invalid, "", "", "%q is not a number", word)
				}
				limit := uint32(n)
				return set(client.TopicSettings{MaxDeliveries: &limit}), nil
			})},
			{Name: "dead-letter", Usage: "TOPIC (-: none)", Do: parse(func(word string) (func(context.Context) error, error) {
				if word == "-" {
					word = ""
				}
				return set(client.TopicSettings{DeadLetter: &word}), nil
			})},
		},
		Settings: func(ctx context.Context) ([]byte, error) {
			g, err := c.store.Group(ctx, c.d, c.name)
			if err != nil {
				return nil, err
			}
			letter := g.DeadLetter
			if letter == "" {
				letter = "-"
			}
			return fmt.Appendf(nil, "visibility %s\nmax-deliveries %d\ndead-letter %s\n", g.Visibility, g.MaxDeliveries, letter), nil
		},
	})
}

// A settleFile takes the ids of deliveries, one at the beginning of each line.
type settleFile struct {
	group
	name    string
	outcome client.TopicOutcome
}

func (f settleFile) Key() string { return f.group.key + "/" + f.name }

func (f settleFile) Attr(context.Context) (synth.Attr, error) { return f.fileAttr(0o222), nil }

func (f settleFile) Open(context.Context, uint32) (synth.Handle, error) { return settleHandle{f}, nil }

type settleHandle struct{ f settleFile }

// Write settles the deliveries of a write, all or none. A line may be one that was read from `take`: what follows the id means nothing.
func (h settleHandle) Write(ctx context.Context, data []byte, _ int64) (int, error) {
	var ids []client.TopicLease
	for line := range strings.Lines(string(data)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if word == "" {
			continue
		}
		id, err := parseID(word)
		if err != nil {
			return 0, dc.Wrap(err, "topic."+h.f.name, h.f.d.Name+"/groups/"+h.f.group.name)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return len(data), nil
	}
	return len(data), h.f.store.Settle(ctx, h.f.d, h.f.group.name, h.f.outcome, ids...)
}

func (h settleHandle) Release() {}

// idText is a delivery's id as `take` shows it.
func idText(id client.TopicLease) string { return fmt.Sprintf("%d-%d", id.Offset, id.Lease) }

func parseID(word string) (client.TopicLease, error) {
	offset, lease, ok := strings.Cut(word, "-")
	o, err1 := strconv.ParseUint(offset, 10, 64)
	l, err2 := strconv.ParseUint(lease, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return client.TopicLease{}, dc.Errorf(dc.Invalid, "", "", "%q is not an id; they are the first column of take, as 17-42", word)
	}
	return client.TopicLease{Offset: o, Lease: l}, nil
}
