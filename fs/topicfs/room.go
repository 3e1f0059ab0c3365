package topicfs

import (
	"context"
	"fmt"
	"time"

	"missingos/fs/synth"
	"missingos/srv/client"
	"missingos/srv/dc"
)

// Names is what the room needs to find topics.
type Names interface {
	Create(ctx context.Context, name string, mode uint32) (client.Descriptor, error)
	Topic(ctx context.Context, name string) (client.Descriptor, error)
	List(ctx context.Context, after string, limit int) ([]client.Descriptor, error)
	Drop(ctx context.Context, d client.Descriptor, onlyIfEmpty bool) error
}

// Logs is what it needs of logs.
type Logs interface {
	Publish(ctx context.Context, d client.Descriptor, lines []byte) (first, count uint64, err error)
	Stat(ctx context.Context, d client.Descriptor) (client.TopicStat, error)
	SetRetention(ctx context.Context, d client.Descriptor, keep client.TopicRetention) error
	Read(ctx context.Context, d client.Descriptor, at int64, maxBytes int) ([]byte, error)
	Fetch(ctx context.Context, d client.Descriptor, offset uint64, limit int) ([]client.TopicMessage, error)
	Find(ctx context.Context, d client.Descriptor, at time.Time) (uint64, error)
	Follow(ctx context.Context, d client.Descriptor, at int64, fn func(data []byte) error) error
}

// Groups is what it needs of consumer groups.
type Groups interface {
	CreateGroup(ctx context.Context, d client.Descriptor, group string) error
	DropGroup(ctx context.Context, d client.Descriptor, group string) error
	Groups(ctx context.Context, d client.Descriptor, after string, limit int) ([]string, error)
	Group(ctx context.Context, d client.Descriptor, group string) (client.TopicGroup, error)
	SetGroup(ctx context.Context, d client.Descriptor, group string, s client.TopicSettings) error
	Seek(ctx context.Context, d client.Descriptor, group string, to client.TopicPosition) error
	Take(ctx context.Context, d client.Descriptor, group string, reader uint64, count int, ack ...client.TopicLease) ([]client.TopicDelivery, error)
	Wait(ctx context.Context, d client.Descriptor, group string, reader uint64) error
	Settle(ctx context.Context, d client.Descriptor, group string, outcome client.TopicOutcome, ids ...client.TopicLease) error
	Members(ctx context.Context, d client.Descriptor, group string) ([]client.TopicMember, error)
}

// Store is all of /dc/topics; *client.Topics is one.
type Store interface {
	Names
	Logs
	Groups
}

var _ Store = (*client.Topics)(nil)

// controlName is the hidden directory of control files.
const controlName = ".dc"

// New gives the room's root directory: the topics.
func New(s Store) synth.Dir { return root{s} }

type root struct{ store Store }

var (
	_ synth.Mkdirer = root{}
	_ synth.Rmdirer = root{}
)

func (root) Key() string { return "topics" }

// Attr lets everybody make topics, and remove only their own, as in /tmp.
func (root) Attr(context.Context) (synth.Attr, error) {
	return synth.Attr{IsDir: true, Mode: 0o1777}, nil
}

func (r root) Lookup(ctx context.Context, name string) (synth.Node, error) {
	if name == controlName {
		return nil, dc.Errorf(dc.NotFound, "topic.lookup", name, "")
	}
	d, err := r.store.Topic(ctx, name)
	if err != nil {
		return nil, err
	}
	return topic{r.store, d}, nil
}

func (r root) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	var out []synth.DirEntry
	for len(out) < limit {
		page, err := r.store.List(ctx, after, limit-len(out))
		if err != nil {
			return nil, err
		}
		for _, d := range page {
			after = d.Name
			if d.State == "ready" {
				out = append(out, synth.DirEntry{Name: d.Name, IsDir: true, Key: topicKey(d)})
			}
		}
		if len(page) == 0 {
			break
		}
	}
	return out, nil
}

func (r root) Mkdir(ctx context.Context, name string, mode uint32) (synth.Node, error) {
	if name == controlName {
		return nil, dc.Errorf(dc.Exists, "topic.mkdir", name, "the name .dc is reserved for control files")
	}
	d, err := r.store.Create(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return topic{r.store, d}, nil
}

// Rmdir removes a topic that has neither messages nor consumer groups; `echo drop > .dc/ctl` removes any.
func (r root) Rmdir(ctx context.Context, name string) error {
	d, err := r.store.Topic(ctx, name)
	if err != nil {
		return err
	}
	return r.store.Drop(ctx, d, true)
}

func topicKey(d client.Descriptor) string { return fmt.Sprintf("topics/%d", d.ID) }

// A topic is a directory of the room.
type topic struct {
	store Store
	d     client.Descriptor
}

func (t topic) Key() string { return topicKey(t.d) }

func (t topic) Attr(context.Context) (synth.Attr, error) { return t.dirAttr(), nil }

func (t topic) dirAttr() synth.Attr {
	return synth.Attr{IsDir: true, Mode: t.d.Mode & 0o7777, UID: t.d.UID, GID: t.d.GID, ModTime: t.d.Created}
}

// fileAttr is a file of the topic: its owner's, with those of the permissions that the topic's directory has, too.
func (t topic) fileAttr(mode uint32) synth.Attr {
	return synth.Attr{Mode: mode & (t.d.Mode | 0o600), UID: t.d.UID, GID: t.d.GID, ModTime: t.d.Created}
}

func (t topic) children() synth.Dir {
	k := t.Key()
	return synth.Static(
		k,
		synth.Named{Name: "log", Node: t.log(k + "/log")},
		synth.Named{Name: "tail", Node: t.tail()},
		synth.Named{Name: "groups", Node: groups{t}},
		synth.Named{Name: "p", Node: synth.Static(
			k+"/p",
			synth.Named{Name: "0", Node: partition{t}},
		)},
		synth.Named{Name: controlName, Node: t.control(), Hidden: true},
	)
}

func (t topic) Lookup(ctx context.Context, name string) (synth.Node, error) {
	return t.children().Lookup(ctx, name)
}

func (t topic) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	return t.children().List(ctx, after, limit)
}

// A partition is a directory with a log of its own.
type partition struct{ topic }

func (p partition) Key() string { return p.topic.Key() + "/p/0" }

func (p partition) children() synth.Dir {
	return synth.Static(p.Key(), synth.Named{Name: "log", Node: p.log(p.Key() + "/log")})
}

func (p partition) Lookup(ctx context.Context, name string) (synth.Node, error) {
	return p.children().Lookup(ctx, name)
}

func (p partition) List(ctx context.Context, after string, limit int) ([]synth.DirEntry, error) {
	return p.children().List(ctx, after, limit)
}

// tail is the stream of what is published from the opening on.
func (t topic) tail() synth.File {
	return synth.Stream(t.Key()+"/tail", synth.StreamSpec{
		Attr: t.fileAttr(0o444),
		Open: func(ctx context.Context, _ uint32) (synth.Source, error) {
			st, err := t.store.Stat(ctx, t.d)
			if err != nil {
				return nil, err
			}
			return synth.Pipe(ctx, func(ctx context.Context, emit func([]byte) error) error {
				return t.store.Follow(ctx, t.d, st.NextByte, emit)
			}), nil
		},
	})
}
