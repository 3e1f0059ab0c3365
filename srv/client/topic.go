package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// TopicDescriptors is where topics' names and ids are kept; *Meta is one.
type TopicDescriptors interface {
	CreateDescriptor(ctx context.Context, kind, name string, mode uint32) (Descriptor, error)
	Descriptor(ctx context.Context, kind, name string) (Descriptor, error)
	Forget(kind, name string)
	ListDescriptors(ctx context.Context, kind, after string, limit int) ([]Descriptor, error)
	MarkDropping(ctx context.Context, kind string, id uint64) error
	RemoveDescriptor(ctx context.Context, kind string, id uint64) error
}

var _ TopicDescriptors = (*Meta)(nil)

// topicKind is the kind of topics' descriptors.
const topicKind = "topic"

// Topics is the front of /dc/topics: logs of messages and their consumer groups. It is safe for concurrent use.
type Topics struct {
	c    *Client
	meta TopicDescriptors
}

// NewTopics makes the front.
func NewTopics(c *Client, meta TopicDescriptors) *Topics { return &Topics{c: c, meta: meta} }

// Create makes a topic; dc.Exists if the name is taken.
func (t *Topics) Create(ctx context.Context, name string, mode uint32) (Descriptor, error) {
	d, err := t.meta.CreateDescriptor(ctx, topicKind, name, mode)
	return d, wrap(err, "topic.mkdir", name)
}

// Topic finds a topic; dc.NotFound if there is none.
func (t *Topics) Topic(ctx context.Context, name string) (Descriptor, error) {
	d, err := t.meta.Descriptor(ctx, topicKind, name)
	if err == nil && d.State != "ready" {
		err = dc.Errorf(dc.NotFound, "", "", "the topic is being dropped")
	}
	return d, wrap(err, "topic.lookup", name)
}

// List gives up to limit topics in name order, strictly after a name.
func (t *Topics) List(ctx context.Context, after string, limit int) ([]Descriptor, error) {
	all, err := t.meta.ListDescriptors(ctx, topicKind, after, limit)
	return all, wrap(err, "topic.list", "")
}

// Drop removes a topic with its messages and consumer groups; with onlyIfEmpty it is dc.NotEmpty if it has any. It may be repeated.
func (t *Topics) Drop(ctx context.Context, d Descriptor, onlyIfEmpty bool) error {
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		return c.Drop(ctx, &dcpb.TopicDropRequest{Header: h, Topic: d.ID, OnlyIfEmpty: onlyIfEmpty})
	})
	if err != nil && !errors.Is(err, dc.NotFound) { // not found: dropped before, but the descriptor is there
		return wrap(err, "topic.drop", d.Name)
	}
	t.meta.Forget(topicKind, d.Name)
	err = t.meta.MarkDropping(ctx, topicKind, d.ID)
	if errors.Is(err, dc.NotFound) {
		err = nil // swept already
	}
	return wrap(err, "topic.drop", d.Name)
}

// wrap gives an error an operation and a path unless it has one.
func wrap(err error, op, path string) error {
	if e, ok := errors.AsType[*dc.Error](err); ok && e.Op != "" && e.Path != "" {
		return err
	}
	return dc.Wrap(err, op, path)
}

// topicCall calls the leader of a topic. If the topic turns out to be dropped, its descriptor is on its way out, or whoever dropped it
// died before it said so; then this says it.
func topicCall[R any](ctx context.Context, t *Topics, d Descriptor, change bool, call func(context.Context, dcpb.TopicClient, *dcpb.Header) (R, error)) (R, error) {
	var out R
	do := t.c.Query
	if change {
		do = t.c.Mutate
	}
	err := do(ctx, d.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		out, err = call(ctx, dcpb.NewTopicClient(cc), h)
		return err
	})
	if errors.Is(err, dc.NotFound) {
		t.heal(ctx, d)
	}
	return out, err
}

// heal removes the descriptor of a topic that its group has dropped.
func (t *Topics) heal(ctx context.Context, d Descriptor) {
	err := t.c.Query(ctx, d.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewTopicClient(cc).Stat(ctx, &dcpb.TopicStatRequest{Header: h, Topic: d.ID})
		return err
	})
	if !errors.Is(err, dc.NotFound) {
		return
	}
	t.meta.Forget(topicKind, d.Name)
	if t.meta.MarkDropping(ctx, topicKind, d.ID) == nil {
		_ = t.meta.RemoveDescriptor(ctx, topicKind, d.ID) // the sweep of the group does it too
	}
}

// Publish appends messages, each a line with its newline, all at once. It gives the offset of the first and their number.
func (t *Topics) Publish(ctx context.Context, d Descriptor, lines []byte) (first, count uint64, err error) {
	r, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicPublishReply, error) {
		return c.Publish(ctx, &dcpb.TopicPublishRequest{Header: h, Topic: d.ID, Lines: lines})
	})
	return r.GetFirst(), r.GetCount(), wrap(err, "topic.publish", d.Name)
}

// TopicStat is how a topic stands.
type TopicStat struct {
	First, Next         uint64 // offsets: of the oldest message that is kept, and of the one that will come next
	FirstByte, NextByte int64  // of the log: where the oldest message begins, and where the next one will
	Groups              uint64
	Last                time.Time     // of the last publish; zero: none yet
	Retention           time.Duration // 0: messages are kept for ever
	RetentionBytes      uint64        // 0: any number
}

// Stat asks for it.
func (t *Topics) Stat(ctx context.Context, d Descriptor) (TopicStat, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicStatReply, error) {
		return c.Stat(ctx, &dcpb.TopicStatRequest{Header: h, Topic: d.ID})
	})
	st := TopicStat{
		First: r.GetFirstOffset(), Next: r.GetNextOffset(), FirstByte: int64(r.GetFirstByte()), NextByte: int64(r.GetBytes()), Groups: r.GetGroups(),
		Retention: time.Duration(r.GetRetentionMs()) * time.Millisecond, RetentionBytes: r.GetRetentionBytes(),
	}
	if r.GetLastMs() > 0 {
		st.Last = time.UnixMilli(r.LastMs)
	}
	return st, wrap(err, "topic.stat", d.Name)
}

// TopicRetention changes how much of a topic is kept; nil leaves it as it is.
type TopicRetention struct {
	Age   *time.Duration // 0: for ever
	Bytes *uint64        // 0: any number
}

// SetRetention says how much of a topic is kept: messages that are older, and the oldest of more bytes, are removed within seconds.
func (t *Topics) SetRetention(ctx context.Context, d Descriptor, keep TopicRetention) error {
	req := &dcpb.TopicSetRequest{Topic: d.ID, RetentionBytes: keep.Bytes}
	if keep.Age != nil {
		ms := keep.Age.Milliseconds()
		req.RetentionMs = &ms
	}
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		req.Header = h
		return c.Set(ctx, req)
	})
	return wrap(err, "topic.ctl", d.Name)
}

// Read reads up to maxBytes of the log from a byte on; less only at its end or for more than a MiB.
func (t *Topics) Read(ctx context.Context, d Descriptor, at int64, maxBytes int) ([]byte, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicReadReply, error) {
		return c.Read(ctx, &dcpb.TopicReadRequest{Header: h, Topic: d.ID, At: uint64(at), Max: uint32(maxBytes)})
	})
	return r.GetData(), wrap(err, "topic.read", d.Name)
}

// TopicMessage is one message.
type TopicMessage struct {
	Offset uint64
	Time   time.Time
	Value  []byte
}

func topicMessage(m *dcpb.TopicMessage) TopicMessage {
	return TopicMessage{Offset: m.GetOffset(), Time: time.UnixMilli(m.GetTimeMs()), Value: m.GetValue()}
}

// Fetch gives up to limit messages from an offset on, fewer if they are large; none only at the end of the log.
func (t *Topics) Fetch(ctx context.Context, d Descriptor, offset uint64, limit int) ([]TopicMessage, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicFetchReply, error) {
		return c.Fetch(ctx, &dcpb.TopicFetchRequest{Header: h, Topic: d.ID, Offset: offset, Max: uint32(limit)})
	})
	out := make([]TopicMessage, 0, len(r.GetMessages()))
	for _, m := range r.GetMessages() {
		out = append(out, topicMessage(m))
	}
	return out, wrap(err, "topic.fetch", d.Name)
}

// Find gives the offset of the first message published at a time or later.
func (t *Topics) Find(ctx context.Context, d Descriptor, at time.Time) (uint64, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicFindReply, error) {
		return c.Find(ctx, &dcpb.TopicFindRequest{Header: h, Topic: d.ID, TimeMs: at.UnixMilli()})
	})
	return r.GetOffset(), wrap(err, "topic.find", d.Name)
}

// topicSilence is how long a follower's stream may be silent before it is given up: leaders send a sign of life every 10 s.
const topicSilence = 25 * time.Second

// Follow calls fn with what the log holds from a byte on and with what is appended, in order, each byte once, over changes of leader. It
// ends when ctx does, when fn returns an error (which it returns), or when the topic is dropped.
func (t *Topics) Follow(ctx context.Context, d Descriptor, at int64, fn func(data []byte) error) error {
	return resume(ctx, "topic.follow", d.Name, func() (told bool, stopped, err error) {
		err = t.c.Stream(ctx, d.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			silence := time.AfterFunc(topicSilence, cancel)
			defer silence.Stop()
			st, err := dcpb.NewTopicClient(cc).Follow(ctx, &dcpb.TopicFollowRequest{Header: h, Topic: d.ID, At: uint64(at)})
			if err != nil {
				return err
			}
			for {
				msg, err := st.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return rpc.FromStatus(err)
				}
				silence.Reset(topicSilence)
				told = true
				if len(msg.Data) == 0 {
					continue
				}
				at += int64(len(msg.Data))
				if stopped = fn(msg.Data); stopped != nil {
					return dc.Errorf(dc.Interrupted, "topic.follow", d.Name, "%w", stopped)
				}
			}
		})
		return told, stopped, err
	})
}

// resume runs a stream again and again, with a pause between attempts that fail, until it ends for good.
func resume(ctx context.Context, op, path string, once func() (told bool, stopped, err error)) error {
	backoff := firstBackoff
	for {
		told, stopped, err := once()
		switch {
		case stopped != nil:
			return stopped
		case ctx.Err() != nil:
			return dc.Errorf(dc.KindOf(ctx.Err()), op, path, "%w", ctx.Err())
		case err != nil && !retriable(err) && dc.KindOf(err) != dc.Interrupted:
			return wrap(err, op, path)
		}
		if told {
			backoff = firstBackoff
		}
		if err := sleep(ctx, backoff); err != nil {
			return dc.Errorf(dc.KindOf(err), op, path, "%w", err)
		}
		backoff = min(2*backoff, maxBackoff)
	}
}
